"""Multi-scale deformable attention on CUDA, in Triton; with TRITON_INTERPRET=1 the same kernels run on CPU tensors.

One program handles ITEMS pairs of query and head. It loads the D channels of a token as one contiguous row. Gradients
of value are accumulated by atomic additions, so their last bits differ from run to run.
"""
# ruff: noqa: N803 - the letters of `structures`
# pyright takes tl.static_range for a function that never returns:
# pyright: reportGeneralTypeIssues=false

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

ITEMS = 16  # pairs of query and head per program
Shapes = list[tuple[int, int]]


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """value (B, S, M, D), locations (B, N, M, L, P, 2), weights (B, N, M, L, P) -> (B, N, M * D)."""
    batch, num_queries, heads, _, _ = weights.shape
    output = torch.empty(batch, num_queries, heads * value.shape[-1], dtype=value.dtype, device=value.device)
    inputs = value.contiguous(), locations.contiguous(), weights.contiguous()
    _launch(_forward, inputs, (output,), shapes)
    return output


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each with the shape and dtype of its tensor."""
    real = torch.float64 if value.dtype == torch.float64 else torch.float32
    inputs = value.contiguous(), locations.contiguous(), weights.contiguous()
    grad_value = torch.zeros(value.shape, dtype=real, device=value.device)  # atomic additions need full precision
    grad_locations, grad_weights = (torch.empty_like(tensor) for tensor in inputs[1:])
    _launch(_backward, inputs, (grad.contiguous(), grad_value, grad_locations, grad_weights), shapes)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _launch(kernel: triton.JITFunction, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...], shapes: Shapes) -> None:
    value, _, weights = inputs
    batch, num_queries, heads, levels, points = weights.shape
    _, tokens, _, head_dim = value.shape
    grid = triton.cdiv(num_queries * heads, ITEMS), batch
    if 0 in grid:
        return
    real = tl.float64 if value.dtype == torch.float64 else tl.float32
    width = triton.next_power_of_2(head_dim)
    sizes = tokens, num_queries, levels, heads, points, head_dim
    with torch.cuda.device_of(value):
        kernel[grid](*inputs, _maps(tuple(shapes), value.device), *others, *sizes, ITEMS, width, real)


@functools.lru_cache(maxsize=256)
def _maps(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Height, width and first token of each level, (L, 3); cached, because copying to the device synchronizes."""
    starts = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
    rows = [(height, width, start) for (height, width), start in zip(shapes, starts, strict=True)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@triton.jit
def _locate(locations, at, size, real: tl.constexpr, on_item):
    """Along one axis: the token at or before a location, and the interpolation weight of the next token."""
    position = tl.load(locations + at, mask=on_item, other=0.0).to(real) * size - 0.5
    low = tl.floor(position)
    return low, position - low


@triton.jit
def _corner(left, up, right_weight, down_weight, height, width, corner: tl.constexpr):
    """Index of one corner's token within its level, whether it lies on the map, and its weight along each axis."""
    if corner % 2 == 1:
        column, across = left + 1, right_weight
    else:
        column, across = left, 1 - right_weight
    if corner // 2 == 1:
        row, down = up + 1, down_weight
    else:
        row, down = up, 1 - down_weight
    on_map = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # False for NaN
    column, row = tl.where(on_map, column, 0), tl.where(on_map, row, 0)
    return row.to(tl.int32) * width + column.to(tl.int32), on_map, across, down


@triton.jit
def _forward(  # noqa: PLR0913
    value, locations, weights, maps, output, tokens, num_queries, levels,
    M: tl.constexpr, P: tl.constexpr, D: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    on_item = item < num_queries * M
    lane = tl.arange(0, WIDTH)[None]
    query = batch * num_queries * M + item
    total = tl.zeros((ITEMS, WIDTH), dtype=real)
    for level in range(levels):
        height, width, first = tl.load(maps + 3 * level), tl.load(maps + 3 * level + 1), tl.load(maps + 3 * level + 2)
        for point in range(P):
            at = (query * levels + level) * P + point
            left, right_weight = _locate(locations, 2 * at, width, real, on_item)
            up, down_weight = _locate(locations, 2 * at + 1, height, real, on_item)
            weight = tl.load(weights + at, mask=on_item, other=0.0).to(real)
            for corner in tl.static_range(4):
                token, on_map, across, down = _corner(left, up, right_weight, down_weight, height, width, corner)
                row = ((batch * tokens + first + token) * M + item % M) * D
                mask = (on_item & on_map)[:, None] & (lane < D)
                values = tl.load(value + row[:, None] + lane, mask=mask, other=0.0).to(real)
                total += (weight * across * down)[:, None] * values
    tl.store(output + query[:, None] * D + lane, total.to(output.dtype.element_ty), on_item[:, None] & (lane < D))


@triton.jit
def _backward(  # noqa: PLR0913
    value, locations, weights, maps, grad, grad_value, grad_locations, grad_weights, tokens, num_queries, levels,
    M: tl.constexpr, P: tl.constexpr, D: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    on_item = item < num_queries * M
    lane = tl.arange(0, WIDTH)[None]
    query = batch * num_queries * M + item
    grad_row = tl.load(grad + query[:, None] * D + lane, on_item[:, None] & (lane < D), other=0.0).to(real)
    for level in range(levels):
        height, width, first = tl.load(maps + 3 * level), tl.load(maps + 3 * level + 1), tl.load(maps + 3 * level + 2)
        for point in range(P):
            at = (query * levels + level) * P + point
            left, right_weight = _locate(locations, 2 * at, width, real, on_item)
            up, down_weight = _locate(locations, 2 * at + 1, height, real, on_item)
            weight = tl.load(weights + at, mask=on_item, other=0.0).to(real)
            grad_x = tl.zeros((ITEMS,), dtype=real)
            grad_y = tl.zeros((ITEMS,), dtype=real)
            grad_weight = tl.zeros((ITEMS,), dtype=real)
            for corner in tl.static_range(4):
                token, on_map, across, down = _corner(left, up, right_weight, down_weight, height, width, corner)
                row = ((batch * tokens + first + token) * M + item % M) * D
                mask = (on_item & on_map)[:, None] & (lane < D)
                values = tl.load(value + row[:, None] + lane, mask=mask, other=0.0).to(real)
                dot = tl.sum(grad_row * values, axis=1)
                grad_weight += across * down * dot
                grad_x += (corner % 2 * 2 - 1) * down * dot
                grad_y += (corner // 2 * 2 - 1) * across * dot
                contribution = (weight * across * down)[:, None] * grad_row
                tl.atomic_add(grad_value + row[:, None] + lane, contribution, mask=mask, sem="relaxed")
            tl.store(grad_weights + at, grad_weight.to(grad_weights.dtype.element_ty), on_item)
            grad_x, grad_y = grad_x * weight * width, grad_y * weight * height
            tl.store(grad_locations + 2 * at, grad_x.to(grad_locations.dtype.element_ty), on_item)
            tl.store(grad_locations + 2 * at + 1, grad_y.to(grad_locations.dtype.element_ty), on_item)
