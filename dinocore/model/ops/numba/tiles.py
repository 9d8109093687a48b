"""Tiles of int8 dot products, held in registers, for kernels that Numba compiles.

A tile is TOKENS x OUTPUTS int32 sums. One AVX-512 VNNI instruction adds four products to each of 16 sums.
"""
# pyright does not know that Numba passes the typing context:
# pyright: reportCallIssue=false

from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic

from dinocore.model.ops.numba.rows import INT32, Row, fill_row

LANES = 16
TOKENS, OUTPUTS = 6, 64  # 24 registers hold sums; the other 8 are for bytes
GROUP = 4  # products that one instruction adds to a sum
PARTS = OUTPUTS // LANES
REGISTER = ir.VectorType(INT32, LANES)
TILE = types.UniTuple(Row(types.int32, LANES), TOKENS * PARTS)


@intrinsic
def load_tile(typing_context, sums, start, step):
    """A tile from an int32 array: OUTPUTS contiguous elements for each token, tokens `step` elements apart."""

    def generate(context, builder, signature, args):
        pointers = _pointers(context, builder, signature.args[0], *args)
        return context.make_tuple(builder, TILE, [builder.load(pointer, align=4) for pointer in pointers])

    return TILE(sums, start, step), generate


@intrinsic
def store_tile(typing_context, sums, start, step, tile):
    """Write a tile in the layout that `load_tile` reads."""

    def generate(context, builder, signature, args):
        for k, pointer in enumerate(_pointers(context, builder, signature.args[0], *args[:3])):
            builder.store(builder.extract_value(args[3], k), pointer, align=4)
        return context.get_dummy_value()

    return types.void(sums, start, step, tile), generate


def _pointers(context, builder, array_type, array, start, step):
    """Pointers to the registers of a tile in memory, token by token."""
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
        data: unsigned bytes from `start` on, tokens `step` bytes apart.
        weights: signed bytes from `first` on, GROUP per output.
    """

    def generate(context, builder, signature, args):
        tile, data, start, step, weights, first = args
        add_up = builder.module.declare_intrinsic(  # LLVM still accepts this older signature
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
