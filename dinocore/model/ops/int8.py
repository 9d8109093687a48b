"""`torch.library` operators for int8 layers on CPUs, so that compilers and FLOP counters see each as one node.

Their Numba kernels are imported when they first run. `weights` are the fields of `numba.int8.Weights`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

torch.library.define(
    "dino::int8_linear", "(Tensor x, Tensor[] weights, int zero, Tensor? residual, bool relu) -> Tensor"
)
torch.library.define(
    "dino::int8_feed_forward", "(Tensor x, Tensor[] first, Tensor[] second, Tensor[] norm, float eps) -> Tensor"
)
torch.library.define(
    "dino::int8_convolution", "(Tensor x, Tensor[] weights, int[] kernel, int[] padding, int[] stride) -> Tensor"
)


@torch.library.impl("dino::int8_linear", "cpu")
def _linear(x: Tensor, weights: Sequence[Tensor], zero: int, residual: Tensor | None, relu: bool) -> Tensor:
    from dinocore.model.ops.numba.int8 import Weights, linear

    return linear(x, Weights(*weights), zero, residual, relu)


@torch.library.register_fake("dino::int8_linear")
def _(x: Tensor, weights: Sequence[Tensor], zero: int, residual: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weights[2]))


@torch.library.impl("dino::int8_feed_forward", "cpu")
def _feed_forward(
    x: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], norm: Sequence[Tensor], eps: float
) -> Tensor:
    from dinocore.model.ops.numba.int8 import Weights, feed_forward

    return feed_forward(x, Weights(*first), Weights(*second), (norm[0], norm[1], eps))


@torch.library.register_fake("dino::int8_feed_forward")
def _(x: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], norm: Sequence[Tensor], eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.impl("dino::int8_convolution", "cpu")
def _convolution(
    x: Tensor, weights: Sequence[Tensor], kernel: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Tensor:
    from dinocore.model.ops.numba.int8 import Weights, convolve

    images = [convolve(image[None], Weights(*weights), kernel, padding, stride) for image in x]
    return images[0] if len(images) == 1 else torch.cat(images)


@torch.library.register_fake("dino::int8_convolution")
def _(
    x: Tensor, weights: Sequence[Tensor], kernel: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Tensor:
    axes = zip(x.shape[2:], kernel, padding, stride, strict=True)
    height, width = ((length + 2 * p - k) // s + 1 for length, k, p, s in axes)
    output = x.new_empty(len(x), len(weights[2]), height, width)
    return output.contiguous(memory_format=torch.channels_last)
