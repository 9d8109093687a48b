"""What happens to a picture and its boxes before the model sees them: DETR's augmentation, and resizing alone.

Every random choice comes from the generator that is passed in.
Source: DETR, `datasets/coco.py` (https://arxiv.org/abs/2005.12872, appendix A.4).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..boxes import to_cxcywh
from ..config import DataConfig
from ..structures import Target

Picture = tuple[tv_tensors.Image, tv_tensors.BoundingBoxes, Tensor]  # image (3, H, W), boxes (T, 4) xyxy, labels (T,)


def as_picture(image: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> Picture:
    """Tell torchvision which tensor is an image and which are its boxes, in pixels."""
    image = tv_tensors.Image(image)
    height, width = image.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]  it sees torch.Tensor's __init__
        boxes_xyxy, format="XYXY", canvas_size=(height, width)
    )
    return image, boxes, labels


def augment(picture: Picture, config: DataConfig, rng: np.random.Generator) -> Picture:
    """Flip; then resize, or resize, cut out a part and resize again."""
    if rng.random() < config.flip:
        picture = _on_both(F.horizontal_flip, picture)
    if rng.random() < config.vertical_flip:
        picture = _on_both(F.vertical_flip, picture)
    if rng.random() < config.crop_chance:
        most = 4 * config.max_size  # none in DETR; a picture of 1 x 5000 pixels would become one of 400 x 2,000,000
        picture = resize(picture, _choose(config.crop_scales, rng), most)
        picture = crop(picture, config.crop_size, rng)
    return resize(picture, _choose(config.train_scales, rng), config.max_size)


def resize(picture: Picture, short: int, max_size: int | None) -> Picture:
    """Bring the short side to `short`, or to less where the long side would exceed `max_size`."""
    size = resized(picture[0].shape[-2:], short, max_size)
    return _on_both(partial(F.resize, size=list(size), antialias=True), picture)


def resized(size: Sequence[int], short: int, max_size: int | None) -> tuple[int, int]:
    """Height and width after `resize`; the long side is cut off to whole pixels, as in DETR."""
    height, width = size
    low, high = min(height, width), max(height, width)
    if max_size is not None and high / low * short > max_size:
        short = max(1, round(max_size * low / high))
    long = int(short * high / low)
    if short == 1 and max_size is not None:  # a ribbon, which DETR gives no height at all
        long = min(long, max_size)
    return (short, long) if height <= width else (long, short)


def crop(picture: Picture, limits: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Cut out a random part, each side between the limits and within the picture; objects outside are dropped."""
    least, most = limits
    height, width = picture[0].shape[-2:]
    new_width = int(rng.integers(min(least, width), min(width, most) + 1))
    new_height = int(rng.integers(min(least, height), min(height, most) + 1))
    top = int(rng.integers(0, height - new_height + 1))
    left = int(rng.integers(0, width - new_width + 1))
    cut = partial(F.crop, top=top, left=left, height=new_height, width=new_width)
    image, boxes, labels = _on_both(cut, picture)
    boxes = F.clamp_bounding_boxes(boxes)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return as_picture(image, boxes[seen], labels[seen])


def as_target(picture: Picture, seed: int | None = None) -> Target:
    """Boxes in pixels to shares of the picture."""
    image, boxes, labels = picture
    height, width = image.shape[-2:]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return Target(labels, to_cxcywh(boxes.as_subclass(Tensor).float() / scale), seed)


def _choose(values: Sequence[int], rng: np.random.Generator) -> int:
    return int(values[int(rng.integers(len(values)))])


def _on_both(transform: Callable[[Tensor], Any], picture: Picture) -> Picture:
    image, boxes, labels = picture
    return transform(image), transform(boxes), labels
