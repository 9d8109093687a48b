"""The cells of a generated blood smear, each in its own small patch.

A cell is what it takes from the light: `density` is the optical density per colour, so that light * exp(-density) is
what the camera sees. Numbers for sizes and colours were chosen so that what we measured on the training images of
BCCD (640 x 480) comes out alike: percentiles of box sizes, of the density of 960 lone red cells from centre to edge,
and of the colours of nuclei, cytoplasm, platelets and empty slide.
"""

from cmath import rect
from math import ceil, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.floating]  # float32 at run time; the stubs of numpy see float64 after `array * float`
RBC, WBC, PLATELET = 1, 2, 3
COVERED = 0.15  # a pixel belongs to a cell from this coverage on: annotators box the soft edge too
STANDARD_SIDE = 480  # the shorter side of the images in which the sizes below were measured


class Look(NamedTuple):
    """What all cells of one image share: lens, stain, donor."""

    scale: float  # 1 where the shorter side has 480 pixels
    softness: float  # pixels that an edge takes from none to all
    red: Plane  # (3,) density of the body of a red cell
    rim: Plane  # (3,) what the rim of a red cell adds
    violet: Plane  # (3,) density of a nucleus
    pallor: float  # how deep the middle of red cells is dented, in [0, 1]
    size: float  # of this image's red cells, 1 is usual


