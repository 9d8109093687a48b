"""Deformable attention and its implementations: Numba on CPUs, Triton on CUDA, PyTorch elsewhere.

The compiled backends are called through `torch.library` operators, so autograd, autocast, `torch.compile` and
`torch.export` see a single node. A backend is a module with `forward` and `backward`, imported when it first runs. The
operators are defined with `torch.library.define`, because the first call of a `custom_op` imports torch._dynamo, which
takes a second (torch 2.14).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from dinocore.model.ops.reference import differentiate as differentiate_reference
from dinocore.model.ops.reference import sample as sample_reference

BACKENDS = ("auto", "reference", "operator")
COMPILED_DEVICES = {"cpu", "cuda"}  # device types that have a compiled backend
MAX_WIDTH = 128  # most channels of a head, or samples of a query, that a compiled backend supports

_process_backend = "auto"
_backend: ContextVar[str | None] = ContextVar("backend", default=None)  # of a thread; overrides the process's
_failed_devices: set[str] = set()  # device types whose compiled backend could not run

Shapes = list[tuple[int, int]]
Sampling = Callable[[Tensor, Tensor, Shapes, Tensor, Tensor, Tensor], Tensor]


class Sampled(NamedTuple):
    """The inputs and the output of one call of `ms_deform_attn`."""

    value: Tensor  # (B, S, M, D)
    shapes: Shapes
    locations: Tensor  # (B, N, M, L, P, 2)
    weights: Tensor  # (B, N, M, L, P)
    output: Tensor  # (B, N, M * D)


_watcher: ContextVar[Callable[[Sampled], None] | None] = ContextVar("watcher", default=None)  # per thread


def ms_deform_attn(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample `value` at `locations` (bilinear) and sum the samples, weighted by `weights`.

    Args:
        value: (B, S, M, D), the tokens of all levels, split into heads.
        shapes: L x (H_l, W_l), the size of each level's map; their areas add up to S.
        locations: (B, N, M, L, P, 2), (x, y) as fractions of the padded map. Outside it values are zero; NaN gives NaN.
        weights: (B, N, M, L, P).

    Returns:
        (B, N, M * D), with the dtype and device of `value`.

    Raises:
        ValueError: the shapes do not match.
    """
    _check(value, shapes, locations, weights)
    if chosen_backend() != "operator" and not runs_compiled(value, locations.shape[3] * locations.shape[4]):
        output = sample_reference(value, shapes, locations, weights)
    else:
        sizes = [size for shape in shapes for size in shape]
        output = torch.ops.dino.ms_deform_attn(value, sizes, locations, weights)
    if (callback := _watcher.get()) is not None:
        callback(Sampled(value, shapes, locations, weights, output))
    return output


