"""That every party's masks are within their widths: a wider one would move what is rounded, or leave the field's room.

Masks that decide a comparison are proven exactly, by their bits, of which they are made. Those of many bits are proven
by random projections, up to the slack that :mod:`cloister.linear._demand` leaves room for (5906).
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.linear._commitments import plus_each
from cloister.linear._demand import Demand
from cloister.linear._field import from_ints
from cloister.linear._party import Party
from cloister.linear._plan import SHIFT_BITS
from cloister.linear._projection import Group, prove_ranges, range_bits
from cloister.linear._quadratic import QuadraticCheck, masks_needed
from cloister.linear._shared import Shared, concatenated
from cloister.linear._supply import Pool

__all__ = ["BITS", "pool_for_masks", "prove_masks"]

BITS = ("relaxation bits", "coarse bits", "fine bits", "wide bits")
_ROUNDINGS = ("step low", "residual low")
_HIDING = ("step high", "certificates", "relaxation high", "residual high")
_HIGH = ("coarse high", "fine high", "wide high")


def pool_for_masks(needs: Demand) -> int:
    """Pool elements of each party for the proof."""
    return range_bits([(bound, many) for bound, many in needs.groups.values() if many]) + masks_needed(needs.parties)


def prove_masks(party: Party, pool: Pool, needs: Demand, values: Mapping[str, Shared]) -> None:
    """Proves the own masks to all, and verifies theirs.

    Args:
        party: Who.
        pool: Has at least :func:`pool_for_masks` elements.
        needs: What the masks are for.
        values: All masks, by name.

    Raises:
        IntegrityError: 5906 when a peer's masks are not proven; 5909, 5910 as any coin toss.
        PeerError: 6903 for nonsense; 6906 when an own projection is out of its range.
    """
    if not party.malicious:
        return
    check = QuadraticCheck()
    for name in BITS:
        bits = values[name].reshaped(-1)
        factors = bits.reshaped(len(bits), 1)
        check.require_products(factors, factors, bits)
    lows = concatenated([values[name] for name in _ROUNDINGS])
    half = from_ints(-(1 << SHIFT_BITS - 1))
    members = {
        "roundings": plus_each(party, lows, [half] * party.count),
        "hiding": concatenated([values[name] for name in _HIDING]),
        "high": concatenated([values[name] for name in _HIGH]),
    }
    groups = [Group(name, members[name], bound) for name, (bound, many) in needs.groups.items() if many]
    prove_ranges(party, pool, check, groups, party.toss(), "projections of masks")
    check.run(party, pool, 5906, "masks")
