"""Triples ``c = a·b``: batches of N slots, from one answer on every other party's encrypted b, checked by a sacrifice.

A product of answers is right only if everybody used the a and b that have tags. So a second product ``ĉ = â·b`` is
made with the same b: for a coin ρ, ``v = ρa - â`` is opened, and ``ρc - ĉ - v·b`` must be zero (5904). An error in c,
in ĉ, or in what was encrypted passes for at most two of p values of the coins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._answered import Answered, Target, answer_all
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements
from cloister.linear._field_ntt import to_slots
from cloister.linear._groups import Publics
from cloister.linear._party import Party
from cloister.linear._shared import Shared
from cloister.linear._streams import PublicStream, SecretStream, elements
from cloister.linear._supply import Triples
from cloister.linear._values import Tagger, tagged

__all__ = ["Batch", "make_batch", "require_triples"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Batch:
    """N triples, and those that are sacrificed for them.

    Attributes:
        triples: Of slots.
        beside: â and ĉ; nothing without tags.
    """

    triples: Triples
    beside: tuple[Shared, ...]

    @property
    def values(self) -> list[Shared]:
        """All that were tagged."""
        return [self.triples.a, self.triples.b, self.triples.c, *self.beside]


def make_batch(party: Party, publics: Publics, tagger: Tagger, factor: Elements, encrypted: Target) -> Batch:
    """One batch.

    Args:
        party: Who makes it.
        publics: The session's.
        tagger: Of values.
        factor: ``(N, 3)``: b as a polynomial, which the own group holds.
        encrypted: Groups of every party's b.
    """
    slots = to_slots(factor)
    stream = SecretStream("triples")
    firsts: list[tuple[Shared, Elements]] = []
    for _ in range(2 if party.malicious else 1):
        polynomial = elements(stream, publics.degree)
        firsts.append(_products(party, publics, tagger, polynomial, slots, encrypted))
    b = _slots(tagger.tag(factor))
    products = [tagger.tag(product) for _, product in firsts]
    (a, _), *others = firsts
    beside = (others[0][0], products[1]) if others else ()
    return Batch(Triples(a, b, products[0]), beside)


def _products(
    party: Party, publics: Publics, tagger: Tagger, polynomial: Elements, slots: Elements, encrypted: Target
) -> tuple[Shared, Elements]:
    """Slots of a, and the own share of a·b: its own product, and its halves of those with each other party."""
    targets = [encrypted, tagger.keys] if party.malicious else [encrypted]
    crossed, *keys = answer_all(party, "products", publics, polynomial[None], targets)
    a = _slots(tagged(polynomial, keys[0]) if keys else Shared(polynomial[None]))
    return a, field.add(field.multiply(a.share, slots), _crossed(crossed))


def _crossed(answered: Answered) -> Elements:
    total = np.zeros((answered.kept.shape[1], WORDS), np.uint64)
    for part in (*answered.kept, *answered.got):
        total = field.add(total, part)
    return to_slots(total)


def _slots(polynomial: Shared) -> Shared:
    return Shared(to_slots(polynomial.rows))


def require_triples(party: Party, batches: Sequence[Batch]) -> None:
    """Sacrifices; nothing is checked without tags.

    Raises:
        IntegrityError: 5904 when a product is wrong, 5908 as for every opening.
    """
    if not party.malicious or not batches:
        return
    rho = elements(PublicStream(party.toss(), "sacrifice"), 1)[0]
    zeros: list[Shared] = []
    for batch in batches:
        triples, (a, c) = batch.triples, batch.beside
        opened = party.open(triples.a.scaled(rho) - a)
        zeros.append(triples.c.scaled(rho) - c - triples.b.scaled(opened))
    if not party.is_zero(zeros):
        raise IntegrityError(5904)
