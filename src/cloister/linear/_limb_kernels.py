"""Compiled loops between integers, field elements and residues; :mod:`cloister.linear._limbs` says what they compute.

Arrays are C-contiguous, and the callers have checked their shapes. Rows of residues are below their prime; on the way
they are sums of two loose values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.linear import _elements as f
from cloister.linear._field_kernels import Elements, element, store
from cloister.linear._residues import Residues, about_high, canonical, loose, modulus_of, shoup

__all__ = ["MOST_PRIMES", "Decoding", "Switching", "decode", "from_words", "switch"]

MOST_PRIMES = 7
"""Whose fractions add up to less than 2^63."""

_Word = np.uint64
_0, _3 = _Word(0), _Word(3)
_SIGN = _Word(1 << 63)
_FRACTION = _Word(60)
_HALF = _Word(1 << 59)


class Switching(NamedTuple):
    """Of a switch; factors come with their w′.

    Attributes:
        kept, dropped: Their moduli.
        shares: ``(k″, 2)``: ``(q″/q_i)^-1 mod q_i``.
        reciprocals: ``(k″, 2)``: ``⌊2^(b+63) / q_i⌋``, and ``64 - b``.
        inverses: ``(k′, k″ + 1, 2)``: ``-1/q_i`` and, last, ``1/q″`` modulo each prime of q′.
    """

    kept: NDArray[np.uint64]
    dropped: NDArray[np.uint64]
    shares: NDArray[np.uint64]
    reciprocals: NDArray[np.uint64]
    inverses: NDArray[np.uint64]


class Decoding(NamedTuple):
    """Of a decoding.

    Attributes:
        kept: The moduli of q′.
        shares: ``(k′, 2)``: ``p·(q′/q_i)^-1 mod q_i``, and w′.
        reciprocals: As for a switch.
        weights: ``(k′ + 1, 3)``: ``q/q_i`` and, last, ``-q`` in F_p.
    """

    kept: NDArray[np.uint64]
    shares: NDArray[np.uint64]
    reciprocals: NDArray[np.uint64]
    weights: Elements


@compiled
def from_words(planes: Any, weights: Any, offsets: Any, moduli: Residues, out: Residues) -> None:
    """Of ``(W, n)`` words in two's complement. With its highest bit flipped, an integer is 2^(64 W - 1) more."""
    top = planes.shape[0] - 1
    for j in range(out.shape[0]):
        row, modulus, offset = out[j], modulus_of(moduli, j), offsets[j]
        plane, w, quotient = planes[top], weights[j, top, 0], weights[j, top, 1]
        for i in range(row.shape[0]):
            row[i] = offset + shoup(plane[i] ^ _SIGN, w, quotient, modulus)
        for k in range(top):
            plane, w, quotient = planes[k], weights[j, k, 0], weights[j, k, 1]
            for i in range(row.shape[0]):
                row[i] = loose(row[i], modulus) + shoup(plane[i], w, quotient, modulus)
        for i in range(row.shape[0]):
            row[i] = canonical(loose(row[i], modulus), modulus)


@compiled
def _fraction(y: Any, reciprocal: Any, shift: Any) -> Any:
    """``y / q`` in units of 2^-60, of a residue."""
    return about_high(y << shift, reciprocal) >> _3


@compiled
def switch(x: Residues, known: Switching, beside: Residues, out: Residues) -> None:
    """``⌊x / q″⌉``, with ``(k″ + 1, n)`` words beside."""
    kept, dropped = known.kept.shape[0], known.dropped.shape[0]
    carries = beside[dropped]
    for i in range(carries.shape[0]):
        carries[i] = _HALF
    for j in range(dropped):
        source, share, modulus = x[kept + j], beside[j], modulus_of(known.dropped, j)
        w, quotient = known.shares[j, 0], known.shares[j, 1]
        reciprocal, shift = known.reciprocals[j, 0], known.reciprocals[j, 1]
        for i in range(share.shape[0]):
            y = canonical(shoup(source[i], w, quotient, modulus), modulus)
            share[i] = y
            carries[i] += _fraction(y, reciprocal, shift)
    for j in range(kept):
        source, total, modulus = x[j], out[j], modulus_of(known.kept, j)
        w, quotient = known.inverses[j, dropped, 0], known.inverses[j, dropped, 1]
        for i in range(total.shape[0]):
            total[i] = shoup(source[i], w, quotient, modulus) + (carries[i] >> _FRACTION)
        for k in range(dropped):
            share, w, quotient = beside[k], known.inverses[j, k, 0], known.inverses[j, k, 1]
            for i in range(total.shape[0]):
                total[i] = loose(total[i], modulus) + shoup(share[i], w, quotient, modulus)
        for i in range(total.shape[0]):
            total[i] = canonical(loose(total[i], modulus), modulus)


@compiled
def decode(x: Residues, known: Decoding, out: Elements) -> None:
    """``-⌊p·x/q′⌉ · q``."""
    for i in range(out.shape[0]):
        total = (_0, _0, _0, _0, _0, _0, _0)
        carry = _HALF
        for j in range(x.shape[0]):
            modulus = modulus_of(known.kept, j)
            b = canonical(shoup(x[j, i], known.shares[j, 0], known.shares[j, 1], modulus), modulus)
            carry += _fraction(b, known.reciprocals[j, 0], known.reciprocals[j, 1])
            total = f.accumulate(total, (b, _0, _0), element(known.weights, j))
        total = f.accumulate(total, (carry >> _FRACTION, _0, _0), element(known.weights, x.shape[0]))
        store(out, i, f.reduced_sum(total))
