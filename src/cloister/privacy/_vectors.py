"""Vector instructions that numba does not write by itself: sums of products that stay in registers.

A row of gradients is a matrix of small outer products, summed over positions. Such a sum is as fast as the machine only
if its accumulators never leave the registers, and numba, which may not reorder a float sum, keeps one at a time. So
these functions write LLVM's vector instructions themselves. They are *intrinsics*: usable in compiled functions only.

Rules:

* Addresses are integers and strides are bytes; nothing is checked here. Who calls has checked shapes.
* Widths and numbers of registers follow from the processor's features; a wrong guess is slower, never wrong.
* Products are added fused where the processor does so. Loads and stores need no alignment.
* Every loop's length and every address follows from shapes, never from values.

Source: register blocking as in Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

__all__ = [
    "REGISTERS",
    "WIDTH",
    "copy",
    "fetch",
    "instruction",
    "interleave",
    "outer_tile",
    "pointer",
    "product_tile",
    "rounded_tile",
    "turn",
]


def _features() -> set[str]:
    """The features that numba compiles for: the processor's, unless its own variable names others."""
    named = vars(config)["CPU_FEATURES"]
    if named is not None:
        return {name.removeprefix("+") for name in named.split(",") if not name.startswith("-")}
    return {name for name, present in get_host_cpu_features().items() if present}


def _shape(features: set[str]) -> tuple[int, int]:
    """Floats a vector register holds, and how many registers there are."""
    if "avx512f" in features:
        return 16, 32
    if "avx" in features:
        return 8, 16
    return (4, 32) if "neon" in features else (4, 16)


WIDTH, REGISTERS = _shape(_features())

_F32, _F64, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(_F32, WIDTH)
_DOUBLES = ir.VectorType(_F64, WIDTH)
_WORDS = ir.VectorType(_I32, WIDTH)
_LONGS = ir.VectorType(_I64, WIDTH)
_CHAINS = 4  # sums of squares beside each other: each addition waits for the one before


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """For compiled functions; its first argument is numba's, and constants come as such."""
    return intrinsic(prefer_literal=True)(function)


