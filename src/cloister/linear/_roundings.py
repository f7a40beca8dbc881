"""What every party adds to a sum of statistics before it is opened, so that the sum says nothing but the sum.

A party's input is ``S_i = R_iᵀR_i`` of rounded integers R_i. Such integers are few: in the first row each is a multiple
of ``R_i[0, 0]``, a public number of 23 bits, and on the diagonal a sum of few squares. An exact sum of them can be
taken apart again into what each party put in. So party i adds, entry by entry,

    ρ_i = (s_i - S_i) + ν_i

where s_i is what its own exact Gram matrix rounds to in the units of S, and ν_i is uniform in [-2^20, 2^20). What is
opened is then ``Σ s_i + Σ ν_i``: of s_i everybody learns the sum, and of how each was rounded, half a unit, next to
nothing: 2^-21 an entry and party. ρ_i is committed to and proven small, as projections of inputs are; a cheater can
so shift an opened entry by at most ``2^proven_bits``, which is less than its own rows may.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloister.linear._commitments import commit
from cloister.linear._field import from_int64
from cloister.linear._inputs import factor_bound
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._projection import Group, prove_ranges, range_bits
from cloister.linear._quadratic import QuadraticCheck, masks_needed
from cloister.linear._shared import Shared
from cloister.linear._summary import Summary
from cloister.linear._supply import Pool

__all__ = ["MASK_BITS", "own_roundings", "rounded", "rounding_bits", "roundings_needed"]

MASK_BITS = 20
"""f: ν_i is below 2^f in magnitude, 2^-26 of a mean square of 1, times the curvature."""

_KIND = "roundings of sums"


def own_roundings(summary: Summary, entries: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """ρ_i of the entries, in their order; another draw at each call."""
    rows, places = (list(place) for place in zip(*entries, strict=True))
    drawn = np.frombuffer(secrets.token_bytes(8 * len(rows)), "<u8") >> np.uint64(64 - MASK_BITS - 1)
    return summary.correction[rows, places] + drawn.astype(np.int64) - (1 << MASK_BITS)


def rounded(party: Party, plan: Plan, pool: Pool, values: Shared, own: NDArray[np.int64]) -> Shared:
    """The same ``(count,)`` sums with every party's ρ_i in them, in shares that are still each party's own.

    Args:
        party: Who.
        plan: What was agreed.
        pool: Has :func:`roundings_needed` elements left.
        values: Sums of inputs that were proven.
        own: From :func:`own_roundings`.

    Raises:
        IntegrityError: 5907 when a peer's are not small; 5909, 5910 as any broadcast and coin toss.
        PeerError: 6903 for nonsense; 6906 when an own projection is out of its range.
    """
    if not party.malicious:
        return values + Shared(from_int64(own)[None])
    committed = commit(party, _KIND, pool, from_int64(own))
    check, group = QuadraticCheck(), Group("roundings of sums", committed, _bound(plan))
    prove_ranges(party, pool, check, [group], party.toss(), "projections of roundings")
    check.run(party, pool, 5907, _KIND)
    return values + committed


def roundings_needed(plan: Plan, count: int) -> int:
    """Pool elements of each party for ``count`` sums."""
    return count + rounding_bits(plan, count) + masks_needed(plan.parties)


def rounding_bits(plan: Plan, count: int) -> int:
    """Those of them that prove projections."""
    return range_bits([(_bound(plan), count)])


def _bound(plan: Plan) -> int:
    """Of an honest ρ_i: a column of R is rounded by at most ½ an entry, next to another of at most so long."""
    width = plan.columns + 1
    return (1 << MASK_BITS) + (math.isqrt(width) + 1) * (factor_bound(plan) + width)
