"""Arithmetic modulo the primes of a basis, entry by entry.

Residues are ``(…, k, n)`` uint64: row j of k holds residues in ``[0, q_j)``. No branch and no address follows from one.

A prime here is ``q = 2^b - δ`` with a small δ, and what lies above b bits is brought back by ``2^b = δ``. So nothing is
ever compared with q: of a comparison compilers make branches, and those take as long as the secret says. *Loose* values
are below ``2^b + 3δ``, which is below 2q.

Products by a known factor w are V. Shoup's: with ``w′ = ⌊w · 2^64 / q⌋`` and any word v, ``v·w - ⌊v·w′/2^64⌋·q`` is
below 2q. Other products use the reciprocal ``⌊2^(b+63) / q⌋`` (P. Barrett, CRYPTO 1986).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister._compiled import compiled
from cloister.errors import InputError
from cloister.linear._primes import Basis
from cloister.linear._words import high_word, multiply_wide

__all__ = [
    "Modulus",
    "Residues",
    "about_high",
    "add",
    "canonical",
    "loose",
    "moduli",
    "modulus_of",
    "multiply",
    "multiply_add",
    "quotients",
    "require_residues",
    "scale",
    "shoup",
    "shoup_factors",
    "subtract",
    "times",
]

Residues = NDArray[np.uint64]
Modulus: TypeAlias = tuple[Any, Any, Any, Any]
"""In compiled functions: q, b, δ and the reciprocal."""

_Word = np.uint64
_0, _1, _3, _32, _65 = (_Word(n) for n in (0, 1, 3, 32, 65))
_LOW = _Word(2**32 - 1)


@lru_cache(maxsize=16)
def moduli(basis: Basis) -> NDArray[np.uint64]:
    """``(k, 4)``: q, b, δ and the reciprocal of each prime."""
    bits = [q.bit_length() for q in basis.primes]
    rows = [(q, b, (1 << b) - q, (1 << b + 63) // q) for q, b in zip(basis.primes, bits, strict=True)]
    return np.array(rows, _Word)


def shoup_factors(factors: list[int], prime: int) -> NDArray[np.uint64]:
    """``(n, 2)``: public integers modulo a prime, and their w′."""
    reduced = [factor % prime for factor in factors]
    return np.array([(factor, (factor << 64) // prime) for factor in reduced], _Word)


def require_residues(x: Residues, basis: Basis) -> None:
    """Returns for an array of residues, one row a prime.

    Raises:
        InputError: 2911 for another dtype or number of rows.
    """
    if x.dtype != _Word or x.ndim < 2 or x.shape[-2] != len(basis.primes):
        expected = f"(…, {len(basis.primes)}, n) uint64"
        raise InputError(2911, "not residues of this basis", expected=expected, got=f"{x.shape} {x.dtype}")


def add(a: Residues, b: Residues, basis: Basis) -> Residues:
    """``a + b``. Raises 2911 where shapes differ or are none of the basis."""
    return _entrywise(_add, basis, a, b)


def subtract(a: Residues, b: Residues, basis: Basis) -> Residues:
    """``a - b``. Raises 2911 where shapes differ or are none of the basis."""
    return _entrywise(_subtract, basis, a, b)


def multiply(a: Residues, b: Residues, basis: Basis) -> Residues:
    """``a · b``. Raises 2911 where shapes differ or are none of the basis."""
    return _entrywise(_multiply, basis, a, b)


def multiply_add(a: Residues, b: Residues, c: Residues, basis: Basis) -> Residues:
    """``a · b + c``. Raises 2911 where shapes differ or are none of the basis."""
    return _entrywise(_multiply_add, basis, a, b, c)


def scale(a: Residues, factor: int, basis: Basis) -> Residues:
    """``factor · a`` for a public integer. Raises 2911 for what is none of the basis."""
    factors = np.concatenate([shoup_factors([factor], q) for q in basis.primes])
    return _entrywise(_scale, basis, a, constants=(factors,))


def _entrywise(kernel: Any, basis: Basis, *operands: Residues, constants: tuple[Any, ...] = ()) -> Residues:
    first = operands[0]
    for operand in operands:
        require_residues(operand, basis)
        if operand.shape != first.shape:
            raise InputError(2911, "arrays do not fit each other", expected=first.shape, got=operand.shape)
    flat = [np.ascontiguousarray(operand).reshape(-1, first.shape[-1]) for operand in operands]
    out = np.empty(flat[0].shape, _Word)
    kernel(*flat, *constants, out, moduli(basis))
    return out.reshape(first.shape)


# ---- compiled: words -------------------------------------------------------------------------------------


@compiled
def modulus_of(moduli: Residues, row: int) -> Modulus:
    """Of a row of residues; the primes take turns."""
    j = row % moduli.shape[0]
    return moduli[j, 0], moduli[j, 1], moduli[j, 2], moduli[j, 3]


@compiled
def loose(x: Any, modulus: Modulus) -> Any:
    """The same modulo q, loose, of a word below ``4 · 2^b``."""
    _, bits, delta, _ = modulus
    return (x & ((_1 << bits) - _1)) + ((x >> bits) & _3) * (delta & _LOW)


@compiled
def canonical(x: Any, modulus: Modulus) -> Any:
    """The same in ``[0, q)``, of a word below 2q: ``x + δ`` reaches 2^b exactly where x reaches q."""
    _, bits, delta, _ = modulus
    carry = ((x + delta) >> bits) & _3
    return (x + carry * (delta & _LOW)) & ((_1 << bits) - _1)


@compiled
def about_high(a: Any, b: Any) -> Any:
    """``⌊a · b / 2^64⌋``, or 1 or 2 less: of products of halves, which vector units have, all but the lowest."""
    low, high, right = a & _LOW, a >> _32, b >> _32
    return high * right + ((low * right) >> _32) + ((high * (b & _LOW)) >> _32)


@compiled
def shoup(v: Any, w: Any, quotient: Any, modulus: Modulus) -> Any:
    """``v · w`` modulo q, loose, of any word v."""
    return loose(v * w - about_high(v, quotient) * modulus[0], modulus)  # below 4q


@compiled
def times(a: Any, b: Any, modulus: Modulus) -> Any:
    """``a · b`` modulo q, below 3q, of residues."""
    q, bits, _, reciprocal = modulus
    high, low = multiply_wide(a, b)
    leading = (high << (_65 - bits)) | (low >> (bits - _1))
    return low - high_word(leading, reciprocal) * q


@compiled
def quotients(factors: Residues, modulus: Modulus, out: Residues) -> None:
    """w′ of public factors."""
    q, bits, _, reciprocal = modulus
    for i in range(out.shape[0]):
        high, low = multiply_wide(factors[i], reciprocal)
        found = (high << (_65 - bits)) | (low >> (bits - _1))  # at most 2 too small
        rest = _0 - found * q
        out[i] = found + _Word(rest >= q) + _Word(rest >= q + q)


# ---- compiled: rows --------------------------------------------------------------------------------------


@compiled
def _add(a: Residues, b: Residues, out: Residues, moduli: Residues) -> None:
    for row in range(out.shape[0]):
        modulus = modulus_of(moduli, row)
        left, right, total = a[row], b[row], out[row]
        for i in range(total.shape[0]):
            total[i] = canonical(left[i] + right[i], modulus)


@compiled
def _subtract(a: Residues, b: Residues, out: Residues, moduli: Residues) -> None:
    for row in range(out.shape[0]):
        modulus = modulus_of(moduli, row)
        left, right, total = a[row], b[row], out[row]
        for i in range(total.shape[0]):
            total[i] = canonical(left[i] + (modulus[0] - right[i]), modulus)


@compiled
def _multiply(a: Residues, b: Residues, out: Residues, moduli: Residues) -> None:
    for row in range(out.shape[0]):
        modulus = modulus_of(moduli, row)
        left, right, total = a[row], b[row], out[row]
        for i in range(total.shape[0]):
            total[i] = canonical(loose(times(left[i], right[i], modulus), modulus), modulus)


@compiled
def _multiply_add(a: Residues, b: Residues, c: Residues, out: Residues, moduli: Residues) -> None:
    for row in range(out.shape[0]):
        modulus = modulus_of(moduli, row)
        left, right, more, total = a[row], b[row], c[row], out[row]
        for i in range(total.shape[0]):
            total[i] = canonical(loose(times(left[i], right[i], modulus) + more[i], modulus), modulus)


@compiled
def _scale(a: Residues, factors: Residues, out: Residues, moduli: Residues) -> None:
    for row in range(out.shape[0]):
        modulus = modulus_of(moduli, row)
        w, quotient = factors[row % moduli.shape[0], 0], factors[row % moduli.shape[0], 1]
        source, total = a[row], out[row]
        for i in range(total.shape[0]):
            total[i] = canonical(shoup(source[i], w, quotient, modulus), modulus)