class Cell(NamedTuple):
    """One cell in its patch; `label` is its category in the dataset, 0 for dirt that nobody annotates."""

    label: int
    coverage: Plane  # (h, w) in [0, 1]
    density: Plane  # (3, h, w), planes because numpy is several times slower along a last axis of 3
    opacity: float  # share of what lies beneath that it hides

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels that belong to the cell, (h, w)."""
        return self.coverage >= COVERED


class Lobes(NamedTuple):
    """How the nucleus of one kind of white cell is built, in radii of the cell."""

    chance: float
    size: tuple[float, float]  # of the cell, in pixels
    number: tuple[int, int]
    spread: float  # from the cell's centre to a lobe
    radius: tuple[float, float]
    cytoplasm: tuple[float, float, float]
    grain: float  # contrast of the granules


WHITE_KINDS = (
    Lobes(0.62, (66, 112), (3, 5), 0.52, (0.24, 0.31), (0.07, 0.20, -0.02), 0.22),  # neutrophil
    Lobes(0.18, (48, 68), (1, 1), 0.08, (0.74, 0.92), (0.26, 0.36, -0.04), 0.12),  # lymphocyte
    Lobes(0.12, (62, 115), (2, 3), 0.50, (0.30, 0.37), (0.10, 0.42, 0.12), 0.32),  # eosinophil
    Lobes(0.08, (78, 118), (3, 3), 0.32, (0.36, 0.45), (0.17, 0.26, 0.00), 0.20),  # monocyte
)


def random_look(rng: np.random.Generator, scale: float) -> Look:
    """Lens, stain and donor of one image. Source of the colours: BCCD, see above."""
    stain = rng.uniform(0.8, 1.3)
    warm = rng.uniform(0, 1)  # from greyish violet cells to brick-red ones
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
    """A red cell: a soft disc, seldom a rod or a drop, paler in the middle, darker at the rim."""
    radius = look.scale * look.size * rng.normal(49, 4.2)
    stretch = 1 + min(rng.gamma(1.3, 0.11), 0.9)
    softness = look.softness * rng.uniform(0.8, 1.6)
    reach, place = _outline(rng, radius, stretch, 0.022, softness)
    coverage = _edge((1 - reach) * radius / softness)
    tilt = rng.normal(0, 0.10) + 1j * rng.normal(0, 0.10)
    middle = reach + (place * tilt.conjugate()).real
    pallor = look.pallor * rng.uniform(0.6, 1.1) * (rng.random() < 0.85)  # some cells are spheres and have none
    dent = pallor * _edge((rng.uniform(0.3, 0.6) - middle) / rng.uniform(0.3, 0.6))
    body = coverage * (1 - dent) * rng.uniform(0.8, 1.25) * (1 + 0.05 * cloud(rng, coverage.shape, radius / 5))
    ridge = _bump(reach, 0.86, 0.13) * coverage * rng.uniform(0.4, 1.3)
    halo = _bump(reach, 1.07, 0.06) * -0.02  # light that the edge bends outwards
    density = _stained(body, look.red) + _stained(ridge, look.rim) + halo
    return Cell(RBC, coverage, density, opacity=rng.uniform(0.4, 0.85))


def white_cell(rng: np.random.Generator, look: Look) -> Cell:
    """A white cell of one of four kinds: granular cytoplasm and a violet nucleus of one to five lobes."""
    chances = np.array([kind.chance for kind in WHITE_KINDS])
    kind = WHITE_KINDS[rng.choice(len(WHITE_KINDS), p=chances / chances.sum())]
    radius = look.scale * rng.uniform(*kind.size)
    softness = look.softness * rng.uniform(0.9, 1.6)
    reach, place = _outline(rng, radius, rng.uniform(1, 1.25), 0.026, softness)
    coverage = _edge((1 - reach) * radius / softness)
    coarse, fine = (cloud(rng, coverage.shape, look.scale * grain) for grain in (14, 4.5))
    wobble = 0.05 * coarse + 0.008 * fine
    nucleus = coverage * _edge((_lobes(rng, place, kind) - 0.5 + wobble) * radius / (2 * softness))
    tint = np.array(kind.cytoplasm, np.float32) * rng.uniform(0.6, 1.25) + 0.04 * look.violet
    plasma = (coverage - nucleus) * (1 + kind.grain * fine + 0.12 * coarse)
    chromatin = nucleus * (1 + 0.13 * coarse + 0.10 * fine)
    density = _stained(plasma, tint) + _stained(chromatin, look.violet)
    return Cell(WBC, coverage, density, opacity=0.93)


def platelet(rng: np.random.Generator, look: Look) -> Cell:
    """A platelet: a small ragged violet spot, denser in its middle."""
    radius = look.scale * float(np.clip(rng.normal(17.5, 3.5), 10, 30))
    softness = look.softness * rng.uniform(1.2, 2.2)
    reach, _ = _outline(rng, radius, 1 + rng.gamma(1.5, 0.12), 0.08, softness)
    coverage = _edge((1 - reach) * radius / softness)
    core = _bump(reach, 0.1, 0.6) * rng.uniform(0.3, 0.9) + 0.4
    body = coverage * core * (1 + 0.3 * cloud(rng, coverage.shape, radius / 3)) * rng.uniform(0.35, 0.9)
    stain = look.violet * np.array([1, rng.uniform(0.55, 0.85), 1], np.float32)  # bluer than a nucleus
    return Cell(PLATELET, coverage, _stained(body, stain), opacity=0.3)


def dirt(rng: np.random.Generator, look: Look) -> Cell:
    """What lies on every slide and is no cell: a dark ring with a bright middle, or a grey smudge."""
    ring = rng.random() < 0.7
    radius = look.scale * (rng.uniform(4, 11) if ring else rng.uniform(9, 20))
    softness = look.softness * (1.2 if ring else 2.5)
    reach, _ = _outline(rng, radius, rng.uniform(1, 1.6), 0.05, softness)
    coverage = _edge((1 - reach) * radius / softness)
    dark = _bump(reach, 0.75, 0.3) - 0.5 * _bump(reach, 0, 0.4) if ring else 0.4 * coverage
    tint = np.array([0.26, 0.42, 0.20] if ring else [0.42, 0.42, 0.36], np.float32) * rng.uniform(0.3, 1.2)
    return Cell(0, coverage, _stained(dark * coverage, tint), opacity=0.0)


def cloud(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> Plane:
    """Smooth random texture of `shape` (h, w) with blobs about `grain` pixels wide, mean 0, spread about 1."""
    height, width = shape
    coarse = rng.standard_normal((ceil(height / grain) + 2, ceil(width / grain) + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _outline(
    rng: np.random.Generator, radius: float, stretch: float, roughness: float, softness: float
) -> tuple[Plane, NDArray[np.complex64]]:
    """Distance from the centre (1 on the outline), and the place as a complex number in radii, both (h, w)."""
    half = ceil(radius * sqrt(stretch) * (1 + 4 * roughness) + softness)
    axis = np.arange(-half, half + 1, dtype=np.float32) / np.float32(radius)
    shift, turn = rng.uniform(-0.5, 0.5, 2) / radius, rect(1, rng.uniform(0, 2 * pi))
    across, down = (axis + shift[0]).astype(np.complex64), (axis + shift[1]).astype(np.complex64)
    place = across * turn + (down * (1j * turn))[:, None]
    x2, y2 = place.real**2, place.imag**2
    direction = place * (1 / np.sqrt(x2 + y2 + np.float32(1e-9)))
    distance = np.sqrt(x2 / np.float32(stretch) + y2 * np.float32(stretch))
    waves = rng.normal(0, roughness, (4, 2)) / np.array([1, 1.2, 1.8, 2.5])[:, None]
    edge, wave = np.float32(1), direction
    for cosine, sine in waves.astype(np.float32):
        wave = wave * direction  # the first wave only moves the centre, so begin with the second
        edge = edge + cosine * wave.real + sine * wave.imag
    return distance / np.maximum(edge, np.float32(0.3)), place


def _lobes(rng: np.random.Generator, place: NDArray[np.complex64], kind: Lobes) -> Plane:
    """Sum of round bumps along a bow, (h, w); 0.5 is the outline, so that near lobes grow together."""
    number = int(rng.integers(kind.number[0], kind.number[1] + 1))
    bow = rng.uniform(0, 2 * pi) + np.arange(number) * (rng.uniform(4.2, 5.6) / max(number, 3))
    centres = rng.normal(kind.spread, 0.06, number) * np.exp(1j * bow) + rng.normal(0, 0.04, (number, 2)) @ [1, 1j]
    radii = rng.uniform(*kind.radius, number)
    field = np.zeros(place.shape, np.float32)
    for centre, radius in zip(centres.astype(np.complex64), radii.astype(np.float32), strict=True):
        away = place - centre
        field += np.exp2(-(away.real**2 + away.imag**2) / radius**2)
    return field


def _edge(distance: Plane) -> Plane:
    """A soft step from 0 to 1 as `distance` grows from -0.5 to 0.5."""
    rise = np.clip(distance + np.float32(0.5), 0, 1)
    return rise * rise * (3 - 2 * rise)


def _bump(value: Plane, centre: float, width: float) -> Plane:
    return np.exp(-(((value - np.float32(centre)) / np.float32(width)) ** 2))


def _stained(thickness: Plane, stain: Plane) -> Plane:
    """Density per colour, (3, h, w), of a stain (3,) that lies `thickness` (h, w) deep."""
    return stain[:, None, None] * thickness
