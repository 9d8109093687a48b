"""int8 layers on CPUs, compiled by Numba: quantize, multiply, dequantize.

Each token has its own scale: a byte represents (byte - zero_point) * scale, where zero_point is ZERO_POINT for signed
values and 0 for non-negative ones. The scale of a token with a non-finite value is NaN. BLOCK tokens at a time go from
input to output, so that intermediate results stay in the cache.

All arrays are flat. C and D are values of channels, at least LANES; where LANES does not divide them, the last row of a
token overlaps the one before it.
Numba caches compiled code on disk and recompiles when this file changes, but not when only `rows` or `tiles` changes.
"""
# ruff: noqa: N803, N806 - the letters of `structures`
# pyright does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

from typing import NamedTuple

import numpy as np

from dinocore.model.ops.numba.kernels import compiled
from dinocore.model.ops.numba.row_math import absolute, add_scaled, dot, larger, largest, where
from dinocore.model.ops.numba.rows import fill, load, splat, store
from dinocore.model.ops.numba.tiles import GROUP, LANES, OUTPUTS, TOKENS, add_products, load_tile, store_tile

ZERO_POINT = 128  # the byte that represents 0 among signed values
MIN_PEAK = 1e-30  # below it, 127 / peak may be infinite
BLOCK = 192  # tokens; TOKENS divides it


class Layer(NamedTuple):
    """A layer, and the memory layout of its input bytes; the first three fields come from `int8.pack`."""

    weights: np.ndarray
    starts: np.ndarray  # initial values of the sums, (N,), where N is D rounded up
    scales: np.ndarray  # (D,)
    bias: np.ndarray  # (D,)
    channels: int  # C
    slabs: int  # parts of a token's bytes
    token_stride: int  # bytes from one token to the next
    slab_stride: int  # bytes from one slab to the next within a token


@compiled
def linear_kernel(x, zero_point, layer, residual, relu, output, begin, end):
    """A linear layer for tokens `begin` to `end` of x (N, C), plus the residual unless empty, to output (N, D)."""
    C, D = layer.channels, len(layer.scales)
    data, token_scales, sums = _scratch(layer)
    for first in range(begin, end, BLOCK):
        count = min(BLOCK, end - first)
        _quantize(x, first * C, layer, zero_point, count, data, token_scales)
        _multiply(data, 0, layer, count, sums)
        _dequantize(sums, token_scales, layer, residual, relu, count, output, first * D)


@compiled
def feed_forward_kernel(x, first_layer, second_layer, norm, output, begin, end):
    """Layer norm of x + second_layer(relu(first_layer(x))) for tokens `begin` to `end` of x (N, C)."""
    C = first_layer.channels
    data, token_scales, hidden_sums = _scratch(first_layer)
    hidden, hidden_scales, sums = _scratch(second_layer)
    values = np.empty(BLOCK * C, dtype=np.float32)
    for first in range(begin, end, BLOCK):
        count, start = min(BLOCK, end - first), first * C
        _quantize(x, start, first_layer, ZERO_POINT, count, data, token_scales)
        _multiply(data, 0, first_layer, count, hidden_sums)
        _quantize_hidden(
            hidden_sums, token_scales, first_layer, count, hidden, second_layer.token_stride, hidden_scales
        )
        _multiply(hidden, 0, second_layer, count, sums)
        _dequantize(sums, hidden_scales, second_layer, x[start:], False, count, values, 0)
        _layer_norm(values, norm, count, output, start)


@compiled
def convolution_kernel(image, image_scale, layer, row_stride, width, output, begin, end):
    """Convolution and ReLU of unsigned bytes with zero point 0, for rows `begin` to `end` of output (h, width, D).

    Args:
        image: (H, W, C), padded.
        image_scale: the value of one byte step.
        row_stride: bytes of the image from one row of the output to the next.
    """
    D = len(layer.scales)
    sums = np.empty((width + TOKENS) * len(layer.starts), dtype=np.int32)
    token_scales = np.full(width, image_scale, dtype=np.float32)
    for row in range(begin, end):
        _multiply(image, row * row_stride, layer, width, sums)
        _dequantize(sums, token_scales, layer, output[:0], True, width, output, row * width * D)


@compiled
def peaks_kernel(x, C, peaks, begin, end):
    """The largest value, at least 0, of each of the tokens `begin` to `end` of x (N, C), to peaks (N,)."""
    zeros = fill(np.float32(0), LANES)
    one = splat(np.float32(1), zeros)
    for token in range(begin, end):
        peak, nan_check = zeros, zeros
        for block in range(0, C, LANES):
            row = load(x, token * C + min(block, C - LANES), zeros)
            peak = larger(row, peak)
            nan_check = add_scaled(nan_check, np.float32(0), row)
        peaks[token] = largest(peak) + dot(nan_check, one)


@compiled
def padded_bytes_kernel(x, sizes, scale, data, begin, end):
    """Quantize and zero-pad x (H, W, C) into data (H + 2P, W + 2Q, C), for rows `begin` to `end` of data."""
    H, W, C, P, Q = sizes
    zeros = fill(np.float32(0), LANES)
    half, scales = splat(np.float32(0.5), zeros), splat(np.float32(scale), zeros)
    width = (W + 2 * Q) * C
    for row in range(begin, end):
        data[row * width : (row + 1) * width] = 0
        if P <= row < P + H:
            source, target = (row - P) * W * C, row * width + Q * C
            for token in range(0, W * C, C):
                for block in range(0, C, LANES):
                    at = token + min(block, C - LANES)
                    store(data, target + at, load(x, source + at, zeros) * scales + half)


