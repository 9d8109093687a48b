"""Sine encodings of positions in a feature map and of boxes."""

import math

import torch
from torch import Tensor


def sine_encoding(values: Tensor, dim: int, temperature: float) -> Tensor:
    """Encode each number as `dim` interleaved sines and cosines, (...) -> (..., dim)."""
    frequency = temperature ** (2 * torch.arange(dim // 2, device=values.device, dtype=torch.float32) / dim)
    angle = values[..., None] * 2 * math.pi / frequency  # (..., dim / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def encode_map(padding: Tensor, dim: int, temperature: float, offset: float) -> Tensor:
    """Encode every position of a padded feature map, (B, H, W) bool -> (B, H, W, dim), y before x.

    Rows and columns are counted from the image's edge (1, 2, ...), shifted by `offset` and scaled by its own
    size, so that padding has no effect. DINO uses a temperature of 20 with no offset, DETR 10000.
    """
    inside = ~padding
    y, x = inside.cumsum(1, dtype=torch.float32), inside.cumsum(2, dtype=torch.float32)
    y = (y + offset) / (y[:, -1:, :] + 1e-6)
    x = (x + offset) / (x[:, :, -1:] + 1e-6)
    return torch.cat([sine_encoding(v, dim // 2, temperature) for v in (y, x)], dim=-1)


def encode_boxes(boxes: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Encode boxes, (..., 4) -> (..., 2 * dim), in the order y, x, w, h of DAB-DETR."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.cat([sine_encoding(v, dim // 2, temperature) for v in (cy, cx, w, h)], dim=-1)
