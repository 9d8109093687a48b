"""int8 layers on CPUs, compiled by Numba: quantize, multiply, dequantize.

A token has a scale of its own, its step: what a byte stands for is (byte - zero) * step, where zero is MIDDLE for
numbers with a sign, and 0 for others. A token with a number that is not finite gets a step that is NaN. BLOCK tokens
at a time go all the way, so that what is between input and output stays in the cache.

All arrays are flat; C and D are numbers of channels, at least LANES: the last row of a token overlaps the one before it
where LANES does not divide them.
Numba keeps what it compiled on disk and starts anew when this file changes, but not when only `rows` or `tiles` does.
"""
# ruff: noqa: N803, N806 - the letters of `structures`
# it does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

from typing import NamedTuple

import numpy as np

from dinocore.model.ops.numba.kernels import compiled
from dinocore.model.ops.numba.row_math import absolute, add_scaled, dot, larger, largest, where
from dinocore.model.ops.numba.rows import fill, load, splat, store
from dinocore.model.ops.numba.tiles import GROUP, LANES, OUTPUTS, TOKENS, add_products, load_tile, store_tile

MIDDLE = 128  # the byte that stands for 0 where numbers have a sign
LEAST = 1e-30  # below it, 127 / peak may be infinite
BLOCK = 192  # tokens; TOKENS divides it


class Layer(NamedTuple):
    """A layer and how the bytes lie that it multiplies; the first four are as `int8.pack` makes them."""

    weights: np.ndarray
    starts: np.ndarray  # of the sums, (N,), N is D rounded up
    scales: np.ndarray  # (D,)
    bias: np.ndarray  # (D,)
    channels: int  # C
    slabs: int  # parts into which a token's bytes fall
    step: int  # bytes from a token to the next
    hop: int  # bytes from a slab to the next of the same token


@compiled
def linear_kernel(x, zero, layer, residual, relu, output, begin, end):
    """Tokens `begin` to `end` of x (N, C) by a layer, plus the residual where it has numbers, to output (N, D)."""
    C, D = layer.channels, len(layer.scales)
    data, steps, sums = _scratch(layer)
    for first in range(begin, end, BLOCK):
        count = min(BLOCK, end - first)
        _to_bytes(x, first * C, layer, zero, count, data, steps)
        _multiply(data, 0, layer, count, sums)
        _to_numbers(sums, steps, layer, residual, relu, count, output, first * D)


@compiled
def feed_forward_kernel(x, first_layer, second_layer, norm, output, begin, end):
    """Tokens `begin` to `end` of x (N, C) plus what a layer, a ReLU and another layer make of them, normalised."""
    C = first_layer.channels
    data, steps, hidden_sums = _scratch(first_layer)
    hidden, hidden_steps, sums = _scratch(second_layer)
    numbers = np.empty(BLOCK * C, dtype=np.float32)
    for first in range(begin, end, BLOCK):
        count, place = min(BLOCK, end - first), first * C
        _to_bytes(x, place, first_layer, MIDDLE, count, data, steps)
        _multiply(data, 0, first_layer, count, hidden_sums)
        _hidden_to_bytes(hidden_sums, steps, first_layer, count, hidden, second_layer.step, hidden_steps)
        _multiply(hidden, 0, second_layer, count, sums)
        _to_numbers(sums, hidden_steps, second_layer, x[place:], False, count, numbers, 0)
        _normalise(numbers, norm, count, output, place)


@compiled
def convolution_kernel(image, image_step, layer, row_step, width, output, begin, end):
    """Rows `begin` to `end` of the ReLU of a convolution of bytes from 0, to output (h, width, D).

    Args:
        image: (H, W, C) with its padding; a byte stands for `image_step`; the next row begins `row_step` bytes on.
    """
    D = len(layer.scales)
    sums = np.empty((width + TOKENS) * len(layer.starts), dtype=np.int32)
    steps = np.full(width, image_step, dtype=np.float32)
    for row in range(begin, end):
        _multiply(image, row * row_step, layer, width, sums)
        _to_numbers(sums, steps, layer, output[:0], True, width, output, row * width * D)


@compiled
def peaks_kernel(x, C, peaks, begin, end):
    """The largest number, or 0, of each of the tokens `begin` to `end` of x (N, C), to peaks (N,)."""
    zero = fill(np.float32(0), LANES)
    one = splat(np.float32(1), zero)
    for token in range(begin, end):
        peak, check = zero, zero
        for block in range(0, C, LANES):
            row = load(x, token * C + min(block, C - LANES), zero)
            peak = larger(row, peak)
            check = add_scaled(check, np.float32(0), row)
        peaks[token] = largest(peak) + dot(check, one)


@compiled
def padded_bytes_kernel(x, sizes, scale, data, begin, end):
    """Rows `begin` to `end` of data: x (H, W, C) * scale, rounded, with zeros around it: (H + 2P, W + 2Q, C)."""
    H, W, C, P, Q = sizes
    zero = fill(np.float32(0), LANES)
    half, scales = splat(np.float32(0.5), zero), splat(np.float32(scale), zero)
    width = (W + 2 * Q) * C
    for row in range(begin, end):
        data[row * width : (row + 1) * width] = 0
        if P <= row < P + H:
            source, target = (row - P) * W * C, row * width + Q * C
            for token in range(0, W * C, C):
                for block in range(0, C, LANES):
                    at = token + min(block, C - LANES)
                    store(data, target + at, load(x, source + at, zero) * scales + half)