@compiled
def _scratch(layer):
    """Buffers for a block's input bytes, their scales, and the layer's sums."""
    data, token_scales = np.empty(BLOCK * layer.token_stride, dtype=np.uint8), np.empty(BLOCK, dtype=np.float32)
    return data, token_scales, np.empty(BLOCK * len(layer.starts), dtype=np.int32)


@compiled
def _quantize(x, start, layer, zero_point, count, data, token_scales):
    """Quantize tokens of x (count, C) to bytes in the layer's layout, and write the scale of each, (count,)."""
    C = layer.channels
    zeros = fill(np.float32(0), LANES)
    one, rounding = splat(np.float32(1), zeros), splat(np.float32(zero_point + 0.5), zeros)
    levels = np.float32(127 if zero_point else 255)
    for token in range(count):
        source, peak, nan_check = start + token * C, zeros, zeros
        for block in range(0, C, LANES):
            row = load(x, source + min(block, C - LANES), zeros)
            peak = larger(absolute(row), peak)
            nan_check = add_scaled(nan_check, np.float32(0), row)  # 0 unless a value is not finite
        top = max(largest(peak), np.float32(MIN_PEAK))
        token_scales[token] = top / levels + dot(nan_check, one)
        scale = splat(levels / top, zeros)
        for block in range(0, C, LANES):
            at = min(block, C - LANES)
            store(data, token * layer.token_stride + at, load(x, source + at, zeros) * scale + rounding)


@compiled
def _multiply(data, start, layer, count, sums):
    """Multiply the bytes of `count` tokens by a layer's weights into sums (count, N); may touch TOKENS more tokens."""
    weights, starts, slabs, stride = layer.weights, layer.starts, layer.slabs, layer.token_stride
    N = len(starts)
    size = len(weights) // (N * slabs)  # of a slab
    for panel in range(0, N, OUTPUTS):
        for slab in range(slabs):
            first = (panel * slabs + slab * OUTPUTS) * size
            for token in range(0, count, TOKENS):
                at = start + token * stride + slab * layer.slab_stride
                target = token * N + panel
                tile = load_tile(sums, target, N) if slab else load_tile(starts, panel, 0)
                for k in range(0, size, GROUP):
                    tile = add_products(tile, data, at + k, stride, weights, first + k * OUTPUTS)
                store_tile(sums, target, N, tile)


@compiled
def _quantize_hidden(sums, token_scales, layer, count, data, width, hidden_scales):
    """Dequantize a layer's sums, apply ReLU, and quantize again to bytes (count, width) with zero point 0."""
    starts, scales, bias = layer.starts, layer.scales, layer.bias
    zeros = fill(np.float32(0), LANES)
    one, half = splat(np.float32(1), zeros), splat(np.float32(0.5), zeros)
    for token in range(count):
        source, peak, nan_check = token * len(starts), zeros, zeros
        for block in range(0, len(scales), LANES):
            at = min(block, len(scales) - LANES)
            row = _dequantized_row(sums, source, at, token_scales[token], scales, bias, zeros)
            peak = larger(row, peak)
            nan_check = add_scaled(nan_check, np.float32(0), row)
        top = max(largest(peak), np.float32(MIN_PEAK))
        hidden_scales[token] = top / np.float32(255) + dot(nan_check, one)
        scale = splat(np.float32(255) / top, zeros)
        for block in range(0, len(scales), LANES):
            at = min(block, len(scales) - LANES)
            row = _dequantized_row(sums, source, at, token_scales[token], scales, bias, zeros)
            store(data, token * width + at, where(row < zeros, zeros, row) * scale + half)


@compiled
def _dequantize(sums, token_scales, layer, residual, relu, count, output, start):
    """Turn a layer's sums into its output (count, D), from `start` on."""
    starts, scales, bias = layer.starts, layer.scales, layer.bias
    D = len(scales)
    zeros = fill(np.float32(0), LANES)
    for token in range(count):
        for block in range(0, D, LANES):
            at = min(block, D - LANES)
            row = _dequantized_row(sums, token * len(starts), at, token_scales[token], scales, bias, zeros)
            if len(residual):
                row = row + load(residual, start + token * D + at, zeros)
            if relu:
                row = where(row < zeros, zeros, row)
            store(output, start + token * D + at, row)


@compiled
def _layer_norm(values, norm, count, output, start):
    """Layer norm of tokens (count, C), to output from `start` on."""
    scales, shifts, epsilon = norm
    C = len(scales)
    aligned = C - C % LANES  # channels in complete rows
    zeros = fill(np.float32(0), LANES)
    one = splat(np.float32(1), zeros)
    for token in range(count):
        source, total, squares = token * C, zeros, zeros
        for at in range(0, aligned, LANES):
            total = total + load(values, source + at, zeros)
        mean = (dot(total, one) + values[source + aligned : source + C].sum()) / np.float32(C)
        means = splat(mean, zeros)
        for at in range(0, aligned, LANES):
            centred = load(values, source + at, zeros) - means
            squares = squares + centred * centred
        remainder = np.float32(0)
        for at in range(source + aligned, source + C):
            remainder += (values[at] - mean) ** 2
        variance = (dot(squares, one) + remainder) / np.float32(C)
        factor = splat(np.float32(1) / np.sqrt(variance + np.float32(epsilon)), zeros)
        for block in range(0, C, LANES):
            at = min(block, C - LANES)
            row = (load(values, source + at, zeros) - means) * factor
            store(output, start + source + at, row * load(scales, at, zeros) + load(shifts, at, zeros))


@compiled
def _dequantized_row(sums, source, at, token_scale, scales, bias, like):
    """LANES outputs: the int32 sums, scaled, plus the bias."""
    return add_scaled(load(bias, at, like), token_scale, load(sums, source + at, like) * load(scales, at, like))
