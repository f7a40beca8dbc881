"""What correlated randomness a session uses up, kind by kind, and how wide its masks are.

Masks of a truncation by f bits: each party's ``r'`` in ``[0, 2^f)`` decides the rounding, its ``r''`` hides what is
kept. Those of a comparison: ``r'``, then shared bits, then a part that hides what lies above them. What a cheater's may
be is what :func:`cloister.linear._projection.proven_bits` says of the group that they are proven in.

*How wide.* One honest party's ``r''``, uniform in 2^h numbers, hides a result of magnitude 2^ℓ up to ``2^(ℓ+1-h)``, and
that of a comparison, together with k shared bits above what is compared, up to 2^-h. All openings of a session may add
up to 2^-43 and 2^-45.

>>> from fractions import Fraction
>>> plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
>>> needs = demand(plan, level=5)
>>> needs.steps, needs.triples, needs.hiding_bits, needs.top(52), slack_bits(plan)
(200, 157, 104, 169, 10)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cloister.linear._plan import COMPARE_BITS, FINE_BITS, ITERATE_BITS, RESOLUTION_BITS, SHIFT_BITS, Plan
from cloister.linear._projection import proven_bits
from cloister.linear._ranges import SIGMA

__all__ = ["Comparisons", "Demand", "demand", "slack_bits"]

_TRUNCATIONS, _COMPARISONS = SIGMA + 3, SIGMA + 5  # all of a session's together are hidden up to 2^-…
_SMALL = 4  # bits of a result beyond its level: the sign, the sum of an iterate and its change


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Of one kind: how many, the bits below a decision, and the digits to base 4 that decide.

    ``sides`` is 2 where a value is compared from above and from below, with the same shared bits.
    """

    count: int
    below: int
    digits: int
    sides: int

    @property
    def bits(self) -> int:
        """Shared bits of one: two a digit, and the sign."""
        return 2 * self.digits + 1

    @property
    def triples(self) -> int:
        """Of one: a product a digit, then on each side one with the sign and one a factor of what is tested."""
        return self.digits + self.sides * (self.digits + 2)

    @property
    def random_bits(self) -> int:
        """Of one, the secret sign of each side with them."""
        return self.bits + self.sides


@dataclass(frozen=True, slots=True)
class Demand:
    """Of ``fits`` fits in one session.

    Attributes:
        parties: n.
        columns: D.
        fits: Each has a matrix of its own.
        steps: Products behind a rounding, a fit.
        rounds: Of relaxations, a fit; 0 for ridge.
        coarse: Thresholds of the rounds.
        fine: Those of the certificate.
        wide: The certificate's comparison.
        products: Triples for products that the program asks for itself.
        kept_bits: Of a truncation's result.
        hiding_bits: Width of each party's mask of what a truncation keeps.
        high_bits: Width of each party's mask above a comparison's bits.
        room_bits: That sums of masks need beyond an honest party's: cheaters' proven slack, and the number of parties.
    """

    parties: int
    columns: int
    fits: int
    steps: int
    rounds: int
    coarse: Comparisons
    fine: Comparisons
    wide: Comparisons
    products: int
    kept_bits: int
    hiding_bits: int
    high_bits: int
    room_bits: int

    @property
    def comparisons(self) -> tuple[Comparisons, Comparisons, Comparisons]:
        """All kinds."""
        return self.coarse, self.fine, self.wide

    @property
    def compared(self) -> int:
        """Comparisons of all kinds."""
        return sum(kind.count for kind in self.comparisons)

    @property
    def hidden(self) -> int:
        """Openings under a mask of :attr:`hiding_bits`: steps, relaxations, and two vectors of each certificate."""
        return self.fits * (self.steps + self.rounds + 2) * self.columns

    @property
    def groups(self) -> dict[str, tuple[int, int]]:
        """Of masks that projections prove: what honest ones do not exceed in magnitude, and how many there are."""
        return {
            "roundings": (1 << SHIFT_BITS - 1, self.fits * (self.steps + 1) * self.columns),
            "hiding": (1 << self.hiding_bits - 1, self.hidden),
            "high": (1 << self.high_bits - 1, self.compared),
        }

    @property
    def vectors(self) -> int:
        """That the matrix of one fit is multiplied with: the steps, the certificate, and one that checks them all."""
        return self.steps + 2

    @property
    def bits(self) -> int:
        """Shared random bits."""
        return sum(kind.count * kind.random_bits for kind in self.comparisons)

    @property
    def triples(self) -> int:
        """Secret products; a random bit takes one besides."""
        return self.products + sum(kind.count * kind.triples for kind in self.comparisons)

    @property
    def tests(self) -> int:
        """Zero tests, each under a random factor."""
        return sum(kind.count * kind.sides for kind in self.comparisons)

    def top(self, below: int) -> int:
        """Of a truncation by ``below`` bits: a masked value plus 2^top lies in ``[0, 2^(top + 1))``."""
        return below + self.hiding_bits + self.room_bits

    def comparison_top(self, kind: Comparisons) -> int:
        """The same of a comparison."""
        return kind.below + kind.bits + self.high_bits + self.room_bits

    @property
    def field_bits(self) -> int:
        """That the field must have: no masked value reaches 2^this."""
        compared = (self.comparison_top(kind) for kind in self.comparisons if kind.count)
        return 1 + max(self.top(SHIFT_BITS), *compared)


