"""Sums of products, a tile at a time: what compiled layers spend their time on.

A tile is some rows by some columns of a layer's result. Its sums stay in registers while the inputs
go by, so that a load of the weights serves all its rows and a load of an input all its columns.
Each sum takes its inputs in their order, whatever the tile's size: rows have the same bits in any
tile. Numba's own loops would keep the sums in memory, at half the speed (it leaves out the part of
LLVM that would not), so this says what LLVM is to do.

The first part of every policy's source (policy_kernel.py). Nothing here uses Python objects.
"""

import contextlib

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

LANES = 16  # of a vector: one register of AVX-512, two of AVX2


def make_tile(rows, columns, inputs, weight_step, steps):
    """A function tile(x, x0, weight, w0, start, s0, out, o0), for each row m and column j

        out[m, j] = start[m, j] + x[m, 0] weight[0, j] + x[m, 1] weight[1, j] + …

    which begin at x0, w0, s0 and o0, counted in numbers, of contiguous float32 arrays.

    columns: of the weights whole vectors are read. inputs: (count, step) of each
    of the nested loops over a row's inputs, the innermost last: how far they are apart. Their
    weights are weight_step apart, in the order of the loops. steps: from one row of x, start and
    out to the next; 0 if start is the same for all.
    """
    x_step, start_step, out_step = steps

    def place(numbers):
        return sum(number * step for number, (_, step) in zip(numbers, inputs, strict=True))

    def tile(x, x0, weight, w0, start, s0, out, o0):
        x, weight, start, out = (array.reshape(-1) for array in (x, weight, start, out))
        for m in range(rows):
            for j in range(columns):
                total = start[s0 + m * start_step + j]
                for k, numbers in enumerate(np.ndindex(*(count for count, _ in inputs))):
                    one = x[x0 + m * x_step + place(numbers)]
                    total = total + one * weight[w0 + k * weight_step + j]
                out[o0 + m * out_step + j] = total

    lanes = LANES if columns > 8 else 8
    widths = [min(lanes, columns - j) for j in range(0, columns, lanes)]

    @intrinsic
    def emit(context, x, x0, weight, w0, start, s0, out, o0):
        index = types.intp
        return types.void(x, index, weight, index, start, index, out, index), generate

    def generate(context, builder, signature, arguments):
        def number(value):
            return ir.Constant(ir.IntType(64), value)

        def pointer(at):
            array = context.make_array(signature.args[at])(context, builder, arguments[at])
            return builder.gep(array.data, [arguments[at + 1]])

        def vector_at(place, offset, width=lanes):
            kind = ir.VectorType(ir.FloatType(), width)
            return builder.bitcast(builder.gep(place, [offset]), kind.as_pointer())

        def load(place, offset, width=lanes):
            loaded = builder.load(vector_at(place, offset, width))
            loaded.align = 4
            return loaded

        def shuffled(vector, lane_of):
            kind = ir.VectorType(ir.IntType(32), len(lane_of))
            return builder.shuffle_vector(vector, vector, ir.Constant(kind, lane_of))

        def resized(vector, width):
            return shuffled(vector, [min(n, vector.type.count - 1) for n in range(width)])

        def in_all_lanes(one):
            vector = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
            vector = builder.insert_element(vector, one, ir.Constant(ir.IntType(32), 0))
            return shuffled(vector, [0] * lanes)

        x, weight, start, out = (pointer(at) for at in (0, 2, 4, 6))
        sums = {}
        for m in range(rows):
            for v, width in enumerate(widths):
                sums[m, v] = cgutils.alloca_once(builder, ir.VectorType(ir.FloatType(), lanes))
                begun = load(start, number(m * start_step + v * lanes), width)
                builder.store(resized(begun, lanes), sums[m, v])
        with contextlib.ExitStack() as loops:
            k, at = number(0), number(0)
            for count, step in inputs:
                index = loops.enter_context(cgutils.for_range(builder, number(count))).index
                k = builder.add(builder.mul(k, number(count)), index)
                at = builder.add(at, builder.mul(index, number(step)))
            row = builder.mul(k, number(weight_step))
            weights = [
                load(weight, builder.add(row, number(v * lanes))) for v in range(len(widths))
            ]
            for m in range(rows):
                one = builder.load(builder.gep(x, [builder.add(at, number(m * x_step))]))
                ones = in_all_lanes(one)
                for v, loaded in enumerate(weights):
                    product = builder.fmul(ones, loaded, flags=("contract",))
                    total = builder.fadd(builder.load(sums[m, v]), product, flags=("contract",))
                    builder.store(total, sums[m, v])
        for m in range(rows):
            for v, width in enumerate(widths):
                total = resized(builder.load(sums[m, v]), width)
                to = vector_at(out, number(m * out_step + v * lanes), width)
                builder.store(total, to).align = 4
        return context.get_dummy_value()

    @overload(tile, jit_options={"forceinline": True})
    def compiled(x, x0, weight, w0, start, s0, out, o0):
        return lambda x, x0, weight, w0, start, s0, out, o0: emit(
            x,
            x0,
            weight,
            w0,
            start,
            s0,
            out,
            o0,  # pyright: ignore[reportCallIssue]
        )

    return tile
