"""Multi-scale deformable attention on CPUs: tensors in and out of the Numba kernels, and the threads that run them.

Sums are kept in float32 (float64 for float64 values). The result has the same bits however many threads there are.
The threads are Python's own: the kernels release the GIL, and Numba's pools survive neither fork nor each other.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dinocore.model.ops.kernels import backward_kernel, forward_kernel, padded

Shapes = list[tuple[int, int]]


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """value (B, S, M, D), locations (B, N, M, L, P, 2), weights (B, N, M, L, P) -> (B, N, M * D)."""
    batch, num_queries, heads, levels, points = weights.shape
    output = torch.empty(batch, num_queries, heads * value.shape[-1], dtype=_stored(value))
    kernel = forward_kernel(value.shape[-1], levels * points, _real(value))
    inputs, sizes = _arrays(value, shapes, locations, weights)
    _in_parallel(kernel, (inputs, sizes, _flat(output)), batch * heads * num_queries)
    return output.to(value.dtype)


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each with the shape and dtype of its own."""
    batch, _, heads, levels, points = weights.shape
    kernel = backward_kernel(value.shape[-1], levels * points, _real(value))
    grad_value = torch.empty(value.shape, dtype=_stored(value))
    grad_locations, grad_weights = (torch.empty(x.shape, dtype=_computed(value)) for x in (locations, weights))
    gradients = _flat(grad_value), _flat(grad_locations), _flat(grad_weights)
    inputs, sizes = _arrays(value, shapes, locations, weights)
    _in_parallel(kernel, (_flat(grad.to(_stored(value))), inputs, sizes, gradients), batch * heads)
    return grad_value.to(value.dtype), grad_locations.to(locations.dtype), grad_weights.to(weights.dtype)


def _computed(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _stored(value: Tensor) -> torch.dtype:
    return torch.bfloat16 if value.dtype == torch.bfloat16 else _computed(value)  # kernels know no float16


def _real(value: Tensor) -> type:
    return np.float64 if value.dtype == torch.float64 else np.float32


def _arrays(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> tuple[tuple, tuple[int, int, int]]:
    """What every kernel reads: value, locations, weights and maps; and S, M, N."""
    starts = np.cumsum([0, *(height * width for height, width in shapes)])[:-1]
    levels = np.array([(width, height, start) for (height, width), start in zip(shapes, starts, strict=True)])  # (L, 3)
    samples = levels.T.repeat(weights.shape[4], axis=1)  # (3, L * P)
    maps = np.zeros((3, padded(samples.shape[1])), dtype=_real(value))
    maps[:, : samples.shape[1]] = samples
    real = _computed(value)
    inputs = _flat(value.to(_stored(value))), _flat(locations.to(real)), _flat(weights.to(real)), maps.ravel()
    return inputs, (value.shape[1], value.shape[2], weights.shape[1])


def _flat(tensor: Tensor) -> np.ndarray:
    """The numbers in order, without a copy if they lie so; bf16 as uint16."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy().reshape(-1)


def _in_parallel(kernel: Callable, arguments: tuple, total: int) -> None:
    """Run kernel(*arguments, begin, end) over pieces of 0 to `total`, as many as PyTorch has threads."""
    pieces = max(1, min(torch.get_num_threads(), total))
    edges = [total * piece // pieces for piece in range(pieces + 1)]
    others = [_pool().submit(kernel, *arguments, *edges[piece : piece + 2]) for piece in range(1, pieces)]
    kernel(*arguments, *edges[:2])
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="deform_attn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child does not inherit threads
