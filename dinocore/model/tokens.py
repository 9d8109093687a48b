"""From L feature maps to one sequence of tokens, and the tokens' positions in the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import Tokens
from .ops import map_sizes
from .position import encode_map


class Tokenizer(nn.Module):
    """Flatten a feature pyramid, with a learned embedding per level."""

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
    """The fraction of a padded map's width and height covered by the image, (B, H, W) -> (B, 2)."""
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
