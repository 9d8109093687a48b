"""The cells of a generated blood smear, each in its own small patch.

A cell is drawn as the light that it absorbs: `density` is the optical density per colour, so the camera sees
light * exp(-density). Sizes and colours were chosen to match measurements on the training images of BCCD (640 x 480):
percentiles of box sizes, of the density of 960 isolated red cells from centre to edge, and of the colours of nuclei,
cytoplasm, platelets and empty slide.
"""

from cmath import rect
from math import ceil, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.floating]  # float32 at run time; the stubs of numpy see float64 after `array * float`
RBC, WBC, PLATELET = 1, 2, 3
COVERED = 0.15  # minimum coverage of a pixel of a cell: annotators include the soft edge in boxes
STANDARD_SIDE = 480  # short side of the images in which the sizes below were measured


class Look(NamedTuple):
    """Properties that all cells of an image have in common: lens, stain, donor."""

    scale: float  # 1 if the short side has 480 pixels
    softness: float  # width of an edge in pixels, from coverage 0 to 1
    red: Plane  # (3,) density of the body of a red cell
    rim: Plane  # (3,) density that the rim of a red cell adds
    violet: Plane  # (3,) density of a nucleus
    pallor: float  # depth of the dent in the middle of red cells, in [0, 1]
    size: float  # of the image's red cells, relative to the usual size