@compiled
def _scratch(layer):
    """Room for a block's bytes and steps before a layer, and for its sums."""
    data, steps = np.empty(BLOCK * layer.step, dtype=np.uint8), np.empty(BLOCK, dtype=np.float32)
    return data, steps, np.empty(BLOCK * len(layer.starts), dtype=np.int32)


@compiled
def _to_bytes(x, start, layer, zero, count, data, steps):
    """Tokens of x (count, C) to bytes around `zero`, as a layer takes them, and their steps, (count,)."""
    C = layer.channels
    nothing = fill(np.float32(0), LANES)
    one, middle = splat(np.float32(1), nothing), splat(np.float32(zero + 0.5), nothing)
    levels = np.float32(127 if zero else 255)
    for token in range(count):
        source, peak, check = start + token * C, nothing, nothing
        for block in range(0, C, LANES):
            row = load(x, source + min(block, C - LANES), nothing)
            peak = larger(absolute(row), peak)
            check = add_scaled(check, np.float32(0), row)  # 0 unless a number is not finite
        top = max(largest(peak), np.float32(LEAST))
        steps[token] = top / levels + dot(check, one)
        scale = splat(levels / top, nothing)
        for block in range(0, C, LANES):
            at = min(block, C - LANES)
            store(data, token * layer.step + at, load(x, source + at, nothing) * scale + middle)


@compiled
def _multiply(data, start, layer, count, sums):
    """Bytes of `count` tokens by the weights of a layer, to sums (count, N); up to TOKENS more tokens are touched."""
    weights, starts, slabs, step = layer.weights, layer.starts, layer.slabs, layer.step
    N = len(starts)
    size = len(weights) // (N * slabs)  # of a slab
    for panel in range(0, N, OUTPUTS):
        for slab in range(slabs):
            first = (panel * slabs + slab * OUTPUTS) * size
            for token in range(0, count, TOKENS):
                at = start + token * step + slab * layer.hop
                place = token * N + panel
                tile = load_tile(sums, place, N) if slab else load_tile(starts, panel, 0)
                for k in range(0, size, GROUP):
                    tile = add_products(tile, data, at + k, step, weights, first + k * OUTPUTS)
                store_tile(sums, place, N, tile)


@compiled
def _hidden_to_bytes(sums, steps, layer, count, data, width, hidden_steps):
    """The ReLU of a layer, from its sums, to bytes from 0, (count, width), and their steps."""
    starts, scales, bias = layer.starts, layer.scales, layer.bias
    nothing = fill(np.float32(0), LANES)
    one, half = splat(np.float32(1), nothing), splat(np.float32(0.5), nothing)
    for token in range(count):
        source, peak, check = token * len(starts), nothing, nothing
        for block in range(0, len(scales), LANES):
            at = min(block, len(scales) - LANES)
            row = _scaled(sums, source, at, steps[token], scales, bias, nothing)
            peak = larger(row, peak)
            check = add_scaled(check, np.float32(0), row)
        top = max(largest(peak), np.float32(LEAST))
        hidden_steps[token] = top / np.float32(255) + dot(check, one)
        scale = splat(np.float32(255) / top, nothing)
        for block in range(0, len(scales), LANES):
            at = min(block, len(scales) - LANES)
            row = _scaled(sums, source, at, steps[token], scales, bias, nothing)
            store(data, token * width + at, where(row < nothing, nothing, row) * scale + half)


@compiled
def _to_numbers(sums, steps, layer, residual, relu, count, output, start):
    """What a layer gives, from its sums, to output (count, D) from `start` on."""
    starts, scales, bias = layer.starts, layer.scales, layer.bias
    D = len(scales)
    nothing = fill(np.float32(0), LANES)
    for token in range(count):
        for block in range(0, D, LANES):
            at = min(block, D - LANES)
            row = _scaled(sums, token * len(starts), at, steps[token], scales, bias, nothing)
            if len(residual):
                row = row + load(residual, start + token * D + at, nothing)
            if relu:
                row = where(row < nothing, nothing, row)
            store(output, start + token * D + at, row)


@compiled
def _normalise(numbers, norm, count, output, start):
    """Layer norm of tokens (count, C), to output from `start` on."""
    scales, shifts, epsilon = norm
    C = len(scales)
    whole = C - C % LANES
    nothing = fill(np.float32(0), LANES)
    one = splat(np.float32(1), nothing)
    for token in range(count):
        source, total, squares = token * C, nothing, nothing
        for at in range(0, whole, LANES):
            total = total + load(numbers, source + at, nothing)
        mean = (dot(total, one) + numbers[source + whole : source + C].sum()) / np.float32(C)
        means = splat(mean, nothing)
        for at in range(0, whole, LANES):
            off = load(numbers, source + at, nothing) - means
            squares = squares + off * off
        rest = np.float32(0)
        for at in range(source + whole, source + C):
            rest += (numbers[at] - mean) ** 2
        variance = (dot(squares, one) + rest) / np.float32(C)
        factor = splat(np.float32(1) / np.sqrt(variance + np.float32(epsilon)), nothing)
        for block in range(0, C, LANES):
            at = min(block, C - LANES)
            row = (load(numbers, source + at, nothing) - means) * factor
            store(output, start + source + at, row * load(scales, at, nothing) + load(shifts, at, nothing))


@compiled
def _scaled(sums, source, at, step, scales, bias, like):
    """Sums of products as numbers, LANES of them, with their bias."""
    return add_scaled(load(bias, at, like), step, load(sums, source + at, like) * load(scales, at, like))
