# mypy: disallow-untyped-defs=False
"""The innermost loops, written as LLVM's vectors: numba's own loops become such only where the compiler pleases.

LLVM splits vectors of any length into what the processor has. Bounds are float32; what decides an order is float64, by
fused multiplications and additions in one fixed order and IEEE's root, hence the same on every processor.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

intrinsic: Any = extending.intrinsic

WIDTH = 16  # float32 values side by side
LANES = 8  # float64 values side by side
PANEL, OTHERS = 16, 4  # points whose products are made together: as many as the registers hold products for

_BITS = ir.IntType(32)
_INDEX = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)


@intrinsic
def near_means(typing, leaves, leaf, query, threshold, sqdist):
    """Fill `sqdist` with the squared distances of the means of a leaf to `query`; return which are near, as bits.

    ``leaves[leaf, p]`` holds dimension p of WIDTH means; near is what does not exceed `threshold`.
    """
    signature = types.uint64(leaves, types.intp, query, types.float32, sqdist)

    def generate(context, builder, signature, arguments):
        leaves, leaf, query, threshold, sqdist = _arrays(context, builder, signature, arguments)
        dim = builder.extract_value(query.shape, 0)
        start = builder.mul(builder.mul(leaf, dim), ir.Constant(_INDEX, WIDTH))

        def difference(p):
            mean = _row(builder, leaves, start, p)
            return builder.fsub(mean, _element(builder, query, p, _FLOATS))

        return _near(builder, _sum_of_squares(builder, dim, _FLOATS, difference), threshold, sqdist)

    return signature, generate


@intrinsic
def near_boxes(typing, low, high, node, query, threshold, sqdist):
    """Do what `near_means` does for the WIDTH boxes of a node, whose corners are ``low[node]`` and ``high[node]``."""
    signature = types.uint64(low, high, types.intp, query, types.float32, sqdist)

    def generate(context, builder, signature, arguments):
        low, high, node, query, threshold, sqdist = _arrays(context, builder, signature, arguments)
        dim = builder.extract_value(query.shape, 0)
        start = builder.mul(builder.mul(node, dim), ir.Constant(_INDEX, WIDTH))

        def difference(p):
            coordinate = _element(builder, query, p, _FLOATS)
            below = builder.fsub(_row(builder, low, start, p), coordinate)
            above = builder.fsub(coordinate, _row(builder, high, start, p))
            return _larger(builder, _larger(builder, below, above), _all(0.0, _FLOATS))

        return _near(builder, _sum_of_squares(builder, dim, _FLOATS, difference), threshold, sqdist)

    return signature, generate


@intrinsic
def large_products(typing, products, start, offsets, first, threshold):
    """Return which of WIDTH float32 products, less an offset each, are at least `threshold`, as bits.

    They are at ``start`` of the flat array `products`, their offsets at `first`.
    """
    signature = types.uint64(products, types.intp, offsets, types.intp, types.float32)

    def generate(context, builder, signature, arguments):
        products, start, offsets, first, threshold = _arrays(context, builder, signature, arguments)
        values = _load(builder, builder.gep(products.data, [start]), _FLOATS)
        values = builder.fsub(values, _load(builder, builder.gep(offsets.data, [first]), _FLOATS))
        return _bits(builder, builder.fcmp_ordered(">=", values, _spread(builder, threshold, _FLOATS)))

    return signature, generate


@intrinsic
def lowest_bit(typing, bits):
    """Return the place of the lowest bit that is set; some is."""

    def generate(context, builder, signature, arguments):
        never_zero = ir.Constant(ir.IntType(1), 1)
        return builder.cttz(arguments[0], never_zero)

    return types.intp(types.uint64), generate


@intrinsic
def sum_distances(typing, points, start, stride, n_lanes, others, place, n_others, weights, first, dim, sums):
    """Fill `sums` with the weighted sums of the distances of some points to some others, in float64.

    All arrays are flat. Dimension p of point i is at ``start + p * stride + i``, that of other j at
    ``place + p * n_others + j``, and its weight at ``first + j``. Each sum runs over j in order. Points are taken LANES
    at a time: there must be something to read behind the last one, and room in `sums`.
    """
    index = types.intp
    places = (points, index, index, index, others, index, index, weights, index, index, sums)
    signature = types.void(*places)

    def generate(context, builder, signature, arguments):
        arrays = _arrays(context, builder, signature, arguments)
        points, start, stride, n_lanes, others, place, n_others, weights, first, dim, sums = arrays
        lanes = ir.VectorType(context.get_value_type(signature.args[0].dtype), LANES)
        zero, step = ir.Constant(_INDEX, 0), ir.Constant(_INDEX, LANES)
        with cgutils.for_range_slice(builder, zero, n_lanes, step, inc=True) as (lane, _):
            total = cgutils.alloca_once_value(builder, _all(0.0, _DOUBLES))
            with cgutils.for_range(builder, n_others) as loop:

                def difference(p, lane=lane, j=loop.index):
                    at = builder.add(builder.add(start, lane), builder.mul(p, stride))
                    point = _wide(builder, _load(builder, builder.gep(points.data, [at]), lanes))
                    at = builder.add(builder.add(place, j), builder.mul(p, n_others))
                    other = _wide(builder, builder.load(builder.gep(others.data, [at])))
                    return builder.fsub(point, _spread(builder, other, _DOUBLES))

                distance = _call(builder, "sqrt", _sum_of_squares(builder, dim, _DOUBLES, difference))
                weight = _element(builder, weights, builder.add(first, loop.index), _DOUBLES)
                builder.store(_call(builder, "fma", weight, distance, builder.load(total)), total)
            _store(builder, builder.load(total), builder.gep(sums.data, [lane]))
        return context.get_dummy_value()

    return signature, generate


def _products_step(*, makes: bool, adds: bool) -> Any:
    """Return an intrinsic that makes the products of a panel's points with OTHERS others, adds distances, or does both.

    Called with (panels, start, first, dim, points, other, squares, weights, row, base, sums, made), arrays flat, in
    float64. Dimension p of point i of the panel, one of PANEL, is at ``start + p * PANEL + i``, its squared length at
    ``first + i``. Other j is at ``j * dim`` of `points`; products with the others from `other` on are left in `made`,
    summed over p in order. What was there before, of the OTHERS before `other`, becomes distances: the one of point i
    and other j, times the weight of j, is added at ``(row[j] - base) * PANEL + i`` of `sums`. It is the root of
    |x|^2 + |y|^2 - 2 x y, and not a number where that is less than a sixteenth of both lengths: there it has lost
    digits. With both in one step, the processor takes roots while it multiplies.
    """

    @intrinsic
    def step(typing, panels, start, first, dim, points, other, squares, weights, row, base, sums, made):
        index = types.intp
        places = (panels, index, index, index, points, index, squares, weights, row, index, sums, made)

        def generate(context, builder, signature, arguments):
            arrays = _arrays(context, builder, signature, arguments)
            panels, start, first, dim, points, other, squares, weights, row, base, sums, made = arrays

            def plus(x, y):
                return builder.add(x, ir.Constant(_INDEX, y))

            tiles = [(c, lane) for c in range(OTHERS) for lane in range(0, PANEL, LANES)]
            kept = [builder.gep(made.data, [ir.Constant(_INDEX, c * PANEL + lane)]) for c, lane in tiles]
            new = {tile: cgutils.alloca_once_value(builder, _all(0.0, _DOUBLES)) for tile in tiles}

            def multiply(p):
                for c in range(OTHERS):
                    at = builder.add(builder.mul(plus(other, c), dim), p)
                    there = _element(builder, points, at, _DOUBLES)
                    for lane in range(0, PANEL, LANES):
                        at = plus(builder.add(start, builder.mul(p, ir.Constant(_INDEX, PANEL))), lane)
                        here = _load(builder, builder.gep(panels.data, [at]), _DOUBLES)
                        product = _call(builder, "fma", here, there, builder.load(new[c, lane]))
                        builder.store(product, new[c, lane])

            def add(c, lane, product):
                j = plus(other, c - OTHERS)
                length = _load(builder, builder.gep(squares.data, [plus(first, lane)]), _DOUBLES)
                both = builder.fadd(length, _element(builder, squares, j, _DOUBLES))
                sqdist = _call(builder, "fma", product, _all(-2.0, _DOUBLES), both)
                enough = builder.fcmp_ordered(">=", sqdist, builder.fmul(both, _all(0.0625, _DOUBLES)))
                distance = _call(builder, "sqrt", builder.select(enough, sqdist, _all(float("nan"), _DOUBLES)))
                cluster = builder.sub(builder.load(builder.gep(row.data, [j])), base)
                at = plus(builder.mul(cluster, ir.Constant(_INDEX, PANEL)), lane)
                pointer = builder.gep(sums.data, [at])
                weight = _element(builder, weights, j, _DOUBLES)
                _store(builder, _call(builder, "fma", weight, distance, _load(builder, pointer, _DOUBLES)), pointer)

            def share(t):
                return builder.udiv(builder.mul(dim, ir.Constant(_INDEX, t)), ir.Constant(_INDEX, len(tiles)))

            for t, tile in enumerate(tiles):
                if makes:
                    step = ir.Constant(_INDEX, 1)
                    with cgutils.for_range_slice(builder, share(t), share(t + 1), step, inc=True) as (p, _):
                        multiply(p)
                if adds:
                    add(*tile, _load(builder, kept[t], _DOUBLES))
            if makes:
                for t, tile in enumerate(tiles):
                    _store(builder, builder.load(new[tile]), kept[t])
            return context.get_dummy_value()

        return types.void(*places), generate

    return step


first_products = _products_step(makes=True, adds=False)
next_products = _products_step(makes=True, adds=True)
last_distances = _products_step(makes=False, adds=True)


@intrinsic(prefer_literal=True)
def scratch(typing, count, dtype):
    """Return an array of `count` values, a constant, which lasts until the kernel returns; it is not initialised."""
    array = types.Array(dtype.dtype, 1, "C")
    if not isinstance(count, types.IntegerLiteral):
        return None

    def generate(context, builder, signature, arguments):
        element = context.get_value_type(array.dtype)
        size = context.get_abi_sizeof(element)
        made = context.make_array(array)(context, builder)
        context.populate_array(
            made,
            data=cgutils.alloca_once(builder, element, size=count.literal_value),
            shape=[ir.Constant(_INDEX, count.literal_value)],
            strides=[ir.Constant(_INDEX, size)],
            itemsize=ir.Constant(_INDEX, size),
            meminfo=None,
        )
        return made._getvalue()

    return array(count, dtype), generate


def _arrays(context, builder, signature, arguments) -> list[Any]:
    """Return the arguments, with `data` and `shape` where they are arrays."""
    return [
        context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _sum_of_squares(builder, n_terms, vector, term):
    """Return the sum of ``term(p)`` squared over p in order, lane by lane."""
    total = cgutils.alloca_once_value(builder, _all(0.0, vector))
    with cgutils.for_range(builder, n_terms) as loop:
        value = term(loop.index)
        builder.store(_call(builder, "fma", value, value, builder.load(total)), total)
    return builder.load(total)


def _near(builder, values, threshold, out):
    """Write `values` to `out`; return the bits of the lanes that do not exceed `threshold`."""
    _store(builder, values, out.data)
    return _bits(builder, builder.fcmp_ordered("<=", values, _spread(builder, threshold, values.type)))


def _bits(builder, truths):
    """Return WIDTH truth values as bits of one number."""
    return builder.zext(builder.bitcast(truths, ir.IntType(WIDTH)), _INDEX)


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _row(builder, array, start, p):
    """Return row p, WIDTH values each, of the block of a float32 array that begins at place `start`."""
    return _load(
        builder, builder.gep(array.data, [builder.add(start, builder.mul(p, ir.Constant(_INDEX, WIDTH)))]), _FLOATS
    )


def _element(builder, array, place, vector):
    """Return the vector that has the element at `place` in all its lanes."""
    return _spread(builder, builder.load(builder.gep(array.data, [place])), vector)


def _wide(builder, value):
    """Return float32 as float64, and float64 as it is."""
    scalar = value.type.element if isinstance(value.type, ir.VectorType) else value.type
    if scalar == ir.DoubleType():
        return value
    return builder.fpext(value, _DOUBLES if isinstance(value.type, ir.VectorType) else ir.DoubleType())


def _all(value, vector):
    """Return the constant vector that has `value` in all its lanes."""
    return ir.Constant(vector, [value] * vector.count)


def _spread(builder, value, vector):
    """Return the vector that has `value` in all its lanes."""
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_BITS, 0))
    return builder.shuffle_vector(first, empty, _all(0, ir.VectorType(_BITS, vector.count)))


def _load(builder, pointer, vector):
    """Return the vector at `pointer`, which is aligned to its elements only."""
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)


def _store(builder, value, pointer) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def _call(builder, name, *vectors):
    """Return LLVM's function `name` of vectors of one type."""
    vector = vectors[0].type
    suffix = f"v{vector.count}f{32 if vector == _FLOATS else 64}"
    kind = ir.FunctionType(vector, [vector] * len(vectors))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}"), vectors)
