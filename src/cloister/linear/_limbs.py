"""Between integers, field elements and residues: what ciphertexts need.

================  ==========================================  =================================================
function          from                                        to
================  ==========================================  =================================================
`from_small`      int8 to int64 ``(n,)``                      residues ``(k, n)``
`from_words`      two's complement ``(n, W)``                 residues ``(k, n)``
`from_centred`    field elements ``(n, 3)``                   residues of their centred representatives
`switch`          residues x modulo q = q′·q″                 residues of ``x/q″`` modulo q′, rounded
`decode`          residues x modulo q′                        field elements ``-⌊p·x/q′⌉ · q``
================  ==========================================  =================================================

Rounding is by sums of 60 bits: what is rounded is off by less than 2^-56 of a unit, so of two neighbours the nearer is
taken unless they are as near up to that. No branch and no address follows from a value.

*Switching.* With ``y_i = x·(q″/q_i)^-1 mod q_i``, the centred remainder of x modulo q″ is ``Σ y_i·q″/q_i - α·q″`` for
``α = ⌊Σ y_i/q_i⌉``. So ``⌊x/q″⌉ = x/q″ - Σ y_i/q_i + α`` modulo each prime of q′, where dividing is multiplying by
inverses.

*Decoding.* With ``b_i = p·x·(q′/q_i)^-1 mod q_i``, which is ``p·y_i - q_i·⌊p·y_i/q_i⌋``, modulo p
``⌊p·x/q′⌉ = -Σ b_i/q_i + ⌊Σ b_i/q_i⌉``, the first a sum of inverses in F_p, the second of fractions.

Both follow S. Halevi, Y. Polyakov and V. Shoup, CT-RSA 2019, who take floats for the fractions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloister.errors import InputError
from cloister.linear import _field_kernels as field_kernels
from cloister.linear import _limb_kernels as limb_kernels
from cloister.linear._elements import WORDS, P
from cloister.linear._field import Elements, from_ints, require_elements
from cloister.linear._limb_kernels import MOST_PRIMES, Decoding, Switching
from cloister.linear._primes import DROPPED, FULL, KEPT, Basis
from cloister.linear._residues import Residues, moduli, require_residues, shoup_factors

__all__ = ["decode", "from_centred", "from_small", "from_words", "switch"]

_Word, _Signed = np.uint64, np.int64
_64 = _Word(64)


def from_small(values: ArrayLike, basis: Basis) -> Residues:
    """Residues of signed integers: ``(n,)`` to ``(k, n)``.

    Raises:
        InputError: 2911 for another kind or shape.
    """
    array = np.asarray(values)
    if array.dtype.kind != "i" or array.ndim != 1:
        raise InputError(
            2911, "not a row of signed integers", expected="(n,) int8 to int64", got=f"{array.shape} {array.dtype}"
        )
    return from_words(array.astype(_Signed).view(_Word)[:, None], basis)


def from_words(values: NDArray[np.uint64], basis: Basis) -> Residues:
    """Residues of integers in two's complement, the lowest word first: ``(n, W)`` to ``(k, n)``.

    Raises:
        InputError: 2911 for another dtype or shape.
    """
    if values.dtype != _Word or values.ndim != 2 or values.shape[1] < 1:
        raise InputError(2911, "not integers of words", expected="(n, W) uint64", got=f"{values.shape} {values.dtype}")
    planes = np.ascontiguousarray(values.T)
    out = np.empty((len(basis.primes), values.shape[0]), _Word)
    limb_kernels.from_words(planes, *_weights(basis, len(planes)), moduli(basis), out)
    return out


def from_centred(x: Elements, basis: Basis) -> Residues:
    """Residues of the representatives in ``[-(p-1)/2, (p-1)/2]``: ``(n, 3)`` to ``(k, n)``.

    Raises:
        InputError: 2911 for another shape.
    """
    require_elements(x)
    words = np.empty(x.shape, _Word)
    field_kernels.centred(np.ascontiguousarray(x).reshape(-1, WORDS), words.reshape(-1, WORDS))
    return from_words(words, basis)


def switch(x: Residues, kept: Basis = KEPT, dropped: Basis = DROPPED) -> Residues:
    """``⌊x / q″⌉`` modulo q′: residues modulo the primes of q′ and then those of q″, ``(k′ + k″, n)``, to ``(k′, n)``.

    Raises:
        InputError: 2911 for another shape.
    """
    require_residues(x, _joined(kept, dropped))
    _require_rows(x)
    out = np.empty((len(kept.primes), x.shape[1]), _Word)
    beside = np.empty((len(dropped.primes) + 1, x.shape[1]), _Word)
    limb_kernels.switch(np.ascontiguousarray(x), _switching(kept, dropped), beside, out)
    return out


def decode(x: Residues, kept: Basis = KEPT, modulus: int = FULL.modulus) -> Elements:
    """``-⌊p·x/q′⌉ · q`` in F_p, q the modulus before switching: residues ``(k, n)`` to elements ``(n, 3)``.

    Raises:
        InputError: 2911 for another shape.
    """
    require_residues(x, kept)
    _require_rows(x)
    out = np.empty((x.shape[1], WORDS), _Word)
    limb_kernels.decode(np.ascontiguousarray(x), _decoding(kept, modulus), out)
    return out


def _require_rows(x: Residues) -> None:
    if x.ndim != 2:
        raise InputError(2911, "not one row a prime", expected="(k, n)", got=x.shape)


# ---- constants -------------------------------------------------------------------------------------------


def _reciprocals(basis: Basis) -> NDArray[np.uint64]:
    if len(basis.primes) > MOST_PRIMES:
        raise InputError(2911, "too many primes", expected=f"at most {MOST_PRIMES}", got=len(basis.primes))
    _, bits, _, reciprocals = moduli(basis).T
    return np.stack([reciprocals, _64 - bits], axis=1)


def _shares(basis: Basis, factor: int) -> NDArray[np.uint64]:
    return np.concatenate([shoup_factors([factor * pow(basis.modulus // q, -1, q)], q) for q in basis.primes])


@lru_cache(maxsize=8)
def _joined(kept: Basis, dropped: Basis) -> Basis:
    """Kept: a basis proves its primes, which takes as long as a switch."""
    return Basis(kept.primes + dropped.primes, kept.degree)


@lru_cache(maxsize=8)
def _switching(kept: Basis, dropped: Basis) -> Switching:
    divisors = [-q for q in dropped.primes] + [dropped.modulus]
    inverses = [shoup_factors([pow(divisor, -1, q) for divisor in divisors], q) for q in kept.primes]
    return Switching(moduli(kept), moduli(dropped), _shares(dropped, 1), _reciprocals(dropped), np.stack(inverses))


@lru_cache(maxsize=8)
def _decoding(kept: Basis, modulus: int) -> Decoding:
    weights = [modulus * pow(q, -1, P) for q in kept.primes] + [-modulus]
    return Decoding(moduli(kept), _shares(kept, P), _reciprocals(kept), from_ints(weights))


@lru_cache(maxsize=32)
def _weights(basis: Basis, words: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """``(k, W, 2)``: powers of 2^64 with their w′; ``(k,)``: ``-2^(64 W - 1)``, which the highest bit is too much."""
    weights = [shoup_factors([1 << 64 * place for place in range(words)], q) for q in basis.primes]
    return np.stack(weights), np.array([-(1 << 64 * words - 1) % q for q in basis.primes], _Word)
