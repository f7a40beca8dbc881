"""Whether a plan can be run securely: the field, the ciphertexts' modulus, and the statistical distance of a session.

All logarithms are base 2. ``scripts/linear_budget.py`` prints these numbers for many plans, with traffic and time.

>>> from fractions import Fraction
>>> plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
>>> budget = require_sound(plan)
>>> budget.level, budget.field, budget.distance < -SIGMA
(5, 170, True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloister.errors import InputError
from cloister.linear._bounds import bound
from cloister.linear._counts import Counts, count
from cloister.linear._plan import Plan
from cloister.linear._ranges import MODULUS_BITS, PROJECTIONS, SIGMA, field_bits, kept_bits, mask_bits, truncations

__all__ = [
    "BOX_BITS",
    "DROPPED",
    "KEPT",
    "KEPT_BITS",
    "RING",
    "ROWS",
    "WHOLE_BITS",
    "Budget",
    "Lattice",
    "Tiles",
    "budget_of",
    "require_sound",
]

RING = 32768
"""N: the degree of the ciphertexts' ring; N field elements in slots."""
KEPT, DROPPED = (4, 53), (5, 62)
"""Limbs of q: those that an answer keeps, those that switching drops."""
ROWS, BOX_BITS = 3, 38
"""Of a ciphertext proof: repetitions with 2N + 1 challenges each, and the bits by which masks exceed what they hide."""
NOISE = 21
"""Bound of the centred binomial."""

_P_BITS = MODULUS_BITS + 1
_LEAST_CONTRACTION = 0.98  # a solver that leaves more of an error standing is not worth beginning
_SHORT = 0.1  # of a bit, by which a limb's prime may lie below its power of two
KEPT_BITS = KEPT[0] * (KEPT[1] - _SHORT)
WHOLE_BITS = KEPT_BITS + DROPPED[0] * (DROPPED[1] - _SHORT)
"""At least log2 of q' and of q."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How matrix products are packed: tiles of the matrix, vectors an answer, answers."""

    tiles: int
    vectors: int
    answers: int


@dataclass(frozen=True, slots=True)
class Lattice:
    """Bits of one kind of ciphertext: slack of its proof, hidden term, flood over it, log q, and q after switching."""

    slack: float
    hidden: float
    flood: float
    modulus: float
    switched: float


@dataclass(frozen=True, slots=True)
class Budget:
    """One session.

    Attributes:
        level: No value reaches 2^level.
        contraction: Of the solver, as in :class:`cloister.linear._bounds.Bound`.
        counts: What the session makes and opens.
        field: Bits that the field must have.
        tiles: The packing.
        batches: Of N triples.
        polynomials: Of single authenticated values.
        scalars: Ciphertexts of scalars.
        matrix: Ciphertexts of the matrix.
        distances: log2 of the statistical distance, by source.
    """

    level: int
    contraction: float
    counts: Counts
    field: int
    tiles: Tiles
    batches: int
    polynomials: int
    scalars: Lattice
    matrix: Lattice
    distances: dict[str, float]

    @property
    def distance(self) -> float:
        """log2 of the whole session's."""
        return math.log2(sum(2.0**value for value in self.distances.values()))

    @property
    def exceeded(self) -> list[str]:
        """What does not fit, in words; empty when the plan is sound."""
        modulus, switched = (
            max(getattr(x, name) for x in (self.scalars, self.matrix)) for name in ("modulus", "switched")
        )
        checks = {
            f"steps that leave {self.contraction:.2g} of an error": self.contraction < _LEAST_CONTRACTION,
            f"a field of {self.field} bits": self.field <= MODULUS_BITS,
            f"a modulus of {modulus:.0f} bits": modulus <= WHOLE_BITS,
            f"a switched modulus of {switched:.0f} bits": switched <= KEPT_BITS,
            f"a statistical distance of 2^{self.distance:.1f}": self.distance <= -SIGMA,
        }
        return [what for what, fits in checks.items() if not fits]