@instruction
def pointer(typing: Any, address: Any) -> Any:
    """The address as a pointer, for :func:`numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@instruction
def outer_tile(
    typing: Any, vectors: Any, taps: Any, channels: Any,
    x: Any, x_row: Any, x_column: Any, y: Any, y_row: Any, y_column: Any, rows: Any, columns: Any,
    out: Any, out_tap: Any, out_channel: Any, add: Any, squares: Any,
) -> Any:  # fmt: skip
    """Sums ``x[position, m] · y[position, n]`` over positions: a tile of ``taps·channels`` by ``vectors·WIDTH``.

    Operands:
        vectors, taps, channels: Constants; the tile. Its accumulators and ``vectors + 1`` more must fit the registers.
        x: Of the first position; ``taps·channels`` adjacent floats at each.
        y: The same; ``vectors·WIDTH`` adjacent floats.
        rows, columns: Positions; ``x_row`` … ``y_column`` are the steps between them.
        out: Where the first element goes; an element (tap, channel) lies ``tap·out_tap + channel·out_channel`` on.
        add: Other than 0 adds to what is there.
        squares: 0, or WIDTH doubles that the squares of the finished tile are added to. They are summed in float32
            within the tile only, a lane at most ``taps·channels·vectors`` of them.
    """
    constants = (vectors, taps, channels)
    if not all(isinstance(constant, types.IntegerLiteral) for constant in constants):
        return None
    count, height, width = (constant.literal_value for constant in constants)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_row, x_column, y, y_row, y_column, rows, columns, out, out_tap, out_channel, add, squares = args[3:]
        tile = _accumulators(builder, _FLOATS, height * width * count)
        places = []
        for tap in range(height):
            first = builder.add(out, builder.mul(out_tap, _I64(tap)))
            for channel in range(width):
                at = builder.add(first, builder.mul(out_channel, _I64(channel)))
                places += [(at, n) for n in range(count)]
        for at, n in places:  # its lines are on their way while the sum is made
            _fetch(builder, builder.add(at, _I64(4 * WIDTH * n)), write=True)
        with _positions(builder, rows, columns, (x, x_row, x_column), (y, y_row, y_column)) as (x_at, y_at):
            right = [_load(builder, y_at, _FLOATS, n) for n in range(count)]
            for m in range(height * width):
                left = _splat(builder, _load(builder, x_at, _F32, m))
                for n in range(count):
                    place = tile[m * count + n]
                    builder.store(_multiply_add(builder, left, right[n], builder.load(place)), place)
        _finish(builder, tile, places, add, squares)
        return context.get_dummy_value()

    return types.void(*constants, *[types.int64] * 13), generate


@instruction
def product_tile(
    typing: Any, height: Any, width: Any,
    x: Any, x_row: Any, x_column: Any, tap_row: Any, tap_column: Any, y: Any, y_row: Any, y_column: Any,
    rows: Any, columns: Any, out: Any, out_row: Any, out_column: Any, add: Any, squares: Any,
) -> Any:  # fmt: skip
    """Sums ``x[position + tap, lane] · y[position, lane]`` over positions, for ``height·width`` taps and WIDTH lanes.

    Operands:
        height, width: Constants; the taps, ``tap_row`` and ``tap_column`` apart in x.
        out: Where the first tap's lanes go; the others lie ``row·out_row + column·out_column`` on.

    The others are those of :func:`outer_tile`.
    """
    constants = (height, width)
    if not all(isinstance(constant, types.IntegerLiteral) for constant in constants):
        return None
    taps = [(row, column) for row in range(height.literal_value) for column in range(width.literal_value)]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (
            x, x_row, x_column, tap_row, tap_column, y, y_row, y_column, rows, columns, out, out_row, out_column,
            add, squares,
        ) = args[2:]  # fmt: skip
        tile = _accumulators(builder, _FLOATS, len(taps))
        with _positions(builder, rows, columns, (x, x_row, x_column), (y, y_row, y_column)) as (x_at, y_at):
            right = _load(builder, y_at, _FLOATS)
            for place, (row, column) in zip(tile, taps, strict=True):
                left = _load(builder, _at(builder, x_at, (tap_row, row), (tap_column, column)), _FLOATS)
                builder.store(_multiply_add(builder, left, right, builder.load(place)), place)
        places = [(_at(builder, out, (out_row, row), (out_column, column)), 0) for row, column in taps]
        _finish(builder, tile, places, add, squares)
        return context.get_dummy_value()

    return types.void(*constants, *[types.int64] * 15), generate


@instruction
def rounded_tile(
    typing: Any, vectors: Any, channels: Any, limit: Any,
    scales: Any, scale_row: Any, values: Any, value_row: Any, rows: Any, total: Any, total_channel: Any,
) -> Any:  # fmt: skip
    """Adds ``rint(scale[row, m] · value[row, n])``, summed over rows, to int64: ``channels`` by ``vectors·WIDTH``.

    A product that is no number, or larger than ``2**limit``, counts as 0: that takes no branch.

    Operands:
        vectors, channels, limit: Constants.
        scales: ``channels`` adjacent floats a row.
        values: ``vectors·WIDTH`` adjacent floats a row.
        rows: At most ``2**(31 - limit) - 1``, so that no sum leaves int32.
        total: int64; ``total_channel`` bytes from one channel to the next.
    """
    constants = (vectors, channels, limit)
    if not all(isinstance(constant, types.IntegerLiteral) for constant in constants):
        return None
    count, height = vectors.literal_value, channels.literal_value
    bound = ir.Constant(_FLOATS, [float(1 << limit.literal_value)] * WIDTH)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scales, scale_row, values, value_row, rows, total, total_channel = args[3:]
        tile = _accumulators(builder, _WORDS, height * count)
        one, none = _I64(1), _I64(0)
        with _positions(builder, one, rows, (scales, none, scale_row), (values, none, value_row)) as (s_at, v_at):
            right = [_load(builder, v_at, _FLOATS, n) for n in range(count)]
            for m in range(height):
                left = _splat(builder, _load(builder, s_at, _F32, m))
                for n in range(count):
                    place = tile[m * count + n]
                    rounded = _rounded(builder, builder.fmul(left, right[n]), bound)
                    builder.store(builder.add(builder.load(place), rounded), place)
        for m in range(height):
            at = _at(builder, total, (total_channel, m))
            for n in range(count):
                longs = builder.sext(builder.load(tile[m * count + n]), _LONGS)
                _store(builder, builder.add(_load(builder, at, _LONGS, n), longs), at, n)
        return context.get_dummy_value()

    return types.void(*constants, *[types.int64] * 7), generate


@instruction
def interleave(
    typing: Any, planes: Any, width: Any, source: Any, plane: Any, target: Any, position: Any
) -> Any:  # fmt: skip
    """Copies ``width`` adjacent floats of each of ``planes`` so that a position's floats lie side by side.

    Operands:
        planes, width: Constants, powers of two.
        source: Of the first plane; the others are ``plane`` bytes apart.
        target: ``planes`` adjacent floats a position, the positions ``position`` bytes apart. Where ``planes`` is
            less than ``width``, positions must be adjacent.
    """
    constants = (planes, width)
    if not all(isinstance(constant, types.IntegerLiteral) for constant in constants):
        return None
    count, length = planes.literal_value, width.literal_value
    lanes = ir.VectorType(_F32, length)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, plane, target, position = args[2:]
        vectors = [_load(builder, _at(builder, source, (plane, n)), lanes) for n in range(count)]
        for n, vector in enumerate(_shuffled(builder, vectors)):
            element = n * length
            at = _at(builder, target, (position, element // count))
            _store(builder, vector, builder.add(at, _I64(4 * (element % count))))
        return context.get_dummy_value()

    return types.void(*constants, *[types.int64] * 4), generate


@instruction
def turn(typing: Any, table: Any, source: Any, target: Any, step: Any, add: Any) -> Any:
    """Copies a square of WIDTH by WIDTH floats so that its columns become rows.

    Operands:
        table: Address of WIDTH int64: where each row lies, in bytes from ``source``.
        source: Of the square.
        target: Where the first column goes; the next ones ``step`` bytes on.
        add: Other than 0 adds to what is there.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, source, target, step, add = args
        rows = [builder.add(source, _load(builder, table, _I64, n)) for n in range(WIDTH)]
        columns = _shuffled(builder, [_load(builder, row, _FLOATS) for row in rows])
        places = [(_at(builder, target, (step, n)), 0) for n in range(WIDTH)]
        tile = [cgutils.alloca_once(builder, _FLOATS) for _ in places]
        for place, column in zip(tile, columns, strict=True):
            builder.store(column, place)
        _finish(builder, tile, places, add, _I64(0))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@instruction
