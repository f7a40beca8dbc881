"""A party's statistics become shared, with a proof to every other party that they are legal.

Legal is ``S = RᵀR`` for an integer R, with every column's sum of squares at most what was agreed, the first column's
next to the number of rows, and ``S ≼ D + 2^-34·|Z|`` on the columns ``[1 X]`` for the agreed multiple D of the
identity. Every such R is itself a data set of d + 2 records, so nothing else about the rows needs a proof.

1. All commit to R, S, and T and Z with ``2^34·(D - S) = TᵀT + Z``, then to the bits of what each bound leaves.
2. A coin: two vectors for each of the two matrix identities, which turn them into one relation each (R. Freivalds,
   1977), and random projections of R, T and Z.
3. The bits of the projections: R, T and Z are small, so that what holds modulo p holds over the integers.
4. A coin that batches all relations, and one message with the proof to each (5907).

Nothing depends on the data but committed values and proofs that say nothing else. What an honest party could not prove
it refuses before its first message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear import _field as field
from cloister.linear._commitments import commit, plus_each
from cloister.linear._elements import WORDS
from cloister.linear._field import Elements, from_int64, from_ints
from cloister.linear._party import Party
from cloister.linear._plan import COUNT_SLACK_BITS, GRAM_BITS, LEAST_WEIGHT, Plan
from cloister.linear._projection import Group, prove_bits, prove_ranges, range_bits
from cloister.linear._quadratic import QuadraticCheck, masks_needed
from cloister.linear._shared import Shared
from cloister.linear._streams import PublicStream, elements
from cloister.linear._summary import Summary
from cloister.linear._supply import Pool

__all__ = ["Limits", "Witness", "factor_bound", "limits", "pool_needed", "prove_inputs", "share_inputs", "witness"]

Integers = NDArray[np.int64]

_FINER_BITS = 34  # of the identity that bounds the curvature: its factor T has 40 fractional bits
_REST = 1 << 44  # an honest Z is below: rounding T moves an entry of TᵀT by at most 2^40·√D
_PROVEN = "inputs"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one party's statistics must keep, all in units of 2^-46.

    Attributes:
        squares: The greatest diagonal entry of each column, features and then the response.
        corner: The least and the greatest S[0, 0].
        curvature: D, the greatest eigenvalue on ``[1 X]``.
    """

    squares: tuple[int, ...]
    corner: tuple[int, int]
    curvature: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Witness:
    """What a party proves its input with: as secret as its rows.

    Attributes:
        factor: R, (D+1, D+1) int64, upper triangular.
        statistics: S = RᵀR, (D+1, D+1) int64.
        slack_factor: T, (D, D) int64, upper triangular.
        rest: Z, (D, D) int64, symmetric.
    """

    factor: Integers
    statistics: Integers
    slack_factor: Integers
    rest: Integers

    def __repr__(self) -> str:
        return f"<Witness of {len(self.factor)} columns>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a witness cannot be pickled")


def limits(plan: Plan, party: int) -> Limits:
    """Of one party."""
    unit = Fraction(plan.rows[party] << GRAM_BITS) / (plan.count * plan.curvature)
    slack = Fraction(1, 1 << COUNT_SLACK_BITS)
    least = unit * (1 if plan.reach is None else LEAST_WEIGHT) * (1 - slack)
    squares = tuple(math.floor(unit * most) for most in plan.mean_squares)
    curvature = math.floor(plan.share(party) * (1 << GRAM_BITS))
    return Limits(squares, (math.ceil(least), math.floor(unit * (1 + slack))), curvature)


def witness(plan: Plan, party: int, summary: Summary) -> Witness:
    """Of a party's own summary, before its first message.

    Raises:
        InputError: 2902 when a column exceeds its mean square, 2907 when the first one does not hold the rows, 2903
            when the curvature exceeds the party's.
    """
    kept, statistics = limits(plan, party), summary.statistics
    _require_limits(kept, statistics)
    left = kept.curvature * np.eye(plan.columns, dtype=np.int64) - statistics[: plan.columns, : plan.columns]
    scaled = np.ldexp(left.astype(np.float64), _FINER_BITS)
    try:
        exact = np.linalg.cholesky(scaled).T
    except np.linalg.LinAlgError:
        raise InputError(2903) from None
    factor = np.rint(exact).astype(np.int64)
    rest = (left << _FINER_BITS) - factor.T @ factor  # modulo 2^64, and small: the next line
    near = np.abs(scaled - factor.astype(np.float64).T @ factor.astype(np.float64)).max() < 2 * _REST
    if not near or np.abs(rest).max() > _REST:
        raise InputError(2903)
    return Witness(summary.factor, statistics, factor, rest)


def _require_limits(kept: Limits, statistics: Integers) -> None:
    corner, *squares = (int(entry) for entry in np.diag(statistics))
    if any(found > most for found, most in zip(squares, kept.squares, strict=True)):
        raise InputError(2902)
    if not kept.corner[0] <= corner <= kept.corner[1]:
        raise InputError(2907, "the first column does not hold the rows")