def sample(
    value: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Sample `value` around each query's reference point or box.

    Args:
        value: (B, S, M, D); tokens on padding are treated as zero.
        padding: (B, S) bool.
        shapes: L x (H_l, W_l).
        reference: (B, N, L, 2) points or (B, N, L, 4) boxes, as fractions of the padded map.
        offsets: (B, N, M, L * P * 2): from a point in tokens; from a box in units of half its size / P.
        logits: (B, N, M, L * P), before the softmax over levels and points.

    Returns:
        (B, N, M * D)
    """
    num_levels = reference.shape[2]
    num_points = logits.shape[-1] // num_levels
    if reference.shape[-1] == 2:
        step = 1 / map_sizes(shapes, reference)[None, None]  # (1, 1, L, 2)
    else:
        step = reference[..., 2:] / (2 * num_points)  # (B, N, L, 2)
    start, step = (x[..., None, :].expand(-1, -1, -1, num_points, -1).flatten(2) for x in (reference[..., :2], step))
    locations = offsets * step[:, :, None] + start[:, :, None]  # flat rows: five times as fast as (..., 2)
    split = (num_levels, num_points)
    return ms_deform_attn(
        value * ~padding[..., None, None],
        shapes,
        locations.unflatten(-1, (*split, 2)),
        logits.softmax(-1).unflatten(-1, split),
    )


def map_sizes(shapes: Shapes, like: Tensor) -> Tensor:
    """Width and height of each map as a tensor, (L, 2), with the dtype and device of `like`."""
    sides = [side for height, width in shapes for side in (width, height)]
    if any(isinstance(side, torch.SymInt) for side in sides):  # as constants they would be fixed in an exported graph
        lengths = [torch.arange(side, dtype=like.dtype, device=like.device)[-1] + 1 for side in sides]
        return torch.stack(lengths).unflatten(0, (-1, 2))
    return like.new_tensor(sides).unflatten(0, (-1, 2))


def sample_fused(
    value: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Like `sample`, without gradients; a single kernel in float32 precision where the CPU backend supports it."""
    fusable = value.device.type == "cpu" and value.dtype != torch.float64 and runs_compiled(value, logits.shape[-1])
    if not fusable or chosen_backend() == "operator":
        return sample(value, padding, shapes, reference, offsets, logits)
    sizes = [size for shape in shapes for size in shape]
    reference = reference.float()  # it has the default dtype, which may be float64
    return torch.ops.dino.sample_fused(value, padding, sizes, reference, offsets, logits)


@contextmanager
def use_backend(name: str, all_threads: bool = False) -> Iterator[None]:
    """Use the named backend within the block: "auto", or "reference" for export and comparison.

    "operator" always calls the operator, whatever the shapes, and never fuses: a trace has one `dino::ms_deform_attn`
    per call.

    Args:
        all_threads: apply to all threads of the process, not only to this one.

    Raises:
        ValueError: there is no such backend.
    """
    global _process_backend
    if name not in BACKENDS:
        raise ValueError(f"unknown implementation {name!r}; choose one of {', '.join(BACKENDS)}")
    process_backend, thread_backend = _process_backend, _backend.get()
    if all_threads:
        _process_backend = name
    else:
        _backend.set(name)
    try:
        yield
    finally:
        if all_threads:
            _process_backend = process_backend
        else:
            _backend.set(thread_backend)  # not `reset`: a generator may be closed in another thread


def same_backend() -> tuple[AbstractContextManager, AbstractContextManager]:
    """The `context_fn` of PyTorch's `checkpoint`: recomputes with the backend of the forward pass, in any thread."""
    return nullcontext(), use_backend(chosen_backend())


def chosen_backend() -> str:
    """The backend that `use_backend` has set for this thread."""
    return _backend.get() or _process_backend


@contextmanager
def watch_sampling(callback: Callable[[Sampled], None]) -> Iterator[None]:
    """Pass every call of `ms_deform_attn` in this thread within the block to `callback`, for inspectors."""
    before = _watcher.get()
    _watcher.set(callback)
    try:
        yield
    finally:
        _watcher.set(before)


def is_reference() -> bool:
    """Whether the "reference" backend is set: plain PyTorch, without our optimizations."""
    return chosen_backend() == "reference"


def runs_compiled(value: Tensor, num_samples: int) -> bool:
    """Whether a compiled backend is available and supports heads of this width and this many samples per query."""
    device = value.device.type
    narrow = 0 < value.shape[-1] <= MAX_WIDTH and 0 < num_samples <= MAX_WIDTH
    return narrow and device in COMPILED_DEVICES and device not in _failed_devices and not is_reference()


def _check(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    if value.dim() != 4 or locations.dim() != 6 or weights.dim() != 5:
        raise ValueError(
            "value must be (B, S, M, D), locations (B, N, M, L, P, 2), weights (B, N, M, L, P); "
            f"got {tuple(value.shape)}, {tuple(locations.shape)}, {tuple(weights.shape)}"
        )
    batch, tokens, heads, _ = value.shape
    num_tokens = sum(height * width for height, width in shapes)
    if num_tokens != tokens:
        raise ValueError(f"the maps {list(shapes)} have {num_tokens} tokens, value has {tokens}")
    _, queries, _, _, points, _ = locations.shape
    expected = (batch, queries, heads, len(shapes), points)
    if tuple(weights.shape) != expected or tuple(locations.shape) != (*expected, 2):
        raise ValueError(
            f"for value {tuple(value.shape)} and {len(shapes)} maps, weights must be {expected} and locations "
            f"{(*expected, 2)}; got {tuple(weights.shape)} and {tuple(locations.shape)}"
        )


def to_shapes(sizes: list[int]) -> Shapes:
    """[H_1, W_1, H_2, W_2, ...], as operators take the map sizes, to [(H_1, W_1), (H_2, W_2), ...]."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


torch.library.define("dino::ms_deform_attn", "(Tensor value, int[] sizes, Tensor locations, Tensor weights) -> Tensor")
torch.library.define(
    "dino::ms_deform_attn_backward",
    "(Tensor grad, Tensor value, int[] sizes, Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("dino::ms_deform_attn", ("cpu", "cuda"))
def _sample(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    try:
        return compiled_backend(value.device.type).forward(value, to_shapes(sizes), locations, weights)
    except Exception as error:
        disable_backend(value.device.type, error)
        return sample_reference(value, to_shapes(sizes), locations, weights)


@torch.library.impl("dino::ms_deform_attn_backward", ("cpu", "cuda"))
def _differentiate(
    grad: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return compiled_backend(value.device.type).backward(grad, value, to_shapes(sizes), locations, weights)
    except Exception as error:
        disable_backend(value.device.type, error)
        return differentiate_reference(grad, value, to_shapes(sizes), locations, weights)


def compiled_backend(device: str) -> ModuleType:
    """The module that implements the operation for a device type.

    Raises:
        RuntimeError, ImportError: it cannot run here.
    """
    if device in _failed_devices:
        raise RuntimeError(f"the implementation for {device} failed earlier")
    if device == "cuda":
        from dinocore.model.ops import triton as backend
    else:
        from dinocore.model.ops.numba import cpu as backend
    return backend


def disable_backend(device: str, error: Exception) -> None:
    """Warn once that the compiled backend cannot run, and fall back to the reference; re-raise out-of-memory errors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        raise error
    if device not in _failed_devices:
        _failed_devices.add(device)
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"slow deformable attention on {device}: {type(error).__name__}: {reason}", stacklevel=3)


@torch.library.register_fake("dino::ms_deform_attn")
def _(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, locations.shape[1], heads * head_dim)


@torch.library.register_fake("dino::ms_deform_attn_backward")
def _(
    grad: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _save_for_backward(ctx, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.dino.ms_deform_attn_backward(
        grad, value, ctx.sizes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


torch.library.register_autograd("dino::ms_deform_attn", _backward, setup_context=_save_for_backward)

torch.library.define(
    "dino::sample_fused",
    "(Tensor value, Tensor padding, int[] sizes, Tensor reference, Tensor offsets, Tensor logits) -> Tensor",
)


@torch.library.impl("dino::sample_fused", "cpu")
def _sample_fused(
    value: Tensor, padding: Tensor, sizes: list[int], reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    try:
        return compiled_backend("cpu").forward_fused(value, padding, to_shapes(sizes), reference, offsets, logits)
    except Exception as error:
        disable_backend("cpu", error)
        return sample(value, padding, to_shapes(sizes), reference, offsets, logits)


@torch.library.register_fake("dino::sample_fused")
def _(value: Tensor, padding: Tensor, sizes: list[int], reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, reference.shape[1], heads * head_dim)
