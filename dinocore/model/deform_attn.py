"""Multi-scale deformable attention (Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.1)."""

import math

import torch
from torch import Tensor, nn

from .ops import Sampling, sample


class MSDeformAttn(nn.Module):
    """Each query samples a few points near its reference in every level, and takes their weighted sum."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.sample: Sampling = sample
        self.split = (num_heads, num_levels, num_points)
        self.offsets = nn.Linear(dim, math.prod(self.split) * 2)
        self.weights = nn.Linear(dim, math.prod(self.split))
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as a ring: head m samples in direction m, point p is p + 1 steps away."""
        num_heads, num_levels, num_points = self.split
        angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)  # (M, 2), on a square of side 2
        steps = torch.arange(1, num_points + 1)
        ring = direction[:, None, None] * steps[:, None]  # (M, 1, P, 2)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(ring.expand(-1, num_levels, -1, -1).flatten())
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, reference: Tensor, memory: Tensor, padding: Tensor, shapes: list[tuple[int, int]]
    ) -> Tensor:
        """
        Args:
            query: (B, N, C).
            reference: (B, N, L, 2) points or (B, N, L, 4) boxes, as fractions of the padded map.
            memory: (B, S, C).
            padding: (B, S) bool.

        Returns:
            (B, N, C)
        """
        num_heads = self.split[0]
        value = self.value(memory).unflatten(-1, (num_heads, -1))  # (B, S, M, D)
        offsets = self.offsets(query).unflatten(-1, (num_heads, -1))  # (B, N, M, L * P * 2)
        logits = self.weights(query).unflatten(-1, (num_heads, -1))  # (B, N, M, L * P)
        return self.output(self.sample(value, padding, shapes, reference, offsets, logits))
