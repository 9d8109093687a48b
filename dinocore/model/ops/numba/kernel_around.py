"""Deformable attention straight from offsets and logits, compiled by Numba; see `kernels` for what the loops do.

Places and weights of a query's samples are made in registers, where `kernels` reads them from memory. What
Numba compiled is kept until this file changes, also when only `kernels`, `rows` or `row_math` does.
"""
# ruff: noqa: N803, N806 - the letters of `structures`
# it does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

import functools
from collections.abc import Callable

import numpy as np

from dinocore.model.ops.numba.kernels import add_up, compiled, locate, pack, padded, share
from dinocore.model.ops.numba.row_math import dot, exp, largest
from dinocore.model.ops.numba.rows import fill, load, load_pairs, resize, splat, spread, store


@functools.cache
def around_kernel(D: int, L: int, P: int, R: int) -> Callable:
    """Kernel that fills output (B, N, M, D), `begin` to `end` of the B * M * N queries of all heads, in float32.

    Args:
        R: how many numbers a reference has: 2 for a point, 4 for a box.
    """
    W, K, V, E = padded(D), L * P, padded(L * P), L * R
    real = np.float32

    def forward(inputs, sizes, output, begin, end):
        value, padding, reference, offsets, logits, maps = inputs
        S, M, N = sizes
        short, zero, few, references = fill(real(0), D), fill(real(0), W), fill(real(0), K), fill(real(0), E)
        constants = fill(real(0), V), fill(real(0.5), V), fill(real(1), V), fill(real(S), V)
        packed = np.empty((S + 1) * W, dtype=real)
        corners, shares = np.empty(3 * K + V, dtype=np.int32), np.empty(3 * K + V, dtype=real)
        for item in range(begin, end):
            b, m, n = item // (M * N), item // N % M, item % N
            if item == begin or n == 0:
                pack(value, (b * S * M + m) * D, M * D, S, packed, short, zero)
                _blank(padding, b * S, S, packed, zero)
            query = (b * N + n) * M + m
            near = load(reference, (b * N + n) * E, references)
            start = spread(near, P, R, 0, constants[0]), spread(near, P, R, 1, constants[0])
            widths, heights = load(maps, 0, constants[0]), load(maps, V, constants[0])
            move_x, move_y = load_pairs(offsets, query * 2 * K, few)
            move_x, move_y = resize(move_x, constants[0]), resize(move_y, constants[0])
            if R == 4:  # offsets are in fractions of the box, so that P points reach its edge
                move_x = move_x * spread(near, P, R, 2, constants[0]) * widths * splat(0.5 / P, widths)
                move_y = move_y * spread(near, P, R, 3, constants[0]) * heights * splat(0.5 / P, heights)
            x = start[0] * widths + move_x - constants[1]
            y = start[1] * heights + move_y - constants[1]
            places = locate((x, y), K, maps, constants, corners)
            share(places, resize(_softmax(load(logits, query * K, few)), places[0]), K, shares)
            store(output, query * D, resize(add_up(packed, corners, shares, few, zero), short))

    return compiled(forward)


@compiled
def _blank(padding, first, tokens, packed, zero):
    """Make the packed rows of padding zero."""
    width = len(packed) // (tokens + 1)
    for token in range(tokens):
        if padding[first + token]:
            store(packed, token * width, zero)


@compiled
def _softmax(logits):
    heights = exp(logits - splat(largest(logits), logits))
    return heights * splat(1.0 / dot(heights, splat(1.0, heights)), heights)
