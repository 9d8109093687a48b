"""From backbone features to L maps of one width, and from these to one sequence of tokens.

Where tokens lie in the image, and how a place or a box is encoded, is here, too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import Tokens
from .alignment import Extents, group_norm
from .ops import map_sizes


class Neck(nn.Module):
    """Project every backbone feature to `dim` channels; each further level halves the one before it."""

    def __init__(self, in_channels: Sequence[int], dim: int, num_levels: int, conv: Callable[..., nn.Conv2d]):
        """
        Args:
            conv: makes the convolutions, with a bias or without.
        """
        super().__init__()
        self.project = nn.ModuleList(_conv_layer(conv(channels, dim, kernel_size=1), dim) for channels in in_channels)
        extra_channels = [in_channels[-1]] + [dim] * (num_levels - len(in_channels) - 1)
        self.extra = nn.ModuleList(
            _conv_layer(conv(channels, dim, kernel_size=3, stride=2, padding=1), dim)
            for channels in extra_channels[: num_levels - len(in_channels)]
        )

    def forward(self, features: list[Tensor], extents: Extents | None = None) -> list[Tensor]:
        """[(B, C_l, H_l, W_l)] -> L x (B, C, H_l, W_l).

        Args:
            extents: how far each image reaches, where nothing beyond it may be seen.
        """
        features = [feature.to(next(self.project.parameters()).dtype) for feature in features]
        maps = [_conv_norm(layer, x, extents) for layer, x in zip(self.project, features, strict=True)]
        x = features[-1]
        for downsample in self.extra:
            x = _conv_norm(downsample, x, extents)
            maps.append(x)
        return maps

    @property
    def downsampling(self) -> int:
        """How many times coarser the last level is than the last backbone feature."""
        return 2 ** len(self.extra)


def _conv_norm(layer: Any, x: Tensor, extents: Extents | None) -> Tensor:
    conv, norm = layer
    if extents is not None and max(conv.kernel_size) > 1:
        x = x * extents.inside(x)
    return group_norm(norm, conv(x), extents)


def _conv_layer(conv: nn.Conv2d, dim: int) -> nn.Sequential:
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(min(32, dim // 2), dim))


class Tokenizer(nn.Module):
    """Flatten a feature pyramid; tell its levels apart with a learned embedding."""

    def __init__(self, dim: int, num_levels: int, temperature: float, offset: float):
        """
        Args:
            temperature, offset: of the position encoding, see `encode_map`.
        """
        super().__init__()
        self.temperature, self.offset = temperature, offset
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, maps: list[Tensor], padding: Tensor) -> Tokens:
        """
        Args:
            maps: L x (B, C, H_l, W_l).
            padding: (B, H, W) bool, of the batched images.
        """
        paddings = [F.interpolate(padding[:, None].float(), m.shape[-2:])[:, 0].bool() for m in maps]
        dim = maps[0].shape[1]
        position = [
            (encode_map(p, dim, self.temperature, self.offset) + level).flatten(1, 2)  # (B, H_l * W_l, C)
            for p, level in zip(paddings, self.level_embed, strict=True)
        ]
        content = torch.cat([m.flatten(2).mT for m in maps], dim=1)  # L x (B, C, H_l, W_l) -> (B, S, C)
        return Tokens(
            content=content,
            position=torch.cat(position, dim=1).to(content.dtype),
            padding=torch.cat([p.flatten(1) for p in paddings], dim=1),
            shapes=[(m.shape[-2], m.shape[-1]) for m in maps],
            valid_ratios=torch.stack([valid_ratio(p) for p in paddings], dim=1),
        )


def valid_ratio(padding: Tensor) -> Tensor:
    """The fraction of a padded map's width and height that shows the image, (B, H, W) -> (B, 2)."""
    return torch.stack([(~padding[:, 0, :]).float().mean(1), (~padding[:, :, 0]).float().mean(1)], dim=-1)


def token_centers(tokens: Tokens) -> Tensor:
    """The centre of every token as a fraction of its unpadded image, (B, S, 2); above 1 on padding."""
    centers, sizes = [], map_sizes(tokens.shapes, tokens.valid_ratios)
    for level, (height, width) in enumerate(tokens.shapes):
        y = torch.arange(height, dtype=torch.float32, device=tokens.valid_ratios.device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=tokens.valid_ratios.device) + 0.5
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)  # (H_l * W_l, 2)
        extent = tokens.valid_ratios[:, level] * sizes[level]  # (B, 2) in tokens
        centers.append(grid / extent[:, None])
    return torch.cat(centers, dim=1)


def sine_encoding(values: Tensor, dim: int, temperature: float) -> Tensor:
    """Encode each number as `dim` interleaved sines and cosines, (...) -> (..., dim)."""
    frequency = temperature ** (2 * torch.arange(dim // 2, device=values.device, dtype=torch.float32) / dim)
    angle = values[..., None] * 2 * math.pi / frequency  # (..., dim / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def encode_map(padding: Tensor, dim: int, temperature: float, offset: float) -> Tensor:
    """Encode every place of a padded feature map, (B, H, W) bool -> (B, H, W, dim), y before x.

    Rows and columns are counted from the image's own edge (1, 2, ...), moved by `offset` and scaled by its own
    size, so that padding moves nothing. A temperature of 20 with no offset is DINO's; DETR uses 10000.
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
