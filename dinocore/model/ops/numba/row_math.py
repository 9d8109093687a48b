"""Arithmetic on SIMD rows (see `rows`), for kernels that Numba compiles."""
# pyright does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

import operator
from collections.abc import Callable

from llvmlite import ir
from numba import njit, types
from numba.core.extending import intrinsic, overload

from dinocore.model.ops.numba.rows import INT32, Row, constant, fill_row, splat

CONTRACT = ("contract",)  # allows fused multiply-add, but nothing that assumes finite numbers
LOG2_E = 1.4426950408889634
POWERS = (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 0.24022651, 0.69314718, 1.0)  # ln(2)**k / k!


@intrinsic
def add_scaled(typing_context, row, scalar, other):
    """row + scalar * other."""

    def generate(context, builder, signature, args):
        product = builder.fmul(fill_row(builder, args[1], row.width), args[2], flags=CONTRACT)
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
def largest(typing_context, row):
    """The largest value of a row, ignoring NaN unless all are NaN."""

    def generate(context, builder, signature, args):
        number, vector = context.get_value_type(row.dtype), context.get_value_type(row)
        name = f"llvm.vector.reduce.fmax.v{row.width}f{row.dtype.bitwidth}"
        find = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(number, [vector]))
        return builder.call(find, [args[0]])

    return row.dtype(row), generate


@intrinsic
def exp2_integer(typing_context, row):
    """2 to the power of each value, which must be an integer from -126 to 127; float32 only."""

    def generate(context, builder, signature, args):
        integer = builder.fptosi(args[0], ir.VectorType(INT32, row.width))
        bits = builder.shl(builder.add(integer, constant(127, row.width)), constant(23, row.width))
        return builder.bitcast(bits, args[0].type)

    return row(row), generate


@intrinsic
def floor(typing_context, row):
    """The largest integer not above each value."""
    return row(row), _call_llvm("floor", row)


@intrinsic
def absolute(typing_context, row):
    """The absolute value of each lane."""
    return row(row), _call_llvm("fabs", row)


def _call_llvm(function, row):
    """A code generator that calls an LLVM intrinsic on a row."""

    def generate(context, builder, signature, args):
        called = ir.FunctionType(args[0].type, [args[0].type])
        name = f"llvm.{function}.v{row.width}f{row.dtype.bitwidth}"
        return builder.call(builder.module.declare_intrinsic(name, fnty=called), args)

    return generate


@intrinsic
def larger(typing_context, row, other):
    """The larger value, lane by lane; `other` where either is NaN."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return row(row, other), generate


@intrinsic
def where(typing_context, condition, row, other):
    """`row` where the condition holds, else `other`, lane by lane."""

    def generate(context, builder, signature, args):
        return builder.select(*args)

    return row(condition, row, other), generate


def _operator(symbol: Callable, build: Callable, result: types.Type | None = None) -> None:
    """Define the operator `symbol` for two rows; `result` is the result's dtype where it differs from the rows'."""

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


@njit(inline="never")
def exp(row):
    """e to the power of each value, which must not exceed 0, in float32 to within 2e-7; NaN stays NaN."""
    power = row * splat(LOG2_E, row)
    lowest = splat(-126.0, row)
    integer = floor(where(power >= lowest, power, lowest) + splat(0.5, row))
    fraction = where(power < lowest, splat(0.0, row), power - integer)  # in [-0.5, 0.5]
    total = splat(POWERS[0], row)
    for k in range(1, 7):
        total = total * fraction + splat(POWERS[k], row)
    return total * exp2_integer(integer)
