"""The number-theoretic transform of ``Z_q[X]/(X^N + 1)``: a polynomial's values at the roots of X^N + 1.

A transform takes residues ``(…, k, N)`` of coefficients, the constant one first, and gives as many values. Sums of
polynomials are sums of values, products are products. Which place holds the value at which root is :func:`exponents`:
it is the same on every machine.

The powers of ψ, a root of order 2N, are merged into the butterflies of Cooley and Tukey, and their inverses into those
of Gentleman and Sande (P. Longa, M. Naehrig, CANS 2016); values are reduced by halves on the way (D. Harvey, "Faster
arithmetic for number-theoretic transforms", 2014). The last three stages, whose butterflies are fewer than eight apart,
work on rows of N/8, so that every inner loop runs over adjacent words. No branch and no address follows from a value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

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
    quotients,
    require_residues,
    shoup,
    shoup_factors,
    times,
)

__all__ = ["bit_reversed", "exponents", "forward", "inverse"]

_Word = np.uint64
_1 = _Word(1)
_COLUMNS = 8


def forward(x: Residues, basis: Basis) -> Residues:
    """Coefficients ``(…, k, N)`` to values. Raises 2911 for another shape."""
    return _transformed(_forward, x, basis, inverse=False)


def inverse(x: Residues, basis: Basis) -> Residues:
    """Values to coefficients. Raises 2911 for another shape."""
    return _transformed(_inverse, x, basis, inverse=True)


def exponents(degree: int) -> NDArray[np.int64]:
    """``(N,)``: at which power of ψ each place has the value: at place ``c·N/8 + r`` that is ``2·rev(8r + c) + 1``.

    There c is below 8, rev reverses the bits of a place, and ψ is the first of 2, 3, …, raised to (q-1)/2N, that has
    order 2N.
    """
    rows = degree // _COLUMNS
    return (2 * bit_reversed(degree) + 1).reshape(rows, _COLUMNS).T.reshape(-1)


def _transformed(kernel: Any, x: Residues, basis: Basis, *, inverse: bool) -> Residues:
    require_residues(x, basis)
    if x.shape[-1] != basis.degree:
        raise InputError(2911, "not whole polynomials", expected=basis.degree, got=x.shape[-1])
    out = np.array(x, _Word, order="C")
    rows, beside = out.reshape(-1, basis.degree), np.empty(basis.degree, _Word)
    for row, values in enumerate(rows):
        prime = basis.primes[row % len(basis.primes)]
        kernel(values, beside, _tables(prime, basis.degree, inverse))
    return out


# ---- tables ----------------------------------------------------------------------------------------------


class _Tables(NamedTuple):
    """Of one direction modulo one prime.

    Attributes:
        roots: ``(N,)``: those of the first stages, then a row of N/8 for each butterfly of a column of the last three.
        quotients: Theirs, for Shoup's products.
        modulus: Of the prime.
        factor: What the end multiplies by, 1 or 1/N, and its quotient.
    """

    roots: NDArray[np.uint64]
    quotients: NDArray[np.uint64]
    modulus: Modulus
    factor: tuple[np.uint64, np.uint64]


@lru_cache(maxsize=64)
def _tables(prime: int, degree: int, inverse: bool) -> _Tables:
    root = _root(prime, degree)
    root, factor = (pow(root, -1, prime), pow(degree, -1, prime)) if inverse else (root, 1)
    modulus = tuple(moduli(Basis((prime,), degree))[0])
    powers, found = np.empty(degree, _Word), np.empty(degree, _Word)
    _powers(_Word(root), modulus, powers)
    roots = powers[bit_reversed(degree)][_order(degree)]
    quotients(roots, modulus, found)
    return _Tables(roots, found, modulus, tuple(shoup_factors([factor], prime)[0]))


def _root(prime: int, degree: int) -> int:
    """ψ, of order 2N: the first of 2, 3, … whose power has that order."""
    return next(
        root
        for base in range(2, prime)
        if pow(root := pow(base, (prime - 1) // (2 * degree), prime), degree, prime) == prime - 1
    )


def bit_reversed(size: int) -> NDArray[np.int64]:
    """``(size,)``: each place with its bits reversed; the size is a power of two."""
    found = np.zeros(1, np.int64)
    while found.size < size:
        found = np.concatenate([2 * found, 2 * found + 1])
    return found


def _order(degree: int) -> NDArray[np.int64]:
    """Which root each entry of the table is: stage ``8·2^j`` apart by block, the last three by block and then row."""
    rows = degree // _COLUMNS
    blocks = np.arange(rows)
    last = [groups * (rows + blocks) + k for groups in (1, 2, 4) for k in range(groups)]
    return np.concatenate([blocks, *last])


@compiled
def _powers(root: Any, modulus: Modulus, out: Residues) -> None:
    power = _1
    for i in range(out.shape[0]):
        out[i] = power
        power = canonical(loose(times(power, root, modulus), modulus), modulus)


# ---- compiled --------------------------------------------------------------------------------------------


@compiled
def _forward(x: Residues, beside: Residues, tables: _Tables) -> None:
    """In place, with as many words beside."""
    roots, shoups, modulus = tables.roots, tables.quotients, tables.modulus
    twice, rows = modulus[0] + modulus[0], x.shape[0] // _COLUMNS
    blocks, half = 1, x.shape[0] // 2
    while half >= _COLUMNS:
        for k in range(blocks):
            low, high = x[2 * k * half : (2 * k + 1) * half], x[(2 * k + 1) * half : (2 * k + 2) * half]
            w, s = roots[blocks + k], shoups[blocks + k]
            for i in range(half):
                u, v = loose(low[i], modulus), shoup(high[i], w, s, modulus)
                low[i], high[i] = u + v, u + (twice - v)
        blocks, half = 2 * blocks, half // 2
    for r in range(rows):
        for c in range(_COLUMNS):
            beside[c * rows + r] = x[r * _COLUMNS + c]
    groups = 1
    while half >= 1:
        for k in range(groups):
            entry = (groups + k) * rows
            w, s = roots[entry : entry + rows], shoups[entry : entry + rows]
            for c in range(2 * k * half, (2 * k + 1) * half):
                low, high = beside[c * rows : (c + 1) * rows], beside[(c + half) * rows : (c + half + 1) * rows]
                for i in range(rows):
                    u, v = loose(low[i], modulus), shoup(high[i], w[i], s[i], modulus)
                    low[i], high[i] = u + v, u + (twice - v)
        groups, half = 2 * groups, half // 2
    for i in range(x.shape[0]):
        x[i] = canonical(loose(beside[i], modulus), modulus)


@compiled
def _inverse(x: Residues, beside: Residues, tables: _Tables) -> None:
    """In place, with as many words beside."""
    roots, shoups, modulus = tables.roots, tables.quotients, tables.modulus
    twice, rows = modulus[0] + modulus[0], x.shape[0] // _COLUMNS
    groups, half = _COLUMNS // 2, 1
    while groups >= 1:
        for k in range(groups):
            entry = (groups + k) * rows
            w, s = roots[entry : entry + rows], shoups[entry : entry + rows]
            for c in range(2 * k * half, (2 * k + 1) * half):
                low, high = x[c * rows : (c + 1) * rows], x[(c + half) * rows : (c + half + 1) * rows]
                for i in range(rows):
                    u, v = low[i], high[i]
                    low[i], high[i] = loose(u + v, modulus), shoup(u + (twice - v), w[i], s[i], modulus)
        groups, half = groups // 2, 2 * half
    for r in range(rows):
        for c in range(_COLUMNS):
            beside[r * _COLUMNS + c] = x[c * rows + r]
    blocks = rows // 2
    while blocks >= 1:
        for k in range(blocks):
            low, high = beside[2 * k * half : (2 * k + 1) * half], beside[(2 * k + 1) * half : (2 * k + 2) * half]
            w, s = roots[blocks + k], shoups[blocks + k]
            for i in range(half):
                u, v = low[i], high[i]
                low[i], high[i] = loose(u + v, modulus), shoup(u + (twice - v), w, s, modulus)
        blocks, half = blocks // 2, 2 * half
    factor, quotient = tables.factor
    for i in range(x.shape[0]):
        x[i] = canonical(shoup(beside[i], factor, quotient, modulus), modulus)
