"""Numbers to bytes and back, token by token: tensors in and out of the Numba kernels."""

import torch
from torch import Tensor

from dinocore.model.ops.numba.cpu import flat_array, in_parallel
from dinocore.model.ops.numba.kernel_int8 import MIDDLE, hidden_kernel, quantize_kernel, scale_kernel

__all__ = ["MIDDLE", "quantize", "quantize_hidden", "scale_sums"]


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, C), float32 or bfloat16, to bytes (N, C) and steps (N,): x is about (byte - MIDDLE) * step."""
    data, steps = _empty(x)
    arrays = flat_array(x), x.shape[1], flat_array(data), flat_array(steps)
    in_parallel(quantize_kernel, arrays, len(x))
    return data, steps


def quantize_hidden(sums: Tensor, scales: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """relu(sums (N, C) * scales (N,) + bias (C,)) to bytes (N, C) and steps (N,): it is about byte * step."""
    data, steps = _empty(sums)
    arrays = flat_array(sums), sums.shape[1], *map(flat_array, (scales, bias, data, steps))
    in_parallel(hidden_kernel, arrays, len(sums))
    return data, steps


def scale_sums(sums: Tensor, scales: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (N, C) * scales (N,) + bias (C,), in float32 or bfloat16."""
    output = torch.empty(sums.shape, dtype=dtype)
    arrays = flat_array(sums), sums.shape[1], *map(flat_array, (scales, bias, output))
    in_parallel(scale_kernel, arrays, len(sums))
    return output


def _empty(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(tokens.shape, dtype=torch.uint8), torch.empty(len(tokens))
