"""The loops around products of bytes on CPUs, compiled by Numba: numbers to bytes, and sums of products to numbers.

A token has a scale of its own, `step`: what a byte stands for is (byte - zero) * step. Each loop goes over a token's
numbers once from memory and again from the cache. A token with a number that is not finite gets a step that is NaN.
All arrays are flat; C is the number of channels, at least LANES. The last row of a token overlaps the one before it
where LANES does not divide C.
Numba keeps what it compiled on disk and starts anew when this file changes, but not when only `rows` does.
"""
# ruff: noqa: N803 - the letters of `structures`
# it does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

import numpy as np

from dinocore.model.ops.numba.kernels import compiled
from dinocore.model.ops.numba.row_math import absolute, add_scaled, dot, larger, largest, where
from dinocore.model.ops.numba.rows import fill, load, splat, store

LANES = 16
MIDDLE = 128  # the byte that stands for 0 where numbers have a sign
_MIDDLE_ROUNDED, _HALF = np.float32(MIDDLE + 0.5), np.float32(0.5)
_SIGNED, _UNSIGNED = np.float32(127), np.float32(255)  # the largest number, in steps
LEAST = 1e-30  # below it, 127 / peak may be infinite


@compiled
def quantize_kernel(x, C, data, steps, begin, end):
    """Tokens `begin` to `end` of x (N, C) to bytes around MIDDLE, (N, C), and their steps, (N,)."""
    zero = fill(np.float32(0), LANES)
    one, middle = splat(np.float32(1), zero), splat(_MIDDLE_ROUNDED, zero)
    for token in range(begin, end):
        start, peak, check = token * C, zero, zero
        for block in range(0, C, LANES):
            row = load(x, start + min(block, C - LANES), zero)
            peak = larger(absolute(row), peak)
            check = add_scaled(check, np.float32(0), row)  # 0 unless a number is not finite
        top = max(largest(peak), np.float32(LEAST))
        steps[token] = top / _SIGNED + dot(check, one)
        scale = splat(_SIGNED / top, zero)
        for block in range(0, C, LANES):
            at = start + min(block, C - LANES)
            store(data, at, load(x, at, zero) * scale + middle)


@compiled
def hidden_kernel(sums, C, scales, bias, data, steps, begin, end):
    """Tokens `begin` to `end` of relu(sums * scale + bias) to bytes from 0, (N, C), and their steps, (N,)."""
    zero = fill(np.float32(0), LANES)
    one, half = splat(np.float32(1), zero), splat(_HALF, zero)
    hidden = np.empty(C, dtype=np.float32)
    for token in range(begin, end):
        start, peak, check = token * C, zero, zero
        for block in range(0, C, LANES):
            at = min(block, C - LANES)
            row = add_scaled(load(bias, at, zero), scales[token], load(sums, start + at, zero))
            row = where(row < zero, zero, row)
            store(hidden, at, row)
            peak = larger(row, peak)
            check = add_scaled(check, np.float32(0), row)
        top = max(largest(peak), np.float32(LEAST))
        steps[token] = top / _UNSIGNED + dot(check, one)
        scale = splat(_UNSIGNED / top, zero)
        for block in range(0, C, LANES):
            at = min(block, C - LANES)
            store(data, start + at, load(hidden, at, zero) * scale + half)


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
def bytes_kernel(x, C, scale, data, begin, end):
    """Tokens `begin` to `end` of x (N, C) * scale, rounded, to bytes (N, C)."""
    zero = fill(np.float32(0), LANES)
    half, scales = splat(_HALF, zero), splat(np.float32(scale), zero)
    for token in range(begin, end):
        for block in range(0, C, LANES):
            at = token * C + min(block, C - LANES)
            store(data, at, load(x, at, zero) * scales + half)


@compiled
def scale_kernel(sums, C, scales, bias, output, begin, end):
    """Tokens `begin` to `end` of sums (N, C) * scale + bias, to output (N, C)."""
    zero = fill(np.float32(0), LANES)
    for token in range(begin, end):
        for block in range(0, C, LANES):
            at = min(block, C - LANES)
            row = add_scaled(load(bias, at, zero), scales[token], load(sums, token * C + at, zero))
            store(output, token * C + at, row)
