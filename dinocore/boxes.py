"""Box arithmetic. Every function is pure and works on any leading dimensions."""

import torch
from torch import Tensor

SMALLEST_AREA = 1e-9  # as a fraction of the image: a square of 0.03 pixels in an image of 800 x 1333


def to_xyxy(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) -> (x0, y0, x1, y1), both (..., 4)."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(x0, y0, x1, y1) -> (cx, cy, w, h), both (..., 4)."""
    top_left, bottom_right = boxes_xyxy.split(2, dim=-1)
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """The area of boxes, (..., 4) -> (...)."""
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(dim=-1)


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU: intersection over union of two boxes, (..., 4) x (..., 4) -> (...), in [0, 1]."""
    intersection, union = _overlap(a_xyxy, b_xyxy)
    return intersection / union


def generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """GIoU of boxes that broadcast against each other, (..., 4) x (..., 4) -> (...), in [-1, 1].

    Areas are clamped at `SMALLEST_AREA`, so that two empty boxes have a GIoU of 0, not NaN. Official DINO adds
    1e-6 instead, so that two equal boxes of 8 x 8 pixels have a GIoU of 0.984 instead of 1.

    Source: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630
    """
    intersection, union = _overlap(a_xyxy, b_xyxy)
    hull_top_left = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_bottom_right = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (hull_bottom_right - hull_top_left).prod(dim=-1).clamp(min=SMALLEST_AREA)
    return intersection / union - (hull - union) / hull


def to_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners in pixels of an image of this height and width, (..., 4) -> (..., 4), float32 on the CPU."""
    height, width = size
    return to_xyxy(boxes.float().cpu()) * torch.tensor([width, height, width, height])


def _overlap(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the intersection and of the union."""
    top_left = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    bottom_right = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    return intersection, (area(a_xyxy) + area(b_xyxy) - intersection).clamp(min=SMALLEST_AREA)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of x in [0, 1]; `eps` keeps it within about +-6.9 as in Deformable DETR."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def refine(boxes: Tensor, delta: Tensor, eps: float = 1e-3) -> Tensor:
    """Move boxes by a delta given in logit space, so that the result stays within [0, 1]; in the boxes' dtype."""
    return (inverse_sigmoid(boxes, eps) + delta.to(boxes.dtype)).sigmoid()
