"""Training batches: images with their boxes, as stored and as the model sees them, and the objects for a mask."""

import itertools
import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..boxes import to_cxcywh, to_pixels
from ..config import Config
from ..data.annotations import Annotations
from ..data.batch import normalise
from ..data.loaders import Steps, load_annotated, start_workers, training_steps, usable_objects
from ..draw.boxes import Box, class_color, draw_boxes
from ..errors import DataError
from ..structures import Target
from ..system.device import pick_device
from ..train.batches import micro_batch_size
from .mask.mask import MaskBatch

CELL = 320  # side of a cell in pixels
GAP = 8
PADDING_COLOR = (110, 110, 120)


class BatchImage(NamedTuple):
    """An image of a batch, with its boxes."""

    image: np.ndarray  # (H, W, 3) uint8, padding included
    boxes_xyxy: np.ndarray  # (T, 4) in its pixels
    labels: list[int]
    file: str
    index: int
    epoch: int

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """For JSON."""
        height, width = self.image.shape[:2]
        objects = [
            {"label": names[label], "box_xyxy": [round(value, 3) for value in box]}
            for label, box in zip(self.labels, self.boxes_xyxy.tolist(), strict=True)
        ]
        facts = {"file": self.file, "index": self.index, "epoch": self.epoch, "width": width, "height": height}
        return facts | {"objects": objects}


def training_cells(annotations: Annotations, config: Config, start: int, steps: int) -> Iterator[BatchImage]:
    """The images of `steps` optimizer steps from `start` on, from the training loader, as the model sees them."""
    model = config.model
    mean, std = torch.tensor(model.pixel_mean), torch.tensor(model.pixel_std)
    plan = Steps(len(annotations.image_ids), config.train.batch_size, config.train.seed, start, start + steps)
    # the size that `dino train` uses on this machine with one rank
    size = micro_batch_size(config.train, pick_device("auto"))
    loader = training_steps(annotations, config, size, start, start + steps)
    for ((epoch, _), *_), batches in zip(plan, start_workers(loader), strict=True):
        for batch in batches:
            ready = normalise(batch, model.pixel_mean, model.pixel_std, torch.device("cpu"))
            columns = (ready.images, ready.padding, ready.targets, ready.indices)
            for image, padding, target, index in zip(*columns, strict=True):
                pixels = (image.permute(1, 2, 0) * std + mean).mul(255).round().clamp(0, 255).byte()  # (H, W, 3)
                pixels[padding] = torch.tensor(PADDING_COLOR, dtype=torch.uint8)
                size = int((~padding[:, 0]).sum()), int((~padding[0]).sum())
                yield _cell(annotations, index, epoch, pixels, to_pixels(target.boxes, size), target.labels)


def raw_cells(annotations: Annotations, config: Config, start: int, steps: int) -> Iterator[BatchImage]:
    """The same images as stored, without augmentation, with the boxes used for training."""
    usable = annotations.trainable(config.data.min_box_size)
    for items in Steps(len(annotations.image_ids), config.train.batch_size, config.train.seed, start, start + steps):
        for epoch, index in items:
            image, boxes, labels = load_annotated(annotations, index, config.data, usable)
            pixels = image.as_subclass(Tensor).permute(1, 2, 0)  # (H, W, 3)
            yield _cell(annotations, index, epoch, pixels, boxes.as_subclass(Tensor), labels)


def _cell(
    annotations: Annotations, index: int, epoch: int, pixels: Tensor, boxes_xyxy: Tensor, labels: Tensor
) -> BatchImage:  # fmt: skip
    name = annotations.path(index).name
    return BatchImage(pixels.numpy(), boxes_xyxy.numpy(), labels.tolist(), name, index, epoch)


def draw_grid(cells: Sequence[BatchImage], names: Sequence[str]) -> Image.Image:
    """Images with their boxes, in a grid; a row is as high as its highest image."""
    columns = max(1, math.ceil(math.sqrt(len(cells))))
    rows = [[_draw_cell(cell, names) for cell in cells[n : n + columns]] for n in range(0, len(cells), columns)]
    tops = list(itertools.accumulate((GAP + max(image.height for image in row) for row in rows), initial=GAP))
    grid = Image.new("RGB", (columns * (CELL + GAP) + GAP, tops[-1]), "white")
    for top, row in zip(tops, rows, strict=False):
        for n, image in enumerate(row):
            grid.paste(image, (GAP + n * (CELL + GAP), top))
    return grid


def _draw_cell(cell: BatchImage, names: Sequence[str]) -> Image.Image:
    """An image with its boxes; its longer side has CELL pixels."""
    image = Image.fromarray(cell.image)
    scale = CELL / max(image.size)
    scaled = zip((cell.boxes_xyxy * scale).tolist(), cell.labels, strict=True)
    boxes = [Box(box, class_color(label), names[label]) for box, label in scaled]
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return draw_boxes(image.resize(size), boxes)


def first_batch(annotations: Annotations, config: Config) -> MaskBatch:
    """The first micro-batch of `dino train`, with the objects that remain after cropping."""
    without_workers = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})
    size = micro_batch_size(config.train, pick_device("auto"))
    batch = next(iter(training_steps(annotations, without_workers, size, 0, 1)))[0]
    files = [annotations.path(index).name for index in batch.indices]
    return MaskBatch(batch.targets, files, [_names(annotations, target) for target in batch.targets])


def named_batch(splits: Sequence[Annotations], images: Sequence[str], config: Config) -> MaskBatch:
    """A batch of these images without augmentation, with all their trainable objects.

    Raises:
        DataError: none of the splits has an image of this name.
    """
    targets, files, names = [], [], []
    for image in images:
        annotations, index = _find(splits, image)
        boxes, labels = usable_objects(annotations, index, annotations.trainable(config.data.min_box_size))
        size = torch.from_numpy(annotations.sizes[index]).tile(2)
        targets.append(Target(labels, to_cxcywh(boxes / size), seed=0))
        files.append(annotations.path(index).name)
        names.append(_names(annotations, targets[-1]))
    return MaskBatch(targets, files, names)


def _names(annotations: Annotations, target: Target) -> list[str]:
    return [annotations.categories[label].name for label in target.labels.tolist()]


def _find(splits: Sequence[Annotations], image: str) -> tuple[Annotations, int]:
    """The split that contains an image, given by name or path, and the image's index in that split."""
    known = []
    for annotations in splits:
        paths = [annotations.path(index) for index in range(len(annotations.image_ids))]
        for index, path in enumerate(paths):
            if path.name == Path(image).name and (path.name == image or path.resolve() == Path(image).resolve()):
                return annotations, index
        known += [path.name for path in paths]
    near = get_close_matches(Path(image).name, known, n=1) or known[:1]
    files = " and ".join(str(annotations.file) for annotations in splits)
    raise DataError(f"--images {image}: not in {files}" + (f"; they have {near[0]}" if near else ""))
