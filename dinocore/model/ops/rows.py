"""Rows of numbers in SIMD registers, for kernels that Numba compiles.

Numba has no such type, so it is made here. LLVM cuts a row of any width into the registers of the machine.
Rows are loaded from flat arrays; a uint16 array holds bf16, which is widened to float32 when loaded.
"""
# it does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

import operator
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel
from numba.core.extending import intrinsic, overload, register_model

CONTRACT = ("contract",)  # multiply and add in one step; nothing that assumes finite numbers
INT32 = ir.IntType(32)


class Row(types.Type):
    """`width` numbers in registers."""

    def __init__(self, dtype: types.Type, width: int):
        self.dtype = dtype
        self.width = width
        super().__init__(name=f"Row({dtype}, {width})")


@register_model(Row)
class _RowModel(PrimitiveModel):
    def __init__(self, manager, row):
        super().__init__(manager, row, ir.VectorType(manager[row.dtype].get_value_type(), row.width))


def _constant(number: int, width: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT32, width), [number] * width)


def _lanes(builder, row, lanes):
    """The given lanes of a row, in the given order."""
    return builder.shuffle_vector(row, row, ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes)))


def _splat(builder, scalar, width):
    row = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    return _lanes(builder, builder.insert_element(row, scalar, ir.Constant(INT32, 0)), [0] * width)


def _pointer(context, builder, array_type, array, start, width):
    data = context.make_array(array_type)(context, builder, array).data
    item = context.get_data_type(array_type.dtype)
    return builder.bitcast(builder.gep(data, [start]), ir.VectorType(item, width).as_pointer())


@intrinsic(prefer_literal=True)
def fill(typing_context, scalar, width):
    """A row of `width` (a constant) with the same number everywhere."""
    width = width.literal_value

    def generate(context, builder, signature, args):
        return _splat(builder, args[0], width)

    return Row(types.unliteral(scalar), width)(scalar, types.literal(width)), generate


@intrinsic
def load(typing_context, array, start, like):
    """The row array[start : start + width], of the width and type of another row."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, array, args[0], args[1], like.width)
        loaded = builder.load(pointer, align=array.dtype.bitwidth // 8)
        if array.dtype != types.uint16:
            return loaded
        bits = builder.shl(builder.zext(loaded, ir.VectorType(INT32, like.width)), _constant(16, like.width))
        return builder.bitcast(bits, args[2].type)

    return like(array, start, like), generate


@intrinsic
def load_pairs(typing_context, array, start, like):
    """Two rows, whose numbers take turns in array[start : start + 2 * width]."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, array, args[0], args[1], 2 * like.width)
        pairs = builder.load(pointer, align=array.dtype.bitwidth // 8)
        both = [_lanes(builder, pairs, range(side, 2 * like.width, 2)) for side in (0, 1)]
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(like, 2)(array, start, like), generate


@intrinsic
def store(typing_context, array, start, row):
    """Write the row to array[start : start + width], rounded to bf16 (uint16 array) or cut to int32 as the array is."""

    def generate(context, builder, signature, args):
        numbers = args[2]
        if array.dtype == types.uint16:
            numbers = _to_bf16(builder, numbers, row.width)
        if array.dtype == types.int32:
            numbers = builder.fptosi(numbers, ir.VectorType(INT32, row.width))
        pointer = _pointer(context, builder, array, args[0], args[1], row.width)
        builder.store(numbers, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, start, row), generate


def _to_bf16(builder, numbers, width):
    """Round to nearest, ties to even; NaN stays NaN."""
    bits = builder.bitcast(numbers, ir.VectorType(INT32, width))
    odd = builder.and_(builder.lshr(bits, _constant(16, width)), _constant(1, width))
    rounded = builder.lshr(builder.add(builder.add(bits, _constant(0x7FFF, width)), odd), _constant(16, width))
    is_nan = builder.fcmp_unordered("uno", numbers, numbers)
    return builder.trunc(
        builder.select(is_nan, _constant(0x7FC0, width), rounded), ir.VectorType(ir.IntType(16), width)
    )


@intrinsic
def store_pairs(typing_context, array, start, row, other):
    """Write row[0], other[0], row[1], other[1], ... to array[start : start + 2 * width]."""
    order = [lane + side * row.width for lane in range(row.width) for side in (0, 1)]

    def generate(context, builder, signature, args):
        pairs = builder.shuffle_vector(args[2], args[3], ir.Constant(ir.VectorType(INT32, len(order)), order))
        pointer = _pointer(context, builder, array, args[0], args[1], len(order))
        builder.store(pairs, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, start, row, other), generate


@intrinsic
def add_scaled(typing_context, row, scalar, other):
    """row + scalar * other."""

    def generate(context, builder, signature, args):
        product = builder.fmul(_splat(builder, args[1], row.width), args[2], flags=CONTRACT)
        return builder.fadd(args[0], product, flags=CONTRACT)

    return row(row, row.dtype, row), generate


@intrinsic
def dot(typing_context, row, other):
    """The sum of row * other."""

    def generate(context, builder, signature, args):
        number, vector = context.get_value_type(row.dtype), context.get_value_type(row)
        name = f"llvm.vector.reduce.fadd.v{row.width}f{row.dtype.bitwidth}"
        add_up = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(number, [number, vector]))
        product = builder.fmul(args[0], args[1], flags=CONTRACT)
        return builder.call(add_up, [ir.Constant(number, -0.0), product], fastmath=("reassoc", "contract"))

    return row.dtype(row, other), generate


@intrinsic
def floor(typing_context, row):
    """The greatest whole number not above, lane by lane."""

    def generate(context, builder, signature, args):
        signature = ir.FunctionType(args[0].type, [args[0].type])
        name = f"llvm.floor.v{row.width}f{row.dtype.bitwidth}"
        return builder.call(builder.module.declare_intrinsic(name, fnty=signature), args)

    return row(row), generate


@intrinsic
def resize(typing_context, row, like):
    """The row cut, or continued by zeros, to the width of another row."""
    order = [min(lane, row.width) for lane in range(like.width)]  # lane `width` of both is the first zero

    def generate(context, builder, signature, args):
        zeros = ir.Constant(args[0].type, None)
        return builder.shuffle_vector(args[0], zeros, ir.Constant(ir.VectorType(INT32, like.width), order))

    return like(row, like), generate


@intrinsic
def where(typing_context, condition, row, other):
    """`row` where the condition holds, else `other`, lane by lane."""

    def generate(context, builder, signature, args):
        return builder.select(*args)

    return row(condition, row, other), generate


def _operator(symbol: Callable, build: Callable, result: types.Type | None = None) -> None:
    """Let kernels write `row symbol row`; the result has its own dtype where that is not the one of the rows."""

    @intrinsic
    def apply(typing_context, row, other):
        def generate(context, builder, signature, args):
            return build(builder, *args)

        return Row(result or row.dtype, row.width)(row, other), generate

    @overload(symbol, inline="never")
    def choose(row, other):
        if isinstance(row, Row) and isinstance(other, Row):
            return lambda row, other: apply(row, other)
        return None


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=CONTRACT))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=CONTRACT))
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=CONTRACT))
_operator(operator.and_, lambda builder, a, b: builder.and_(a, b))
_operator(operator.ge, lambda builder, a, b: builder.fcmp_ordered(">=", a, b), types.boolean)
_operator(operator.lt, lambda builder, a, b: builder.fcmp_ordered("<", a, b), types.boolean)
