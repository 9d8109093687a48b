"""From RGB images to model input: resize to evaluation size, pad to one tensor, normalise."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..config import DataConfig
from ..errors import DataError
from ..structures import Target

ROUNDING = 1e-3  # a box may exceed the image by this fraction

FEW_SIZES = 64  # maximum number of possible sizes; `tiny` has 49, of which 8 occurred in 775 batches of `animals`


class Sample(NamedTuple):
    """An image from a data loader."""

    image: Tensor  # (3, h, w) uint8
    target: Target
    index: int  # in the annotations
    size: tuple[int, int]  # height and width of the upright image on disk
    problem: str | None = None  # why the requested image could not be read and this one replaces it


class View(NamedTuple):
    """One input of a detector: an image or a slice of it."""

    image: Tensor  # (3, h, w) uint8, resized for the model
    size: tuple[int, int]  # height and width before resizing


class Batch(NamedTuple):
    """B images, padded at the right and bottom to the same size."""

    images: Tensor  # (B, 3, H, W) uint8; float after `normalise`
    padding: Tensor  # (B, H, W) bool, True outside the image
    targets: list[Target]
    indices: list[int]
    sizes: list[tuple[int, int]]
    problems: list[str]


def resize_pixels(image: Tensor, config: DataConfig) -> Tensor:
    """Resize an image to evaluation size, without boxes, (3, H, W) -> (3, h, w), both uint8.

    Raises:
        DataError: it has no pixels.
    """
    height, width = image.shape[-2:]
    if not height * width:
        raise DataError(f"an image of {width} x {height} pixels is empty")
    return F.resize(image, list(size_for_model((height, width), config)), antialias=True)


def size_for_model(size: Sequence[int], config: DataConfig) -> tuple[int, int]:
    """Evaluation height and width, reduced to fit the canvas if there is one, like `ExportedDetector.input_size`."""
    height, width = resized(size, config.eval_scale, config.max_size)
    if config.canvas is None:
        return height, width
    shrink = min(1.0, config.canvas[1] / width, config.canvas[0] / height)
    return max(1, int(height * shrink)), max(1, int(width * shrink))


def resized(size: Sequence[int], short: int, max_size: int | None) -> tuple[int, int]:
    """Height and width with the short side `short`, or less if the long side would exceed `max_size`.

    The long side is rounded down, as in DETR.
    """
    height, width = size
    low, high = min(height, width), max(height, width)
    if max_size is not None and high / low * short > max_size:
        short = max(1, round(max_size * low / high))
    long = int(short * high / low)
    if short == 1 and max_size is not None:  # a very thin image, whose height would be 0 in DETR
        long = min(long, max_size)
    return (short, long) if height <= width else (long, short)


def padded_size(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """Padded height and width of a training batch: multiples of `pad_size_divisor`, up to the largest side."""
    limit, divisor = _largest_side(config), config.pad_size_divisor
    padded_height, padded_width = (max(side, min(-(-side // divisor) * divisor, limit)) for side in (height, width))
    return padded_height, padded_width


def has_few_sizes(config: DataConfig) -> bool:
    """Whether training batches have few enough sizes for oneDNN to cache its primitives for all of them."""
    return (_largest_side(config) / config.pad_size_divisor) ** 2 <= FEW_SIZES


def _largest_side(config: DataConfig) -> int:
    return config.lsj_size if config.policy == "lsj" else config.max_size


def collate(samples: Sequence[Sample], config: DataConfig | None = None) -> Batch:
    """Pad images to the same size and stack them.

    Args:
        config: pads to `padded_size`, for training; None: pad to the largest height and width.

    Raises:
        DataError: an image or target has a wrong shape, dtype or range of values, which training would not notice.
    """
    for sample in samples:
        check_pixels(sample.image)
        _check_target(sample.target)
    height = max(s.image.shape[-2] for s in samples)
    width = max(s.image.shape[-1] for s in samples)
    if config is not None:
        height, width = padded_size(height, width, config)
    images = torch.empty(len(samples), height, width, 3, dtype=torch.uint8)  # channels last, as in decoded images
    padding = torch.ones(len(samples), height, width, dtype=torch.bool)
    for i, sample in enumerate(samples):
        h, w = sample.image.shape[-2:]
        images[i, :h, :w] = sample.image.permute(1, 2, 0)
        images[i, h:] = images[i, :, w:] = 0
        padding[i, :h, :w] = False
    return Batch(
        images.permute(0, 3, 1, 2),
        padding,
        [s.target for s in samples],
        [s.index for s in samples],
        [s.size for s in samples],
        [s.problem for s in samples if s.problem],
    )


def as_batch(views: Sequence[View]) -> Batch:
    """Stack views as the model's input, without targets."""
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    return collate([Sample(view.image, empty, i, view.size) for i, view in enumerate(views)])


def check_pixels(image: Tensor) -> None:
    """Check that an image is (3, H, W) uint8.

    Raises:
        DataError: it is not.
    """
    if image.dtype == torch.uint8 and image.dim() == 3 and len(image) == 3:
        return
    fix = ""
    if image.is_floating_point():
        fix = "if its values go from 0 to 1: (image * 255).round().to(torch.uint8)"
    elif image.ndim == 3 and image.shape[-1] == 3:
        fix = "channels first: image.permute(2, 0, 1)"
    elif image.ndim == 3 and len(image) == 1:
        fix = "grey as RGB: image.expand(3, -1, -1)"
    kind = f"{image.dtype} {tuple(image.shape)}"
    raise DataError(f"an image as a tensor must be (3, H, W) of uint8, but this is {kind}", fix=fix)


def _check_target(target: Target) -> None:
    labels, boxes = target.labels, target.boxes
    if labels.dim() != 1 or boxes.shape != (len(labels), 4) or labels.is_floating_point():
        kind = f"{labels.dtype} {tuple(labels.shape)} and {tuple(boxes.shape)}"
        raise DataError(f"labels must be integers (n,) and their boxes (n, 4), but these are {kind}")
    if not len(labels):
        return
    low, high = boxes.aminmax()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also if a value is NaN
        raise DataError(
            "boxes must be (centre x, centre y, width, height) as fractions of the image, but these go from "
            f"{low:.4g} to {high:.4g}",
            fix="divide pixels by the image's size: boxes / torch.tensor([width, height, width, height])",
        )


def normalise(batch: Batch, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Batch:
    """Move a batch to the device and normalise its images: (pixels / 255 - mean) / std, and 0 in the padding."""
    pixels = batch.images.to(device, non_blocking=True).permute(0, 2, 3, 1)  # (B, H, W, 3)
    width = pixels.shape[2]
    shift = torch.tensor(mean, dtype=torch.float32, device=device).mul(255).repeat(width)  # (W * 3,)
    scale = torch.tensor(std, dtype=torch.float32, device=device).mul(255).repeat(width)
    images = torch.empty(pixels.shape, dtype=torch.float32, device=device)
    # one image at a time, which fits into the CPU's caches
    for image, raw, outside in zip(images, pixels, batch.padding, strict=True):
        torch.sub(raw.flatten(1), shift, out=image.flatten(1)).div_(scale)
        image[int((~outside[:, 0]).sum()) :] = 0
        image[:, int((~outside[0]).sum()) :] = 0
    images = images.permute(0, 3, 1, 2)  # channels last: faster convolutions
    padding = batch.padding.to(device, non_blocking=True)
    targets = [
        Target(t.labels.to(device, non_blocking=True), t.boxes.to(device, non_blocking=True), t.seed)
        for t in batch.targets
    ]
    return batch._replace(images=images, padding=padding, targets=targets)
