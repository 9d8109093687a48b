"""Deformable attention from what its layers give: offsets from a reference, and logits instead of weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from dinocore.model.ops.dispatch import (
    chosen_backend,
    compiled_form,
    disable_backend,
    ms_deform_attn,
    pairs,
    runs_compiled,
)

Shapes = list[tuple[int, int]]
Sampling = Callable[[Tensor, Tensor, Shapes, Tensor, Tensor, Tensor], Tensor]


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


torch.library.define(
    "dino::sample_around",
    "(Tensor value, Tensor padding, int[] sizes, Tensor reference, Tensor offsets, Tensor logits) -> Tensor",
)


@torch.library.impl("dino::sample_around", "cpu")
def _sample(
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
