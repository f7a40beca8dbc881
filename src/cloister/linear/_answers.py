"""Answers on a group: its owner learns ``Σ x_l·μ_l + r``, the answerer keeps ``-r``, and nobody learns more.

For multiplicands x_1, …, x_w, ternary ω_l, noise e, a uniform r and a flood f in [-Φ, Φ):

    ŵ_l = p^-1·x_l + ω_l  (mod q)        d1 = Σ ŵ_l·a_l + e        d0 = Σ ŵ_l·(2·c_l) + p^-1·r + f

both divided by the primes that q has beyond q′, and rounded. The owner decodes ``φ = d0 - 2s·d1 mod q′`` to
``-⌊p·φ/q′⌉·q mod p``. The *head* d1 has no part in a group, so one serves all answers with the same multiplicands, to
all owners; every answer has an r and an f of its own. The flood hides what d0 says about ω and e
(:attr:`cloister.linear._budget.Lattice.flood`).

A head is sent transformed, an answer by its coefficients, of which only the useful ones are made and sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear import _field_kernels as field_kernels
from cloister.linear import _ntt
from cloister.linear._elements import WORDS, P
from cloister.linear._field import Elements, negate, require_elements
from cloister.linear._groups import Group, Publics, Secret, Secrets, Wide
from cloister.linear._limbs import decode, switch
from cloister.linear._packed import pack, packed_bytes, residue_bits, unpack_residues
from cloister.linear._polynomials import add_multiple, products, words_of
from cloister.linear._primes import DEGREE, KEPT, Basis
from cloister.linear._residues import Residues, add, multiply, scale, subtract
from cloister.linear._streams import SecretStream, binomial, box, elements, ternary

__all__ = ["Answer", "Head", "Multiplicands", "answer", "answer_bytes", "flood_of", "head", "result"]

_FLOAT_BITS = 52
Places = NDArray[np.int64]


class Multiplicands(Secret):
    """What the answerer keeps of its multiplicands.

    Attributes:
        masked: ``(w, k, N)``: ŵ_l, transformed.
    """

    def __init__(self, masked: Residues) -> None:
        self.masked = masked

    def wipe(self) -> None:
        """Overwrites them."""
        self.masked[...] = 0


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Of answers with the same multiplicands, public: ``(k′, N)``, d1 modulo q′, transformed."""

    values: Residues

    def to_bytes(self) -> bytes:
        """212 bits a coefficient."""
        return pack(self.values, residue_bits(KEPT))

    @classmethod
    def from_bytes(cls, data: bytes, *, party: int, degree: int = DEGREE) -> Head:
        """What a party sent. Raises 6903 for another size, or what are no residues."""
        return cls(unpack_residues(data, KEPT, degree, party=party)[0])


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """On one group, for its owner: ``(k′, n)``, the useful coefficients of d0 modulo q′."""

    coefficients: Residues

    def to_bytes(self) -> bytes:
        """212 bits a coefficient."""
        return pack(self.coefficients, residue_bits(KEPT))

    @classmethod
    def from_bytes(cls, data: bytes, count: int = DEGREE, *, party: int) -> Answer:
        """What a party sent. Raises 6903 for another size, or what are no residues."""
        return cls(unpack_residues(data, KEPT, count, party=party)[0])


def answer_bytes(count: int = DEGREE) -> int:
    """Of an answer with ``count`` useful coefficients on the wire, and of a head by its degree."""
    return packed_bytes(residue_bits(KEPT), count)


def flood_of(bits: float) -> int:
    """Φ of its logarithm, rounded up by less than 1 and 2^-51 of it."""
    whole = math.floor(bits)
    return (math.ceil(2.0 ** (bits - whole + _FLOAT_BITS)) + 1 << whole >> _FLOAT_BITS) + 1


def head(a: Publics, multiplicands: Elements) -> tuple[Multiplicands, Head]:
    """For answers with multiplicands ``(w, N, 3)``, by coefficients.

    Raises:
        InputError: 2911 for another shape.
    """
    require_elements(multiplicands)
    if multiplicands.ndim != 3 or multiplicands.shape[1] != a.degree:
        expected = f"(w, {a.degree}, {WORDS})"
        raise InputError(2911, "not multiplicands of a group", expected=expected, got=multiplicands.shape)
    publics, rings = a.first(len(multiplicands)), a.rings
    stream = SecretStream("head")
    centred = np.empty(multiplicands.shape, np.uint64)
    field_kernels.centred(np.ascontiguousarray(multiplicands).reshape(-1, WORDS), centred.reshape(-1, WORDS))
    masked = np.zeros(publics.shape, np.uint64)
    for total, words in zip(masked, centred, strict=True):
        add_multiple(total, words, _inverse(rings.full), rings.full)
        add_multiple(total, words_of(ternary(stream, a.degree)), 1, rings.full)
    masked = _ntt.forward(masked, rings.full)
    return Multiplicands(masked), Head(_switched(products(masked, publics, rings.full), stream, rings))


def _switched(values: Residues, stream: SecretStream, rings: Wide) -> Residues:
    """``⌊(x + e)/q″⌉`` modulo q′ of x and to a result that are both transformed.

    Modulo q′ only e and the remainder modulo q″ are rounded as coefficients; ``x/q″`` is added transformed.
    """
    kept = len(rings.kept.primes)
    whole = np.zeros(values.shape, np.uint64)
    whole[kept:] = _ntt.inverse(values[kept:], rings.dropped)
    add_multiple(whole, words_of(binomial(stream, rings.full.degree)), 1, rings.full)
    rounded = _ntt.forward(switch(whole, rings.kept, rings.dropped), rings.kept)
    share = pow(rings.dropped.modulus, -1, rings.kept.modulus)
    return add(rounded, scale(values[:kept], share, rings.kept), rings.kept)


def answer(
    multiplicands: Multiplicands, group: Group, *, flood: int, useful: Places | None = None
) -> tuple[Answer, Elements]:
    """On one group, and what the answerer keeps of it: ``-r``, ``(n, 3)``.

    Args:
        multiplicands: From :func:`head`.
        group: Of the same width, proven.
        flood: Φ.
        useful: ``(n,)``: the places of the useful coefficients; all without.

    Raises:
        InputError: 2911 when widths differ.
    """
    rings = Wide.of(group.polynomials.shape[-1])
    total = _ntt.inverse(products(multiplicands.masked, group.polynomials, rings.full, multiple=2), rings.full)
    if useful is not None:
        total = np.ascontiguousarray(total[:, useful])
    count = total.shape[1]
    stream = SecretStream("answer")
    share = elements(stream, count)
    add_multiple(total, share, _inverse(rings.full), rings.full)
    add_multiple(total, box(stream, count, -flood, flood - 1), 1, rings.full)
    return Answer(switch(total, rings.kept, rings.dropped)), negate(share)


def result(secrets: Secrets, head: Head, answer: Answer, *, useful: Places | None = None) -> Elements:
    """The owner's ``Σ x_l·μ_l + r``, ``(n, 3)``, by the useful coefficients.

    Raises:
        InputError: 2911 when shapes do not fit.
    """
    rings = Wide.of(head.values.shape[-1])
    product = _ntt.inverse(multiply(head.values, secrets.doubled, rings.kept), rings.kept)
    if useful is not None:
        product = np.ascontiguousarray(product[:, useful])
    return decode(subtract(answer.coefficients, product, rings.kept), rings.kept, rings.full.modulus)


@lru_cache(maxsize=4)
def _inverse(basis: Basis) -> int:
    """``p^-1 mod q``."""
    return pow(P, -1, basis.modulus)
