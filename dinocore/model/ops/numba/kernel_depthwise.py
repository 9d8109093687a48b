"""The gradient of a depthwise convolution's weights for CPUs, compiled by Numba for each size and stride.

oneDNN takes twenty times as long for it as for the convolution. Channels lie side by side, LANES at a time. What is
added up along one row of the map is added to the sum of all rows at its end, which rounds less than one long sum.
"""
# it does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

import functools
from collections.abc import Callable

import numpy as np

from dinocore.model.ops.depthwise import LANES
from dinocore.model.ops.numba.kernels import compiled
from dinocore.model.ops.numba.rows import fill, load, store


@functools.cache
def weight_gradient_kernel(side: int, stride: int, real: type) -> Callable:
    """Kernel that fills output (side * side, C), `begin` to `end` of its C / LANES blocks of channels.

    It reads images (B, H, W, C) with their zeros around them and gradients (B, h, w, C), all flat.
    """

    def differentiate(images, gradients, sizes, output, begin, end):
        batch, height, width, rows, columns, channels = sizes
        zero = fill(real(0), LANES)
        of_row = np.empty(side * side * LANES, dtype=real)
        for block in range(begin, end):
            first = block * LANES
            for tap in range(side * side):
                store(output, tap * channels + first, zero)
            for row in range(batch * rows):
                of_row[:] = 0
                top = row // rows * height + row % rows * stride
                for column in range(columns):
                    gradient = load(gradients, (row * columns + column) * channels + first, zero)
                    for y in range(side):
                        start = ((top + y) * width + column * stride) * channels + first
                        for x in range(side):
                            at = (y * side + x) * LANES
                            product = load(images, start + x * channels, zero) * gradient
                            store(of_row, at, load(of_row, at, zero) + product)
                for tap in range(side * side):
                    at = tap * channels + first
                    store(output, at, load(output, at, zero) + load(of_row, tap * LANES, zero))

    return compiled(differentiate)
