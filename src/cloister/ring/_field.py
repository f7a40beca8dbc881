"""The field of the checks: F_p with p = 2^61 - 1, its sums and its uniform draws.

An element is a ``uint64`` in ``[0, p)``. Everything is integer arithmetic; no float takes part.

Sums of small integers times elements are made in ``int64`` on *limbs* of the element and reduced afterwards. A sum that
wrapped would let a crafted error pass, so each kind of sum is cut into runs that cannot:

==============  =======================  ==============================  ==================================
integers        limbs of an element      one term                        a run, and its sum in magnitude
==============  =======================  ==============================  ==================================
``int8``        2 of 31 bits             ``2^7 · (2^31 - 1)  < 2^38``    2^16 terms, below 2^54
``int32``       3 of 21 bits             ``2^31 · (2^21 - 1) < 2^52``    2^11 terms, at most 2^63 - 2^42
elements        none: 128-bit products   ``(p - 1)^2         < 2^122``   2^5 terms, below 2^127
==============  =======================  ==============================  ==================================

The sums with ``int8`` are in :mod:`cloister.ring._contractions`, the others here. All are compiled, release the GIL,
and trust their callers for shapes.

>>> int(mulmod(np.uint64(P - 1), np.uint64(P - 1)))
1
>>> int(reduce_signed(np.int64(-1))) == P - 1
True
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.errors import InputError

__all__ = [
    "WIDEST",
    "Elements",
    "P",
    "Source",
    "addmod",
    "correlate",
    "dot_fields",
    "limbs",
    "mulmod",
    "outer_product",
    "reduce_signed",
    "rotate",
    "uniform",
    "weigh",
    "weigh_wide",
]

Elements = NDArray[np.uint64]
Source = Callable[[int], Elements]
Word, Signed = np.uint64, np.int64

P = 2**61 - 1
WIDEST = 2**60  # an int64 answer stays below it in magnitude, so that an error stays below p
_MOST = 1 << 24  # elements of one draw: 128 MiB of keystream

_P, _SIGNED_P = Word(P), Signed(P)
_BITS_21, _BITS_58 = Word(2**21 - 1), Word(2**58 - 1)
_3, _21, _42, _58, _61 = (Word(n) for n in (3, 21, 42, 58, 61))
_RUN_32 = 1 << 11
_RUN_FIELD = 1 << 5

# ---- elements --------------------------------------------------------------------------------------------


@intrinsic
def _multiply_wide(context: Any, a: Any, b: Any) -> Any:
    """The words (high, low) of the 128-bit product of two ``uint64``: one instruction of most machines."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, wide = ir.IntType(64), ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, signature.return_type, (high, builder.trunc(product, word)))

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), build


@compiled
def addmod(a: Word, b: Word) -> Word:
    """``a + b`` in the field, of two elements."""
    total = a + b
    return total - _P if total >= _P else total


@compiled
def mulmod(a: Word, b: Word) -> Word:
    """``a · b`` in the field, of two elements."""
    high, low = _multiply_wide(a, b)  # pyright: ignore[reportCallIssue] - the first argument is the compiler's
    total = (low & _P) + ((high << _3) | (low >> _61))  # high < 2^58; 2^61 is 1, so the upper bits are added
    return total - _P if total >= _P else total


@compiled
def reduce_signed(x: Signed) -> Word:
    """Any ``int64`` as an element: ``x mod p`` in ``[0, p)``."""
    total = Signed(Word(x) & _P) + (x >> Signed(61))  # the low 61 bits, and a quotient in [-4, 3]
    if total < 0:
        total += _SIGNED_P
    elif total >= _SIGNED_P:
        total -= _SIGNED_P
    return Word(total)


@compiled
def _fold(high: Word, low: Word) -> Word:
    """``high · 2^64 + low`` in the field, of any two words."""
    total = (low & _P) + (((high & _BITS_58) << _3) | (low >> _61)) + (high >> _58)  # < 2^62 + 2^6
    total = (total & _P) + (total >> _61)  # ≤ p + 2
    return total - _P if total >= _P else total


@compiled
def rotate(x: Word, by: Word) -> Word:
    """``x · 2^by`` in the field: multiplying by two rotates the 61 bits."""
    return ((x << by) & _P) | (x >> (_61 - by))


def limbs(elements: Elements) -> NDArray[np.int64]:
    """Three limbs of 21 bits, the lowest first: ``element = l0 + 2^21·l1 + 2^42·l2``.

    Shapes: ``(n,)`` elements to ``(3, n)`` int64, values in ``[0, 2^21)``.
    """
    return np.stack([elements & _BITS_21, (elements >> _21) & _BITS_21, elements >> _42]).astype(Signed)


def uniform(count: int) -> Elements:
    """Independent uniform elements from AES-256-CTR, under a key that is drawn for this call and then forgotten.

    A word's low 61 bits are an element unless they are p, which is drawn again.

    Raises:
        InputError: 2708 when ``count`` is above 2^24.
    """
    if not 0 <= count <= _MOST:
        raise InputError(2708, expected=f"at most {_MOST} elements", got=count)
    # the counter may start at zero, as the key serves this one stream
    stream = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()
    elements = np.frombuffer(stream.update(bytes(8 * count)), Word) & _P
    while (rejected := np.flatnonzero(elements == _P)).size:
        elements[rejected] = np.frombuffer(stream.update(bytes(8 * rejected.size)), Word) & _P
    return elements


