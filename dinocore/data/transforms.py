"""Augment images and boxes for training (with DETR's augmentation by default), or resize them for evaluation.

All random numbers come from the generator that is passed in.
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
    """Wrap an image and its boxes in pixels as torchvision's tensor types, so that its transforms know them."""
    image = tv_tensors.Image(image)
    height, width = image.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]  it sees torch.Tensor's __init__
        boxes_xyxy, format="XYXY", canvas_size=(height, width)
    )
    return image, boxes, labels


class Plan(NamedTuple):
    """The random augmentation of an image, which is drawn before the image is decoded."""

    region: tuple[float, float, float, float]  # crop: left, top, right, bottom as fractions of the image
    size: tuple[int, int]  # height and width to which the crop is resized
    flip: bool
    vertical_flip: bool
    colors: tuple[float, ...] = ()  # brightness, contrast, saturation, hue; empty: unchanged

    def min_decode_size(self) -> tuple[int, int]:
        """Width and height of the whole image at which the crop has its final size."""
        left, top, right, bottom = self.region
        height, width = self.size
        return math.ceil(width / (right - left)), math.ceil(height / (bottom - top))


def draw(size: tuple[int, int], config: DataConfig, rng: np.random.Generator) -> Plan:
    """Draw the augmentation of an image of `size` (height, width).

    It consists of flips, then random scales and a crop or large-scale jitter, then colours. Scales and crops are
    combined into one region and one size, so the pixels are resampled only once.
    """
    flip = bool(rng.random() < config.flip)
    vertical_flip = bool(rng.random() < config.vertical_flip)
    region, new_size = POLICIES[config.policy](size, config, rng)
    return Plan(region, new_size, flip, vertical_flip, _draw_colors(config.color_jitter, rng))


