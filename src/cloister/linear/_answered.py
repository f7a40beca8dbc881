"""One step of answers: every party answers with its own multiplicands on groups of all others, and decodes theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.linear._answers import Answer, Head, answer, answer_bytes, head, result
from cloister.linear._field import Elements
from cloister.linear._groups import Group, Publics, Secrets
from cloister.linear._party import Party
from cloister.linear._shared import peer_row

__all__ = ["Answered", "Target", "answer_all"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Target:
    """Groups to be answered on, one a party.

    Attributes:
        secrets: Of the own one.
        groups: By party.
        flood: Φ of the answers.
        useful: ``(k,)``: the places of the coefficients that are sent; all without.
    """

    secrets: Secrets
    groups: Sequence[Group]
    flood: int
    useful: NDArray[np.int64] | None = None

    def count(self, degree: int) -> int:
        """Of useful coefficients."""
        return degree if self.useful is None else len(self.useful)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Answered:
    """On one target, peers in ascending order.

    Attributes:
        kept: ``(n - 1, k, 3)``: what is kept of the answers to the peers, ``-r``.
        got: ``(n - 1, k, 3)``: what their answers decode to, ``Σ x·μ + r``.
    """

    kept: Elements
    got: Elements


def answer_all(
    party: Party, kind: str, publics: Publics, multiplicands: Elements, targets: Sequence[Target]
) -> list[Answered]:
    """One message to each peer: a head and an answer on each of its groups.

    Args:
        party: Who answers.
        kind: Of the message.
        publics: The session's.
        multiplicands: ``(w, N, 3)``: the own ones.
        targets: Of the same width w.

    Raises:
        PeerError: 6903 for what are no answers.
    """
    degree = publics.degree
    own, public = head(publics, multiplicands)
    sizes = [answer_bytes(degree), *(answer_bytes(target.count(degree)) for target in targets)]
    said = public.to_bytes()
    bodies = [b""] * party.count
    kept = [np.empty((party.count - 1, target.count(degree), 3), np.uint64) for target in targets]
    for peer in party.peers:
        parts = [said]
        for target, keep in zip(targets, kept, strict=True):
            made, share = answer(own, target.groups[peer], flood=target.flood, useful=target.useful)
            keep[peer_row(party.number, peer)] = share
            parts.append(made.to_bytes())
        bodies[peer] = b"".join(parts)
    own.wipe()
    heard = party.swap(kind, bodies, sum(sizes))
    got = [np.empty_like(keep) for keep in kept]
    for peer in party.peers:
        row, (first, *rest) = peer_row(party.number, peer), _cut(heard[peer], sizes)
        theirs = Head.from_bytes(first, party=peer, degree=degree)
        for target, found, data in zip(targets, got, rest, strict=True):
            made = Answer.from_bytes(data, target.count(degree), party=peer)
            found[row] = result(target.secrets, theirs, made, useful=target.useful)
    return [Answered(*pair) for pair in zip(kept, got, strict=True)]


def _cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    ends = np.cumsum(sizes)
    return [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
