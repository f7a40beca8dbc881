"""Values of every party at once, committed to by their differences from pool elements.

All parties do the same in the same step, so what they put in is one :class:`cloister.linear._shared.Shared`: the share
is a party's own value, the tags are those of its value, each peer's keys those for the peer's value. As a shared value
it is the sum of what all put in; here each party's own is spoken of.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloister.linear import _field as field
from cloister.linear._field import ELEMENT_BYTES, Elements
from cloister.linear._party import Party, received
from cloister.linear._shared import Shared, peer_row
from cloister.linear._supply import Pool

__all__ = ["commit", "plus_each"]


def commit(party: Party, kind: str, pool: Pool, values: Elements) -> Shared:
    """Each party's ``(count, 3)`` values, with tags from here on: all say what theirs are more than pool elements.

    Raises:
        InternalError: 9901 when the pool is used up.
        PeerError: 6903 when a peer sends what are no field elements.
        IntegrityError: 5909 when a peer does not say the same to all.
    """
    count = len(values)
    random = party.joined(pool.take(count))
    said = party.broadcast(kind, field.to_bytes(field.subtract(values, random.share)), ELEMENT_BYTES * count)
    return plus_each(party, random, [received(data, (count,), peer) for peer, data in enumerate(said)])


def plus_each(party: Party, values: Shared, public: Sequence[Elements]) -> Shared:
    """Each party's own values, and public ones of each party, ``(…, 3)`` in the order of the parties."""
    rows = values.rows.copy()
    rows[0] = field.add(rows[0], public[party.number])
    for peer in party.peers:
        row = party.count + peer_row(party.number, peer)
        rows[row] = field.subtract(rows[row], field.multiply(party.key, public[peer]))
    return Shared(rows)
