"""Proofs of quadratic relations among tagged values: ``Σ_t α_t·β_t = γ``, of every party to every other at once.

With ``M = K + Δ·x`` for each value, ``Σ K_α·K_β + Δ·K_γ`` is a polynomial in Δ whose square term is ``Σ α·β - γ``; the
prover sends the other two coefficients, A_0 and A_1, and the verifier compares at its own Δ. All relations are batched
by a coin, and one more pool element x* hides A_1. A false relation passes with probability 3/p.

Rules:

* x* is *another one for each verifier*. With a common one, two verifiers who compare notes subtract their A_1 and have
  a linear equation in the prover's values: their keys differ by what they know.
* What a relation speaks of is committed before the coin is tossed.

Source: K. Yang, P. Sarkar, C. Weng, X. Wang, "QuickSilver", CCS 2021, section 3.
"""

from __future__ import annotations

import math

import numpy as np

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._elements import WORDS
from cloister.linear._field import ELEMENT_BYTES, Elements
from cloister.linear._party import Party, received
from cloister.linear._shared import Shared, peer_row
from cloister.linear._streams import PublicStream, elements
from cloister.linear._supply import Pool

__all__ = ["QuadraticCheck", "masks_needed"]


def masks_needed(parties: int) -> int:
    """Pool elements of each party for one check."""
    return parties - 1


class QuadraticCheck:
    """Relations that each party claims of what it put in; values are as in :mod:`cloister.linear._commitments`."""

    def __init__(self) -> None:
        self._relations: list[tuple[Shared, Shared, Shared]] = []

    def require_products(self, left: Shared, right: Shared, result: Shared) -> None:
        """``Σ_t left[k, t]·right[k, t] = result[k]``: ``(m, terms)`` twice and ``(m,)``."""
        self._relations.append((left, right, result))

    def require_zeros(self, values: Shared) -> None:
        """All ``(m,)`` values are 0."""
        nothing = values.reshaped(len(values), 1)[:, :0]
        self._relations.append((nothing, nothing, values))

    def run(self, party: Party, pool: Pool, code: int, what: str) -> None:
        """Tosses the coin, proves this party's relations to all others, and verifies theirs.

        Args:
            party: Who.
            pool: Gives the masks.
            code: What a failure is.
            what: Names it in messages and steps.

        Raises:
            IntegrityError: ``code`` when a peer's relations do not hold; 5909, 5910 as any coin toss.
            PeerError: 6903 when a peer sends what are no field elements.
        """
        masks = party.joined(pool.take(masks_needed(party.count)))
        squares, crossed, results = self._batched(PublicStream(party.toss(), f"relations of {what}"), party.count)
        bodies = [b""] * party.count
        bodies[party.number] = bytes(2 * ELEMENT_BYTES)
        for peer in party.peers:
            row = peer_row(party.number, peer)
            constant = field.add(squares[row], masks.tags(row)[row])
            linear = field.add(field.subtract(crossed[row], results[1 + row]), masks.share[row])
            bodies[peer] = field.to_bytes(np.stack([constant, linear]))
        said = party.swap(f"relations of {what}", bodies, 2 * ELEMENT_BYTES)
        for peer in party.peers:
            row = peer_row(party.number, peer)
            constant, linear = received(said[peer], (2,), peer)
            mask = masks.keys(row)[peer_row(peer, party.number)]
            found = field.add(squares[party.count - 1 + row], mask)
            found = field.add(found, field.multiply(party.key, field.add(results[party.count + row], linear)))
            if not field.equal(found, constant):
                raise IntegrityError(code, f"party {peer} did not prove its {what}")

    def _batched(self, stream: PublicStream, parties: int) -> tuple[Elements, Elements, Elements]:
        """``Σχ M_α·M_β`` of tags and keys, ``Σχ (α·M_β + β·M_α)`` of tags, ``Σχ γ`` of all rows."""
        squares = np.zeros((2 * parties - 2, WORDS), np.uint64)
        crossed = np.zeros((parties - 1, WORDS), np.uint64)
        results = np.zeros((2 * parties - 1, WORDS), np.uint64)
        for left, right, result in self._relations:
            weights = elements(stream, len(result))
            terms = math.prod(left.shape)
            alpha = left.scaled(weights[:, None]).reshaped(terms).rows
            beta = right.reshaped(terms).rows
            squares = field.add(squares, field.dot(alpha[1:], beta[1:]))
            crossed = field.add(crossed, field.dot(alpha[:1], beta[1:parties]))
            crossed = field.add(crossed, field.dot(alpha[1:parties], beta[:1]))
            results = field.add(results, result.weighted(weights).rows)
        return squares, crossed, results