def copy(typing: Any, count: Any, source: Any, target: Any) -> Any:
    """Copies ``count`` adjacent floats, a constant."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    lanes = ir.VectorType(_F32, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, _load(builder, args[1], lanes), args[2])
        return context.get_dummy_value()

    return types.void(count, types.int64, types.int64), generate


@instruction
def fetch(typing: Any, address: Any) -> Any:
    """Asks for the cache line at an address, soon to be read. Any address may be asked for."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _fetch(builder, args[0], write=False)
        return context.get_dummy_value()

    return types.void(types.int64), generate


# ---- instructions ----------------------------------------------------------------------------------------


def _accumulators(builder: Any, kind: Any, count: int) -> list[Any]:
    """Zeros; LLVM keeps them in registers, because nobody takes their address."""
    places = [cgutils.alloca_once(builder, kind) for _ in range(count)]
    for place in places:
        builder.store(ir.Constant(kind, None), place)
    return places


def _shuffled(builder: Any, vectors: list[Any]) -> list[Any]:
    """A power of two of vectors, one after the other: their first elements, then their second ones, and so on.

    Each round puts the first half and the second side by side, element by element, which moves the highest bit of an
    element's place to its end.
    """
    half, length = len(vectors) // 2, vectors[0].type.count
    low = [lane // 2 + lane % 2 * length for lane in range(length)]
    masks = [ir.Constant(ir.VectorType(_I32, length), [start + lane for lane in low]) for start in (0, length // 2)]
    for _ in range(half.bit_length()):
        pairs = zip(vectors[:half], vectors[half:], strict=True)
        vectors = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
    return vectors


class _positions:
    """A loop over rows and columns; gives the two addresses at a position."""

    def __init__(self, builder: Any, rows: Any, columns: Any, *steps: tuple[Any, Any, Any]) -> None:
        self._builder, self._rows, self._columns, self._steps = builder, rows, columns, steps

    def __enter__(self) -> list[Any]:
        builder = self._builder
        self._outer = cgutils.for_range(builder, self._rows)
        row = self._outer.__enter__().index
        firsts = [builder.add(start, builder.mul(row, step)) for start, step, _ in self._steps]
        self._inner = cgutils.for_range(builder, self._columns)
        column = self._inner.__enter__().index
        pairs = zip(firsts, self._steps, strict=True)
        return [builder.add(first, builder.mul(column, step)) for first, (_, _, step) in pairs]

    def __exit__(self, *exception: Any) -> None:
        self._inner.__exit__(*exception)
        self._outer.__exit__(*exception)


def _finish(builder: Any, tile: list[Any], places: list[tuple[Any, int]], add: Any, squares: Any) -> None:
    """Adds what is there, writes the tile, and adds its squares to the lanes' sums."""
    with builder.if_then(builder.icmp_signed("!=", add, _I64(0))):
        for place, (at, n) in zip(tile, places, strict=True):
            builder.store(builder.fadd(builder.load(place), _load(builder, at, _FLOATS, n)), place)
    for place, (at, n) in zip(tile, places, strict=True):
        _store(builder, builder.load(place), at, n)
    with builder.if_then(builder.icmp_signed("!=", squares, _I64(0))):
        sums = [ir.Constant(_FLOATS, None)] * _CHAINS
        for index, place in enumerate(tile):
            value = builder.load(place)
            sums[index % _CHAINS] = _multiply_add(builder, value, value, sums[index % _CHAINS])
        found = builder.fpext(functools.reduce(builder.fadd, sums), _DOUBLES)
        _store(builder, builder.fadd(_load(builder, squares, _DOUBLES), found), squares)


def _at(builder: Any, start: Any, *steps: tuple[Any, int]) -> Any:
    for step, count in steps:
        start = builder.add(start, builder.mul(step, _I64(count))) if count else start
    return start


def _load(builder: Any, address: Any, kind: Any, index: int = 0) -> Any:
    return builder.load(builder.gep(builder.inttoptr(address, kind.as_pointer()), [_I64(index)]), align=4)


def _store(builder: Any, value: Any, address: Any, index: int = 0) -> None:
    builder.store(value, builder.gep(builder.inttoptr(address, value.type.as_pointer()), [_I64(index)]), align=4)


def _fetch(builder: Any, address: Any, *, write: bool) -> None:
    """A line to be written comes to the nearest cache, one to be read to the second."""
    function = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
    ask = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    near = 3 if write else 2
    builder.call(ask, [builder.inttoptr(address, cgutils.voidptr_t), _I32(int(write)), _I32(near), _I32(1)])


def _splat(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_WORDS, None))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Fused where the processor does so: LLVM's ``fma`` would call a library where it does not."""
    return _call(builder, "fmuladd", _FLOATS, [a, b, c])


def _rounded(builder: Any, value: Any, bound: Any) -> Any:
    """To the nearest integer, halves to even; 0 for what is no number or beyond the bound."""
    kept = builder.fcmp_ordered("<=", _call(builder, "fabs", _FLOATS, [value]), bound)
    return _call(builder, "lrint", _WORDS, [builder.select(kept, value, ir.Constant(_FLOATS, None))])


def _call(builder: Any, name: str, kind: Any, args: list[Any]) -> Any:
    """One of LLVM's own functions on vectors of floats, which are named after their types."""
    types_ = f"v{WIDTH}f32" if kind is _FLOATS else f"v{WIDTH}i32.v{WIDTH}f32"
    function = ir.FunctionType(kind, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.{types_}"), args)
