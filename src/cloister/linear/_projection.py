"""Proofs that a party's values are small: by random projections, and of those by all their bits.

A group are values that are below one public bound B in magnitude. A coin draws 64 vectors χ of -1, 0, 0 and 1, each as
likely. The projections ``v = Σ χ_t·r_t`` of honest values lie in ``[-b, b)`` for

    b ≥ B·√(M·ln 2^51),

up to a chance of 2^-50 each (χ is sub-Gaussian with variance proxy 1/2), and that is proven exactly: the bits of ``v +
b`` are committed to, each is its own square, and together they make it. If some r_t is beyond 2b modulo p, then of two
neighbouring values of χ_t at most one leaves v in ``[-b, b)``, whatever the other entries are: at most one half of each
χ_t passes, 2^-64 a group.

Groups of different bounds are not scaled to one: ``2^a·r`` is small modulo p for some r that are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloister.errors import PeerError
from cloister.linear._commitments import commit, plus_each
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements, from_int64, from_ints
from cloister.linear._party import Party
from cloister.linear._quadratic import QuadraticCheck
from cloister.linear._ranges import PROJECTIONS
from cloister.linear._shared import Shared, concatenated
from cloister.linear._streams import PublicStream
from cloister.linear._supply import Pool

__all__ = ["Group", "prove_bits", "prove_ranges", "proven_bits", "range_bits"]

_TAIL = 36  # more than ln 2^51
_WORD_BITS = 64 * WORDS


class Group(NamedTuple):
    """Values that are proven small together.

    Attributes:
        name: Labels the group's projections; another in each group.
        values: Of each party, ``(M,)``.
        bound: What honest ones do not exceed in magnitude.
    """

    name: str
    values: Shared
    bound: int


def proven_bits(bound: int, many: int) -> int:
    """k: magnitudes of ``many`` values with a proof are at most ``2^k``, where honest ones are at most ``bound``."""
    return ((bound * bound * many * _TAIL - 1).bit_length() + 1) // 2 + 1


def range_bits(groups: Sequence[tuple[int, int]]) -> int:
    """Pool elements of each party for proofs of groups, each a bound and a number of values."""
    return PROJECTIONS * sum(proven_bits(bound, many) for bound, many in groups)


def prove_ranges(
    party: Party, pool: Pool, check: QuadraticCheck, groups: Sequence[Group], coin: bytes, kind: str
) -> None:
    """Adds to ``check`` that each value of each party in a group is at most ``2^proven_bits`` in magnitude.

    Args:
        party: Who.
        pool: Has :func:`range_bits` elements left.
        check: Of which the proof becomes part.
        groups: Of all parties alike.
        coin: Tossed when the values had been committed to.
        kind: Of the step.

    Raises:
        PeerError: 6906 when an own projection is out of its range, 6903 as any commitment.
        IntegrityError: 5909 as any broadcast.
    """
    targets: list[tuple[Shared, int]] = []
    for group in groups:
        bits = proven_bits(group.bound, len(group.values))
        offset = from_ints(1 << bits - 1)
        projected = _projected(group.values, PublicStream(coin, f"projections of {group.name}"))
        targets.append((plus_each(party, projected, [offset] * party.count), bits))
    prove_bits(party, pool, check, targets, kind)


def prove_bits(
    party: Party, pool: Pool, check: QuadraticCheck, targets: Sequence[tuple[Shared, int]], kind: str
) -> None:
    """Adds to ``check`` that each party's values ``(m,)`` are in ``[0, 2^bits)``, of all pairs of values and bits.

    Raises:
        PeerError: 6906 when an own value is not in its range, 6903 as any commitment.
        IntegrityError: 5909 as any broadcast.
    """
    own = [_bits_of(values.share, bits) for values, bits in targets]
    committed = commit(party, kind, pool, from_int64(np.concatenate([part.ravel() for part in own])))
    start = 0
    for values, bits in targets:
        part = committed[start : start + len(values) * bits]
        start += len(part)
        factors = part.reshaped(-1, 1)
        check.require_products(factors, factors, part)
        powers = from_ints([1 << place for place in range(bits)])
        check.require_zeros(part.reshaped(-1, bits).weighted(powers) - values)


def _bits_of(values: Elements, bits: int) -> NDArray[np.int8]:
    """``(m, bits)``, the lowest first."""
    octets = np.ascontiguousarray(values, "<u8").view(np.uint8)
    found = np.unpackbits(octets, axis=-1, bitorder="little")
    _require_range(found[:, bits:])
    return found[:, :bits].astype(np.int8)


def _require_range(beyond: NDArray[np.uint8]) -> None:
    if beyond.any():
        raise PeerError(6906)


def _projected(values: Shared, stream: PublicStream) -> Shared:
    """``(64,)``."""
    many = len(values)
    found: list[Shared] = []
    for _ in range(PROJECTIONS):
        coins = np.unpackbits(stream.draw(-(-2 * many // 8)))[: 2 * many].astype(np.int8)
        found.append(values.weighted(from_int64(coins[:many] - coins[many:])).reshaped(1))
    return concatenated(found)
