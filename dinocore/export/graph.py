"""The model as one graph without Python: pixels and sizes in, detections in pixels out, on a canvas of a fixed size."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..config import ModelConfig
from ..model.dino import DINO
from ..model.inference import fold_batch_norm
from ..model.ops import use_backend

INPUTS = ("images", "sizes")
OUTPUTS = ("labels", "scores", "boxes")
MAX_BATCH = 64


class Signature(NamedTuple):
    """What an exported graph takes and gives."""

    canvas: tuple[int, int]  # height and width of `images`, in pixels
    max_dets: int  # detections of each image, best first
    pixels: torch.dtype = torch.uint8  # of `images`; floats are 0 to 255, too


class DetectorGraph(nn.Module):
    """The whole way from RGB pixels to labels, scores and boxes, with nothing left for the caller to get wrong."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DINO, config: ModelConfig, max_dets: int):
        """
        Args:
            model: it is copied, and its frozen batch norms become part of the convolutions.
        """
        super().__init__()
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        fold_batch_norm(self.model.backbone)
        self.max_dets = max_dets
        self.register_buffer("mean", 255 * torch.tensor(config.pixel_mean))
        self.register_buffer("std", 255 * torch.tensor(config.pixel_std))

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (B, H, W, 3) RGB from 0 to 255; what lies beyond an image's size is ignored.
            sizes: (B, 2) int64, valid height and width of each image in pixels, from the top left.

        Returns:
            labels (B, D) int64, scores (B, D) in [0, 1] and boxes (B, D, 4) xyxy in pixels, best first.
        """
        padding = outside(sizes, images.shape[1], images.shape[2])  # (B, H, W)
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


def outside(sizes: Tensor, height: int, width: int) -> Tensor:
    """True where a canvas shows nothing of an image, (B, 2) -> (B, H, W)."""
    below = torch.arange(height, device=sizes.device) >= sizes[:, :1]  # (B, H)
    right = torch.arange(width, device=sizes.device) >= sizes[:, 1:]  # (B, W)
    return below[:, :, None] | right[:, None, :]


def trace(graph: DetectorGraph, signature: Signature) -> ExportedProgram:
    """The graph with a batch of any size from 1 to `MAX_BATCH`, in operations that every runtime knows."""
    height, width = signature.canvas
    images = torch.zeros(2, height, width, 3, dtype=signature.pixels)
    sizes = torch.tensor([[height, width], [max(1, height // 2), max(1, width // 2)]])
    batch = Dim("batch", min=1, max=MAX_BATCH)
    with use_backend("reference"), torch.no_grad():
        return torch.export.export(graph, (images, sizes), dynamic_shapes=({0: batch}, {0: batch}), strict=False)


def canvas_multiple(model: DINO, strides: Sequence[int]) -> int:
    """What height and width of a canvas must be multiples of."""
    return max(model.alignment, *strides)
