"""Square roots in F_p, of public values: what is computed here branches on them.

p - 1 is 2^64 times an odd h. The part of order 2^64 is taken apart by digits to base 256, each found in a table (A.
Tonelli 1891, D. Shanks 1973; with tables P. Sarkar, "Computing square roots faster than the Tonelli-Shanks algorithm",
2020): 270 products a root.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.errors import InternalError
from cloister.linear._elements import WORDS, P, multiply, subtract
from cloister.linear._field import Elements, from_ints, require_elements
from cloister.linear._field_kernels import ONE, POWERS, ZERO, digits, element, power, store

__all__ = ["square_roots"]

_Word = np.uint64
_TWOS = 64
_ODD = (P - 1) >> _TWOS
_DIGIT_BITS, _DIGITS = 8, 8
_SLOTS = 1 << 16


class _Tables(NamedTuple):
    """For ``g``, of order 2^64.

    Attributes:
        powers: ``(8, 256, 3)``: entry (j, d) is ``g^(-256^j · d)``.
        digits: ``(65536,)``: d, by 16 bits of ``g^(256^7 · d)`` that tell the 256 apart.
        word: Of which word.
        shift: From which bit on.
    """

    powers: Elements
    digits: NDArray[np.uint8]
    word: int
    shift: np.uint64


def square_roots(x: Elements) -> tuple[Elements, NDArray[np.bool_]]:
    """Of public elements ``(…, 3)``: the even one of the two roots, and where there is one; elsewhere 0.

    Even as the integer in ``[0, p)``: whoever computes it finds the same. The root of 0 is 0.
    """
    require_elements(x)
    flat = np.ascontiguousarray(x).reshape(-1, WORDS)
    out, exists = np.empty_like(flat), np.empty(flat.shape[0], np.bool_)
    _roots(flat, digits((_ODD - 1) // 2), _tables(), out, exists)
    return out.reshape(x.shape), exists.reshape(x.shape[:-1])


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    base = next(base for base in range(2, P) if pow(base, (P - 1) // 2, P) == P - 1)
    back = pow(base, -_ODD, P)  # 1/g
    steps = from_ints([pow(back, 256**j, P) for j in range(_DIGITS)])
    powers = np.empty((_DIGITS, 1 << _DIGIT_BITS, WORDS), _Word)
    _fill(steps, powers)
    last = np.roll(powers[-1, ::-1], 1, axis=0)  # of g itself: the inverses, backwards
    for word in (1, 2):
        for shift in range(48):
            keys = last[:, word] >> _Word(shift) & _Word(_SLOTS - 1)
            if np.unique(keys).size == keys.size:
                found = np.zeros(_SLOTS, np.uint8)
                found[keys] = np.arange(keys.size)
                return _Tables(powers, found, word, _Word(shift))
    raise InternalError(9001, "no place tells the roots of unity apart")


# ---- compiled --------------------------------------------------------------------------------------------


@compiled
def _fill(steps: Elements, powers: Any) -> None:
    for j in range(powers.shape[0]):
        power_ = ONE
        for d in range(powers.shape[1]):
            store(powers[j], d, power_)
            power_ = multiply(power_, element(steps, j))


@compiled
def _roots(x: Elements, exponent: NDArray[np.uint8], tables: _Tables, out: Elements, exists: NDArray[np.bool_]) -> None:
    towers, chosen = np.empty((_DIGITS, WORDS), _Word), np.empty(_DIGITS, np.int64)
    table = np.empty((POWERS, WORDS), _Word)
    for i in range(out.shape[0]):
        value = element(x, i)
        half = power(value, exponent, table)
        root = multiply(half, value)
        rest = multiply(root, half)  # value^h = g^e, with e even where there is a root
        for j in range(_DIGITS):
            store(towers, j, rest)
            for _ in range(_DIGIT_BITS):
                rest = multiply(rest, rest)
        e = _Word(0)
        for k in range(_DIGITS):
            first = _DIGITS - 1 - k
            left = element(towers, first)
            for j in range(k):
                left = multiply(left, element(tables.powers[first + j], chosen[j]))
            key = (left[tables.word] >> tables.shift) & _Word(_SLOTS - 1)
            chosen[k] = tables.digits[key]
            e |= _Word(chosen[k]) << _Word(_DIGIT_BITS * k)
        e >>= _Word(1)
        for j in range(_DIGITS):
            root = multiply(root, element(tables.powers[j], (e >> _Word(_DIGIT_BITS * j)) & _Word(255)))
        exists[i] = subtract(multiply(root, root), value) == ZERO
        if not exists[i]:
            root = ZERO
        elif root[0] & _Word(1):
            root = subtract(ZERO, root)
        store(out, i, root)
