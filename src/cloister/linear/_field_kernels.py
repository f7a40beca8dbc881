"""Compiled loops over arrays of field elements; :mod:`cloister.linear._field` checks what they are given.

Arrays are C-contiguous ``(n, 3)`` uint64 unless said. Loops and addresses follow from shapes and from exponents, which
are public.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.linear import _elements as f
from cloister.linear._elements import WORDS, P

__all__ = [
    "INVERSION",
    "ONE",
    "POWERS",
    "ZERO",
    "Element",
    "Elements",
    "added",
    "beyond",
    "brought_down",
    "centred",
    "digits",
    "dots",
    "element",
    "embedded",
    "inverted",
    "multiplied",
    "power",
    "store",
    "subtracted",
]

Elements = NDArray[np.uint64]
Element: TypeAlias = tuple[Any, Any, Any]
"""In compiled functions: three words."""

_Word, _Signed = np.uint64, np.int64
_0, _1, _63, _64 = (_Word(n) for n in (0, 1, 63, 64))
_WINDOW = 4

POWERS = 1 << _WINDOW
"""Elements of a table for :func:`power`."""

ZERO = (_0, _0, _0)
ONE = (_1, _0, _0)


def digits(exponent: int) -> NDArray[np.uint8]:
    """Of a public exponent, to base 16, the highest first: what :func:`power` takes."""
    count = -(-exponent.bit_length() // _WINDOW)
    return np.array([exponent >> (_WINDOW * k) & (2**_WINDOW - 1) for k in reversed(range(count))], np.uint8)


def _words(value: int) -> tuple[np.uint64, ...]:
    return tuple(_Word(value >> (64 * k) & (2**64 - 1)) for k in range(WORDS))


INVERSION = digits(P - 2)
_LEAST_SIGNED = _words(P - 2**63)


@compiled
def element(x: Elements, i: int) -> Element:
    """Element i."""
    return x[i, 0], x[i, 1], x[i, 2]


@compiled
def store(x: Elements, i: int, value: Element) -> None:
    """Writes element i."""
    x[i, 0], x[i, 1], x[i, 2] = value


@compiled
def power(x: Element, exponent: NDArray[np.uint8], table: Elements) -> Element:
    """``x^exponent``, of :func:`digits`: four squarings and one product a digit, whatever the digit.

    The table has room for ``POWERS`` elements.
    """
    store(table, 0, ONE)
    for k in range(1, POWERS):
        store(table, k, f.multiply(element(table, k - 1), x))
    total = element(table, 0)
    for digit in exponent:
        for _ in range(_WINDOW):
            total = f.multiply(total, total)
        total = f.multiply(total, element(table, digit))
    return total


@compiled
def added(a: Elements, b: Elements, out: Elements) -> None:
    """``a + b``."""
    for i in range(out.shape[0]):
        store(out, i, f.add(element(a, i), element(b, i)))


@compiled
def subtracted(a: Elements, b: Elements, out: Elements) -> None:
    """``a - b``."""
    for i in range(out.shape[0]):
        store(out, i, f.subtract(element(a, i), element(b, i)))


@compiled
def multiplied(a: Elements, b: Elements, out: Elements) -> None:
    """``a · b``."""
    for i in range(out.shape[0]):
        store(out, i, f.multiply(element(a, i), element(b, i)))


@compiled
def dots(a: Elements, b: Elements, out: Elements) -> None:
    """``Σ_k a[i, k] · b[i, k]``: ``(n, K, 3)`` twice; where b has one row, that serves all."""
    step = 1 if b.shape[0] == a.shape[0] else 0
    for i in range(out.shape[0]):
        left, right = a[i], b[i * step]
        total = (_0, _0, _0, _0, _0, _0, _0)
        for k in range(left.shape[0]):
            total = f.accumulate(total, element(left, k), element(right, k))
        store(out, i, f.reduced_sum(total))


@compiled
def inverted(a: Elements, exponent: NDArray[np.uint8], table: Elements, out: Elements) -> None:
    """``1 / a``, and 0 of 0, all from one power, by ``digits(P - 2)``.

    Zeros take part as ones, and what comes out for them is wiped: nothing shows where they are.

    Source: P. Montgomery, "Speeding the Pollard and elliptic curve methods of factorization", 1987, section 10.3.1.
    """
    before = ONE
    for i in range(out.shape[0]):
        store(out, i, before)
        before = f.multiply(before, _filled(element(a, i)))
    left = power(before, exponent, table)
    for i in range(out.shape[0] - 1, -1, -1):
        x = element(a, i)
        found = f.multiply(left, element(out, i))
        left = f.multiply(left, _filled(x))
        kept = _0 - _nonzero(x)
        store(out, i, (found[0] & kept, found[1] & kept, found[2] & kept))


@compiled
def _nonzero(x: Element) -> Any:
    """1 or 0."""
    some: Any = x[0] | x[1] | x[2]
    return (some | (_0 - some)) >> _63


@compiled
def _filled(x: Element) -> Element:
    """x, or 1 for 0."""
    return x[0] | (_nonzero(x) ^ _1), x[1], x[2]


@compiled
def embedded(values: NDArray[np.int64], out: Elements) -> None:
    """Signed integers as elements."""
    for i in range(out.shape[0]):
        lifted = _Word(values[i]) ^ (_1 << _63)  # 2^63 more, and never negative
        store(out, i, f.add((lifted, _0, _0), _LEAST_SIGNED))


@compiled
def brought_down(x: Elements, out: Elements) -> None:
    """The elements that any words stand for modulo p."""
    for i in range(out.shape[0]):
        store(out, i, f.reduced(element(x, i)))


@compiled
def centred(x: Elements, out: Elements) -> None:
    """The centred representatives, as words in two's complement."""
    for i in range(out.shape[0]):
        store(out, i, f.centred(element(x, i)))


@compiled
def beyond(x: Elements) -> bool:
    """Whether any of the values, below 2^184, is p or more."""
    reached = _0
    for i in range(x.shape[0]):
        reached |= f.excess(element(x, i))
    return reached != _0
