"""Whole polynomials of ciphertexts: multiples of integers into residues, sums of products, residues turned by X^i.

No branch and no address follows from a coefficient.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.linear._primes import Basis
from cloister.linear._residues import (
    Modulus,
    Residues,
    canonical,
    loose,
    moduli,
    modulus_of,
    require_residues,
    shoup,
    shoup_factors,
    times,
)

__all__ = ["Words", "add_multiple", "products", "subtract_turned", "words_of"]

Words = NDArray[np.uint64]

_Word, _Signed = np.uint64, np.int64
_SIGN = _Word(1 << 63)
_BLOCK = 1024  # coefficients whose words and residues stay in a core's nearest cache


def words_of(values: NDArray[np.int8]) -> Words:
    """Small signed integers in two's complement: ``(…)`` to ``(…, 1)``."""
    return values.astype(_Signed).view(_Word)[..., None]


def add_multiple(total: Residues, words: Words, factor: int, basis: Basis) -> None:
    """Adds ``factor · x`` to residues ``(k, n)`` in place, x in two's complement ``(n, W)``, the factor public.

    Raises:
        InputError: 2911 for shapes that do not fit.
    """
    require_residues(total, basis)
    _require(total.ndim == 2 and words.dtype == _Word and words.ndim == 2, total, words)
    _require(len(words) == total.shape[1] and words.shape[1] > 0 and total.flags.c_contiguous, total, words)
    weights, offsets = _weights(basis, words.shape[1], factor)
    beside = np.empty((words.shape[1], _BLOCK), _Word)
    _add_multiple(np.ascontiguousarray(words), weights, offsets, moduli(basis), beside, total)


def products(left: Residues, right: Residues, basis: Basis, *, multiple: int = 1) -> Residues:
    """``multiple · Σ_l left[l] · right[l]``, entry by entry, ``(w, k, N)`` twice to ``(k, N)``; the multiple is 1 or 2.

    Raises:
        InputError: 2911 for shapes that do not fit.
    """
    require_residues(left, basis)
    require_residues(right, basis)
    _require(left.ndim == 3 and left.shape == right.shape and len(left) > 0 and multiple in (1, 2), left, right)
    out = np.empty(left.shape[1:], _Word)
    _products(np.ascontiguousarray(left), np.ascontiguousarray(right), multiple, moduli(basis), out)
    return out


def subtract_turned(total: Residues, x: Residues, exponent: int, basis: Basis) -> None:
    """Subtracts ``X^exponent · x`` in place, coefficients ``(k, N)`` both; the exponent is public, from 0 to 2N - 1.

    Raises:
        InputError: 2911 for shapes that do not fit.
    """
    require_residues(total, basis)
    _require(total.ndim == 2 and total.shape == x.shape and x.dtype == _Word, total, x)
    _require(0 <= exponent < 2 * total.shape[1] and total.flags.c_contiguous, total, x)
    turn, negative = exponent % total.shape[1], exponent >= total.shape[1]
    _subtract_turned(total, np.ascontiguousarray(x), turn, negative, moduli(basis))


def _require(fits: bool, a: Words, b: Words) -> None:
    if not fits:
        raise InputError(2911, "polynomials do not fit each other", expected=a.shape, got=b.shape)


@lru_cache(maxsize=64)
def _weights(basis: Basis, words: int, factor: int) -> tuple[Residues, Residues]:
    """``(k, W, 2)``: multiples of powers of 2^64 with their w′; ``(k,)``: minus what flipping a sign adds."""
    multiples = [factor << 64 * place for place in range(words)]
    offsets = [-(factor << 64 * words - 1) % q for q in basis.primes]
    return np.stack([shoup_factors(multiples, q) for q in basis.primes]), np.array(offsets, _Word)


# ---- compiled --------------------------------------------------------------------------------------------


@compiled
def _add_multiple(
    words: Words, weights: Words, offsets: Words, moduli: Residues, beside: Words, total: Residues
) -> None:
    """With its highest bit flipped, an integer in two's complement is 2^(64 W - 1) more, and not negative."""
    count, last = words.shape[0], words.shape[1] - 1
    for block in range((count + _BLOCK - 1) // _BLOCK):
        start = block * _BLOCK
        size = min(_BLOCK, count - start)
        for k in range(words.shape[1]):
            plane, flip = beside[k], _SIGN * _Word(k == last)
            for i in range(size):
                plane[i] = words[start + i, k] ^ flip
        for j in range(total.shape[0]):
            row, modulus, offset = total[j, start : start + size], modulus_of(moduli, j), offsets[j]
            for i in range(size):
                row[i] += offset
            for k in range(words.shape[1]):
                plane, w, quotient = beside[k], weights[j, k, 0], weights[j, k, 1]
                for i in range(size):
                    row[i] = loose(row[i], modulus) + shoup(plane[i], w, quotient, modulus)
            for i in range(size):
                row[i] = canonical(loose(row[i], modulus), modulus)


@compiled
def _products(left: Residues, right: Residues, multiple: int, moduli: Residues, out: Residues) -> None:
    for j in range(out.shape[0]):
        total, modulus = out[j], modulus_of(moduli, j)
        a, b = left[0, j], right[0, j]
        for i in range(total.shape[0]):
            total[i] = loose(times(a[i], b[i], modulus), modulus)
        for k in range(1, left.shape[0]):
            a, b = left[k, j], right[k, j]
            for i in range(total.shape[0]):
                total[i] = loose(total[i] + loose(times(a[i], b[i], modulus), modulus), modulus)
        for i in range(total.shape[0]):
            total[i] = canonical(loose(total[i] * _Word(multiple), modulus), modulus)


@compiled
def _subtract_turned(total: Residues, x: Residues, turn: int, negative: bool, moduli: Residues) -> None:
    """What X carries past X^N comes back with the other sign."""
    left = total.shape[1] - turn
    for j in range(total.shape[0]):
        row, other, modulus = total[j], x[j], modulus_of(moduli, j)
        _subtract_signed(row[turn:], other[:left], negative, modulus)
        _subtract_signed(row[:turn], other[left:], not negative, modulus)


@compiled
def _subtract_signed(row: Residues, other: Residues, negative: bool, modulus: Modulus) -> None:
    if negative:
        for i in range(row.shape[0]):
            row[i] = canonical(row[i] + other[i], modulus)
    else:
        for i in range(row.shape[0]):
            row[i] = canonical(row[i] + (modulus[0] - other[i]), modulus)
