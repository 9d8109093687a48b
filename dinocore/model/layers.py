"""Small blocks shared by encoder, decoder and heads."""

import math
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from .ops import is_reference, same_backend


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Batch norm with constant statistics in one pass (torchvision needs two), then an activation."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, act: nn.Module | None = None):
        super().__init__(num_features, eps)
        self.act = act or nn.Identity()  # timm's batch norms include the activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if is_reference():
            return self.act(super().forward(x))
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps))


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm below a module with a frozen one, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(child.num_features, child.eps, getattr(child, "act", None))
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)
    return module


def train_affine(module: nn.Module) -> None:
    """Make the scale and shift of every frozen batch norm trainable, in place; names and values stay the same."""
    for norm in (child for child in module.modules() if isinstance(child, FrozenBatchNorm)):
        for name in ("weight", "bias"):
            value = getattr(norm, name)
            delattr(norm, name)
            setattr(norm, name, nn.Parameter(value))


class FeedForward(nn.Module):
    """Two linear layers with a residual connection, post-norm."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.net: nn.Module = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.norm(x + self.net(x))


def mlp(*dims: int) -> nn.Sequential:
    """Linear layers of the given widths with ReLUs in between."""
    layers = []
    for in_dim, out_dim in pairwise(dims):
        layers += [nn.Linear(in_dim, out_dim), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def class_head(dim: int, num_classes: int, prior: float = 0.01) -> nn.Linear:
    """One logit per class; starts at probability `prior`, without which focal loss diverges early."""
    head = nn.Linear(dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def box_head(dim: int) -> nn.Sequential:
    """A delta in logit space; starts at zero, so that boxes are not moved at first."""
    hidden, last = mlp(dim, dim, dim), nn.Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*hidden, nn.ReLU(), last)


def direct(layer: nn.Module, *inputs: Any) -> Tensor:
    """Call a layer normally, keeping its activations for the backward pass."""
    return layer(*inputs)


def checkpointed(layer: nn.Module, *inputs: Any) -> Tensor:
    """Activation checkpointing: recompute the layer in the backward pass; less memory, more time."""
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=same_backend)