# ---- elements with elements ------------------------------------------------------------------------------


@compiled
def outer_product(left: Elements, right: Elements) -> Elements:
    """Every product, row-major: ``(n,)`` and ``(m,)`` elements to ``(n·m,)``."""
    out = np.empty(left.size * right.size, Word)
    for i in range(left.size):
        for j in range(right.size):
            out[i * right.size + j] = mulmod(left[i], right[j])
    return out


@compiled
def dot_fields(left: Elements, right: Elements) -> Elements:
    """Products of every row with every row: ``out[i, k] = Σ_j left[i, j] · right[k, j]``, one multiplication each.

    Shapes: ``(n, L)`` and ``(m, L)`` elements, to ``(n, m)`` elements.
    """
    out = np.empty((left.shape[0], right.shape[0]), Word)
    for i in range(left.shape[0]):
        for k in range(right.shape[0]):
            total = Word(0)
            for start in range(0, left.shape[1], _RUN_FIELD):
                stop = min(start + _RUN_FIELD, left.shape[1])
                a, b = left[i, start:stop], right[k, start:stop]
                high = low = Word(0)
                for j in range(a.size):
                    term_high, term_low = _multiply_wide(a[j], b[j])  # pyright: ignore[reportCallIssue]
                    low += term_low
                    high += term_high + Word(low < term_low)
                total = addmod(total, _fold(high, low))
            out[i, k] = total
    return out


@compiled
def correlate(images: Elements, taps: Elements, stride: int, padding: int, dilation: int, size: int) -> Elements:
    """Cross-correlation along the middle axis, with zeros beyond the border; one multiplication a tap.

    ``out[n, i, l] = Σ_a taps[a] · images[n, i·stride + a·dilation - padding, l]``.

    Shapes: ``(n, H, L)`` and ``(k,)`` elements, to ``(n, size, L)`` elements.
    """
    count, height, length = images.shape
    out = np.zeros((count, size, length), Word)
    first, last = np.empty(size, np.int64), np.empty(size, np.int64)
    for i in range(size):
        begin = i * stride - padding
        first[i] = max(0, -(begin // dilation))
        last[i] = min(taps.size, (height - 1 - begin) // dilation + 1)
    for n in range(count):
        for i in range(size):
            begin = i * stride - padding
            for j in range(length):
                for start in range(first[i], last[i], _RUN_FIELD):
                    high = low = Word(0)
                    for a in range(start, min(start + _RUN_FIELD, last[i])):
                        tap, pixel = taps[a], images[n, begin + a * dilation, j]
                        term_high, term_low = _multiply_wide(tap, pixel)  # pyright: ignore[reportCallIssue]
                        low += term_low
                        high += term_high + Word(low < term_low)
                    out[n, i, j] = addmod(out[n, i, j], _fold(high, low))
    return out


# ---- answers with elements -------------------------------------------------------------------------------


@compiled
def weigh(words: Any, row_factors: Elements, inner_limbs: Any) -> Word:
    """The functional of an ``int32`` answer: ``Σ_rj row_factors[r] · words[r, j] · inner[j]``.

    Takes three multiplications a word and one a row.

    Shapes: ``(rows, inner)`` int32, ``(rows,)`` elements, ``(3, inner)`` of :func:`limbs`, to one element.
    """
    total = Word(0)
    length = words.shape[1]
    for r in range(words.shape[0]):
        row = Word(0)
        for start in range(0, length, _RUN_32):
            stop = min(start + _RUN_32, length)
            run, lows = words[r, start:stop], inner_limbs[0, start:stop]
            middles, highs = inner_limbs[1, start:stop], inner_limbs[2, start:stop]
            low = middle = high = Signed(0)
            for j in range(run.size):
                value = Signed(run[j])
                low += value * Signed(np.int32(lows[j]))
                middle += value * Signed(np.int32(middles[j]))
                high += value * Signed(np.int32(highs[j]))
            row = addmod(row, reduce_signed(low))
            row = addmod(row, rotate(reduce_signed(middle), _21))
            row = addmod(row, rotate(reduce_signed(high), _42))
        total = addmod(total, mulmod(row_factors[r], row))
    return total


@compiled
def weigh_wide(words: Any, row_factors: Elements, inner: Elements) -> Word:
    """The functional of an ``int64`` answer, or p, which is no element, if a word reaches 2^60 in magnitude.

    Shapes: ``(rows, inner)`` int64, ``(rows,)`` and ``(inner,)`` elements, to one element.
    """
    total = Word(0)
    inside = True
    for r in range(words.shape[0]):
        row = Word(0)
        for j in range(words.shape[1]):
            inside &= -WIDEST < words[r, j] < WIDEST
            row = addmod(row, mulmod(reduce_signed(words[r, j]), inner[j]))
        total = addmod(total, mulmod(row_factors[r], row))
    return total if inside else _P
