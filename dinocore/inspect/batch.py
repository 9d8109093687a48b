"""Pictures as the model gets them, with their boxes, side by side."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..boxes import to_xyxy
from ..config import Config, ModelConfig
from ..data.annotations import Annotations
from ..data.batch import Batch, normalise
from ..data.loaders import Steps, begun, load_picture, training_steps
from ..draw.boxes import Box, class_color, draw_boxes

CELL = 320  # pixels, a side of a cell
GAP = 8
PADDING = (110, 110, 120)


class Cell(NamedTuple):
    """A picture with boxes."""

    image: np.ndarray  # (H, W, 3) uint8, padding included
    boxes_xyxy: np.ndarray  # (T, 4) in its pixels
    labels: list[int]
    file: str
    index: int
    epoch: int

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON has it."""
        height, width = self.image.shape[:2]
        objects = [
            {"label": names[label], "box_xyxy": [round(value, 3) for value in box]}
            for label, box in zip(self.labels, self.boxes_xyxy.tolist(), strict=True)
        ]
        facts = {"file": self.file, "index": self.index, "epoch": self.epoch, "width": width, "height": height}
        return facts | {"objects": objects}


def training_cells(annotations: Annotations, config: Config, start: int, steps: int) -> Iterator[Cell]:
    """The pictures of optimizer steps from `start` on, by the training's own loader, normalised for the model."""
    chunk = config.train.images_per_forward
    chunk = config.train.batch_size if isinstance(chunk, str) else chunk
    plan = Steps(len(annotations.image_ids), config.train.batch_size, config.train.seed, start, start + steps)
    loader = training_steps(annotations, config, chunk, start, start + steps)
    for wanted, batches in zip(plan, begun(loader), strict=True):
        for batch in batches:
            yield from _cells(batch, annotations, config.model, wanted[0][0])


def raw_cells(annotations: Annotations, config: Config, start: int, steps: int) -> Iterator[Cell]:
    """The same pictures as they are on disk, with the boxes that can be learned from."""
    usable = annotations.trainable(config.data.min_box_size)
    for wanted in Steps(len(annotations.image_ids), config.train.batch_size, config.train.seed, start, start + steps):
        for epoch, index in wanted:
            image, boxes, labels = load_picture(annotations, index, config.data, usable)
            pixels = image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy()  # (H, W, 3)
            name = annotations.path(index).name
            yield Cell(pixels, boxes.as_subclass(torch.Tensor).numpy(), labels.tolist(), name, index, epoch)


def _cells(batch: Batch, annotations: Annotations, model: ModelConfig, epoch: int) -> Iterator[Cell]:
    """From what the model gets back to pixels: normalised images times deviation plus mean, shares times sizes."""
    ready = normalise(batch, model.pixel_mean, model.pixel_std, torch.device("cpu"))
    mean, std = torch.tensor(model.pixel_mean), torch.tensor(model.pixel_std)
    for image, padding, target, index in zip(ready.images, ready.padding, ready.targets, ready.indices, strict=True):
        pixels = (image.permute(1, 2, 0) * std + mean).mul(255).round().clamp(0, 255).byte()  # (H, W, 3)
        pixels[padding] = torch.tensor(PADDING, dtype=torch.uint8)
        height, width = int((~padding[:, 0]).sum()), int((~padding[0]).sum())
        boxes = to_xyxy(target.boxes) * torch.tensor([width, height, width, height])  # (T, 4)
        name = annotations.path(index).name
        yield Cell(pixels.numpy(), boxes.numpy(), target.labels.tolist(), name, index, epoch)


def draw_grid(cells: Sequence[Cell], names: Sequence[str]) -> Image.Image:
    """All cells in rows, each with its file name under it."""
    columns = min(len(cells), max(1, math.ceil(math.sqrt(len(cells)))))
    rows = math.ceil(len(cells) / columns)
    grid = Image.new("RGB", (columns * (CELL + GAP) + GAP, rows * (CELL + GAP) + GAP), "white")
    for n, cell in enumerate(cells):
        picture = _draw_cell(cell, names)
        grid.paste(picture, (GAP + n % columns * (CELL + GAP), GAP + n // columns * (CELL + GAP)))
    return grid


def _draw_cell(cell: Cell, names: Sequence[str]) -> Image.Image:
    image = Image.fromarray(cell.image)
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    boxes = [
        Box(box, class_color(label), names[label])
        for box, label in zip((cell.boxes_xyxy * scale).tolist(), cell.labels, strict=True)
    ]
    return draw_boxes(image.resize(size), boxes)
