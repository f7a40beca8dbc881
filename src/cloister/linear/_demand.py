"""What correlated randomness a session uses up, kind by kind, and how wide its masks are.

Masks of a truncation by f bits: each party's ``r'`` in ``[0, 2^f)`` decides the rounding, its ``r''`` hides what is
kept. Those of a comparison: ``r'``, then shared bits, then a part that hides what lies above them.

>>> from fractions import Fraction
>>> plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
>>> needs = demand(plan, level=5)
>>> needs.steps, needs.triples, needs.hiding_bits, needs.top(52)
(200, 165, 104, 169)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloister.linear._counts import digits
from cloister.linear._plan import COMPARE_BITS, FINE_BITS, ITERATE_BITS, RESOLUTION_BITS, Plan
from cloister.linear._ranges import SIGMA, mask_bits, slack_bits, truncations

__all__ = ["Comparisons", "Demand", "demand"]


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
        hiding_bits: Width of each party's mask of what a truncation keeps.
        high_bits: Width of each party's mask above a comparison's bits.
        room_bits: That sums of masks need beyond one party's: cheaters' slack, the number of parties, signs.
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
    hiding_bits: int
    high_bits: int
    room_bits: int

    @property
    def comparisons(self) -> tuple[Comparisons, Comparisons, Comparisons]:
        """All kinds."""
        return self.coarse, self.fine, self.wide

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
    openings = math.ceil(math.log2(truncations(plan, fits=fits)))
    slack = slack_bits(plan, fits=fits) - 1 if malicious else 0
    return Demand(
        parties=plan.parties,
        columns=plan.columns,
        fits=fits,
        steps=plan.rounds * 2 * plan.half if lasso else plan.steps,
        rounds=rounds,
        coarse=Comparisons(many * rounds, ITERATE_BITS - RESOLUTION_BITS, digits(level, RESOLUTION_BITS), 2),
        fine=Comparisons(many, ITERATE_BITS - FINE_BITS, digits(level, FINE_BITS), 2),
        wide=Comparisons(fits, COMPARE_BITS, digits(2 * (level + ITERATE_BITS) + 8, -COMPARE_BITS), 1),
        products=fits * plan.columns + 2 * (many * rounds + many),
        hiding_bits=mask_bits(plan, level=level, fits=fits),
        high_bits=SIGMA + 5 + openings,
        room_bits=slack + math.ceil(math.log2(plan.parties)) + 1,
    )
