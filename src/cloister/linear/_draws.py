"""Compiled draws from uniform words; :mod:`cloister.linear._streams` says what they are and checks shapes.

The same instructions for every value: no draw is repeated, nothing branches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.linear._words import multiply_add

__all__ = ["COINS", "binomial", "box"]

COINS = 21

Words = NDArray[np.uint64]

_Word = np.uint64
_0, _1, _2, _4, _56 = (_Word(n) for n in (0, 1, 2, 4, 56))
_TOSSED = _Word((1 << 2 * COINS) - 1)
_PAIRS, _FOURS, _EIGHTS, _BYTES = (_Word(n) for n in (2**64 // 3, 2**64 // 5, 2**64 // 17, 2**64 // 255))


@compiled
def binomial(words: Words, out: NDArray[np.int8]) -> None:
    """The ones among 42 bits of each word, minus 21: as the ones of 21 bits minus those of 21 others."""
    for i in range(out.shape[0]):
        x = words[i] & _TOSSED
        x -= (x >> _1) & _PAIRS
        x = (x & _FOURS) + ((x >> _2) & _FOURS)
        x = (x + (x >> _4)) & _EIGHTS
        out[i] = np.int8((x * _BYTES) >> _56) - np.int8(COINS)


@compiled
def box(drawn: Words, size: Words, least: Words, product: Words, out: Words) -> None:
    """``least + ⌊u · size / 2^bits⌋`` for u of each row's bits.

    Shapes: ``(n, B)`` uniform words; ``(S,)`` and ``(W,)`` words of public integers, S ≤ W; B + S words beside; to
    ``(n, W)`` words.
    """
    bits, words = drawn.shape[1], size.shape[0]
    for i in range(out.shape[0]):
        for j in range(bits + words):
            product[j] = _0
        for k in range(words):
            carry = _0
            for j in range(bits):
                carry, product[j + k] = multiply_add(drawn[i, j], size[k], product[j + k], carry)
            product[bits + k] = carry
        carry = _0
        for j in range(out.shape[1]):
            offset = product[bits + j] if j < words else _0
            carry, out[i, j] = multiply_add(offset, _1, least[j], carry)
