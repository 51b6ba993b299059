"""Sums of products, a tile at a time: what compiled layers spend their time on.

A tile is some rows by some columns of a layer's result. Its sums stay in registers while the inputs
go by, so that a load of the weights serves all its rows and a load of an input all its columns.
Each sum takes its inputs in their order, whatever the tile's size: rows have the same bits in any
tile. Numba's own loops would keep the sums in memory, at half the speed (it leaves out the part of
LLVM that would not), so this says what LLVM is to do.

Of two kinds: where all sizes are constants of one policy (make_tile, for acting), and where they
are arguments (make_any_tile, for learning), so that what is compiled once serves all layers.

The first part of the sources that use it (policy_kernel.py, conv_kernel.py). Nothing here uses
Python objects.
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
        vectors = _Vectors(builder, lanes)
        number, load, resized = vectors.number, vectors.load, vectors.resized

        def pointer(at):
            array = context.make_array(signature.args[at])(context, builder, arguments[at])
            return builder.gep(array.data, [arguments[at + 1]])

        x, weight, start, out = (pointer(at) for at in (0, 2, 4, 6))
        sums = {}
        for m in range(rows):
            for v, width in enumerate(widths):
                sums[m, v] = vectors.allocated()
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
                ones = vectors.in_all_lanes(one)
                for v, loaded in enumerate(weights):
                    vectors.add_product(sums[m, v], ones, loaded)
        for m in range(rows):
            for v, width in enumerate(widths):
                total = resized(builder.load(sums[m, v]), width)
                vectors.store(total, out, number(m * out_step + v * lanes), width)
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


def make_any_tile(rows, vectors, lanes):
    """A function tile(places, loops, x, weight, start, out, begins, columns, floor).

    Its sizes are arguments. For each row m and column j < columns ≤ vectors · lanes

        out[m, j] = max(floor, start[m, j] + (x[m, 0] weight[0, j] + x[m, 1] weight[1, j] + …))

    of contiguous float32 arrays. begins: int64, where x, weight, start and out begin in theirs.
    places: int64 [3, rows], where each row begins in x, start and out; rows may be the same one
    again. loops: int64 [3, 3], three nested ones over the inputs: count, step in x, step in weight.
    NaN is not below the floor, and stays. Only with one vector may columns be less than its lanes.
    """

    def tile(places, loops, x, weight, start, out, begins, columns, floor):
        x0, w0, s0, o0 = begins
        of_x, of_start, of_out = places
        inputs = [steps @ loops[:, 1:] for steps in np.ndindex(*loops[:, 0])]
        found = np.empty((rows, columns), np.float32)
        for m in range(rows):
            found[m] = 0.0
            for x_at, w_at in inputs:
                weights = weight[w0 + w_at : w0 + w_at + columns]
                found[m] += x[x0 + of_x[m] + x_at] * weights
            found[m] += start[s0 + of_start[m] : s0 + of_start[m] + columns]
        found[found <= floor] = floor
        for m in range(rows):
            out[o0 + of_out[m] : o0 + of_out[m] + columns] = found[m]

    @intrinsic
    def emit(context, places, loops, x, weight, start, out, begins, columns, floor):
        given = places, loops, x, weight, start, out, begins, columns, floor
        return types.void(*given), generate

    def generate(context, builder, signature, arguments):
        parts = _Vectors(builder, lanes)
        number = parts.number
        begins, columns, floor = arguments[6:]
        mask = parts.mask(columns) if vectors == 1 else None
        places, loops, x, weight, start, out = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args[:6], arguments, strict=False)
        )
        x0, w0, s0, o0 = cgutils.unpack_tuple(builder, begins, 4)

        def entry_of(table, index):
            return builder.load(builder.gep(table, [number(index)]))

        def row_pointers(array, begin, which):
            array = builder.gep(array, [begin])
            found = (entry_of(places, which * rows + m) for m in range(rows))
            return [builder.gep(array, [place]) for place in found]

        inputs = row_pointers(x, x0, 0)
        starts, outs = row_pointers(start, s0, 1), row_pointers(out, o0, 2)
        weight = builder.gep(weight, [w0])
        cells = [(m, v) for m in range(rows) for v in range(vectors)]
        sums = {cell: parts.allocated() for cell in cells}
        for total in sums.values():
            builder.store(parts.zeros(), total)
        with contextlib.ExitStack() as nested:
            at, row = number(0), number(0)
            for i in range(3):
                count, x_step, w_step = (entry_of(loops, 3 * i + n) for n in range(3))
                index = nested.enter_context(cgutils.for_range(builder, count)).index
                at = builder.add(at, builder.mul(index, x_step))
                row = builder.add(row, builder.mul(index, w_step))
            weights = [
                parts.load(weight, builder.add(row, number(v * lanes)), mask=mask)
                for v in range(vectors)
            ]
            for m in range(rows):
                ones = parts.in_all_lanes(builder.load(builder.gep(inputs[m], [at])))
                for v, loaded in enumerate(weights):
                    parts.add_product(sums[m, v], ones, loaded)
        lowest = parts.in_all_lanes(floor)
        found = {}  # all of them before the first is written, which another row may begin with
        for m, v in cells:
            begun = parts.load(starts[m], number(v * lanes), mask=mask)
            total = builder.fadd(begun, builder.load(sums[m, v]))
            is_below = builder.fcmp_ordered("<=", total, lowest)
            found[m, v] = builder.select(is_below, lowest, total)
        for m, v in cells:
            parts.store(found[m, v], outs[m], number(v * lanes), mask=mask)
        return context.get_dummy_value()

    @overload(tile, jit_options={"forceinline": True})
    def compiled(places, loops, x, weight, start, out, begins, columns, floor):
        return lambda places, loops, x, weight, start, out, begins, columns, floor: emit(
            places,
            loops,
            x,
            weight,
            start,
            out,
            begins,
            columns,
            floor,  # pyright: ignore[reportCallIssue]
        )

    return tile


class _Vectors:
    """What LLVM is told of vectors of so many float32 numbers."""

    def __init__(self, builder, lanes):
        self.builder = builder
        self.lanes = lanes
        self.type = ir.VectorType(ir.FloatType(), lanes)

    def number(self, value):
        return ir.Constant(ir.IntType(64), value)

    def zeros(self):
        return ir.Constant(self.type, [0.0] * self.lanes)

    def allocated(self):
        """Where a vector may be kept: a register, once LLVM has seen that it may be one."""
        return cgutils.alloca_once(self.builder, self.type)

    def load(self, place, offset, width=None, mask=None):
        """`width` numbers (all lanes), or those that the mask lets through, and zeros."""
        pointer = self._pointer(place, offset, width)
        if mask is not None:
            read = self._masked("load", self.type, [pointer, ir.IntType(32)(4), mask, self.zeros()])
            return read
        loaded = self.builder.load(pointer)
        loaded.align = 4
        return loaded

    def store(self, vector, place, offset, width=None, mask=None):
        pointer = self._pointer(place, offset, width)
        if mask is not None:
            self._masked("store", ir.VoidType(), [vector, pointer, ir.IntType(32)(4), mask])
        else:
            self.builder.store(vector, pointer).align = 4

    def mask(self, count):
        """The first `count` lanes."""
        kind = ir.VectorType(ir.IntType(64), self.lanes)
        counts = self.builder.insert_element(kind(ir.Undefined), count, ir.IntType(32)(0))
        counts = self._shuffled(counts, [0] * self.lanes)
        return self.builder.icmp_signed("<", kind(list(range(self.lanes))), counts)

    def in_all_lanes(self, one):
        vector = self.builder.insert_element(self.type(ir.Undefined), one, ir.IntType(32)(0))
        return self._shuffled(vector, [0] * self.lanes)

    def resized(self, vector, width):
        return self._shuffled(vector, [min(n, vector.type.count - 1) for n in range(width)])

    def add_product(self, total, one, other):
        """Add one · other to what `total` points at, in one rounding."""
        product = self.builder.fmul(one, other, flags=("contract",))
        added = self.builder.fadd(self.builder.load(total), product, flags=("contract",))
        self.builder.store(added, total)

    def _pointer(self, place, offset, width):
        kind = ir.VectorType(ir.FloatType(), width or self.lanes)
        return self.builder.bitcast(self.builder.gep(place, [offset]), kind.as_pointer())

    def _shuffled(self, vector, lane_of):
        kind = ir.VectorType(ir.IntType(32), len(lane_of))
        return self.builder.shuffle_vector(vector, vector, ir.Constant(kind, lane_of))

    def _masked(self, what, result, arguments):
        name = f"llvm.masked.{what}.v{self.lanes}f32.p0v{self.lanes}f32"
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)
