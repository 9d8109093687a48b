"""The reference: multi-scale deformable attention in plain PyTorch, for any device and float type, and for export.

Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.1
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample `value` at `locations` and sum the samples, weighted by `weights`.

    value (B, S, M, D), locations (B, N, M, L, P, 2), weights (B, N, M, L, P) -> (B, N, M * D)
    """
    batch, _, heads, head_dim = value.shape
    num_queries = locations.shape[1]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32  # bf16 is too coarse for locations
    grid = 2 * locations.to(dtype) - 1  # grid_sample's coordinates go from -1 to 1
    levels = value.to(dtype).split([height * width for height, width in shapes], dim=1)  # L x (B, H_l * W_l, M, D)
    samples = []
    for level, (height, width) in enumerate(shapes):
        level_map = levels[level].permute(0, 2, 3, 1).reshape(batch * heads, head_dim, height, width)
        level_grid = grid[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * M, N, P, 2)
        samples.append(F.grid_sample(level_map, level_grid, align_corners=False))  # (B * M, D, N, P)
    weights = weights.to(dtype).flatten(-2).transpose(1, 2)  # (B, M, N, L * P)
    weights = weights.reshape(batch * heads, 1, *weights.shape[2:])  # (B * M, 1, N, L * P)
    summed = (torch.cat(samples, dim=-1) * weights).sum(-1)  # (B * M, D, N)
    return summed.view(batch, heads * head_dim, num_queries).mT.to(value.dtype)


def differentiate(
    grad: Tensor, value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, for a compiled backend that fails between forward and backward."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        output = sample(inputs[0], shapes, inputs[1], inputs[2])
        grad_value, grad_locations, grad_weights = torch.autograd.grad(output, inputs, grad)
    return grad_value, grad_locations, grad_weights
