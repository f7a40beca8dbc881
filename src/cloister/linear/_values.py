"""Values that get their tags: each party's own, by one answer to every other party on its encrypted global key.

The answer of party i with x decodes at party j to ``Δ_j·x + r``, and party i keeps ``-r``: with ``K = -(Δ_j·x + r)``
and ``M = -r`` that is a tag. Of the same step of all parties a shared value follows, the sum of what each put in,
without another message.

What could be wrong then, answers with another x for another party, is found by one combination of *all* values that is
said to all, with a tag for each (5903): a false x, or a tag that is none, passes with probability 2/p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._answered import Answered, Target, answer_all
from cloister.linear._elements import WORDS
from cloister.linear._field import ELEMENT_BYTES, Elements
from cloister.linear._groups import Publics
from cloister.linear._party import Party, received
from cloister.linear._shared import Shared, peer_row
from cloister.linear._streams import PublicStream, elements

__all__ = ["Tagger", "require_consistent", "tagged"]


class Tagger:
    """Gives tags to whole polynomials of values.

    Args:
        party: Whose.
        publics: The session's.
        keys: Groups of every party's global key, a constant.
    """

    def __init__(self, party: Party, publics: Publics, keys: Target) -> None:
        self._party, self._publics, self._keys = party, publics, keys

    @property
    def keys(self) -> Target:
        """What is answered on."""
        return self._keys

    def tag(self, values: Elements) -> Shared:
        """Values ``(count, 3)`` of this party, as many as the others', to the shared sums."""
        count, degree = len(values), self._publics.degree
        whole = np.zeros((-(-count // degree) * degree, WORDS), np.uint64)
        whole[:count] = values
        parts = [self._tag(piece) for piece in whole.reshape(-1, degree, WORDS)]
        if not parts:
            return self._party.nothing(0)
        return Shared(np.ascontiguousarray(np.concatenate([part.rows for part in parts], axis=1)[:, :count]))

    def _tag(self, values: Elements) -> Shared:
        if not self._party.malicious:
            return Shared(values[None])
        (answered,) = answer_all(self._party, "values", self._publics, values[None], [self._keys])
        return tagged(values, answered)


def tagged(values: Elements, answered: Answered) -> Shared:
    """The rows of shared values from one's own and from answers on the keys."""
    return Shared(np.concatenate([values[None], answered.kept, field.negate(answered.got)]))


def require_consistent(party: Party, values: Sequence[Shared], mask: Shared) -> None:
    """That every party tagged the same values toward all others.

    Args:
        party: Who checks; nothing is checked without tags.
        values: All that were tagged, ``(count,)`` each.
        mask: ``(1,)``: uniform, and used for nothing else.

    Raises:
        IntegrityError: 5903.
    """
    if not party.malicious:
        return
    stream = PublicStream(party.toss(), "consistency")
    total = mask.rows[:, 0].copy()
    for value in values:
        flat = value.reshaped(-1)
        total = field.add(total, flat.weighted(elements(stream, len(flat))).rows)
    said = party.broadcast("consistency", field.to_bytes(total[0]), ELEMENT_BYTES)
    tags = [b""] * party.count
    for peer in range(party.count):
        row = 1 + peer_row(party.number, peer)
        tags[peer] = bytes(ELEMENT_BYTES) if peer == party.number else field.to_bytes(total[row])
    heard = party.swap("consistency tags", tags, ELEMENT_BYTES)
    for peer in party.peers:
        key = total[party.count + peer_row(party.number, peer)]
        expected = field.add(key, field.multiply(party.key, received(said[peer], (), peer)))
        if not field.equal(expected, received(heard[peer], (), peer)):
            raise IntegrityError(5903, f"party {peer} gave values or tags that do not belong together")
