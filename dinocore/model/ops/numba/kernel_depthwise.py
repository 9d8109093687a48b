"""The weight gradient of a depthwise convolution on CPUs, compiled by Numba for each kernel size and stride.

oneDNN takes twenty times as long for it as for the convolution itself. Channels are contiguous in memory and processed
LANES at a time. Each row of the map is summed separately and added to the total, which rounds less than one long sum.
"""
# pyright does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

import functools
from collections.abc import Callable

import numpy as np

from dinocore.model.ops.depthwise import LANES
from dinocore.model.ops.numba.kernels import compiled
from dinocore.model.ops.numba.rows import fill, load, store


@functools.cache
def weight_gradient_kernel(side: int, stride: int, real: type) -> Callable:
    """A kernel that fills output (side * side, C) for the blocks of LANES channels from `begin` to `end`.

    It reads padded images (B, H, W, C) and output gradients (B, h, w, C); all arrays are flat.
    """

    def differentiate(images, gradients, sizes, output, begin, end):
        batch, height, width, rows, columns, channels = sizes
        zero = fill(real(0), LANES)
        row_sum = np.empty(side * side * LANES, dtype=real)
        for block in range(begin, end):
            first = block * LANES
            for tap in range(side * side):
                store(output, tap * channels + first, zero)
            for row in range(batch * rows):
                row_sum[:] = 0
                top = row // rows * height + row % rows * stride
                for column in range(columns):
                    gradient = load(gradients, (row * columns + column) * channels + first, zero)
                    for y in range(side):
                        start = ((top + y) * width + column * stride) * channels + first
                        for x in range(side):
                            at = (y * side + x) * LANES
                            product = load(images, start + x * channels, zero) * gradient
                            store(row_sum, at, load(row_sum, at, zero) + product)
                for tap in range(side * side):
                    at = tap * channels + first
                    store(output, at, load(output, at, zero) + load(row_sum, tap * LANES, zero))

    return compiled(differentiate)
