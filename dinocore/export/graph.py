"""The detector as a single graph: images and sizes in, detections in pixels out, on canvases of fixed sizes."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram

from ..config import ModelConfig
from ..errors import ConfigError
from ..model.dino import DINO
from ..model.inference import fold_batch_norm
from ..model.ops import use_backend

INPUTS = ("images", "sizes")
OUTPUTS = ("labels", "scores", "boxes")
MAX_BATCH = 64


class Canvases(NamedTuple):
    """The canvas sizes that a graph accepts, (height, width) in pixels."""

    largest: tuple[int, int]
    least: tuple[int, int]  # equal to `largest` if the size is fixed
    multiple: int  # of every height and width

    def __str__(self) -> str:
        low, high = (f"{height} x {width}" for height, width in (self.least, self.largest))
        return f"{high} pixels" if self.fixed else f"{low} to {high} pixels"

    @property
    def fixed(self) -> bool:
        """Whether there is only one size."""
        return self.least == self.largest

    def samples(self) -> list[tuple[int, int]]:
        """Sizes to test a file with: the largest and, if there is a range, one in between and the smallest."""
        if self.fixed:
            return [self.largest]
        low, high, step = self.least, self.largest, self.multiple
        between = (low[0] + (high[0] - low[0]) // (2 * step) * step, low[1] + (high[1] - low[1]) // (4 * step) * step)
        return [self.largest, between, self.least]


class Signature(NamedTuple):
    """The inputs and outputs of an exported graph."""

    canvases: Canvases
    max_dets: int  # detections per image, best first
    pixels: torch.dtype = torch.uint8  # dtype of `images`; values are 0 to 255 for floats, too


class DetectorGraph(nn.Module):
    """The whole pipeline from RGB pixels to labels, scores and boxes."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DINO, config: ModelConfig, max_dets: int):
        """
        Args:
            model: it is copied, and frozen batch norms are folded into the convolutions.
        """
        super().__init__()
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        fold_batch_norm(self.model.backbone)
        if self.model.alignment > 1:
            pad_evenly(self.model.backbone)
        self.max_dets = max_dets
        self.register_buffer("mean", 255 * torch.tensor(config.pixel_mean))
        self.register_buffer("std", 255 * torch.tensor(config.pixel_std))

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (B, H, W, 3) RGB from 0 to 255; pixels beyond an image's size are ignored.
            sizes: (B, 2) int64, valid height and width of each image in pixels, from the top left.

        Returns:
            labels (B, D) int64, scores (B, D) in [0, 1] and boxes (B, D, 4) xyxy in pixels, best first.
        """
        padding = padding_mask(sizes, images.shape[1], images.shape[2])  # (B, H, W)
        pixels = (images.float() - self.mean) / self.std
        pixels = pixels.masked_fill(padding[..., None], 0).permute(0, 3, 1, 2)  # (B, 3, H, W)
        final = self.model(pixels, padding).final
        scores = final.logits.sigmoid().flatten(1)  # (B, N * K)
        best, index = scores.topk(min(self.max_dets, scores.shape[1]), dim=1)  # (B, D)
        num_classes = final.logits.shape[-1]
        query = torch.div(index, num_classes, rounding_mode="floor")
        boxes = final.boxes.gather(1, query[..., None].expand(-1, -1, 4))  # (B, D, 4)
        corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)
        height, width = sizes.float().unbind(1)  # (B,)
        scale = torch.stack([width, height, width, height], dim=1)[:, None]  # (B, 1, 4)
        return index - query * num_classes, best, corners.clamp(0, 1) * scale


def padding_mask(sizes: Tensor, height: int, width: int) -> Tensor:
    """True for pixels of the canvas outside the image, (B, 2) -> (B, H, W)."""
    below = torch.arange(height, device=sizes.device) >= sizes[:, :1]  # (B, H)
    right = torch.arange(width, device=sizes.device) >= sizes[:, 1:]  # (B, W)
    return below[:, :, None] | right[:, None, :]


class EvenConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which is constant because the stride divides the input's sides."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        sides: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            pad = max((kernel - 1) * dilation + 1 - stride, 0)
            sides = [pad // 2, pad - pad // 2, *sides]  # the last dimension comes first
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_evenly(body: nn.Module) -> None:
    """Replace timm's SAME convolutions by `EvenConv`, in place, to keep size arithmetic out of the graph."""
    for module in body.modules():
        if type(module).__name__ == "Conv2dSame":
            module.__class__ = EvenConv  # keeps its hooks


def trace(graph: DetectorGraph, signature: Signature, backend: str = "reference") -> ExportedProgram:
    """Trace the graph for batches of 1 to `MAX_BATCH`, using only operations that every runtime supports.

    Args:
        backend: of deformable attention, as in `use_backend`; "operator" gives a single node that no runtime supports.

    Raises:
        ConfigError: the model cannot handle every canvas of the range.
    """
    canvases = signature.canvases
    # not an end of the range, which tracing could specialize on
    height, width = canvases.samples()[0 if canvases.fixed else 1]
    images = torch.zeros(2, height, width, 3, dtype=signature.pixels)
    sizes = torch.tensor([[height, width], [max(1, height // 2), max(1, width // 2)]])
    batch = Dim("batch", min=1, max=MAX_BATCH)
    free: dict[int, Any] = {0: batch}
    for axis, name in ((1, "height"), (2, "width")):
        low, high = canvases.least[axis - 1] // canvases.multiple, canvases.largest[axis - 1] // canvases.multiple
        if low < high:
            free[axis] = canvases.multiple * Dim(name, min=low, max=high)
    try:
        with use_backend(backend), torch.no_grad():
            return torch.export.export(graph, (images, sizes), dynamic_shapes=(free, {0: batch}), strict=False)
    except (UserError, RuntimeError) as error:
        if canvases.fixed:
            raise
        raise ConfigError(
            f"this model cannot be traced for a range of sizes ({str(error).splitlines()[0]}); "
            f"give one size, such as --size {canvases.largest[0]}x{canvases.largest[1]}"
        ) from error


def canvas_multiple(model: DINO, strides: Sequence[int]) -> int:
    """The number that must divide the height and width of a canvas."""
    return max(model.alignment, *strides)
