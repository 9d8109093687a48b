"""A model made quick for use: batch norm inside the convolutions, and weights in the precision of the computation."""

import copy
from itertools import pairwise

import torch
from torch import nn

from .dino import DINO


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
    return quick


@torch.no_grad()
def fold_batch_norm(module: nn.Module) -> None:
    """Move every frozen batch norm that directly follows a convolution into its weights, in place."""
    for (_, conv), (name, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and _is_frozen_norm(norm):
            weight, bias, mean, variance = map(norm.get_buffer, ("weight", "bias", "running_mean", "running_var"))
            scale = weight * (variance + float(norm.eps)).rsqrt()  # type: ignore[arg-type]  # (C,)
            bias = bias - mean * scale
            if conv.bias is not None:
                bias = bias + conv.bias * scale
            conv.weight.mul_(scale[:, None, None, None])
            conv.bias = nn.Parameter(bias, requires_grad=False)
            setattr(module, name, getattr(norm, "act", nn.Identity()))  # timm's norm has the activation inside
    for child in module.children():
        fold_batch_norm(child)


def _is_frozen_norm(module: nn.Module) -> bool:
    """torchvision's FrozenBatchNorm2d, or timm's with an activation."""
    return type(module).__name__ in ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
