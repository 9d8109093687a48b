"""int8 layers on CPUs: tensors in and out of the Numba kernels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dinocore.model.ops.numba.cpu import flat_array, in_parallel
from dinocore.model.ops.numba.kernel_int8 import (
    LEAST,
    MIDDLE,
    Layer,
    convolution_kernel,
    feed_forward_kernel,
    linear_kernel,
    padded_bytes_kernel,
    peaks_kernel,
)
from dinocore.model.ops.numba.tiles import GROUP, LANES, OUTPUTS, TOKENS

__all__ = ["LANES", "MIDDLE", "convolve", "feed_forward", "linear", "pack"]

SLAB = 1024  # bytes of a token that are multiplied at once, at most: the weights for them stay in the nearest cache


def pack(weight: Tensor, zero: int, slabs: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix (D, C) as the kernels read it.

    Args:
        zero: the byte that stands for 0 in what is multiplied.
        slabs: parts into which the C bytes of a token fall that need not lie side by side; None: as suits the cache.
    Returns:
        Signed bytes (panels, slabs, groups, OUTPUTS, GROUP) with zeros where D or C is rounded up, what sums start
        from, (panels * OUTPUTS,), and the scale of each output, (D,).
    """
    outputs, channels = weight.shape
    panels = math.ceil(outputs / OUTPUTS)
    if slabs is None:
        slabs = math.ceil(channels / SLAB)
        groups = math.ceil(channels / slabs / GROUP)
        size = groups * GROUP
    else:
        size = channels // slabs
        groups = math.ceil(size / GROUP)
    scale = weight.abs().amax(1).clamp(min=1e-30) / 127  # (D,)
    whole = nn.functional.pad((weight / scale[:, None]).round(), (0, slabs * size - channels))
    matrix = torch.zeros(panels * OUTPUTS, slabs, groups * GROUP, dtype=torch.int8)
    matrix[:outputs, :, :size] = whole.view(outputs, slabs, size)
    starts = -zero * matrix.sum((1, 2), dtype=torch.int32)
    matrix = matrix.view(panels, OUTPUTS, slabs, groups, GROUP).permute(0, 2, 3, 1, 4)
    return matrix.contiguous(), starts, scale


class Weights(NamedTuple):
    """The weights of a layer, see `pack`."""

    matrix: Tensor
    starts: Tensor
    scale: Tensor
    bias: Tensor  # (D,)


def linear(x: Tensor, layer: Weights, zero: int, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """(..., C), and a residual (..., D), float32 or bfloat16, to (..., D)."""
    output = torch.empty(*x.shape[:-1], len(layer.scale), dtype=x.dtype)
    to_add = flat_array(output)[:0] if residual is None else flat_array(residual)
    arrays = flat_array(x), zero, _layer(layer, x.shape[-1]), to_add, relu, flat_array(output)
    in_parallel(linear_kernel, arrays, math.prod(x.shape[:-1]))
    return output


def feed_forward(x: Tensor, first: Weights, second: Weights, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    """Two linear layers with a ReLU between them, x added, then layer norm: (..., C), float32 or bfloat16, to (..., C).

    Args:
        norm: its scale (C,), its shift (C,) and what is added to the variance.
    """
    output = torch.empty(x.shape, dtype=x.dtype)
    layers = _layer(first, x.shape[-1]), _layer(second, len(first.scale))
    arrays = flat_array(x), *layers, (*map(flat_array, norm[:2]), norm[2]), flat_array(output)
    in_parallel(feed_forward_kernel, arrays, math.prod(x.shape[:-1]))
    return output


def convolve(x: Tensor, layer: Weights, kernel: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The ReLU of a convolution of numbers from 0, (1, C, H, W) to (1, D, h, w), float32 or bfloat16, channels last.

    The image has a scale of its own. One with a number that is not finite becomes NaN.
    """
    channels, *sides = x.shape[1:]
    numbers, peaks = flat_array(x.permute(0, 2, 3, 1)), torch.empty(sides[0] * sides[1])
    in_parallel(peaks_kernel, (numbers, channels, flat_array(peaks)), len(peaks))
    top = max(peaks.amax().item(), LEAST)  # NaN stays, as the first of the two
    height, width = (side + 2 * pixels for side, pixels in zip(sides, padding, strict=True))
    data = torch.empty(height * width * channels + TOKENS * stride[1] * channels + GROUP, dtype=torch.uint8)
    image = flat_array(data)  # longer than needed, since the last tile may go on behind it
    in_parallel(padded_bytes_kernel, (numbers, (*sides, channels, *padding), 255 / top, image), height)
    rows, columns = (height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1
    output = torch.empty(1, rows, columns, len(layer.scale), dtype=x.dtype)
    taken = _layer(layer, channels, stride[1] * channels, width * channels)
    row_step = stride[0] * width * channels
    in_parallel(convolution_kernel, (image, top / 255, taken, row_step, columns, flat_array(output)), rows)
    if not math.isfinite(top):
        output.fill_(math.nan)  # of which the ReLU makes 0
    return output.permute(0, 3, 1, 2)


def _layer(weights: Weights, channels: int, step: int | None = None, hop: int | None = None) -> Layer:
    """As the kernels read it; without a step and a hop, slab lies by slab and token by token."""
    slabs, groups = weights.matrix.shape[1:3]
    hop = hop or groups * GROUP
    matrix, starts, scales, bias = map(flat_array, weights)
    return Layer(matrix, starts, scales, bias, channels, slabs, step or slabs * hop, hop)
