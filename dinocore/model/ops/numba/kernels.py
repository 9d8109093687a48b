"""The loops of multi-scale deformable attention on CPUs, compiled by Numba for each D and K = L * P.

They handle one head of one image at a time. Its value is packed to (S + 1, W), so that neighbouring tokens share cache
lines; row S is zero and is read for every location off the map. For each query, the K samples are located in parallel
lanes, then their corners are visited one by one. D and K are rounded up to powers of two, W and V, because rows of 24
numbers are twice as slow as rows of 32. Arrays for the 4 corners of K samples, (4, K), have V - K extra elements at the
end, which vector stores may overwrite.

All arrays are flat. `inputs` are value, locations, weights and maps, where maps (3, V) holds the width, height and
first token of each sample's level. `fused_kernel` takes references, offsets and logits instead of locations and
weights, and computes those in registers.
Numba caches compiled code on disk. It recompiles when this file changes, but not when only `rows` or `row_math` does.
"""
# ruff: noqa: N803, N806 - the letters of `structures`
# pyright does not know that Numba passes the typing context:
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


def next_power_of_two(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


class CompileAnnouncer(Listener):
    """Logs once why the first call takes so long."""

    warned = False

    def on_start(self, event: Event) -> None:
        ours = cast(dict[str, Any], event.data)["dispatcher"].py_func.__module__.startswith("dinocore.")
        if ours and not self.warned:
            LOG.info("compiling deformable attention for this CPU; the result is cached, so this is slow only once")
        self.warned |= ours

    def on_end(self, event: Event) -> None:
        pass


COMPILE_ANNOUNCER = CompileAnnouncer()
register("numba:compile", COMPILE_ANNOUNCER)  # not triggered when Numba loads from its cache


def compiled(function: Callable) -> Callable:
    return njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")(function)


@functools.cache
def forward_kernel(D: int, K: int, real: type) -> Callable:
    """A kernel that fills output (B, N, M, D) for items `begin` to `end` of the B * M * N pairs of head and query."""
    W, V = next_power_of_two(D), next_power_of_two(K)

    def forward(inputs, sizes, output, begin, end):
        value, locations, weights, maps = inputs
        S, M, N = sizes
        zeros_D, zeros_W, zeros_K = fill(real(0), D), fill(real(0), W), fill(real(0), K)
        constants = fill(real(0), V), fill(real(0.5), V), fill(real(1), V), fill(real(S), V)
        packed = np.empty((S + 1) * W, dtype=real)
        corners, corner_weights = np.empty(3 * K + V, dtype=np.int32), np.empty(3 * K + V, dtype=real)
        for item in range(begin, end):
            b, m, n = item // (M * N), item // N % M, item % N
            if item == begin or n == 0:
                pack(value, (b * S * M + m) * D, M * D, S, packed, zeros_D, zeros_W)
            query = (b * N + n) * M + m
            positions = sample_positions(locations, query * K, maps, constants, zeros_K)
            fractions = find_corners(positions, K, maps, constants, corners)
            weigh_corners(fractions, resize(load(weights, query * K, zeros_K), fractions[0]), K, corner_weights)
            store(output, query * D, resize(weighted_sum(packed, corners, corner_weights, zeros_K, zeros_W), zeros_D))

    return compiled(forward)


@functools.cache
def fused_kernel(D: int, L: int, P: int, R: int) -> Callable:
    """Like `forward_kernel`, from references, offsets and logits, in float32.

    Args:
        R: numbers per reference: 2 for a point, 4 for a box.
    """
    W, K, V, E = next_power_of_two(D), L * P, next_power_of_two(L * P), L * R
    real = np.float32

    def forward(inputs, sizes, output, begin, end):
        value, padding, reference, offsets, logits, maps = inputs
        S, M, N = sizes
        zeros_D, zeros_W, zeros_K, references = fill(real(0), D), fill(real(0), W), fill(real(0), K), fill(real(0), E)
        constants = fill(real(0), V), fill(real(0.5), V), fill(real(1), V), fill(real(S), V)
        packed = np.empty((S + 1) * W, dtype=real)
        corners, corner_weights = np.empty(3 * K + V, dtype=np.int32), np.empty(3 * K + V, dtype=real)
        for item in range(begin, end):
            b, m, n = item // (M * N), item // N % M, item % N
            if item == begin or n == 0:
                pack(value, (b * S * M + m) * D, M * D, S, packed, zeros_D, zeros_W)
                _zero_padding(padding, b * S, S, packed, zeros_W)
            query = (b * N + n) * M + m
            near = load(reference, (b * N + n) * E, references)
            start = spread(near, P, R, 0, constants[0]), spread(near, P, R, 1, constants[0])
            widths, heights = load(maps, 0, constants[0]), load(maps, V, constants[0])
            move_x, move_y = load_pairs(offsets, query * 2 * K, zeros_K)
            move_x, move_y = resize(move_x, constants[0]), resize(move_y, constants[0])
            if R == 4:  # an offset of P reaches the edge of the box
                move_x = move_x * spread(near, P, R, 2, constants[0]) * widths * splat(0.5 / P, widths)
                move_y = move_y * spread(near, P, R, 3, constants[0]) * heights * splat(0.5 / P, heights)
            x = start[0] * widths + move_x - constants[1]
            y = start[1] * heights + move_y - constants[1]
            fractions = find_corners((x, y), K, maps, constants, corners)
            weight = resize(_softmax(load(logits, query * K, zeros_K)), fractions[0])
            weigh_corners(fractions, weight, K, corner_weights)
            store(output, query * D, resize(weighted_sum(packed, corners, corner_weights, zeros_K, zeros_W), zeros_D))

    return compiled(forward)


@functools.cache
def backward_kernel(D: int, K: int, real: type) -> Callable:
    """A kernel that fills the three gradients for heads `begin` to `end` of B * M; no other call writes to these."""
    W, V = next_power_of_two(D), next_power_of_two(K)

    def backward(grad, inputs, sizes, gradients, begin, end):
        value, locations, weights, maps = inputs
        S, M, N = sizes
        zeros_D, zeros_W, zeros_K = fill(real(0), D), fill(real(0), W), fill(real(0), K)
        constants = fill(real(0), V), fill(real(0.5), V), fill(real(1), V), fill(real(S), V)
        packed, grad_packed = np.empty((S + 1) * W, dtype=real), np.empty((S + 1) * W, dtype=real)
        corners, corner_weights = np.empty(3 * K + V, dtype=np.int32), np.empty(3 * K + V, dtype=real)
        dots = np.empty(3 * K + V, dtype=real)
        for head in range(begin, end):
            b, m = head // M, head % M
            pack(value, (b * S * M + m) * D, M * D, S, packed, zeros_D, zeros_W)
            grad_packed[:] = 0
            for n in range(N):
                query = (b * N + n) * M + m
                positions = sample_positions(locations, query * K, maps, constants, zeros_K)
                fractions = find_corners(positions, K, maps, constants, corners)
                weight = resize(load(weights, query * K, zeros_K), fractions[0])
                weigh_corners(fractions, weight, K, corner_weights)
                grad_row = resize(load(grad, query * D, zeros_D), zeros_W)
                for corner in range(4 * K):
                    row = corners[corner] * W
                    dots[corner] = dot(grad_row, load(packed, row, zeros_W))
                    grad_value = add_scaled(load(grad_packed, row, zeros_W), corner_weights[corner], grad_row)
                    store(grad_packed, row, grad_value)
                _sample_gradients(fractions, weight, dots, maps, query * K, zeros_K, gradients)
            for s in range(S):
                store(gradients[0], ((b * S + s) * M + m) * D, resize(load(grad_packed, s * W, zeros_W), zeros_D))

    return compiled(backward)


@compiled
def pack(value, start, step, tokens, packed, zeros_D, zeros_W):
    """Copy rows of value, `step` elements apart from `start` on, to packed (S + 1, W), and set the last row to zero."""
    width = len(packed) // (tokens + 1)
    for token in range(tokens):
        store(packed, token * width, resize(load(value, start + token * step, zeros_D), zeros_W))
    store(packed, tokens * width, zeros_W)


@compiled
def _zero_padding(padding, first, tokens, packed, zeros_W):
    """Set the packed rows of tokens on padding to zero."""
    width = len(packed) // (tokens + 1)
    for token in range(tokens):
        if padding[first + token]:
            store(packed, token * width, zeros_W)


@compiled
def sample_positions(locations, start, maps, constants, zeros_K):
    """x and y of K samples in tokens, relative to the centre of the first token."""
    zero, half, _, _ = constants
    x, y = load_pairs(locations, 2 * start, zeros_K)
    return resize(x, zero) * load(maps, 0, zero) - half, resize(y, zero) * load(maps, len(maps) // 3, zero) - half


@compiled
def find_corners(positions, K, maps, constants, corners):
    """Write the packed row of each corner to corners (4, K); return the bilinear weights left, right, up and down."""
    x, y = positions
    zero, _, one, off = constants
    V = len(maps) // 3
    widths, heights, firsts = load(maps, 0, zero), load(maps, V, zero), load(maps, 2 * V, zero)
    left, up = floor(x), floor(y)
    right, down = left + one, up + one
    left_on, right_on = (left >= zero) & (left < widths), (right >= zero) & (right < widths)  # False for NaN
    up_on, down_on = (up >= zero) & (up < heights), (down >= zero) & (down < heights)
    up_row, down_row = firsts + up * widths, firsts + down * widths
    store(corners, 0, where(up_on & left_on, up_row + left, off))
    store(corners, K, where(up_on & right_on, up_row + right, off))
    store(corners, 2 * K, where(down_on & left_on, down_row + left, off))
    store(corners, 3 * K, where(down_on & right_on, down_row + right, off))
    return right - x, x - left, down - y, y - up


@compiled
def weigh_corners(fractions, weight, K, corner_weights):
    """Write the total weight of each corner to corner_weights (4, K)."""
    left, right, up, down = fractions
    up, down = up * weight, down * weight
    store(corner_weights, 0, up * left)
    store(corner_weights, K, up * right)
    store(corner_weights, 2 * K, down * left)
    store(corner_weights, 3 * K, down * right)


@compiled
def _softmax(logits):
    powers = exp(logits - splat(largest(logits), logits))
    return powers * splat(1.0 / dot(powers, splat(1.0, powers)), powers)


def weighted_sum(packed, corners, corner_weights, zeros_K, zeros_W):
    """The sum of the packed rows at corners (4, K), weighted by corner_weights (4, K)."""
    raise NotImplementedError("called from compiled code only")


@overload(weighted_sum)
def _weighted_sum(packed, corners, corner_weights, zeros_K, zeros_W):
    K, W = zeros_K.width, zeros_W.width

    def weighted_sum(packed, corners, corner_weights, zeros_K, zeros_W):
        upper_left, upper_right, lower_left, lower_right = zeros_W, zeros_W, zeros_W, zeros_W
        for k in range(K):  # four independent sums, since each addition waits for the previous one
            i, j, u, v = k, k + K, k + 2 * K, k + 3 * K
            upper_left = add_scaled(upper_left, corner_weights[i], load(packed, corners[i] * W, zeros_W))
            upper_right = add_scaled(upper_right, corner_weights[j], load(packed, corners[j] * W, zeros_W))
            lower_left = add_scaled(lower_left, corner_weights[u], load(packed, corners[u] * W, zeros_W))
            lower_right = add_scaled(lower_right, corner_weights[v], load(packed, corners[v] * W, zeros_W))
        return (upper_left + upper_right) + (lower_left + lower_right)

    return weighted_sum


@compiled
def _sample_gradients(fractions, weight, dots, maps, start, zeros_K, gradients):
    """Gradients of K samples from dots (4, K), the products of the output's gradient with each corner's value."""
    left, right, up, down = fractions
    V = len(maps) // 3
    K = (len(dots) - V) // 3
    upper_left, upper_right = load(dots, 0, weight), load(dots, K, weight)
    lower_left, lower_right = load(dots, 2 * K, weight), load(dots, 3 * K, weight)
    upper = left * upper_left + right * upper_right
    lower = left * lower_left + right * lower_right
    across = up * (upper_right - upper_left) + down * (lower_right - lower_left)
    grad_x = weight * load(maps, 0, weight) * across
    grad_y = weight * load(maps, V, weight) * (lower - upper)
    store_pairs(gradients[1], 2 * start, resize(grad_x, zeros_K), resize(grad_y, zeros_K))
    store(gradients[2], start, resize(up * upper + down * lower, zeros_K))
