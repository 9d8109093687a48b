"""The loops of multi-scale deformable attention for CPUs, compiled by Numba for each D and K = L * P.

One head of one image at a time: its value is packed to (S + 1, W), so that tokens next to each other share the cache.
Row S is zero and stands for every place off the map. Then, for each query, the K samples are located side by side, and
their corners are visited one after the other. D and K are rounded up to powers of two, W and V: rows of 24 numbers are
twice as slow as rows of 32. What is stored for the 4 corners of K samples, (4, K), has V - K numbers more at its end.

All arrays are flat; `inputs` are value, locations, weights, maps, where maps (3, V) has width, height and first token.
`around_kernel` gets a reference, offsets and logits instead, and makes places and weights of the samples in registers.
Numba keeps what it compiled on disk and starts anew when this file changes, not when only `rows` or `row_math` does.
"""
# ruff: noqa: N803, N806 - the letters of `structures`
# it does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

import functools
import logging
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import njit
from numba.core.event import Event, Listener, register
from numba.core.extending import overload

from dinocore.model.ops.numba.row_math import add_scaled, dot, exp, floor, largest, where
from dinocore.model.ops.numba.rows import fill, load, load_pairs, resize, splat, spread, store, store_pairs

LOG = logging.getLogger("dinocore")


def padded(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


class Announcer(Listener):
    """Tells the log, once, why the first call takes so long."""

    warned = False

    def on_start(self, event: Event) -> None:
        ours = cast(dict[str, Any], event.data)["dispatcher"].py_func.__module__.startswith("dinocore.")
        if ours and not self.warned:
            LOG.info("compiling deformable attention for this CPU; the result is cached, so this is slow only once")
        self.warned |= ours

    def on_end(self, event: Event) -> None:
        pass


ANNOUNCER = Announcer()
register("numba:compile", ANNOUNCER)  # Numba says nothing of the kind when it finds what it kept


def compiled(function: Callable) -> Callable:
    return njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")(function)


@functools.cache
def forward_kernel(D: int, K: int, real: type) -> Callable:
    """Kernel that fills output (B, N, M, D), `begin` to `end` of the B * M * N queries of all heads."""
    W, V = padded(D), padded(K)

    def forward(inputs, sizes, output, begin, end):
        value, locations, weights, maps = inputs
        S, M, N = sizes
        short, zero, few = fill(real(0), D), fill(real(0), W), fill(real(0), K)
        constants = fill(real(0), V), fill(real(0.5), V), fill(real(1), V), fill(real(S), V)
        packed = np.empty((S + 1) * W, dtype=real)
        corners, shares = np.empty(3 * K + V, dtype=np.int32), np.empty(3 * K + V, dtype=real)
        for item in range(begin, end):
            b, m, n = item // (M * N), item // N % M, item % N
            if item == begin or n == 0:
                pack(value, (b * S * M + m) * D, M * D, S, packed, short, zero)
            query = (b * N + n) * M + m
            places = locate(given(locations, query * K, maps, constants, few), K, maps, constants, corners)
            share(places, resize(load(weights, query * K, few), places[0]), K, shares)
            store(output, query * D, resize(add_up(packed, corners, shares, few, zero), short))

    return compiled(forward)


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


@functools.cache
def backward_kernel(D: int, K: int, real: type) -> Callable:
    """Kernel that fills the three gradients for `begin` to `end` of the B * M heads; nobody else writes there."""
    W, V = padded(D), padded(K)

    def backward(grad, inputs, sizes, gradients, begin, end):
        value, locations, weights, maps = inputs
        S, M, N = sizes
        short, zero, few = fill(real(0), D), fill(real(0), W), fill(real(0), K)
        constants = fill(real(0), V), fill(real(0.5), V), fill(real(1), V), fill(real(S), V)
        packed, grad_packed = np.empty((S + 1) * W, dtype=real), np.empty((S + 1) * W, dtype=real)
        corners, shares = np.empty(3 * K + V, dtype=np.int32), np.empty(3 * K + V, dtype=real)
        dots = np.empty(3 * K + V, dtype=real)
        for head in range(begin, end):
            b, m = head // M, head % M
            pack(value, (b * S * M + m) * D, M * D, S, packed, short, zero)
            grad_packed[:] = 0
            for n in range(N):
                query = (b * N + n) * M + m
                places = locate(given(locations, query * K, maps, constants, few), K, maps, constants, corners)
                weight = resize(load(weights, query * K, few), places[0])
                share(places, weight, K, shares)
                grad_row = resize(load(grad, query * D, short), zero)
                for corner in range(4 * K):
                    row = corners[corner] * W
                    dots[corner] = dot(grad_row, load(packed, row, zero))
                    store(grad_packed, row, add_scaled(load(grad_packed, row, zero), shares[corner], grad_row))
                _place_gradients(places, weight, dots, maps, query * K, few, gradients)
            for s in range(S):
                store(gradients[0], ((b * S + s) * M + m) * D, resize(load(grad_packed, s * W, zero), short))

    return compiled(backward)


@compiled
def pack(value, start, step, tokens, packed, short, zero):
    """Copy a row of value every `step` numbers, from `start` on, to packed (S + 1, W), whose last row becomes zero."""
    width = len(packed) // (tokens + 1)
    for token in range(tokens):
        store(packed, token * width, resize(load(value, start + token * step, short), zero))
    store(packed, tokens * width, zero)


@compiled
def _blank(padding, first, tokens, packed, zero):
    """Make the packed rows of padding zero."""
    width = len(packed) // (tokens + 1)
    for token in range(tokens):
        if padding[first + token]:
            store(packed, token * width, zero)


@compiled
def given(locations, start, maps, constants, few):
    """x and y of K samples, counted in tokens from the first one's centre."""
    zero, half, _, _ = constants
    x, y = load_pairs(locations, 2 * start, few)
    return resize(x, zero) * load(maps, 0, zero) - half, resize(y, zero) * load(maps, len(maps) // 3, zero) - half


@compiled
def locate(places, K, maps, constants, corners):
    """Find K samples: write the packed row of each corner to corners (4, K), return shares: left, right, up, down."""
    x, y = places
    zero, _, one, off = constants
    V = len(maps) // 3
    widths, heights, firsts = load(maps, 0, zero), load(maps, V, zero), load(maps, 2 * V, zero)
    left, up = floor(x), floor(y)
    right, down = left + one, up + one
    left_on, right_on = (left >= zero) & (left < widths), (right >= zero) & (right < widths)  # not if NaN
    up_on, down_on = (up >= zero) & (up < heights), (down >= zero) & (down < heights)
    up_row, down_row = firsts + up * widths, firsts + down * widths
    store(corners, 0, where(up_on & left_on, up_row + left, off))
    store(corners, K, where(up_on & right_on, up_row + right, off))
    store(corners, 2 * K, where(down_on & left_on, down_row + left, off))
    store(corners, 3 * K, where(down_on & right_on, down_row + right, off))
    return right - x, x - left, down - y, y - up


@compiled
def share(places, weight, K, shares):
    """Write the fraction of each corner in its sum to shares (4, K)."""
    left, right, up, down = places
    up, down = up * weight, down * weight
    store(shares, 0, up * left)
    store(shares, K, up * right)
    store(shares, 2 * K, down * left)
    store(shares, 3 * K, down * right)


@compiled
def _softmax(logits):
    heights = exp(logits - splat(largest(logits), logits))
    return heights * splat(1.0 / dot(heights, splat(1.0, heights)), heights)


def add_up(packed, corners, shares, few, zero):
    """The sum of packed rows at corners (4, K), times shares (4, K); K and W are the widths of `few` and `zero`."""
    raise NotImplementedError("called from compiled code only")


@overload(add_up)
def _add_up(packed, corners, shares, few, zero):
    K, W = few.width, zero.width

    def add_up(packed, corners, shares, few, zero):
        upper_left, upper_right, lower_left, lower_right = zero, zero, zero, zero
        for k in range(K):  # four sums, because an addition waits for the one before
            i, j, u, v = k, k + K, k + 2 * K, k + 3 * K
            upper_left = add_scaled(upper_left, shares[i], load(packed, corners[i] * W, zero))
            upper_right = add_scaled(upper_right, shares[j], load(packed, corners[j] * W, zero))
            lower_left = add_scaled(lower_left, shares[u], load(packed, corners[u] * W, zero))
            lower_right = add_scaled(lower_right, shares[v], load(packed, corners[v] * W, zero))
        return (upper_left + upper_right) + (lower_left + lower_right)

    return add_up


@compiled
def _place_gradients(places, weight, dots, maps, start, few, gradients):
    """Gradients of K samples from dots (4, K), the gradient of the output times the value of each corner."""
    left, right, up, down = places
    V = len(maps) // 3
    K = (len(dots) - V) // 3
    upper_left, upper_right = load(dots, 0, weight), load(dots, K, weight)
    lower_left, lower_right = load(dots, 2 * K, weight), load(dots, 3 * K, weight)
    upper = left * upper_left + right * upper_right
    lower = left * lower_left + right * lower_right
    across = up * (upper_right - upper_left) + down * (lower_right - lower_left)
    grad_x = weight * load(maps, 0, weight) * across
    grad_y = weight * load(maps, V, weight) * (lower - upper)
    store_pairs(gradients[1], 2 * start, resize(grad_x, few), resize(grad_y, few))
    store(gradients[2], start, resize(up * upper + down * lower, few))
