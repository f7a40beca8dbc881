"""Draws of the discrete Gaussian, eight beside each other: what numba does not write by itself.

A draw reads its cell of the table for each of three levels, and which cell follows from the draw's own bits. Compilers
do not put such reads beside each other: a store between them might change the table. Here it is known that none does.
Where the processor cannot gather, LLVM makes single reads of it.

The fraction ``word ‖ low`` is at or beyond the threshold ``high ‖ last`` where ``word >= high + [low < last]``. The
right side wraps only in a full cell, which is its own alias.

No branch and no loop depends on a secret; see :mod:`cloister.privacy._discrete`, which says what is drawn.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from cloister.privacy._alias import FIELD_BITS
from cloister.privacy._vectors import instruction

__all__ = ["BESIDE", "LEVELS", "add_draws"]

BESIDE = 8
"""Draws at once."""

LEVELS = 3

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_LONGS, _WORDS = ir.VectorType(_I64, BESIDE), ir.VectorType(_I32, BESIDE)
_POINTERS = ir.VectorType(ir.PointerType(), BESIDE)
_STREAM = ir.VectorType(_I64, (LEVELS + 1) * BESIDE)


@instruction
def add_draws(typing: Any, words: Any, high: Any, packed: Any, bits: Any, factor: Any, total: Any) -> Any:
    """Adds eight draws to eight adjacent integers.

    Operands, all addresses as integers:
        words: 32 adjacent uint64: a draw's four, the next one's, and so on.
        high: Of the table's, ``(2^bits,)`` uint64.
        packed: ``(2^bits,)`` uint32.
        bits: Of a cell's number.
        factor: k.
        total: Eight adjacent int64.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, high, packed, bits, factor, total = args
        stream = builder.load(builder.inttoptr(words, _STREAM.as_pointer()), align=8)
        *thresholds, fields = (_every(builder, stream, first) for first in range(LEVELS + 1))
        one = _constant(1)
        width, rest = _splat(builder, bits), _splat(builder, builder.sub(_I64(FIELD_BITS - 1), bits))
        cells, lows = (builder.sub(builder.shl(one, count), one) for count in (width, rest))
        own_high, own_packed, k = (_splat(builder, value) for value in (high, packed, factor))
        x = _constant(0)
        for threshold in thresholds:
            cell = builder.and_(fields, cells)
            fields = builder.lshr(fields, width)
            low = builder.and_(fields, lows)
            fields = builder.lshr(fields, rest)
            sign = builder.sub(_constant(0), builder.and_(fields, one))
            fields = builder.lshr(fields, one)
            entry = builder.zext(_gathered(builder, _WORDS, own_packed, cell), _LONGS)
            lower = builder.zext(builder.icmp_unsigned("<", low, builder.lshr(entry, _constant(16))), _LONGS)
            beyond = builder.add(_gathered(builder, _LONGS, own_high, cell), lower)
            alias = builder.and_(entry, _constant(0xFFFF))
            size = builder.select(builder.icmp_unsigned(">=", threshold, beyond), alias, cell)  # of vectors: no branch
            signed = builder.sub(builder.xor(size, sign), sign)
            x = builder.add(builder.mul(x, k), signed)
        place = builder.inttoptr(total, _LONGS.as_pointer())
        builder.store(builder.add(builder.load(place, align=8), x), place, align=8)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


def _every(builder: Any, stream: Any, first: int) -> Any:
    places = [(LEVELS + 1) * draw + first for draw in range(BESIDE)]
    return builder.shuffle_vector(stream, ir.Constant(_STREAM, ir.Undefined), ir.Constant(_WORDS, places))


def _gathered(builder: Any, kind: Any, start: Any, cells: Any) -> Any:
    """What lies at so many entries from an address, for each lane."""
    size = kind.element.width // 8
    places = builder.add(start, builder.mul(cells, _constant(size)))
    pointers = builder.inttoptr(places, _POINTERS)
    function = ir.FunctionType(kind, [_POINTERS, _I32, ir.VectorType(_I1, BESIDE), kind])
    name = f"llvm.masked.gather.v{BESIDE}i{kind.element.width}.v{BESIDE}p0"
    everywhere = ir.Constant(ir.VectorType(_I1, BESIDE), [1] * BESIDE)
    gather = cgutils.get_or_insert_function(builder.module, function, name)
    return builder.call(gather, [pointers, _I32(size), everywhere, ir.Constant(kind, None)])


def _constant(value: int) -> Any:
    return ir.Constant(_LONGS, [value] * BESIDE)


def _splat(builder: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_LONGS, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(_LONGS, ir.Undefined), ir.Constant(_WORDS, None))
