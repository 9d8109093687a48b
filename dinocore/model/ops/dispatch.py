"""Deformable attention and its implementations: Numba on CPUs, Triton on CUDA, PyTorch elsewhere.

The compiled forms stand behind `torch.library` operators, so autograd, autocast, `torch.compile` and `torch.export`
see a single node. A form is a module with `forward` and `backward`, imported when it first runs. Operators are made
with `torch.library.define`: the first call of a `custom_op` imports torch._dynamo, which takes a second (torch 2.14).
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

FORMS = ("auto", "reference", "operator")
COMPILED = {"cpu", "cuda"}  # types of device with a form of their own
WIDEST = 128  # numbers that a compiled form holds side by side

_backend_of_all = "auto"
_backend: ContextVar[str | None] = ContextVar("backend", default=None)  # of a thread, over that of all
_broken: set[str] = set()  # types of device whose form could not run

Shapes = list[tuple[int, int]]
Sampling = Callable[[Tensor, Tensor, Shapes, Tensor, Tensor, Tensor], Tensor]


class Sampled(NamedTuple):
    """What one call of the operation was given, and its answer; see `ms_deform_attn`."""

    value: Tensor  # (B, S, M, D)
    shapes: Shapes
    locations: Tensor  # (B, N, M, L, P, 2)
    weights: Tensor  # (B, N, M, L, P)
    output: Tensor  # (B, N, M * D)


_watcher: ContextVar[Callable[[Sampled], None] | None] = ContextVar("watcher", default=None)  # of each thread


def ms_deform_attn(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample `value` at `locations` (bilinear) and add the samples up by `weights`.

    Args:
        value: (B, S, M, D), the tokens of all levels, split into heads.
        shapes: L x (H_l, W_l), which piece of S belongs to which level.
        locations: (B, N, M, L, P, 2), (x, y) in [0, 1] of the padded map; outside counts as zero, NaN gives NaN.
        weights: (B, N, M, L, P).

    Returns:
        (B, N, M * D), with the dtype and device of `value`.

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check(value, shapes, locations, weights)
    if chosen_backend() != "operator" and not runs_compiled(value, locations.shape[3] * locations.shape[4]):
        output = sample_reference(value, shapes, locations, weights)
    else:
        sizes = [size for shape in shapes for size in shape]
        output = torch.ops.dino.ms_deform_attn(value, sizes, locations, weights)
    if (see := _watcher.get()) is not None:
        see(Sampled(value, shapes, locations, weights, output))
    return output


def sample(
    value: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Sample `value` around each query's reference.

    Args:
        value: (B, S, M, D); what lies on padding counts as zero.
        padding: (B, S) bool.
        shapes: L x (H_l, W_l).
        reference: (B, N, L, 2) points or (B, N, L, 4) boxes, as fractions of the padded map.
        offsets: (B, N, M, L * P * 2), steps of one token from a point; of a box, shares that reach its edge at P.
        logits: (B, N, M, L * P), of the softmax over levels and points.

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
    locations = offsets * step[:, :, None] + start[:, :, None]  # long rows: five times as fast as pairs of numbers
    split = (num_levels, num_points)
    return ms_deform_attn(
        value * ~padding[..., None, None],
        shapes,
        locations.unflatten(-1, (*split, 2)),
        logits.softmax(-1).unflatten(-1, split),
    )


def map_sizes(shapes: Shapes, like: Tensor) -> Tensor:
    """Width and height of each map as a tensor, (L, 2), of the dtype and on the device of `like`."""
    sides = [side for height, width in shapes for side in (width, height)]
    if any(isinstance(side, torch.SymInt) for side in sides):  # a constant would fix them in an exported graph
        counted = [torch.arange(side, dtype=like.dtype, device=like.device)[-1] + 1 for side in sides]
        return torch.stack(counted).unflatten(0, (-1, 2))
    return like.new_tensor(sides).unflatten(0, (-1, 2))


def sample_fused(
    value: Tensor, padding: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """As `sample`, in one pass where a compiled form can do that (on a CPU, to float32's precision); no gradients."""
    known = value.device.type == "cpu" and value.dtype != torch.float64 and runs_compiled(value, logits.shape[-1])
    if not known or chosen_backend() == "operator":
        return sample(value, padding, shapes, reference, offsets, logits)
    sizes = [size for shape in shapes for size in shape]
    reference = reference.float()  # a default dtype of float64 may be in it
    return torch.ops.dino.sample_around(value, padding, sizes, reference, offsets, logits)


@contextmanager
def use_backend(name: str, all_threads: bool = False) -> Iterator[None]:
    """Use the named form within the block: "auto", or "reference" for export and comparison.

    "operator" is the operator for whatever shapes, and nothing fused: a trace has one `dino::ms_deform_attn` per call.

    Args:
        all_threads: of the process, and not only in this one.

    Raises:
        ValueError: there is no such form.
    """
    global _backend_of_all
    if name not in FORMS:
        raise ValueError(f"unknown implementation {name!r}; choose one of {', '.join(FORMS)}")
    of_all, of_this = _backend_of_all, _backend.get()
    if all_threads:
        _backend_of_all = name
    else:
        _backend.set(name)
    try:
        yield
    finally:
        if all_threads:
            _backend_of_all = of_all
        else:
            _backend.set(of_this)  # no reset: a generator may be closed in another thread


def same_backend() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For PyTorch's `checkpoint`: what was computed in one form is computed again in it, in whatever thread."""
    return nullcontext(), use_backend(chosen_backend())


def chosen_backend() -> str:
    """What `use_backend` says in this thread."""
    return _backend.get() or _backend_of_all


@contextmanager
def watch_sampling(see: Callable[[Sampled], None]) -> Iterator[None]:
    """Show `see` every call of the operation within the block in this thread, for inspectors."""
    before = _watcher.get()
    _watcher.set(see)
    try:
        yield
    finally:
        _watcher.set(before)


def is_reference() -> bool:
    """Whether "reference" was asked for: nothing tuned, as our peers compute."""
    return chosen_backend() == "reference"


def runs_compiled(value: Tensor, num_samples: int) -> bool:
    """Whether a compiled form takes heads of this width and as many samples, and nothing speaks against it."""
    device = value.device.type
    narrow = 0 < value.shape[-1] <= WIDEST and 0 < num_samples <= WIDEST
    return narrow and device in COMPILED and device not in _broken and not is_reference()


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


def pairs(sizes: list[int]) -> Shapes:
    """The maps that an operator gets as one list of numbers."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


torch.library.define("dino::ms_deform_attn", "(Tensor value, int[] sizes, Tensor locations, Tensor weights) -> Tensor")
torch.library.define(
    "dino::ms_deform_attn_backward",
    "(Tensor grad, Tensor value, int[] sizes, Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("dino::ms_deform_attn", ("cpu", "cuda"))
def _sample(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    try:
        return compiled_form(value.device.type).forward(value, pairs(sizes), locations, weights)
    except Exception as error:
        disable_backend(value.device.type, error)
        return sample_reference(value, pairs(sizes), locations, weights)


@torch.library.impl("dino::ms_deform_attn_backward", ("cpu", "cuda"))
def _differentiate(
    grad: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return compiled_form(value.device.type).backward(grad, value, pairs(sizes), locations, weights)
    except Exception as error:
        disable_backend(value.device.type, error)
        return differentiate_reference(grad, value, pairs(sizes), locations, weights)


def compiled_form(device: str) -> ModuleType:
    """The module for a type of device.

    Raises:
        RuntimeError, ImportError: it cannot run here.
    """
    if device in _broken:
        raise RuntimeError(f"the implementation for {device} failed earlier")
    if device == "cuda":
        from dinocore.model.ops import triton as form
    else:
        from dinocore.model.ops.numba import cpu as form
    return form


def disable_backend(device: str, error: Exception) -> None:
    """Say once that the compiled form cannot run; let errors of memory pass."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        raise error
    if device not in _broken:
        _broken.add(device)
        text = " ".join(str(error).split())[:200]
        warnings.warn(f"slow deformable attention on {device}: {type(error).__name__}: {text}", stacklevel=3)


@torch.library.register_fake("dino::ms_deform_attn")
def _(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, locations.shape[1], heads * head_dim)


@torch.library.register_fake("dino::ms_deform_attn_backward")
def _(
    grad: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _remember(ctx, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.dino.ms_deform_attn_backward(
        grad, value, ctx.sizes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


torch.library.register_autograd("dino::ms_deform_attn", _backward, setup_context=_remember)

torch.library.define(
    "dino::sample_around",
    "(Tensor value, Tensor padding, int[] sizes, Tensor reference, Tensor offsets, Tensor logits) -> Tensor",
)


@torch.library.impl("dino::sample_around", "cpu")
def _sample_around(
    value: Tensor, padding: Tensor, sizes: list[int], reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    try:
        return compiled_form("cpu").forward_around(value, padding, pairs(sizes), reference, offsets, logits)
    except Exception as error:
        disable_backend("cpu", error)
        return sample(value, padding, pairs(sizes), reference, offsets, logits)


@torch.library.register_fake("dino::sample_around")
def _(value: Tensor, padding: Tensor, sizes: list[int], reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, reference.shape[1], heads * head_dim)
