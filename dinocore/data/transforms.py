"""Augment images and boxes for training (DETR's augmentation by default), or resize them for evaluation.

Every random choice comes from the generator that is passed in.
Sources: DETR, `datasets/coco.py` (https://arxiv.org/abs/2005.12872, appendix A.4); large-scale jitter,
https://arxiv.org/abs/2012.07177, appendix.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..boxes import to_cxcywh
from ..config import DataConfig
from ..structures import Target
from .batch import padded_size, resized, size_for_model

# an image (3, H, W), its boxes (T, 4) xyxy, and their labels (T,)
AnnotatedImage = tuple[tv_tensors.Image, tv_tensors.BoundingBoxes, Tensor]
to_tensor = F.pil_to_tensor  # an RGB image as (3, H, W) uint8


def annotated_image(image: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> AnnotatedImage:
    """Tell torchvision which tensor is an image and which are its boxes, in pixels."""
    image = tv_tensors.Image(image)
    height, width = image.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]  it sees torch.Tensor's __init__
        boxes_xyxy, format="XYXY", canvas_size=(height, width)
    )
    return image, boxes, labels


class Plan(NamedTuple):
    """What was drawn for one image, before its pixels are known."""

    region: tuple[float, float, float, float]  # what is cut out: left, top, right, bottom as shares of the image
    size: tuple[int, int]  # height and width to which it is resized
    flip: bool
    vertical_flip: bool
    colors: tuple[float, ...] = ()  # brightness, contrast, saturation, hue; none: unchanged

    def min_decode_size(self) -> tuple[int, int]:
        """Width and height of the whole image at which the region has its final size."""
        left, top, right, bottom = self.region
        height, width = self.size
        return math.ceil(width / (right - left)), math.ceil(height / (bottom - top))


def draw(size: tuple[int, int], config: DataConfig, rng: np.random.Generator) -> Plan:
    """The augmentation of an image of `size` (height, width).

    It is: flip; then scales and crop, or large-scale jitter; then colours. All but colours is one region and one size,
    so the pixels are resampled only once.
    """
    flip = bool(rng.random() < config.flip)
    vertical_flip = bool(rng.random() < config.vertical_flip)
    region, new_size = POLICIES[config.policy](size, config, rng)
    return Plan(region, new_size, flip, vertical_flip, _draw_colors(config.color_jitter, rng))


def _draw_detr(
    size: tuple[int, int], config: DataConfig, rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """DETR's: resize, or resize, cut out a part and resize again."""
    region = (0.0, 0.0, 1.0, 1.0)
    if rng.random() < config.crop_chance:
        most = 4 * config.max_size  # none in DETR; an image of 1 x 5000 pixels would become one of 400 x 2,000,000
        region, size = _draw_crop(resized(size, _choose(config.crop_scales, rng), most), config.crop_size, rng)
    return region, resized(size, _choose(config.train_scales, rng), config.max_size)