def _draw_detr(
    size: tuple[int, int], config: DataConfig, rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """DETR's policy: resize; or resize, crop and resize again."""
    region = (0.0, 0.0, 1.0, 1.0)
    if rng.random() < config.crop_chance:
        # DETR has no limit here, with which an image of 1 x 5000 pixels would become one of 400 x 2,000,000
        limit = 4 * config.max_size
        region, size = _draw_crop(resized(size, _choose(config.crop_scales, rng), limit), config.crop_size, rng)
    return region, resized(size, _choose(config.train_scales, rng), config.max_size)


def _draw_lsj(
    size: tuple[int, int], config: DataConfig, rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Large-scale jitter: scale the image to fit a random multiple of a square, and crop it to the square."""
    factor = rng.uniform(*config.lsj_scales) * config.lsj_size / max(size)
    scaled = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    return _draw_crop(scaled, (config.lsj_size, config.lsj_size), rng)


POLICIES = {"detr": _draw_detr, "lsj": _draw_lsj}


def largest_size(sizes: np.ndarray, config: DataConfig, images: int) -> tuple[int, int]:
    """Height and width of the largest batch that `draw` can lead to.

    With several images, a batch can be as high as a portrait image and as wide as a landscape image.

    Args:
        sizes: (N, 2) width and height of all images of the dataset.
        images: number of images in a batch.
    """
    largest = {size for w, h in np.unique(sizes, axis=0).tolist() for size in LARGEST[config.policy]((h, w), config)}
    largest = {padded_size(*size, config) for size in largest}
    if images == 1:
        return max(largest, key=lambda size: size[0] * size[1])
    return max(h for h, _ in largest), max(w for _, w in largest)


def _largest_detr(size: tuple[int, int], config: DataConfig) -> set[tuple[int, int]]:
    short = max(config.train_scales)
    largest = {resized(size, short, config.max_size)}
    if config.crop_chance:  # crops have any aspect ratio between these two
        low, high = config.crop_size
        largest |= {resized(crop, short, config.max_size) for crop in ((low, high), (high, low))}
    return largest


def _largest_lsj(size: tuple[int, int], config: DataConfig) -> set[tuple[int, int]]:
    factor = config.lsj_scales[1] * config.lsj_size / max(size)
    return {
        (min(config.lsj_size, max(1, round(size[0] * factor))), min(config.lsj_size, max(1, round(size[1] * factor))))
    }


LARGEST = {"detr": _largest_detr, "lsj": _largest_lsj}


def _draw_colors(limits: tuple[float, float, float, float], rng: np.random.Generator) -> tuple[float, ...]:
    """Draw factors for brightness, contrast and saturation, and a shift of hue; empty if all limits are 0.

    Args:
        limits: maximum change of each.
    """
    if not any(limits):
        return ()
    low = np.array([1 - v for v in limits[:3]] + [-limits[3]])
    high = np.array([1 + v for v in limits[:3]] + [limits[3]])
    return tuple(rng.uniform(low, high).tolist())


def _draw_crop(
    size: tuple[int, int], limits: tuple[int, int], rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Draw a crop of an image of `size` (height, width), with sides between the limits and at most the image's.

    Returns:
        its left, top, right, bottom as fractions of the image, and its height and width.
    """
    low, high = limits
    height, width = size
    new_width = int(rng.integers(min(low, width), min(width, high) + 1))
    new_height = int(rng.integers(min(low, height), min(height, high) + 1))
    top = int(rng.integers(0, height - new_height + 1))
    left = int(rng.integers(0, width - new_width + 1))
    region = (left / width, top / height, (left + new_width) / width, (top + new_height) / height)
    return region, (new_height, new_width)


def apply(plan: Plan, annotated: AnnotatedImage, frame: Sequence[float]) -> AnnotatedImage:
    """Crop, resize and flip an image and its boxes; objects outside the crop are dropped, others are clipped to it.

    Args:
        frame: left, top, right, bottom in pixels of the image, to which the plan's fractions refer; see `Decoded`.
    """
    image, boxes, labels = annotated
    left, right = _whole_pixels(plan.region[0::2], frame[0::2], image.shape[-1])
    top, bottom = _whole_pixels(plan.region[1::2], frame[1::2], image.shape[-2])
    height, width = plan.size
    image = F.resize(image.as_subclass(Tensor)[:, top:bottom, left:right], [height, width], antialias=True)
    scale = torch.tensor([width / (right - left), height / (bottom - top)] * 2)
    boxes = (boxes.as_subclass(Tensor) - torch.tensor([left, top] * 2)) * scale
    boxes = boxes.clamp(torch.zeros(4), torch.tensor([width, height] * 2))  # (T, 4)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
    annotated = annotated_image(_recolor(image, plan.colors), boxes[visible], labels[visible])
    if plan.flip:
        annotated = _on_both(F.horizontal_flip, annotated)
    return _on_both(F.vertical_flip, annotated) if plan.vertical_flip else annotated


def _recolor(image: Tensor, colors: tuple[float, ...]) -> Tensor:
    """Adjust brightness, contrast, saturation and hue, in this order."""
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for change, amount in zip(changes, colors, strict=False):
        image = change(image, amount)
    return image


def _whole_pixels(fractions: Sequence[float], frame: Sequence[float], length: int) -> tuple[int, int]:
    """The first pixel and the end of a crop along one axis of an image; at least one pixel."""
    begin, end = (round(frame[0] + fraction * (frame[1] - frame[0])) for fraction in fractions)
    begin = min(begin, length - 1)
    return begin, min(max(end, begin + 1), length)


def resize_for_model(annotated: AnnotatedImage, config: DataConfig) -> AnnotatedImage:
    """Resize an image and its boxes to evaluation size."""
    size = size_for_model(annotated[0].shape[-2:], config)
    return _on_both(partial(F.resize, size=list(size), antialias=True), annotated)


def resize(annotated: AnnotatedImage, short: int, max_size: int | None) -> AnnotatedImage:
    """Resize an image and its boxes to the short side `short`, or less if the long side would exceed `max_size`."""
    size = resized(annotated[0].shape[-2:], short, max_size)
    return _on_both(partial(F.resize, size=list(size), antialias=True), annotated)


def as_target(annotated: AnnotatedImage, seed: int | None = None) -> Target:
    """Convert boxes in pixels to a target, with boxes as fractions of the image."""
    image, boxes, labels = annotated
    height, width = image.shape[-2:]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return Target(labels, to_cxcywh(boxes.as_subclass(Tensor).float() / scale), seed)


def _choose(values: Sequence[int], rng: np.random.Generator) -> int:
    return int(values[int(rng.integers(len(values)))])


def _on_both(transform: Callable[[Tensor], Any], annotated: AnnotatedImage) -> AnnotatedImage:
    image, boxes, labels = annotated
    return transform(image), transform(boxes), labels
