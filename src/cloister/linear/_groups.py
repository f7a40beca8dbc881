"""Groups of ciphertexts without public keys: ``c_l = a_l·s + p·e_l + m_l`` with ``m_l = μ_l/2`` in F_p, l = 1, …, w.

A group has one fresh ternary secret s; e_l is centred binomial noise, m_l the centred representative. The public a_l
come from a hash of the session's name, so nobody chooses one, and there is no public key that could be malformed.
Everybody computes on ``2c_l``, whose shortness its proof shows (:mod:`cloister.linear._proof`); that is why half of a
message is encrypted.

Polynomials are residues modulo q in the order of the transform, ``(k, N)``.

>>> a = publics(bytes(32), 1)
>>> secrets, group = encrypt(a, np.zeros((1, a.degree, 3), np.uint64))
>>> group.width, len(group.to_bytes()), secrets
(1, 2138112, <Secrets of width 1>)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear import _field_kernels as field_kernels
from cloister.linear import _ntt
from cloister.linear._elements import WORDS, P
from cloister.linear._field import Elements, from_ints, multiply, require_elements
from cloister.linear._limbs import from_small
from cloister.linear._packed import pack, packed_bytes, residue_bits, unpack_residues
from cloister.linear._polynomials import Words, add_multiple, words_of
from cloister.linear._primes import DEGREE, DROPPED, FULL, KEPT, Basis
from cloister.linear._residues import Residues, multiply_add
from cloister.linear._streams import PublicStream, SecretStream, binomial, residues, ternary
from cloister.linear._transcript import labelled

__all__ = ["Group", "Publics", "Secret", "Secrets", "Wide", "encrypt", "group_bytes", "image", "publics"]

_HALF = from_ints((P + 1) // 2)


@dataclass(frozen=True, slots=True)
class Wide:
    """The rings of one degree: modulo q, modulo q′, and what switching takes off."""

    full: Basis = FULL
    kept: Basis = KEPT
    dropped: Basis = DROPPED

    @staticmethod
    @lru_cache(maxsize=4)
    def of(degree: int) -> Wide:
        """By the same primes; N is 32768, and less in tests alone."""
        return Wide(*(Basis(basis.primes, degree) for basis in (FULL, KEPT, DROPPED)))


@dataclass(frozen=True, slots=True, eq=False)
class Publics:
    """The session's public polynomials.

    Attributes:
        session: Its name, 32 bytes.
        polynomials: ``(w, k, N)``: a_1, …, a_w.
    """

    session: bytes
    polynomials: Residues

    @property
    def degree(self) -> int:
        """The rings' N."""
        return self.polynomials.shape[-1]

    @property
    def rings(self) -> Wide:
        """That the polynomials are of."""
        return Wide.of(self.degree)

    def first(self, width: int) -> Residues:
        """``(width, k, N)``; raises 2911 for more than there are."""
        if not 1 <= width <= len(self.polynomials):
            raise InputError(2911, "no such group", expected=f"1 to {len(self.polynomials)} wide", got=width)
        return self.polynomials[:width]


def publics(session: bytes, width: int, *, degree: int = DEGREE) -> Publics:
    """What every party expands alike, for groups up to this width."""
    full = Wide.of(degree).full
    seeds = [labelled("a", session, place) for place in range(1, width + 1)]
    return Publics(session, np.stack([residues(PublicStream(seed, "a"), full) for seed in seeds]))


class Secret:
    """Is neither shown nor compared nor pickled."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __eq__(self, other: object) -> bool:
        raise TypeError("secrets are not compared")

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied")


class Secrets(Secret):
    """What the owner of a group keeps.

    Attributes:
        key: ``(N,)`` int8: s.
        noises: ``(w, N)`` int8: e_l.
        halves: ``(w, N, 3)`` words in two's complement: m_l.
        doubled: ``(k′, N)``: 2s modulo q′, transformed.
    """

    def __init__(self, key: NDArray[np.int8], noises: NDArray[np.int8], halves: Words, kept: Basis) -> None:
        self.key, self.noises, self.halves = key, noises, halves
        self.doubled = _ntt.forward(from_small(2 * key, kept), kept)

    @property
    def width(self) -> int:
        """How many polynomials: w."""
        return len(self.noises)

    @property
    def parts(self) -> tuple[Words, Words, Words]:
        """s, e and m as integers in words, ``(1, N, 1)``, ``(w, N, 1)`` and ``(w, N, 3)``."""
        return words_of(self.key[None]), words_of(self.noises), self.halves

    def wipe(self) -> None:
        """Overwrites everything."""
        for array in (self.key, self.noises, self.halves, self.doubled):
            array[...] = 0

    def __repr__(self) -> str:
        return f"<Secrets of width {self.width}>"


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Ciphertexts, public.

    Attributes:
        polynomials: ``(w, k, N)``: c_1, …, c_w.
    """

    polynomials: Residues

    @property
    def width(self) -> int:
        """How many polynomials: w."""
        return len(self.polynomials)

    def to_bytes(self) -> bytes:
        """522 bits a coefficient."""
        full = Wide.of(self.polynomials.shape[-1]).full
        return pack(self.polynomials.reshape(-1, full.degree), residue_bits(full) * self.width)

    @classmethod
    def from_bytes(cls, data: bytes, width: int, *, party: int, degree: int = DEGREE) -> Group:
        """What a party sent.

        Raises:
            PeerError: 6903 for another size, or what are no residues.
        """
        return cls(unpack_residues(data, Wide.of(degree).full, degree, party=party, polynomials=width))


def group_bytes(width: int, *, degree: int = DEGREE) -> int:
    """Of a group on the wire."""
    return packed_bytes(residue_bits(FULL) * width, degree)


def encrypt(a: Publics, messages: Elements) -> tuple[Secrets, Group]:
    """A group of messages μ_l, ``(w, N, 3)`` coefficients, under a secret of its own.

    Raises:
        InputError: 2911 for another shape.
    """
    require_elements(messages)
    if messages.ndim != 3 or messages.shape[1] != a.degree:
        raise InputError(2911, "not messages of a group", expected=f"(w, {a.degree}, {WORDS})", got=messages.shape)
    publics, full = a.first(len(messages)), a.rings.full
    halves = np.empty(messages.shape, np.uint64)
    field_kernels.centred(multiply(messages, _HALF).reshape(-1, WORDS), halves.reshape(-1, WORDS))
    stream = SecretStream("group")
    secrets = Secrets(ternary(stream, a.degree), binomial(stream, *messages.shape[:2]), halves, a.rings.kept)
    return secrets, Group(image(publics, secrets.parts, full))


def image(a: Residues, parts: Sequence[Words], basis: Basis) -> Residues:
    """``a_l·s + p·e_l + m_l`` of integers in words, as :attr:`Secrets.parts`: ``(w, k, N)``, transformed."""
    key, noises, halves = parts
    transformed = _ntt.forward(_residues_of([(key[0], 1)], basis), basis)
    out = np.empty(a.shape, np.uint64)
    for place, (public, noise, half) in enumerate(zip(a, noises, halves, strict=True)):
        short = _ntt.forward(_residues_of([(noise, P), (half, 1)], basis), basis)
        out[place] = multiply_add(public, transformed, short, basis)
    return out


def _residues_of(parts: list[tuple[Words, int]], basis: Basis) -> Residues:
    total = np.zeros(basis.shape, np.uint64)
    for words, factor in parts:
        add_multiple(total, words, factor, basis)
    return total
