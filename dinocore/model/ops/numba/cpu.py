"""Deformable attention and depthwise gradients on CPUs: passes tensors to the Numba kernels and runs them in threads.

Sums are accumulated in float32 (float64 for float64 values). Results are bitwise equal for any number of threads.
Kernels run in PyTorch's own OpenMP threads where possible: those keep spinning for some milliseconds after each
operation, so separate threads would compete with them for the cores, which doubled the time of the sampling. Kernels
release the GIL; each thread calls them for a part of the work.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinocore.model.ops.depthwise import LANES
from dinocore.model.ops.numba.kernel_depthwise import weight_gradient_kernel
from dinocore.model.ops.numba.kernels import backward_kernel, forward_kernel, fused_kernel, next_power_of_two

Shapes = list[tuple[int, int]]


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """value (B, S, M, D), locations (B, N, M, L, P, 2), weights (B, N, M, L, P) -> (B, N, M * D)."""
    batch, num_queries, heads, levels, points = weights.shape
    output = torch.empty(batch, num_queries, heads * value.shape[-1], dtype=_stored(value))
    kernel = forward_kernel(value.shape[-1], levels * points, _real(value))
    inputs, sizes = _arrays(value, shapes, locations, weights)
    in_parallel(kernel, (inputs, sizes, flat_array(output)), batch * heads * num_queries)
    return output.to(value.dtype)


def forward_fused(
    value: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Like `dispatch.sample`, without its intermediate tensors; sums are accumulated in float32."""
    batch, num_queries, levels, size = reference.shape
    _, tokens, heads, head_dim = value.shape
    points = logits.shape[-1] // levels
    output = torch.empty(batch, num_queries, heads * head_dim, dtype=_stored(value))
    kernel = fused_kernel(head_dim, levels, points, size)
    stored = [flat_array(x.to(_stored(x))) for x in (reference, offsets, logits)]
    inputs = (
        flat_array(value.to(_stored(value))),
        flat_array(padding.view(torch.uint8)),
        *stored,
        _maps(shapes, points, np.float32),
    )
    in_parallel(kernel, (inputs, (tokens, heads, num_queries), flat_array(output)), batch * heads * num_queries)
    return output.to(value.dtype)


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each with the shape and dtype of its tensor."""
    batch, _, heads, levels, points = weights.shape
    kernel = backward_kernel(value.shape[-1], levels * points, _real(value))
    grad_value = torch.empty(value.shape, dtype=_stored(value))
    grad_locations, grad_weights = (torch.empty(x.shape, dtype=_computed(value)) for x in (locations, weights))
    gradients = flat_array(grad_value), flat_array(grad_locations), flat_array(grad_weights)
    inputs, sizes = _arrays(value, shapes, locations, weights)
    in_parallel(kernel, (flat_array(grad.to(_stored(value))), inputs, sizes, gradients), batch * heads)
    return grad_value.to(value.dtype), grad_locations.to(locations.dtype), grad_weights.to(weights.dtype)


def depthwise_weight_gradient(padded: Tensor, grad: Tensor, side: int, stride: int) -> Tensor:
    """(B, C, H, W), (B, C, h, w) -> (C, 1, side, side), in float32 or float64; see `depthwise`."""
    batch, channels, height, width = padded.shape
    rows, columns = grad.shape[-2:]
    output = torch.empty(side, side, channels, dtype=_computed(padded))
    kernel = weight_gradient_kernel(side, stride, _real(padded))
    images, gradients = (flat_array(x.to(_stored(padded)).permute(0, 2, 3, 1)) for x in (padded, grad))
    sizes = (batch, height, width, rows, columns, channels)
    in_parallel(kernel, (images, gradients, sizes, flat_array(output)), channels // LANES)
    return output.permute(2, 0, 1)[:, None].contiguous()


def _computed(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _stored(value: Tensor) -> torch.dtype:
    return torch.bfloat16 if value.dtype == torch.bfloat16 else _computed(value)  # kernels don't support float16


def _real(value: Tensor) -> type:
    return np.float64 if value.dtype == torch.float64 else np.float32


def _arrays(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> tuple[tuple, tuple[int, int, int]]:
    """The inputs of every kernel: value, locations, weights and maps; and S, M, N."""
    real = _computed(value)
    inputs = flat_array(value.to(_stored(value))), flat_array(locations.to(real)), flat_array(weights.to(real))
    return (*inputs, _maps(shapes, weights.shape[4], _real(value))), (value.shape[1], value.shape[2], weights.shape[1])


def _maps(shapes: Shapes, points: int, real: type) -> np.ndarray:
    """Width, height and first token of the level of each of the L * P samples, flat (3, V)."""
    starts = np.cumsum([0, *(height * width for height, width in shapes)])[:-1]
    levels = np.array([(width, height, start) for (height, width), start in zip(shapes, starts, strict=True)])  # (L, 3)
    samples = levels.T.repeat(points, axis=1)  # (3, L * P)
    maps = np.zeros((3, next_power_of_two(samples.shape[1])), dtype=real)
    maps[:, : samples.shape[1]] = samples
    return maps.ravel()


def flat_array(tensor: Tensor) -> np.ndarray:
    """A flat NumPy array of a tensor's values, without a copy if it is contiguous; bf16 becomes uint16."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy().reshape(-1)


_forked = False  # a forked child has no OpenMP threads, and would wait for them forever


def in_parallel(kernel: Callable, arguments: tuple, total: int) -> None:
    """Split the range from 0 to `total` over PyTorch's number of threads; each calls kernel(*arguments, begin, end)."""
    chunks = max(1, min(torch.get_num_threads(), total))
    edges = [total * chunk // chunks for chunk in range(chunks + 1)]

    def run(chunk: int) -> None:
        kernel(*arguments, *edges[chunk : chunk + 2])

    if chunks == 1:
        run(0)
    elif (library := _openmp()) and not _forked:
        _run_in_openmp(library, run, chunks)
    else:
        others = [_pool().submit(run, chunk) for chunk in range(1, chunks)]
        run(0)
        for other in others:
            other.result()


def _run_in_openmp(library: ctypes.CDLL, run: Callable[[int], None], chunks: int) -> None:
    errors = []

    def work(_: int | None) -> None:
        try:
            for chunk in range(library.omp_get_thread_num(), chunks, library.omp_get_num_threads()):
                run(chunk)
        except BaseException as error:  # must not propagate into C code
            errors.append(error)

    library.GOMP_parallel(_REGION(work), None, chunks, 0)
    if errors:
        raise errors[0]


_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch has loaded, which can only be found on Linux; otherwise None."""
    maps = Path("/proc/self/maps")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    found = [name for name in loaded if Path(name).name.startswith(("libgomp", "libiomp5", "libomp"))]
    own = [name for name in found if Path(torch.__file__).parent.parent in Path(name).parents]
    for name in own or (found if len(found) == 1 else []):
        library = ctypes.CDLL(name)
        if hasattr(library, "GOMP_parallel"):
            library.GOMP_parallel.argtypes = (_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            library.GOMP_parallel.restype = None
            return library
    return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="deform_attn")


def _after_fork() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()  # a child does not inherit threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
