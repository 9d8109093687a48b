"""A model made quick for use: batch norm inside the convolutions, and weights in the precision of the computation."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from .dino import DINO
from .layers import FeedForward, FrozenBatchNorm


def for_inference(model: DINO, dtype: torch.dtype | None, device: torch.device) -> DINO:
    """A copy for evaluation on a device that gives the same numbers, up to rounding; the model itself is left alone.

    Args:
        dtype: of weights and activations, None for float32. Boxes stay in float32. A backbone that is quicker in
            float32 stays there too.
    """
    quick = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(quick.backbone)
    for name, part in quick.named_children():
        in_float32 = name == "backbone" and quick.backbone.slow_in_bf16 and device.type == "cpu"
        part.to(device=device, dtype=torch.float32 if in_float32 else dtype)
    if device.type == "cpu":
        for module in list(quick.encoder.modules()):
            if isinstance(module, FeedForward):
                module.net = InParts(module.net)
    return quick


@torch.no_grad()
def fold_batch_norm(module: nn.Module) -> None:
    """Move every frozen batch norm that directly follows a convolution into its weights, in place."""
    for (_, conv), (name, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm):
            weight, bias, mean, variance = map(norm.get_buffer, ("weight", "bias", "running_mean", "running_var"))
            scale = weight * (variance + norm.eps).rsqrt()  # (C,)
            bias = bias - mean * scale
            if conv.bias is not None:
                bias = bias + conv.bias * scale
            conv.weight.mul_(scale[:, None, None, None])
            conv.bias = nn.Parameter(bias, requires_grad=False)
            setattr(module, name, norm.act)
    for child in module.children():
        fold_batch_norm(child)


class InParts(nn.Module):
    """A network that treats each token alone, applied to a few at a time: its hidden layer stays in the cache."""

    def __init__(self, net: nn.Module, num_tokens: int = 1024):
        super().__init__()
        self.net = net
        self.num_tokens = num_tokens

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        parts = [self.net(part) for part in x.flatten(0, 1).split(self.num_tokens)]
        return torch.cat(parts).view_as(x)