def _draw_lsj(
    size: tuple[int, int], config: DataConfig, rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Large-scale jitter: fit the image into a random multiple of a square, and cut the square out of it."""
    factor = rng.uniform(*config.lsj_scales) * config.lsj_size / max(size)
    scaled = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    return _draw_crop(scaled, (config.lsj_size, config.lsj_size), rng)


POLICIES = {"detr": _draw_detr, "lsj": _draw_lsj}


def largest_size(sizes: np.ndarray, config: DataConfig, images: int) -> tuple[int, int]:
    """Height and width of the largest batch that `draw` can lead to: of the largest image, or of what an upright and a
    lying one are padded to.

    Args:
        sizes: (N, 2) width and height of all images of the data.
        images: how many the batch has.
    """
    found = {size for w, h in np.unique(sizes, axis=0).tolist() for size in LARGEST[config.policy]((h, w), config)}
    found = {padded_size(*size, config) for size in found}
    if images == 1:
        return max(found, key=lambda size: size[0] * size[1])
    return max(h for h, _ in found), max(w for _, w in found)


def _largest_detr(size: tuple[int, int], config: DataConfig) -> set[tuple[int, int]]:
    short = max(config.train_scales)
    found = {resized(size, short, config.max_size)}
    if config.crop_chance:  # of any shape between the most upright and the most lying part
        least, most = config.crop_size
        found |= {resized(part, short, config.max_size) for part in ((least, most), (most, least))}
    return found


def _largest_lsj(size: tuple[int, int], config: DataConfig) -> set[tuple[int, int]]:
    factor = config.lsj_scales[1] * config.lsj_size / max(size)
    return {
        (min(config.lsj_size, max(1, round(size[0] * factor))), min(config.lsj_size, max(1, round(size[1] * factor))))
    }


LARGEST = {"detr": _largest_detr, "lsj": _largest_lsj}


def _draw_colors(most: tuple[float, float, float, float], rng: np.random.Generator) -> tuple[float, ...]:
    """Factors of brightness, contrast and saturation and a shift of hue; nothing is drawn if none is to change."""
    if not any(most):
        return ()
    low, high = np.array([1 - v for v in most[:3]] + [-most[3]]), np.array([1 + v for v in most[:3]] + [most[3]])
    return tuple(rng.uniform(low, high).tolist())


def _draw_crop(
    size: tuple[int, int], limits: tuple[int, int], rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """A random part of an image, each side between the limits and within the image: as shares, and its size."""
    least, most = limits
    height, width = size
    new_width = int(rng.integers(min(least, width), min(width, most) + 1))
    new_height = int(rng.integers(min(least, height), min(height, most) + 1))
    top = int(rng.integers(0, height - new_height + 1))
    left = int(rng.integers(0, width - new_width + 1))
    region = (left / width, top / height, (left + new_width) / width, (top + new_height) / height)
    return region, (new_height, new_width)


def apply(plan: Plan, annotated: AnnotatedImage, frame: Sequence[float]) -> AnnotatedImage:
    """Cut, resize and flip; objects outside the region are dropped and the others are clipped to it.

    Args:
        frame: what the plan's shares are of: left, top, right, bottom in pixels of the image, all of it or nearly so.
    """
    image, boxes, labels = annotated
    left, right = _whole_pixels(plan.region[0::2], frame[0::2], image.shape[-1])
    top, bottom = _whole_pixels(plan.region[1::2], frame[1::2], image.shape[-2])
    height, width = plan.size
    image = F.resize(image.as_subclass(Tensor)[:, top:bottom, left:right], [height, width], antialias=True)
    scale = torch.tensor([width / (right - left), height / (bottom - top)] * 2)
    boxes = (boxes.as_subclass(Tensor) - torch.tensor([left, top] * 2)) * scale
    boxes = boxes.clamp(torch.zeros(4), torch.tensor([width, height] * 2))  # (T, 4)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
    annotated = annotated_image(_recolor(image, plan.colors), boxes[seen], labels[seen])
    if plan.flip:
        annotated = _on_both(F.horizontal_flip, annotated)
    return _on_both(F.vertical_flip, annotated) if plan.vertical_flip else annotated


def _recolor(image: Tensor, colors: tuple[float, ...]) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order."""
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for change, amount in zip(changes, colors, strict=False):
        image = change(image, amount)
    return image


def _whole_pixels(shares: Sequence[float], frame: Sequence[float], length: int) -> tuple[int, int]:
    """Where a region begins and ends along one side of an image, at least one pixel apart."""
    begin, end = (round(frame[0] + share * (frame[1] - frame[0])) for share in shares)
    begin = min(begin, length - 1)
    return begin, min(max(end, begin + 1), length)


def resize_for_model(annotated: AnnotatedImage, config: DataConfig) -> AnnotatedImage:
    """Bring an image and its boxes to the size of evaluation."""
    size = size_for_model(annotated[0].shape[-2:], config)
    return _on_both(partial(F.resize, size=list(size), antialias=True), annotated)


def resize(annotated: AnnotatedImage, short: int, max_size: int | None) -> AnnotatedImage:
    """Bring the short side to `short`, or to less where the long side would exceed `max_size`."""
    size = resized(annotated[0].shape[-2:], short, max_size)
    return _on_both(partial(F.resize, size=list(size), antialias=True), annotated)


def as_target(annotated: AnnotatedImage, seed: int | None = None) -> Target:
    """Boxes in pixels to shares of the image."""
    image, boxes, labels = annotated
    height, width = image.shape[-2:]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return Target(labels, to_cxcywh(boxes.as_subclass(Tensor).float() / scale), seed)


def _choose(values: Sequence[int], rng: np.random.Generator) -> int:
    return int(values[int(rng.integers(len(values)))])


def _on_both(transform: Callable[[Tensor], Any], annotated: AnnotatedImage) -> AnnotatedImage:
    image, boxes, labels = annotated
    return transform(image), transform(boxes), labels
