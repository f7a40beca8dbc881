"""Polynomials of integers within a box: masks, what they hide, their sums, and how those are sent.

Integers are two's complement, ``(…, N, W)`` words, the lowest first. A box reaches from ``-bound`` to ``bound``; on the
wire an integer has as many bits as ``2·bound``, and stands for itself plus the bound.
"""

from __future__ import annotations

import numpy as np

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.linear._polynomials import Words
from cloister.linear._streams import SecretStream, box
from cloister.linear._words import multiply_add

__all__ = ["add_turned", "boxed_bits", "from_box", "is_within", "masks", "to_box"]

_Word = np.uint64
_0, _1, _63 = (_Word(n) for n in (0, 1, 63))
_WORD_BITS = 64


def masks(stream: SecretStream, polynomials: int, degree: int, bound: int) -> Words:
    """Uniform from ``-bound`` to ``bound``: ``(polynomials, N, W)``, with room for sums with other ones in the box."""
    drawn = box(stream, polynomials * degree, -bound, bound)
    if drawn.shape[1] < _count(bound):
        raise InputError(2912, "a box next to whole words", got=f"{bound.bit_length()} bits")
    return drawn.reshape(polynomials, degree, -1)


def boxed_bits(bound: int) -> list[int]:
    """Of an integer in the box on the wire, word by word."""
    bits = (2 * bound).bit_length()
    return [min(_WORD_BITS, bits - start) for start in range(0, bits, _WORD_BITS)]


def add_turned(total: Words, x: Words, exponent: int) -> None:
    """Adds ``X^exponent · x`` modulo X^N + 1 in place, ``(N, W)`` and ``(N, at most W)``; the exponent is public.

    Raises:
        InputError: 2911 for shapes that do not fit.
    """
    degree = len(total)
    fits = total.dtype == x.dtype == _Word and total.ndim == x.ndim == 2 and len(x) == degree
    if not (fits and 1 <= x.shape[1] <= total.shape[1] and 0 <= exponent < 2 * degree):
        raise InputError(2911, "polynomials do not fit each other", expected=total.shape, got=x.shape)
    _add_turned(total, x, exponent % degree, exponent >= degree)


def is_within(x: Words, bound: int) -> bool:
    """Whether all are in the box; takes as long for all that are as for those that are not."""
    return _outside(x.reshape(-1, x.shape[-1]), _words(bound, x.shape[-1])) == 0


def to_box(x: Words, bound: int) -> Words:
    """Rows for the wire, ``(as many as boxed_bits, N)``, of ``(N, W)`` in the box."""
    shifted = x.copy()
    _shift(shifted, _words(bound, x.shape[1]))
    return np.ascontiguousarray(shifted[:, : len(boxed_bits(bound))].T)


def from_box(rows: Words, bound: int) -> Words:
    """What such rows of a peer stand for, ``(N, W)``; they may lie outside the box."""
    out = np.zeros((rows.shape[1], _count(bound)), _Word)
    out[:, : len(rows)] = rows.T
    _shift(out, _words(-bound, out.shape[1]))
    return out


def _count(bound: int) -> int:
    """Words with room for twice the bound and a sign."""
    return (2 * bound).bit_length() // _WORD_BITS + 1


def _words(value: int, count: int) -> Words:
    return np.array([value >> (_WORD_BITS * place) & (2**_WORD_BITS - 1) for place in range(count)], _Word)


# ---- compiled --------------------------------------------------------------------------------------------


@compiled
def _add_turned(total: Words, x: Words, turn: int, negative: bool) -> None:
    """What X carries past X^N comes back with the other sign."""
    left = total.shape[0] - turn
    _add_signed(total[turn:], x[:left], _0 - _Word(negative))
    _add_signed(total[:turn], x[left:], _0 - _Word(not negative))


@compiled
def _add_signed(total: Words, x: Words, flip: Words) -> None:
    """Subtracts where all bits of ``flip`` are set: ``-x`` is x with its bits flipped, plus one."""
    given = x.shape[1]
    for i in range(total.shape[0]):
        carry = flip & _1
        sign = (_0 - (x[i, given - 1] >> _63)) ^ flip
        for j in range(given):
            carry, total[i, j] = multiply_add(x[i, j] ^ flip, _1, total[i, j], carry)
        for j in range(given, total.shape[1]):
            carry, total[i, j] = multiply_add(sign, _1, total[i, j], carry)


@compiled
def _outside(x: Words, bound: Words) -> np.uint64:
    """1 where an integer is beyond the box: the sign of ``bound + x`` or of ``bound - x``."""
    found = _0
    for i in range(x.shape[0]):
        carry, borrow, above, below = _0, _1, _0, _0
        for j in range(x.shape[1]):
            carry, below = multiply_add(x[i, j], _1, bound[j], carry)
            borrow, above = multiply_add(~x[i, j], _1, bound[j], borrow)
        found |= (above | below) >> _63
    return found


@compiled
def _shift(x: Words, offset: Words) -> None:
    for i in range(x.shape[0]):
        carry = _0
        for j in range(x.shape[1]):
            carry, x[i, j] = multiply_add(x[i, j], _1, offset[j], carry)