def slack_bits(plan: Plan, *, fits: int = 1) -> int:
    """s: a cheater shifts a truncation by less than 2^s ulp."""
    rounded = fits * (_steps(plan) + 1) * plan.columns
    return proven_bits(1 << SHIFT_BITS - 1, rounded) - SHIFT_BITS


def demand(plan: Plan, *, level: int, fits: int = 1, malicious: bool = True) -> Demand:
    """What ``fits`` fits of ``plan`` use up.

    Args:
        plan: What was agreed.
        level: No value reaches 2^level.
        fits: More than one for Newton's rounds.
        malicious: Whether cheaters' masks may exceed their range by the slack of its proof.
    """
    lasso = plan.method == "lasso"
    many = fits * plan.features if lasso else 0
    rounds = plan.rounds if lasso else 0
    needs = Demand(
        parties=plan.parties,
        columns=plan.columns,
        fits=fits,
        steps=_steps(plan),
        rounds=rounds,
        coarse=Comparisons(many * rounds, ITERATE_BITS - RESOLUTION_BITS, _digits(level + RESOLUTION_BITS), 2),
        fine=Comparisons(many, ITERATE_BITS - FINE_BITS, _digits(level + FINE_BITS), 2),
        wide=Comparisons(fits, COMPARE_BITS, _digits(2 * (level + ITERATE_BITS) - COMPARE_BITS), 1),
        products=fits * plan.columns + 2 * (many * rounds + many),
        kept_bits=ITERATE_BITS + level + _SMALL,
        hiding_bits=0,
        high_bits=0,
        room_bits=0,
    )
    hiding = needs.kept_bits + 1 + _TRUNCATIONS + math.ceil(math.log2(needs.hidden))
    high = _COMPARISONS + math.ceil(math.log2(needs.compared))
    slack = -1  # an honest mask is half as large as its range is wide
    if malicious:
        slack = max(
            proven_bits(1 << bits - 1, count) - bits for bits, count in ((hiding, needs.hidden), (high, needs.compared))
        )
    return replace(needs, hiding_bits=hiding, high_bits=high, room_bits=slack + plan.parties.bit_length())


def _steps(plan: Plan) -> int:
    """Of one fit."""
    return plan.rounds * 2 * plan.half if plan.method == "lasso" else plan.steps


def _digits(bits: int) -> int:
    """To base 4, of the difference of a value and a bound that are below 2^bits in magnitude."""
    return math.ceil((bits + 1) / 2)