class Cell(NamedTuple):
    """A cell in its patch; `label` is its category in the dataset, 0 for dirt, which is not annotated."""

    label: int
    coverage: Plane  # (h, w) in [0, 1]
    density: Plane  # (3, h, w), channels first because numpy is several times slower along a last axis of 3
    opacity: float  # fraction of the density beneath that the cell hides

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels that belong to the cell, (h, w)."""
        return self.coverage >= COVERED


class WhiteCellKind(NamedTuple):
    """A type of white cell, by the lobes of its nucleus; pairs are ranges."""

    chance: float
    size: tuple[float, float]  # radius of the cell in pixels
    number: tuple[int, int]  # of lobes
    spread: float  # distance of lobes from the cell's centre, in radii of the cell
    radius: tuple[float, float]  # of lobes, in radii of the cell
    cytoplasm: tuple[float, float, float]  # density per colour
    grain: float  # contrast of the granules


WHITE_KINDS = (
    WhiteCellKind(0.62, (66, 112), (3, 5), 0.52, (0.24, 0.31), (0.07, 0.20, -0.02), 0.22),  # neutrophil
    WhiteCellKind(0.18, (48, 68), (1, 1), 0.08, (0.74, 0.92), (0.26, 0.36, -0.04), 0.12),  # lymphocyte
    WhiteCellKind(0.12, (62, 115), (2, 3), 0.50, (0.30, 0.37), (0.10, 0.42, 0.12), 0.32),  # eosinophil
    WhiteCellKind(0.08, (78, 118), (3, 3), 0.32, (0.36, 0.45), (0.17, 0.26, 0.00), 0.20),  # monocyte
)


def random_look(rng: np.random.Generator, scale: float) -> Look:
    """Draw the lens, stain and donor of an image. Source of the colours: BCCD, see above."""
    stain = rng.uniform(0.8, 1.3)
    warm = rng.uniform(0, 1)  # from greyish violet to brick red
    red = np.array([0.07 + 0.02 * warm, 0.21 + 0.01 * warm, 0.12 + 0.12 * warm])
    violet = np.array([0.47, 0.78, -0.05]) * rng.uniform(0.8, 1.35) + rng.normal(0, [0.06, 0.05, 0.03])
    blurred = rng.random() < 0.06
    return Look(
        scale=scale,
        softness=max(1.0, scale * (rng.uniform(12, 18) if blurred else rng.uniform(4, 10))),
        red=(stain * red).astype(np.float32),
        rim=(stain * rng.uniform(0.5, 1.2) * np.array([0.025, 0.045, 0.0])).astype(np.float32),
        violet=violet.astype(np.float32),
        pallor=rng.uniform(0.3, 1.0),
        size=rng.uniform(0.9, 1.08),
    )


def red_cell(rng: np.random.Generator, look: Look) -> Cell:
    """Draw a red cell: a soft disc, rarely a rod or a drop, paler in the middle, darker at the rim."""
    radius = look.scale * look.size * rng.normal(49, 4.2)
    stretch = 1 + min(rng.gamma(1.3, 0.11), 0.9)
    softness = look.softness * rng.uniform(0.8, 1.6)
    reach, position = _outline(rng, radius, stretch, 0.022, softness)
    coverage = _edge((1 - reach) * radius / softness)
    tilt = rng.normal(0, 0.10) + 1j * rng.normal(0, 0.10)
    middle = reach + (position * tilt.conjugate()).real
    # some cells are spheres, without a pale middle
    pallor = look.pallor * rng.uniform(0.6, 1.1) * (rng.random() < 0.85)
    dent = pallor * _edge((rng.uniform(0.3, 0.6) - middle) / rng.uniform(0.3, 0.6))
    body = coverage * (1 - dent) * rng.uniform(0.8, 1.25) * (1 + 0.05 * cloud(rng, coverage.shape, radius / 5))
    ridge = _bump(reach, 0.86, 0.13) * coverage * rng.uniform(0.4, 1.3)
    halo = _bump(reach, 1.07, 0.06) * -0.02  # light that the edge bends outwards
    density = _stained(body, look.red) + _stained(ridge, look.rim) + halo
    return Cell(RBC, coverage, density, opacity=rng.uniform(0.4, 0.85))


def white_cell(rng: np.random.Generator, look: Look) -> Cell:
    """Draw a white cell of one of four kinds: granular cytoplasm and a violet nucleus of one to five lobes."""
    chances = np.array([kind.chance for kind in WHITE_KINDS])
    kind = WHITE_KINDS[rng.choice(len(WHITE_KINDS), p=chances / chances.sum())]
    radius = look.scale * rng.uniform(*kind.size)
    softness = look.softness * rng.uniform(0.9, 1.6)
    reach, position = _outline(rng, radius, rng.uniform(1, 1.25), 0.026, softness)
    coverage = _edge((1 - reach) * radius / softness)
    coarse, fine = (cloud(rng, coverage.shape, look.scale * grain) for grain in (14, 4.5))
    wobble = 0.05 * coarse + 0.008 * fine
    nucleus = coverage * _edge((_lobe_field(rng, position, kind) - 0.5 + wobble) * radius / (2 * softness))
    tint = np.array(kind.cytoplasm, np.float32) * rng.uniform(0.6, 1.25) + 0.04 * look.violet
    plasma = (coverage - nucleus) * (1 + kind.grain * fine + 0.12 * coarse)
    chromatin = nucleus * (1 + 0.13 * coarse + 0.10 * fine)
    density = _stained(plasma, tint) + _stained(chromatin, look.violet)
    return Cell(WBC, coverage, density, opacity=0.93)


def platelet(rng: np.random.Generator, look: Look) -> Cell:
    """Draw a platelet: a small ragged violet spot, denser in the middle."""
    radius = look.scale * float(np.clip(rng.normal(17.5, 3.5), 10, 30))
    softness = look.softness * rng.uniform(1.2, 2.2)
    reach, _ = _outline(rng, radius, 1 + rng.gamma(1.5, 0.12), 0.08, softness)
    coverage = _edge((1 - reach) * radius / softness)
    core = _bump(reach, 0.1, 0.6) * rng.uniform(0.3, 0.9) + 0.4
    body = coverage * core * (1 + 0.3 * cloud(rng, coverage.shape, radius / 3)) * rng.uniform(0.35, 0.9)
    stain = look.violet * np.array([1, rng.uniform(0.55, 0.85), 1], np.float32)  # bluer than a nucleus
    return Cell(PLATELET, coverage, _stained(body, stain), opacity=0.3)


def dirt(rng: np.random.Generator, look: Look) -> Cell:
    """Draw dirt, as on every slide: a dark ring with a bright middle, or a grey smudge."""
    ring = rng.random() < 0.7
    radius = look.scale * (rng.uniform(4, 11) if ring else rng.uniform(9, 20))
    softness = look.softness * (1.2 if ring else 2.5)
    reach, _ = _outline(rng, radius, rng.uniform(1, 1.6), 0.05, softness)
    coverage = _edge((1 - reach) * radius / softness)
    dark = _bump(reach, 0.75, 0.3) - 0.5 * _bump(reach, 0, 0.4) if ring else 0.4 * coverage
    tint = np.array([0.26, 0.42, 0.20] if ring else [0.42, 0.42, 0.36], np.float32) * rng.uniform(0.3, 1.2)
    return Cell(0, coverage, _stained(dark * coverage, tint), opacity=0.0)


def cloud(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> Plane:
    """A smooth random texture of `shape` (h, w), with blobs about `grain` pixels wide, mean 0 and deviation about 1."""
    height, width = shape
    coarse = rng.standard_normal((ceil(height / grain) + 2, ceil(width / grain) + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _outline(
    rng: np.random.Generator, radius: float, stretch: float, roughness: float, softness: float
) -> tuple[Plane, NDArray[np.complex64]]:
    """Draw an outline.

    Returns:
        for each pixel, the distance from the centre (1 on the outline) and the position as a complex number in radii,
        both (h, w).
    """
    half = ceil(radius * sqrt(stretch) * (1 + 4 * roughness) + softness)
    axis = np.arange(-half, half + 1, dtype=np.float32) / np.float32(radius)
    shift, turn = rng.uniform(-0.5, 0.5, 2) / radius, rect(1, rng.uniform(0, 2 * pi))
    across, down = (axis + shift[0]).astype(np.complex64), (axis + shift[1]).astype(np.complex64)
    position = across * turn + (down * (1j * turn))[:, None]
    x2, y2 = position.real**2, position.imag**2
    direction = position * (1 / np.sqrt(x2 + y2 + np.float32(1e-9)))
    distance = np.sqrt(x2 / np.float32(stretch) + y2 * np.float32(stretch))
    waves = rng.normal(0, roughness, (4, 2)) / np.array([1, 1.2, 1.8, 2.5])[:, None]
    edge, wave = np.float32(1), direction
    for cosine, sine in waves.astype(np.float32):
        wave = wave * direction  # starts with the second wave, because the first one only moves the centre
        edge = edge + cosine * wave.real + sine * wave.imag
    return distance / np.maximum(edge, np.float32(0.3)), position


def _lobe_field(rng: np.random.Generator, position: NDArray[np.complex64], kind: WhiteCellKind) -> Plane:
    """A sum of round bumps along an arc, (h, w). The outline is at 0.5, so close lobes merge."""
    number = int(rng.integers(kind.number[0], kind.number[1] + 1))
    arc = rng.uniform(0, 2 * pi) + np.arange(number) * (rng.uniform(4.2, 5.6) / max(number, 3))
    centres = rng.normal(kind.spread, 0.06, number) * np.exp(1j * arc) + rng.normal(0, 0.04, (number, 2)) @ [1, 1j]
    radii = rng.uniform(*kind.radius, number)
    field = np.zeros(position.shape, np.float32)
    for centre, radius in zip(centres.astype(np.complex64), radii.astype(np.float32), strict=True):
        offset = position - centre
        field += np.exp2(-(offset.real**2 + offset.imag**2) / radius**2)
    return field


def _edge(distance: Plane) -> Plane:
    """A soft step from 0 to 1 as `distance` grows from -0.5 to 0.5."""
    rise = np.clip(distance + np.float32(0.5), 0, 1)
    return rise * rise * (3 - 2 * rise)


def _bump(value: Plane, centre: float, width: float) -> Plane:
    return np.exp(-(((value - np.float32(centre)) / np.float32(width)) ** 2))


def _stained(thickness: Plane, stain: Plane) -> Plane:
    """The density per colour, (3, h, w), of a stain (3,) with a `thickness` (h, w)."""
    return stain[:, None, None] * thickness
