"""SIMD rows for kernels that Numba compiles: load, store, and move values between lanes.

Numba has no vector type, so it is defined here. LLVM splits a row of any width into the machine's registers. Rows are
loaded from flat arrays. A uint16 array holds bf16, which is converted to float32 when loaded, as int32 is.
"""
# pyright does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel
from numba.core.extending import intrinsic, register_model

INT32 = ir.IntType(32)


class Row(types.Type):
    """`width` values of one dtype in SIMD registers."""

    def __init__(self, dtype: types.Type, width: int):
        self.dtype = dtype
        self.width = width
        super().__init__(name=f"Row({dtype}, {width})")


@register_model(Row)
class _RowModel(PrimitiveModel):
    def __init__(self, manager, row):
        super().__init__(manager, row, ir.VectorType(manager[row.dtype].get_value_type(), row.width))


def constant(number: int, width: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT32, width), [number] * width)


def _lanes(builder, row, lanes):
    """The given lanes of a row, in the given order."""
    return builder.shuffle_vector(row, row, ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes)))


def fill_row(builder, scalar, width):
    row = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    return _lanes(builder, builder.insert_element(row, scalar, ir.Constant(INT32, 0)), [0] * width)


def _pointer(context, builder, array_type, array, start, width):
    data = context.make_array(array_type)(context, builder, array).data
    item = context.get_data_type(array_type.dtype)
    return builder.bitcast(builder.gep(data, [start]), ir.VectorType(item, width).as_pointer())


def _read(context, builder, array_type, array, start, width):
    """Load contiguous values; uint16 is read as bf16, the upper half of a float32; int32 is converted to float32."""
    pointer = _pointer(context, builder, array_type, array, start, width)
    numbers = builder.load(pointer, align=array_type.dtype.bitwidth // 8)
    if array_type.dtype == types.int32:
        return builder.sitofp(numbers, ir.VectorType(ir.FloatType(), width))
    if array_type.dtype != types.uint16:
        return numbers
    bits = builder.shl(builder.zext(numbers, ir.VectorType(INT32, width)), constant(16, width))
    return builder.bitcast(bits, ir.VectorType(ir.FloatType(), width))


@intrinsic(prefer_literal=True)
def fill(typing_context, scalar, width):
    """A row of `width` lanes (a constant), all equal to `scalar`."""
    width = width.literal_value

    def generate(context, builder, signature, args):
        return fill_row(builder, args[0], width)

    return Row(types.unliteral(scalar), width)(scalar, types.literal(width)), generate


@intrinsic
def splat(typing_context, scalar, like):
    """A row of the same type as `like`, with all lanes equal to `scalar`."""

    def generate(context, builder, signature, args):
        return fill_row(builder, args[0], like.width)

    return like(like.dtype, like), generate


@intrinsic
def load(typing_context, array, start, like):
    """The row array[start : start + width], with the width and dtype of `like`."""

    def generate(context, builder, signature, args):
        return _read(context, builder, array, *args[:2], like.width)

    return like(array, start, like), generate


@intrinsic
def load_pairs(typing_context, array, start, like):
    """Two rows that are interleaved in array[start : start + 2 * width]."""

    def generate(context, builder, signature, args):
        pairs = _read(context, builder, array, *args[:2], 2 * like.width)
        both = [_lanes(builder, pairs, range(side, 2 * like.width, 2)) for side in (0, 1)]
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(like, 2)(array, start, like), generate


@intrinsic
def store(typing_context, array, start, row):
    """Write the row to array[start : start + width], rounded to bf16 (uint16 array) or truncated to int32 or uint8."""

    def generate(context, builder, signature, args):
        numbers = args[2]
        if array.dtype == types.uint16:
            numbers = _to_bf16(builder, numbers, row.width)
        if array.dtype == types.int32:
            numbers = builder.fptosi(numbers, ir.VectorType(INT32, row.width))
        if array.dtype == types.uint8:
            numbers = builder.fptoui(numbers, ir.VectorType(ir.IntType(8), row.width))
        pointer = _pointer(context, builder, array, args[0], args[1], row.width)
        builder.store(numbers, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, start, row), generate


def _to_bf16(builder, numbers, width):
    """Round to nearest, ties to even; NaN stays NaN."""
    bits = builder.bitcast(numbers, ir.VectorType(INT32, width))
    odd = builder.and_(builder.lshr(bits, constant(16, width)), constant(1, width))
    rounded = builder.lshr(builder.add(builder.add(bits, constant(0x7FFF, width)), odd), constant(16, width))
    is_nan = builder.fcmp_unordered("uno", numbers, numbers)
    return builder.trunc(builder.select(is_nan, constant(0x7FC0, width), rounded), ir.VectorType(ir.IntType(16), width))


@intrinsic
def store_pairs(typing_context, array, start, row, other):
    """Interleave two rows: write row[0], other[0], row[1], ... to array[start : start + 2 * width]."""
    order = [lane + side * row.width for lane in range(row.width) for side in (0, 1)]

    def generate(context, builder, signature, args):
        pairs = builder.shuffle_vector(args[2], args[3], ir.Constant(ir.VectorType(INT32, len(order)), order))
        pointer = _pointer(context, builder, array, args[0], args[1], len(order))
        builder.store(pairs, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, start, row, other), generate


@intrinsic
def resize(typing_context, row, like):
    """The row, truncated or zero-padded to the width of `like`."""
    order = [min(lane, row.width) for lane in range(like.width)]  # index `width` is the first zero

    def generate(context, builder, signature, args):
        zeros = ir.Constant(args[0].type, None)
        return builder.shuffle_vector(args[0], zeros, ir.Constant(ir.VectorType(INT32, like.width), order))

    return like(row, like), generate


@intrinsic(prefer_literal=True)
def spread(typing_context, row, repeats, step, first, like):
    """Repeat lane `first` of the row `repeats` times, then lane `first` + `step`, and so on; zeros after the last."""
    repeats, step, first = (number.literal_value for number in (repeats, step, first))
    order = [min(first + lane // repeats * step, row.width) for lane in range(like.width)]  # `width` is the first zero

    def generate(context, builder, signature, args):
        zeros = ir.Constant(args[0].type, None)
        return builder.shuffle_vector(args[0], zeros, ir.Constant(ir.VectorType(INT32, like.width), order))

    return like(row, *map(types.literal, (repeats, step, first)), like), generate
