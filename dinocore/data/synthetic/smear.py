"""Draw images of blood smears: positions of cells, occlusion, and lighting."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinocore.data.synthetic.cells import (
    RBC,
    STANDARD_SIDE,
    Cell,
    Look,
    cloud,
    dirt,
    platelet,
    random_look,
    red_cell,
    white_cell,
)

MIN_VISIBLE = 0.5  # minimum visible fraction of a cell
MAX_COUNTS = (2, 6, 30)  # white cells, platelets, red cells in 640 x 480
ADJACENT_CHANCE = 0.3  # chance that a position tried for a red cell is next to another one
TRIES = 6  # positions tried for a cell before it is skipped


class Placed(NamedTuple):
    """A cell and the position of its patch's top left corner, which may be outside the image."""

    cell: Cell
    left: int
    top: int

    def window(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the image (rows, columns) under the patch, and that part of the patch."""
        rows, row_part = _overlap(self.top, self.cell.coverage.shape[0], size[1])
        columns, column_part = _overlap(self.left, self.cell.coverage.shape[1], size[0])
        return (rows, columns), (row_part, column_part)

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The extent of the cell within the image, including hidden parts: (x, y, w, h) in pixels."""
        (rows, columns), part = self.window(size)
        mask = self.cell.mask[part]
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return columns.start + int(xs[0]), rows.start + int(ys[0]), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1


def draw_smear(
    seed: int, index: int, size: tuple[int, int] = (640, 480)
) -> tuple[NDArray[np.uint8], list[int], NDArray[np.float64]]:
    """Draw image `index` of the series `seed`; `size` is (width, height). Cells scale with the short side.

    Objects of which less than half would be visible are not drawn.

    Returns:
        the image (H, W, 3), the labels (1 RBC, 2 WBC, 3 platelet), and the boxes (n, 4) as x, y, w, h in pixels. A box
        is the extent of the object's mask within the image, including hidden parts as in BCCD.
    """
    rng = np.random.default_rng((seed, index))
    look = random_look(rng, min(size) / STANDARD_SIDE)
    placed = _arrange(rng, look, size)
    image = _paint(rng, [*placed, *_scatter(rng, look, placed, size)], size)
    boxes = np.array([p.box(size) for p in placed], dtype=np.float64).reshape(-1, 4)
    return image, [p.cell.label for p in placed], boxes


def _arrange(rng: np.random.Generator, look: Look, size: tuple[int, int]) -> list[Placed]:
    """The cells of an image, lowest first. They are placed from the top down, so that none is hidden completely."""
    makers: tuple[Callable[[np.random.Generator, Look], Cell], ...] = (white_cell, platelet, red_cell)
    taken = np.zeros((size[1], size[0]), dtype=bool)
    placed: list[Placed] = []
    for maker, number in zip(makers, _counts(rng, look.scale, size), strict=True):
        for _ in range(number):
            cell = _place(rng, maker(rng, look), taken, placed)
            if cell:
                placed.append(cell)
    return placed[::-1]


def _counts(rng: np.random.Generator, scale: float, size: tuple[int, int]) -> tuple[int, int, int]:
    """The numbers of white cells, platelets and red cells to try to place; BCCD has 1.0, 1.0 and 11.5 per image."""
    area = size[0] * size[1] / (STANDARD_SIDE * 640 * scale**2)
    kind = rng.random()
    if kind > 0.97:
        return 0, 0, 0
    red = rng.uniform(0, 4) if kind > 0.91 else rng.gamma(9, 15 / 9)
    drawn = (round(area * rng.choice(3, p=[0.06, 0.84, 0.1])), rng.poisson(1.1 * area), rng.poisson(red * area))
    white, platelets, reds = (min(int(n), round(limit * area)) for n, limit in zip(drawn, MAX_COUNTS, strict=True))
    return white, platelets, reds


def _place(rng: np.random.Generator, cell: Cell, taken: NDArray[np.bool_], placed: list[Placed]) -> Placed | None:
    """Find a position where enough of the cell is visible, and mark it as taken; None after TRIES attempts.

    Red cells are often placed next to each other.
    """
    height, width = taken.shape
    patch = np.array(cell.coverage.shape[::-1])
    neighbours = [p for p in placed if p.cell.label == RBC == cell.label]
    # red cells fill the slide and may be cut off; the photographer centred the image on the other cells
    beyond = 0.1 if cell.label == RBC else 0.0
    for _ in range(TRIES):
        centre = rng.uniform(-beyond, 1 + beyond, 2) * (width, height)
        if neighbours and rng.random() < ADJACENT_CHANCE:
            other = neighbours[rng.integers(len(neighbours))]
            distance, angle = rng.uniform(0.62, 0.98) * patch.mean(), rng.uniform(0, 2 * np.pi)
            offset = distance * np.array([np.cos(angle), np.sin(angle)])
            centre = np.array([other.left, other.top]) + patch / 2 + offset
        candidate = Placed(cell, *(int(v) for v in np.rint(centre - patch / 2)))
        window, part = candidate.window((width, height))
        mask = cell.mask[part]
        if (mask & ~taken[window]).sum() >= MIN_VISIBLE * cell.mask.sum():
            taken[window] |= mask
            return candidate
    return None


def _scatter(rng: np.random.Generator, look: Look, placed: list[Placed], size: tuple[int, int]) -> list[Placed]:
    """Dirt, most of it on red cells, where the mounting medium leaves bubbles."""
    specks = []
    reds = [p for p in placed if p.cell.label == RBC]
    for _ in range(min(int(rng.geometric(0.35)) - 1, 8)):
        left, top = rng.uniform(0, 1, 2) * size
        if reds and rng.random() < 0.7:
            under = reds[rng.integers(len(reds))]
            left, top = rng.uniform(0.2, 0.7, 2) * under.cell.coverage.shape[::-1] + (under.left, under.top)
        specks.append(Placed(dirt(rng, look), int(left), int(top)))
    return specks


def _paint(rng: np.random.Generator, placed: list[Placed], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The image (H, W, 3) of light that passes through the cells, lowest first, onto a noisy sensor."""
    density = np.zeros((3, size[1], size[0]), dtype=np.float32)
    for item in placed:
        (rows, columns), (row_part, column_part) = item.window(size)
        beneath = density[:, rows, columns]
        beneath *= 1 - np.float32(item.cell.opacity) * item.cell.coverage[row_part, column_part]
        beneath += item.cell.density[:, row_part, column_part]
    image = np.exp(np.negative(density, out=density), out=density)
    for plane, light in zip(image, _light(rng), strict=True):
        plane *= np.asarray(Image.fromarray(light).resize(size, Image.Resampling.BICUBIC))
    # noise coarser than a pixel, as it is after JPEG compression
    image += cloud(rng, image.shape[1:], 1.6) * np.float32(rng.uniform(0.8, 3.0))
    return np.clip(image, 0, 255, out=image).astype(np.uint8).transpose(1, 2, 0).copy()


def _light(rng: np.random.Generator) -> NDArray[np.float32]:
    """The light through an empty slide, (3, 7, 9): pale, slightly uneven, and darker in the corners."""
    y, x = np.mgrid[-1:1:7j, -1:1:9j]
    colour = np.array([199, 201.5, 197]) * rng.uniform(0.97, 1.03) + rng.normal(0, [2, 1.5, 3])
    bright = 1 + x * rng.normal(0, 0.015) + y * rng.normal(0, 0.015) - rng.uniform(0, 0.03) * (x**2 + y**2)
    uneven = rng.normal(0, 0.005, (3, *bright.shape)) + rng.normal(0, 0.008, bright.shape)
    return (colour[:, None, None] * (bright + uneven)).astype(np.float32)


def _overlap(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """The overlap of [start, start + length) with [0, limit): as a slice of the image and one of the patch."""
    first, last = min(max(start, 0), limit), max(min(start + length, limit), 0)
    last = max(first, last)
    return slice(first, last), slice(first - start, last - start)
