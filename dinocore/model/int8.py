"""Linear layers of encoder and decoder as products of bytes, for CPUs.

A weight has a scale for each output channel, an activation one for each token, found when it is computed: nothing is
calibrated. `export.quantize` makes the same of an ONNX graph. Between two products there is one pass over the data.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .deform_attn import MSDeformAttn
from .layers import FeedForward
from .ops.numba.int8 import MIDDLE, quantize, quantize_hidden, scale_sums
from .ops.numba.kernel_int8 import LANES


def quantize_layers(layers: nn.ModuleList) -> None:
    """Replace the linear layers of encoder or decoder layers by products of bytes, in place.

    Where attention samples and by which weights stays as it is, for AP suffers from it; so do the attention between
    queries and layers with fewer than LANES channels.
    """
    for module in list(layers.modules()):
        if isinstance(module, MSDeformAttn):
            for name in ("value", "output"):
                linear = getattr(module, name)
                if type(linear) is nn.Linear and _is_wide(linear):
                    setattr(module, name, Int8Linear(linear))
        elif isinstance(module, FeedForward) and isinstance(module.net, nn.Sequential):
            first, second = (child for child in module.net if isinstance(child, nn.Linear))
            if _is_wide(first) and _is_wide(second):
                module.net = Int8FeedForward(first, second)


def _is_wide(linear: nn.Linear) -> bool:
    return min(linear.in_features, linear.out_features) >= LANES


class Int8Linear(nn.Module):
    """A linear layer for CPUs, without gradients."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.product = Int8Product(linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        data, steps = quantize(x.reshape(-1, x.shape[-1]))
        sums = self.product(data, MIDDLE)
        return scale_sums(sums, steps, self.product.bias, x.dtype).view(*x.shape[:-1], sums.shape[1])


class Int8FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, for CPUs, without gradients."""

    def __init__(self, first: nn.Linear, second: nn.Linear):
        super().__init__()
        self.first, self.second = Int8Product(first), Int8Product(second)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        data, steps = quantize(x.reshape(-1, x.shape[-1]))
        data, steps = quantize_hidden(self.first(data, MIDDLE), steps, self.first.bias)
        return scale_sums(self.second(data, 0), steps, self.second.bias, x.dtype).view(x.shape)


class Int8Product(nn.Module):
    """The matrix of a linear layer, laid out for products of unsigned by signed bytes; its bias is for the caller."""

    matrix: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, num_tokens: int = 1024):
        """
        Args:
            num_tokens: of a typical call; the layout that is best for so many suits any number.
        """
        super().__init__()
        self.num_tokens = num_tokens
        self.out_features = linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-30) / 127  # (C_out,)
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("matrix", (weight / scale[:, None]).round().to(torch.int8))  # (C_out, C_in)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._pack()

    def _pack(self) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(self.matrix, [self.num_tokens, self.matrix.shape[1]])
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "packed"}  # no usual tensor

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()

    def forward(self, data: Tensor, zero: int) -> Tensor:
        """Bytes (N, C_in), of which `zero` stands for 0, by the matrix: (N, C_out) float32, to be scaled by token."""
        return torch.ops.onednn.qlinear_pointwise(
            data, 1.0, zero, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