def require_sound(plan: Plan) -> Budget:
    """The budget of a plan that every part of the protocol has room for.

    Raises:
        InputError: 2901 when one has not.
    """
    budget = budget_of(plan)
    if budget.exceeded:
        raise InputError(2901, f"this fit needs {' and '.join(budget.exceeded)}")
    return budget


def budget_of(plan: Plan, *, fits: int = 1, malicious: bool = True, ring: int = RING) -> Budget:
    """The budget of ``fits`` fits of ``plan`` in one session, sound or not; a smaller ring is for tests alone."""
    limits = bound(plan)
    level = limits.level
    counts = count(plan, level=level, fits=fits, malicious=malicious)
    tiles = _tiles(plan, counts.products + fits, fits, malicious, ring)
    batches = math.ceil(counts.triples / RING)
    polynomials = math.ceil(sum(counts.authenticated.values()) / RING)
    scalars = (batches * (7 if malicious else 1) + (polynomials + 1) * malicious) * RING
    answered = scalars + tiles.answers * plan.columns * tiles.vectors
    pairs = plan.parties * (plan.parties - 1)
    hide = SIGMA + 3 + math.log2(pairs * answered)
    lattices = (_lattice(1 + batches, 1, hide, malicious), _lattice(fits, tiles.tiles, hide, malicious))
    field = field_bits(plan, level=level, fits=fits, malicious=malicious)
    hidden = max(x.hidden - x.flood for x in lattices)
    openings = math.log2(truncations(plan, fits=fits))
    distances = {
        "masked truncations": openings + kept_bits(level) + 1 - mask_bits(plan, level=level, fits=fits),
        "flooded answers": math.log2(pairs * answered) + hidden - 1,
    }
    if malicious:
        guesses = math.log2(20 * plan.parties**2 * (counts.openings + 10))
        distances |= {
            "ciphertext proofs": math.log2(plan.parties * 2) - ROWS * math.log2(2 * RING + 1),
            "range projections": math.log2(plan.parties * 3 * fits) - PROJECTIONS,
            "tags, sacrifices, Freivalds": guesses - MODULUS_BITS,
        }
    return Budget(
        level, limits.contraction, counts, field, tiles, batches, polynomials, lattices[0], lattices[1], distances
    )


def _tiles(plan: Plan, products: int, fits: int, malicious: bool, ring: int) -> Tiles:
    """The packing with the least traffic; weights are megabytes of an answer, a group and its proof."""
    found: list[tuple[float, Tiles]] = []
    for many in range(1, plan.columns + 1):
        wide = math.ceil(plan.columns / many)
        vectors = min((ring - wide) // (plan.columns * wide), products)
        if vectors:
            answers = math.ceil(products / vectors)
            weight = answers * 0.87 + many * (2.14 * fits + 1.15 * ROWS * malicious)
            found.append((weight, Tiles(many, vectors, answers)))
    return min(found, key=lambda pair: pair[0])[1]


def _lattice(groups: int, width: int, hide: float, malicious: bool) -> Lattice:
    """Of groups of ``width`` polynomials in one proof; ``hide``: the bits by which the flood exceeds its term."""
    slack = BOX_BITS + math.log2(groups) + math.log2(2 * RING) if malicious else 1.0
    inner = _sum(_P_BITS + math.log2(NOISE) + slack, _P_BITS - 1 + slack)  # p e' + m'
    hidden = _sum(math.log2(RING * width * 1.5) + inner, math.log2(RING) + slack + math.log2(NOISE))
    flood = hidden + hide - 1
    modulus = _sum(flood, hidden) + 2 + _P_BITS
    return Lattice(slack, hidden, flood, modulus, _P_BITS + 2 + math.log2(RING + 8))


def _sum(*values: float) -> float:
    """log2 of the sum of 2^v."""
    top = max(values)
    return top + math.log2(sum(2.0 ** (value - top) for value in values))