def share_inputs(party: Party, plan: Plan, summary: Summary, pool: Pool) -> Shared:
    """S, the sum of all parties' statistics, ``(D+1, D+1)``: shared, and proven legal by everybody.

    Args:
        party: Who, at its place in the plan.
        plan: What was agreed.
        summary: This party's own.
        pool: Has at least :func:`pool_needed` elements left, and was made before any input.

    Raises:
        InputError: 2902, 2903, 2907 when the own summary is not legal; nothing was said then.
        IntegrityError: 5907 when a peer's input is not legal; 5909, 5910 as any broadcast and coin toss.
        PeerError: 6903 for nonsense; 6906 when an own projection is out of its range.
    """
    if not party.malicious:
        return Shared(from_int64(summary.statistics)[None])
    return prove_inputs(party, plan, witness(plan, party.number, summary), pool)


def pool_needed(plan: Plan) -> int:
    """Pool elements of each party for one fit."""
    corner, square = _triangle(plan.columns + 1), _triangle(plan.columns)
    squares, corners = _bound_bits(plan)
    ranges = [(factor_bound(plan), corner), (_slack_bound(plan), square), (_REST, square)]
    bits = squares * plan.columns + 2 * corners + range_bits(ranges)
    return 2 * corner + 2 * square + bits + masks_needed(plan.parties)


def prove_inputs(party: Party, plan: Plan, own: Witness, pool: Pool) -> Shared:
    """As :func:`share_inputs`, for a witness that the party has made before."""
    columns = plan.columns
    every = _all_limits(plan)
    values = _triangles(own)
    committed = commit(party, _PROVEN, pool, np.concatenate(values))
    ends = np.cumsum([len(part) for part in values])[:-1].tolist()
    r, s, t, z = (Shared(rows) for rows in np.split(committed.rows, ends, axis=1))
    statistics, rest = _symmetric(s, columns + 1), _symmetric(z, columns)
    check = QuadraticCheck()
    _prove_bounds(party, plan, pool, check, statistics, every)

    coin = party.toss()
    stream = PublicStream(coin, "matrix identities")
    a, b = elements(stream, 2, columns + 1)
    _require_gram(check, _upper(r, columns + 1), statistics.weighted(b).weighted(a), a, b)
    a, b = elements(stream, 2, columns)
    finer = statistics[:columns, :columns].scaled(from_ints(1 << _FINER_BITS)) + rest
    scale = field.dot(a, b)
    identities = [field.multiply(scale, from_ints(one.curvature << _FINER_BITS)) for one in every]
    _require_gram(check, _upper(t, columns), plus_each(party, -finer.weighted(b).weighted(a), identities), a, b)
    groups = [Group("R", r, factor_bound(plan)), Group("T", t, _slack_bound(plan)), Group("Z", z, _REST)]
    prove_ranges(party, pool, check, groups, coin, "projections of inputs")
    check.run(party, pool, 5907, _PROVEN)
    return statistics


def _prove_bounds(
    party: Party, plan: Plan, pool: Pool, check: QuadraticCheck, statistics: Shared, every: list[Limits]
) -> None:
    """What each bound leaves is not negative."""
    squares, corners = _bound_bits(plan)
    places = np.arange(1, plan.columns + 1)
    left = plus_each(party, -statistics[places, places], [from_ints(one.squares) for one in every])
    signs = from_ints([1, -1])
    corner = Shared(np.repeat(statistics[0, :1].rows, 2, axis=1)).scaled(signs)
    ends = [from_ints([-one.corner[0], one.corner[1]]) for one in every]
    targets = [(left, squares), (plus_each(party, corner, ends), corners)]
    prove_bits(party, pool, check, targets, "bounds of inputs")


def _require_gram(check: QuadraticCheck, factor: Shared, form: Shared, a: Elements, b: Elements) -> None:
    """``Σ_k (Fa)_k·(Fb)_k`` is what the quadratic form is at a and b."""
    left, right = (factor.weighted(vector).reshaped(1, len(factor)) for vector in (a, b))
    check.require_products(left, right, form.reshaped(1))


# ---- sizes -----------------------------------------------------------------------------------------------


def _triangle(size: int) -> int:
    return size * (size + 1) // 2


def _all_limits(plan: Plan) -> list[Limits]:
    return [limits(plan, party) for party in range(plan.parties)]


def _bound_bits(plan: Plan) -> tuple[int, int]:
    """Of what the bounds of columns and of the corner leave, at most, in every party."""
    every = _all_limits(plan)
    squares = max(max(one.squares).bit_length() for one in every)
    return squares, max((one.corner[1] - one.corner[0]).bit_length() for one in every)


def factor_bound(plan: Plan) -> int:
    """Of an entry of R: its square is at most its column's."""
    return math.isqrt(max(max(one.corner[1], *one.squares) for one in _all_limits(plan)))


def _slack_bound(plan: Plan) -> int:
    """Of an entry of T, likewise."""
    return math.isqrt(max((one.curvature << _FINER_BITS) + _REST for one in _all_limits(plan)))


# ---- triangles and their matrices -------------------------------------------------------------------------------


def _triangles(own: Witness) -> list[Elements]:
    parts = (own.factor, own.statistics, own.slack_factor, own.rest)
    return [from_int64(part[np.triu_indices(len(part))]) for part in parts]


def _upper(values: Shared, size: int) -> Shared:
    rows = np.zeros((values.rows.shape[0], size, size, WORDS), np.uint64)
    above = np.triu_indices(size)
    rows[:, above[0], above[1]] = values.rows
    return Shared(rows)


def _symmetric(values: Shared, size: int) -> Shared:
    full = _upper(values, size)
    above = np.triu_indices(size)
    full.rows[:, above[1], above[0]] = values.rows
    return full
