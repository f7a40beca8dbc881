"""What tests of ciphertexts share: polynomials as exact integers, groups of a witness that no honest owner has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tests.exact_numbers import negacyclic

from cloister.linear import _ntt
from cloister.linear._elements import P
from cloister.linear._field import Elements, to_ints
from cloister.linear._groups import Group, Publics, Secrets, image
from cloister.linear._polynomials import Words
from cloister.linear._primes import Basis
from cloister.linear._residues import Residues

__all__ = ["SESSION", "Witness", "centred", "forged", "integers", "plain", "signed", "sum_of_products", "words"]

SESSION = bytes(range(32))


def integers(residues: Residues, basis: Basis) -> list[int]:
    """Of coefficients modulo each prime, ``(k, n)``, in ``[0, q)``."""
    q = basis.modulus
    factors = [q // prime * pow(q // prime, -1, prime) for prime in basis.primes]
    rows = [row.astype(object) * factor for row, factor in zip(residues, factors, strict=True)]
    return [int(value) % q for value in np.sum(rows, axis=0)]


def plain(transformed: Residues, basis: Basis) -> list[int]:
    """Coefficients of a transformed polynomial, in ``[0, q)``."""
    return integers(_ntt.inverse(transformed, basis), basis)


def centred(values: Sequence[int], modulus: int) -> list[int]:
    """Modulo an odd integer, around 0."""
    return [(value + modulus // 2) % modulus - modulus // 2 for value in values]


def signed(x: Words) -> list[int]:
    """Of integers in two's complement, ``(n, W)``."""
    bits = 64 * x.shape[1]
    values = [sum(int(word) << 64 * place for place, word in enumerate(row)) for row in x]
    return [value - (value >> bits - 1 << bits) for value in values]


def words(values: Sequence[int], count: int) -> Words:
    """In two's complement, ``(n, count)``."""
    return np.array([[value >> 64 * place & 2**64 - 1 for place in range(count)] for value in values], np.uint64)


def sum_of_products(left: Elements, right: Elements) -> list[int]:
    """``Σ_l left[l]·right[l]`` modulo p, of coefficients ``(w, N, 3)``, the slow way."""
    pairs = zip(to_ints(left).tolist(), to_ints(right).tolist(), strict=True)
    return [sum(column) % P for column in zip(*(negacyclic(x, y, P) for x, y in pairs), strict=True)]


@dataclass
class Witness:
    """Of a forged group, in the place of its owner's secrets."""

    parts: tuple[Words, Words, Words]

    @property
    def width(self) -> int:
        return len(self.parts[1])


def forged(
    a: Publics, key: Sequence[int], noises: Sequence[Sequence[int]], halves: Sequence[Sequence[int]]
) -> tuple[Secrets, Group]:
    """``a_l·s + p·e_l + m_l`` of any integers."""
    parts = words(key, 1)[None], np.stack([words(e, 1) for e in noises]), np.stack([words(m, 4) for m in halves])
    return Witness(parts), Group(image(a.first(len(noises)), parts, a.rings.full))  # pyright: ignore[reportReturnType]
