"""Numbers to bytes and back, token by token: tensors in and out of the Numba kernels."""

import torch
from torch import Tensor

from dinocore.model.ops.numba.cpu import flat_array, in_parallel
from dinocore.model.ops.numba.kernel_int8 import (
    LEAST,
    MIDDLE,
    bytes_kernel,
    hidden_kernel,
    peaks_kernel,
    quantize_kernel,
    scale_kernel,
)

__all__ = ["MIDDLE", "quantize", "quantize_hidden", "quantize_image", "scale_sums"]


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, C), float32 or bfloat16, to bytes (N, C) and steps (N,): x is about (byte - MIDDLE) * step."""
    if torch.compiler.is_compiling():
        top = x.float().abs().amax(1).clamp(min=LEAST)
        return (x.float() * (127 / top)[:, None] + (MIDDLE + 0.5)).to(torch.uint8), top / 127
    data, steps = _empty(x)
    arrays = flat_array(x), x.shape[1], flat_array(data), flat_array(steps)
    in_parallel(quantize_kernel, arrays, len(x))
    return data, steps


def quantize_hidden(sums: Tensor, scales: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """relu(sums (N, C) * scales (N,) + bias (C,)) to bytes (N, C) and steps (N,): it is about byte * step."""
    if torch.compiler.is_compiling():
        hidden = (sums.float() * scales[:, None] + bias).relu()
        top = hidden.amax(1).clamp(min=LEAST)
        return (hidden * (255 / top)[:, None] + 0.5).to(torch.uint8), top / 255
    data, steps = _empty(sums)
    arrays = flat_array(sums), sums.shape[1], *map(flat_array, (scales, bias, data, steps))
    in_parallel(hidden_kernel, arrays, len(sums))
    return data, steps


def scale_sums(sums: Tensor, scales: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (N, C) * scales (N,) + bias (C,), in float32 or bfloat16."""
    if torch.compiler.is_compiling():
        return (sums.float() * scales[:, None] + bias).to(dtype)
    output = torch.empty(sums.shape, dtype=dtype)
    arrays = flat_array(sums), sums.shape[1], *map(flat_array, (scales, bias, output))
    in_parallel(scale_kernel, arrays, len(sums))
    return output


def quantize_image(x: Tensor) -> tuple[Tensor, float]:
    """A map (1, C, H, W) of numbers from 0 to bytes of that shape, channels last, and its step: x is about byte * step.

    A number that is not finite makes the step NaN.
    """
    tokens = x.permute(0, 2, 3, 1).flatten(0, 2)  # (H * W, C)
    numbers, channels = flat_array(tokens), tokens.shape[1]
    peaks = torch.empty(len(tokens))
    in_parallel(peaks_kernel, (numbers, channels, flat_array(peaks)), len(tokens))
    top = max(peaks.amax().item(), LEAST)  # NaN stays, as the first of the two
    data = torch.empty(tokens.shape, dtype=torch.uint8)
    in_parallel(bytes_kernel, (numbers, channels, 255 / top, flat_array(data)), len(tokens))
    return data.view(1, *x.shape[2:], channels).permute(0, 3, 1, 2), top / 255


def _empty(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(tokens.shape, dtype=torch.uint8), torch.empty(len(tokens))
