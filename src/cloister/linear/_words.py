"""Integers of several 64-bit words in compiled functions: sums, products and quotients by powers of two.

numba knows no integer above 64 bits; LLVM does, and makes chains of additions with carry and products of two words of
it. A :class:`Natural` is such an integer while code is generated.

Rules:

* A Natural carries the greatest value that it can have. Its width follows from that, so nothing ever wraps.
* Nothing here compares, selects or branches: what follows from a value is arithmetic on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["Natural", "high_word", "instruction", "multiply_add", "multiply_wide"]

_BITS = 64
_WORD, _WIDE = ir.IntType(_BITS), ir.IntType(2 * _BITS)


class Natural:
    """A non-negative integer in generated code.

    Attributes:
        value: LLVM's, at least as wide as ``most`` needs, and whole words.
        most: The greatest value that it can have.
    """

    __slots__ = ("_builder", "most", "value")

    def __init__(self, builder: Any, value: Any, most: int) -> None:
        self._builder, self.value, self.most = builder, value, most

    @classmethod
    def of(cls, builder: Any, words: Sequence[Any], most: int) -> Natural:
        """The words side by side, the lowest first; the caller knows that they are at most ``most``."""
        total = cls(builder, words[0], (1 << _BITS) - 1)
        for place, word in enumerate(words[1:], 1):
            total += cls(builder, word, (1 << _BITS) - 1) << (_BITS * place)
        return cls(builder, total._as(_width(most)), most)

    def words(self, count: int) -> list[Any]:
        """The lowest words."""
        wide = self._as(max(_BITS * count, self.value.type.width))
        return [self._word(wide, place) for place in range(count)]

    def __add__(self, other: Natural | int) -> Natural:
        right = self._natural(other)
        most = self.most + right.most
        return self._new(self._builder.add(self._as(_width(most)), right._as(_width(most))), most)

    def __sub__(self, other: Natural | int) -> Natural:
        """The caller knows that it is not negative."""
        right = self._natural(other)
        bits = _width(max(self.most, right.most))
        return self._new(self._builder.sub(self._as(bits), right._as(bits)), self.most)

    def __mul__(self, other: Natural | int) -> Natural:
        """Word by word: one multiplication for each pair."""
        right = self._natural(other)
        most = self.most * right.most
        total = ir.Constant(ir.IntType(_width(most)), 0)
        for place, word in enumerate(self._significant()):
            row = self._row(word, right._significant(), _width(most))
            total = self._builder.add(total, self._shifted(row, _BITS * place))
        return self._new(total, most)

    def __lshift__(self, bits: int) -> Natural:
        most = self.most << bits
        return self._new(self._shifted(self._as(_width(most)), bits), most)

    def __rshift__(self, bits: int) -> Natural:
        found = self._new(self._builder.lshr(self.value, ir.Constant(self.value.type, bits)), self.most >> bits)
        return self._new(found._as(_width(found.most)), found.most)

    def low(self, bits: int) -> Natural:
        """The remainder modulo ``2^bits``."""
        most = (1 << bits) - 1
        narrow = self._as(_width(most))
        return self._new(self._builder.and_(narrow, ir.Constant(narrow.type, most)), min(self.most, most))

    def _new(self, value: Any, most: int) -> Natural:
        return Natural(self._builder, value, most)

    def _natural(self, other: Natural | int) -> Natural:
        return self._new(ir.Constant(ir.IntType(_width(other)), other), other) if isinstance(other, int) else other

    def _as(self, bits: int) -> Any:
        return self._resized(self.value, bits)

    def _resized(self, value: Any, bits: int) -> Any:
        if bits == value.type.width:
            return value
        change = self._builder.zext if bits > value.type.width else self._builder.trunc
        return change(value, ir.IntType(bits))

    def _word(self, wide: Any, place: int) -> Any:
        return self._resized(self._builder.lshr(wide, ir.Constant(wide.type, _BITS * place)), _BITS)

    def _significant(self) -> list[Any]:
        return self.words(_width(self.most) // _BITS)

    def _row(self, word: Any, words: Sequence[Any], bits: int) -> Any:
        """One word times all: products of even places lie side by side, those of odd places too, so one sum is left."""
        lanes = [ir.Constant(ir.IntType(bits), 0)] * 2
        for place, other in enumerate(words):
            product = self._builder.mul(self._builder.zext(word, _WIDE), self._builder.zext(other, _WIDE))
            wide = self._shifted(self._resized(product, bits), _BITS * place)
            lanes[place % 2] = self._builder.or_(lanes[place % 2], wide)
        return self._builder.add(*lanes)

    def _shifted(self, value: Any, bits: int) -> Any:
        return self._builder.shl(value, ir.Constant(value.type, bits)) if bits else value


def _width(most: int) -> int:
    return _BITS * max(1, -(-most.bit_length() // _BITS))


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """For compiled functions, which leave out its first argument: that is the compiler's."""
    return intrinsic(function)


@instruction
def multiply_wide(typing: Any, a: Any, b: Any) -> Any:
    """``a · b`` as the words (high, low)."""
    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), _pair


@instruction
def multiply_add(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """``a · b + c + d`` as the words (high, low); two words always hold it."""
    return types.UniTuple(types.uint64, 2)(*[types.uint64] * 4), _pair


@instruction
def high_word(typing: Any, a: Any, b: Any) -> Any:
    """``⌊a · b / 2^64⌋``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _sum(builder, args).words(2)[1]

    return types.uint64(types.uint64, types.uint64), generate


def _sum(builder: Any, args: Sequence[Any]) -> Natural:
    left, right, *rest = (Natural(builder, arg, (1 << _BITS) - 1) for arg in args)
    return sum(rest, left * right)


def _pair(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    low, high = _sum(builder, args).words(2)
    return context.make_tuple(builder, signature.return_type, (high, low))
