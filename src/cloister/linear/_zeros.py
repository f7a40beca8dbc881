"""Shares of a sum that say nothing but the sum.

Who puts a value in holds it as its share. A sum of such values that were opened as it stands would show what each party
put in. So every two parties agree on uniform numbers, which one adds to its share and the other takes off. That all of
them together are nothing is checked (5903); what is opened for the check has one more number as a mask.
"""

from __future__ import annotations

import secrets

import numpy as np

from cloister.errors import IntegrityError
from cloister.linear import _field as field
from cloister.linear._commitments import commit
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements
from cloister.linear._party import Party
from cloister.linear._shared import Shared
from cloister.linear._streams import SEED_BYTES, PublicStream, elements
from cloister.linear._supply import Pool
from cloister.linear._transcript import labelled

__all__ = ["blinded", "zeros_needed"]


def zeros_needed(count: int) -> int:
    """Pool elements of each party."""
    return count + 1


def blinded(party: Party, pool: Pool, values: Shared) -> Shared:
    """The same ``(count,)`` values, in shares of which all but one are uniform.

    Args:
        party: Who.
        pool: Has :func:`zeros_needed` elements left.
        values: Whatever their shares are.

    Raises:
        IntegrityError: 5903 when what is added does not sum to nothing; 5909, 5910 as any broadcast and coin toss.
        PeerError: 6903 for nonsense.
    """
    count = len(values)
    numbers = _numbers(party, count + 1)
    if not party.malicious:
        return values + Shared(numbers[None, :count])
    zeros = commit(party, "zeros", pool, numbers)
    if not party.is_zero([zeros]):
        raise IntegrityError(5903, "what was to sum to nothing does not")
    return values + zeros[:count]


def _numbers(party: Party, count: int) -> Elements:
    """Own ones; those of all parties sum to nothing."""
    own = [secrets.token_bytes(SEED_BYTES) for _ in range(party.count)]
    heard = party.swap("seeds of zeros", own, SEED_BYTES)
    total = np.zeros((count, WORDS), np.uint64)
    for peer in party.peers:
        low, high = (own[peer], heard[peer]) if party.number < peer else (heard[peer], own[peer])
        drawn = elements(PublicStream(labelled("zeros", party.session, low, high), "zeros"), count)
        total = field.add(total, drawn) if party.number < peer else field.subtract(total, drawn)
    return total
