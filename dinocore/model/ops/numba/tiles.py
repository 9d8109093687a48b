"""Tiles of int8 dot products, held in registers, for kernels that Numba compiles.

A tile is TOKENS x OUTPUTS numbers in int32. Sums grow by four products at once, one instruction of AVX-512 VNNI.
"""
# it does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic

from dinocore.model.ops.numba.rows import INT32, Row, fill_row

LANES = 16
TOKENS, OUTPUTS = 6, 64  # 24 registers of sums; the other 8 are for the bytes
GROUP = 4  # products that an instruction adds up
PARTS = OUTPUTS // LANES
REGISTER = ir.VectorType(INT32, LANES)
TILE = types.UniTuple(Row(types.int32, LANES), TOKENS * PARTS)


@intrinsic
def load_tile(typing_context, sums, start, step):
    """A tile from an int32 array: OUTPUTS numbers side by side for each token, tokens `step` apart."""

    def generate(context, builder, signature, args):
        places = _places(context, builder, signature.args[0], *args)
        return context.make_tuple(builder, TILE, [builder.load(place, align=4) for place in places])

    return TILE(sums, start, step), generate


@intrinsic
def store_tile(typing_context, sums, start, step, tile):
    """Write a tile to where `load_tile` finds it."""

    def generate(context, builder, signature, args):
        for k, place in enumerate(_places(context, builder, signature.args[0], *args[:3])):
            builder.store(builder.extract_value(args[3], k), place, align=4)
        return context.get_dummy_value()

    return types.void(sums, start, step, tile), generate


def _places(context, builder, array_type, array, start, step):
    """Where the registers of a tile lie in memory, token by token."""
    data = context.make_array(array_type)(context, builder, array).data
    for _ in range(TOKENS):
        for part in range(PARTS):
            at = builder.add(start, ir.Constant(start.type, part * LANES))
            yield builder.bitcast(builder.gep(data, [at]), REGISTER.as_pointer())
        start = builder.add(start, step)


@intrinsic
def add_products(typing_context, tile, data, start, step, weights, first):
    """The tile plus the products of GROUP bytes of each token with GROUP weights of each output.

    Args:
        data: unsigned bytes, from `start` on, tokens `step` apart.
        weights: signed bytes, from `first` on, GROUP for each output.
    """

    def generate(context, builder, signature, args):
        tile, data, start, step, weights, first = args
        add_up = builder.module.declare_intrinsic(  # LLVM takes this older form, too
            "llvm.x86.avx512.vpdpbusd.512", fnty=ir.FunctionType(REGISTER, [REGISTER] * 3)
        )
        bytes_of = context.make_array(signature.args[1])(context, builder, data).data
        weights_of = context.make_array(signature.args[4])(context, builder, weights).data
        columns = []
        for part in range(PARTS):
            at = builder.add(first, ir.Constant(first.type, part * LANES * GROUP))
            columns.append(builder.load(builder.bitcast(builder.gep(weights_of, [at]), REGISTER.as_pointer()), align=1))
        sums = []
        for token in range(TOKENS):
            group = builder.load(builder.bitcast(builder.gep(bytes_of, [start]), INT32.as_pointer()), align=1)
            row = fill_row(builder, group, LANES)
            for part, column in enumerate(columns):
                sums.append(builder.call(add_up, [builder.extract_value(tile, token * PARTS + part), row, column]))
            start = builder.add(start, step)
        return context.make_tuple(builder, TILE, sums)

    return TILE(tile, data, start, step, weights, first), generate
