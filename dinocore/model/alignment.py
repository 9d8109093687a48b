"""Backbones whose sampling grid depends on the image size: make results independent of the other images in a batch.

TensorFlow's SAME padding (timm's `tf_*` models) splits a convolution's padding between both sides depending on the size
modulo the stride, so one more pixel moves the whole grid. Such a backbone gets sizes that are multiples of its stride,
and everything beyond an image's own aligned size is set to zero, like a convolution's padding. The results for an image
are then the same alone and in a batch with larger images. Source: ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Extents:
    """How far each image of a batch reaches on its canvas, in multiples of the alignment."""

    def __init__(self, padding: Tensor, multiple: int):
        """
        Args:
            padding: (B, H, W) bool, True outside the image; `multiple` divides H and W.
        """
        self.canvas = (padding.shape[1], padding.shape[2])
        self._inside: dict[tuple[int, int, torch.dtype], Tensor] = {}
        rows, columns = count(~padding[:, :, 0], (1,)), count(~padding[:, 0, :], (1,))
        self.rows = (rows + multiple - 1) // multiple * multiple  # (B,) in pixels
        self.columns = (columns + multiple - 1) // multiple * multiple

    def outside(self, x: Tensor) -> Tensor:
        """The cells of a map (B, C, H_l, W_l) beyond the image, (B, 1, H_l, W_l) bool."""
        height, width = x.shape[-2:]
        y = torch.arange(height, device=x.device) * (self.canvas[0] // height)
        x_ = torch.arange(width, device=x.device) * (self.canvas[1] // width)
        below = y >= self.rows[:, None]  # (B, H_l)
        right = x_ >= self.columns[:, None]  # (B, W_l)
        return (below[:, :, None] | right[:, None, :])[:, None]

    def inside(self, x: Tensor) -> Tensor:
        """1 for cells of a map (B, C, H_l, W_l) within the image and 0 beyond, (B, 1, H_l, W_l) in the map's dtype."""
        if torch.compiler.is_exporting():
            return (~self.outside(x)).to(x.dtype)  # sizes may be unknown
        size = (x.shape[-2], x.shape[-1], x.dtype)
        if size not in self._inside:  # several layers see maps of one size
            self._inside[size] = (~self.outside(x)).to(x.dtype)
        return self._inside[size]

    @property
    def fraction(self) -> Tensor:
        """The fraction of the canvas that each image covers, (B,)."""
        return (self.rows * self.columns).float() / (self.canvas[0] * self.canvas[1])


def count(mask: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The number of True values, as int64; summed as integers, because OpenVINO computes OR for traced boolean sums."""
    return mask.long().sum(dims)


_EXTENTS: ContextVar[Extents | None] = ContextVar("extents", default=None)


def align(images: Tensor, padding: Tensor, multiple: int) -> tuple[Tensor, Tensor, Extents | None]:
    """Pad images (B, C, H, W) and their mask (B, H, W) at right and bottom to multiples of `multiple`.

    Returns:
        images, mask, and how far each image reaches; None if every image fills the canvas, or `multiple` is 1.
    """
    if multiple == 1:
        return images, padding, None
    if torch.compiler.is_exporting():  # canvases of exported graphs are multiples
        return images, padding, Extents(padding, multiple)
    below, right = (-side % multiple for side in images.shape[-2:])
    images = F.pad(images, (0, right, 0, below))
    padding = F.pad(padding, (0, right, 0, below), value=True)
    extents = Extents(padding, multiple)
    if bool((extents.fraction == 1).all()):
        return images, padding, None
    return images, padding, extents


@contextmanager
def within(extents: Extents | None) -> Iterator[None]:
    """Hide everything beyond each image from the layers prepared by `respect_extents`."""
    token = _EXTENTS.set(extents)
    try:
        yield
    finally:
        _EXTENTS.reset(token)


def pads_by_size(body: nn.Module) -> bool:
    """Whether a timm model has layers with TensorFlow's SAME padding."""
    return any(type(module).__name__.endswith("Same") for module in body.modules())


def respect_extents(body: nn.Module) -> None:
    """Make a timm model's convolutions, pools and squeeze-excitations treat each image as if alone, in place."""
    for module in body.modules():
        spatial_convolution = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
        if spatial_convolution or isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            module.register_forward_pre_hook(_drop_outside)
        squeeze = getattr(module, "conv_reduce", None)
        if isinstance(squeeze, nn.Module):  # squeeze-excitation: its mean is over the image, not over the canvas
            module.register_forward_pre_hook(_drop_outside)
            squeeze.register_forward_pre_hook(_mean_inside)


def _drop_outside(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    extents = _EXTENTS.get()
    return None if extents is None else (inputs[0] * extents.inside(inputs[0]),)


def _mean_inside(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    extents = _EXTENTS.get()
    return None if extents is None else (inputs[0] / extents.fraction[:, None, None, None].to(inputs[0].dtype),)


def group_norm(norm: nn.GroupNorm, x: Tensor, extents: Extents | None) -> Tensor:
    """Group norm of a map (B, C, H_l, W_l), with statistics of the image only, without padding."""
    if extents is None:
        return norm(x)
    outside = extents.outside(x)  # (B, 1, H_l, W_l)
    groups = x.float().masked_fill(outside, 0).unflatten(1, (norm.num_groups, -1))  # (B, G, C / G, H_l, W_l)
    size = count(~outside, (1, 2, 3)).view(-1, 1, 1, 1, 1) * groups.shape[2]
    mean = groups.sum((2, 3, 4), keepdim=True) / size
    centred = (groups - mean).masked_fill(outside[:, None], 0)
    variance = centred.square().sum((2, 3, 4), keepdim=True) / size
    normed = (centred * (variance + norm.eps).rsqrt()).flatten(1, 2).to(x.dtype)
    return normed * norm.weight[:, None, None].to(x.dtype) + norm.bias[:, None, None].to(x.dtype)
