"""int8 layers on CPUs: packs their weights and passes tensors to the Numba kernels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dinocore.model.ops.numba.cpu import flat_array, in_parallel
from dinocore.model.ops.numba.kernel_int8 import (
    MIN_PEAK,
    ZERO_POINT,
    Layer,
    convolution_kernel,
    feed_forward_kernel,
    linear_kernel,
    padded_bytes_kernel,
    peaks_kernel,
)
from dinocore.model.ops.numba.tiles import GROUP, LANES, OUTPUTS, TOKENS

__all__ = ["LANES", "ZERO_POINT", "convolve", "feed_forward", "linear", "pack"]

SLAB = 1024  # most bytes of a token that are multiplied at once, so that their weights stay in the L1 cache


def pack(weight: Tensor, zero: int, slabs: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize a weight matrix (D, C) and lay it out as the kernels read it.

    Args:
        zero: the zero point of the activations that it will be multiplied with.
        slabs: number of parts of a token's C bytes, which need not be adjacent in memory; None: as suits the cache.

    Returns:
        Signed bytes (panels, slabs, groups, OUTPUTS, GROUP), zero where D or C is rounded up; the initial value of each
        sum, (panels * OUTPUTS,); and the scale of each output, (D,).
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
    """The packed weights of a layer; see `pack`."""

    matrix: Tensor
    starts: Tensor  # initial values of the sums
    scale: Tensor
    bias: Tensor  # (D,)


def linear(x: Tensor, layer: Weights, zero: int, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """A linear layer: (..., C) -> (..., D), float32 or bfloat16; a residual (..., D) is added before the ReLU."""
    output = torch.empty(*x.shape[:-1], len(layer.scale), dtype=x.dtype)
    to_add = flat_array(output)[:0] if residual is None else flat_array(residual)
    arrays = flat_array(x), zero, _layer(layer, x.shape[-1]), to_add, relu, flat_array(output)
    in_parallel(linear_kernel, arrays, math.prod(x.shape[:-1]))
    return output


def feed_forward(x: Tensor, first: Weights, second: Weights, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    """Layer norm of x plus two linear layers with a ReLU between them: (..., C) -> (..., C), float32 or bfloat16.

    Args:
        norm: scale (C,), shift (C,) and epsilon of the layer norm.
    """
    output = torch.empty(x.shape, dtype=x.dtype)
    layers = _layer(first, x.shape[-1]), _layer(second, len(first.scale))
    arrays = flat_array(x), *layers, (*map(flat_array, norm[:2]), norm[2]), flat_array(output)
    in_parallel(feed_forward_kernel, arrays, math.prod(x.shape[:-1]))
    return output


def convolve(x: Tensor, layer: Weights, kernel: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A convolution of non-negative values, then ReLU: (1, C, H, W) -> (1, D, h, w), channels last.

    Input and output are float32 or bfloat16. The input is quantized with a single scale. If any value is not finite,
    the whole output is NaN.
    """
    channels, *sides = x.shape[1:]
    values, peaks = flat_array(x.permute(0, 2, 3, 1)), torch.empty(sides[0] * sides[1])
    in_parallel(peaks_kernel, (values, channels, flat_array(peaks)), len(peaks))
    top = max(peaks.amax().item(), MIN_PEAK)  # keeps NaN, since it is the first argument
    height, width = (side + 2 * pixels for side, pixels in zip(sides, padding, strict=True))
    buffer = torch.empty(height * width * channels + TOKENS * stride[1] * channels + GROUP, dtype=torch.uint8)
    image = flat_array(buffer)  # longer than the image, since the last tile may read beyond it
    in_parallel(padded_bytes_kernel, (values, (*sides, channels, *padding), 255 / top, image), height)
    rows, columns = (height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1
    output = torch.empty(1, rows, columns, len(layer.scale), dtype=x.dtype)
    conv_layer = _layer(layer, channels, stride[1] * channels, width * channels)
    row_stride = stride[0] * width * channels
    in_parallel(convolution_kernel, (image, top / 255, conv_layer, row_stride, columns, flat_array(output)), rows)
    if not math.isfinite(top):
        output.fill_(math.nan)  # the ReLU turned NaN into 0
    return output.permute(0, 3, 1, 2)


def _layer(weights: Weights, channels: int, token_stride: int | None = None, slab_stride: int | None = None) -> Layer:
    """A layer as the kernels read it; by default, the slabs of a token and the tokens are adjacent in memory."""
    slabs, groups = weights.matrix.shape[1:3]
    slab_stride = slab_stride or groups * GROUP
    matrix, starts, scales, bias = map(flat_array, weights)
    return Layer(matrix, starts, scales, bias, channels, slabs, token_stride or slabs * slab_stride, slab_stride)
