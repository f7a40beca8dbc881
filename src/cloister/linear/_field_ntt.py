"""The slots of a plaintext: the number-theoretic transform of ``F_p[X]/(X^N + 1)``.

2N divides p - 1, so a polynomial is its N values at the roots of X^N + 1, its *slots*, and products of polynomials are
products of slots. Slot j holds the value at ψ to the power ``2·rev(j) + 1``, rev(j) being j with its bits reversed and
ψ of order 2N the first of 2, 3, …, raised to (p-1)/2N, that has that order.

Butterflies as in :mod:`cloister.linear._ntt`. Values are below 2p on the way, and reduced at the end. No branch follows
from a value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.linear import _elements as f
from cloister.linear._elements import WORDS, P
from cloister.linear._field import Elements, from_ints, require_elements
from cloister.linear._field_kernels import ONE, Element, element, store
from cloister.linear._ntt import bit_reversed

__all__ = ["MOST_SLOTS", "to_coefficients", "to_slots"]

MOST_SLOTS = 1 << 16

_Word = np.uint64


def to_slots(x: Elements) -> Elements:
    """Coefficients ``(…, N, 3)``, the constant one first, to slots.

    Raises:
        InputError: 2911 when N is no power of two up to 65536.
    """
    return _transformed(_forward, x, inverse=False)


def to_coefficients(x: Elements) -> Elements:
    """Slots ``(…, N, 3)`` to coefficients.

    Raises:
        InputError: 2911 when N is no power of two up to 65536.
    """
    return _transformed(_inverse, x, inverse=True)


def _transformed(kernel: Any, x: Elements, *, inverse: bool) -> Elements:
    require_elements(x)
    slots = x.shape[-2] if x.ndim > 1 else 0
    if slots.bit_count() != 1 or slots > MOST_SLOTS:
        raise InputError(2911, "not whole polynomials", expected="(…, N, 3), N a power of two", got=x.shape)
    out = np.array(x, _Word, order="C")
    roots, factor = _roots(slots, inverse)
    for polynomial in out.reshape(-1, slots, WORDS):
        kernel(polynomial, roots, factor)
    return out


@lru_cache(maxsize=32)
def _roots(slots: int, inverse: bool) -> tuple[Elements, Elements]:
    """Powers of ψ or of its inverse, bits of the exponent reversed, and what the end multiplies by: 1 or 1/N."""
    candidates = (pow(base, (P - 1) // (2 * slots), P) for base in range(2, P))
    root = next(root for root in candidates if pow(root, slots, P) == P - 1)
    powers = np.empty((slots, WORDS), _Word)
    _powers(from_ints([pow(root, -1 if inverse else 1, P)]), powers)
    return powers[bit_reversed(slots)], from_ints([pow(slots, -1, P) if inverse else 1])


# ---- compiled --------------------------------------------------------------------------------------------


@compiled
def _powers(root: Elements, out: Elements) -> None:
    power: Element = ONE
    for i in range(out.shape[0]):
        store(out, i, power)
        power = f.multiply(power, element(root, 0))


@compiled
def _forward(x: Elements, roots: Elements, factor: Elements) -> None:
    """In place."""
    blocks, half = 1, x.shape[0] // 2
    while half >= 1:
        for k in range(blocks):
            w = element(roots, blocks + k)
            for i in range(2 * k * half, (2 * k + 1) * half):
                low, high = f.butterfly(element(x, i), element(x, i + half), w)
                store(x, i, low)
                store(x, i + half, high)
        blocks, half = 2 * blocks, half // 2
    for i in range(x.shape[0]):
        store(x, i, f.reduced(element(x, i)))


@compiled
def _inverse(x: Elements, roots: Elements, factor: Elements) -> None:
    """In place."""
    blocks, half = x.shape[0] // 2, 1
    while blocks >= 1:
        for k in range(blocks):
            w = element(roots, blocks + k)
            for i in range(2 * k * half, (2 * k + 1) * half):
                low, high = f.inverse_butterfly(element(x, i), element(x, i + half), w)
                store(x, i, low)
                store(x, i + half, high)
        blocks, half = blocks // 2, 2 * half
    last = element(factor, 0)
    for i in range(x.shape[0]):
        store(x, i, f.multiply(f.reduced(element(x, i)), last))
