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
from cloister.linear._answers import answer_bytes
from cloister.linear._bounds import bound
from cloister.linear._counts import Counts, count, pieces
from cloister.linear._demand import Demand, demand
from cloister.linear._draws import COINS
from cloister.linear._groups import group_bytes
from cloister.linear._plan import Plan
from cloister.linear._primes import DEGREE, FULL, KEPT
from cloister.linear._proof import BOX_BITS, ROWS, response_bytes
from cloister.linear._ranges import MODULUS_BITS, PROJECTIONS, SIGMA
from cloister.linear._tiles import Packing

__all__ = [
    "BOX_BITS",
    "KEPT_BITS",
    "NOISE",
    "RING",
    "ROWS",
    "WHOLE_BITS",
    "Budget",
    "Lattice",
    "Tiles",
    "budget_of",
    "require_sound",
]

RING = DEGREE
"""N: the degree of the ciphertexts' ring; N field elements in slots."""
NOISE = COINS
"""Bound of the centred binomial."""
KEPT_BITS, WHOLE_BITS = math.log2(KEPT.modulus), math.log2(FULL.modulus)
"""log2 of q' and of q."""

_P_BITS = MODULUS_BITS + 1
_LEAST_CONTRACTION = 0.98  # a solver that leaves more of an error standing is not worth beginning
_FLOODS = SIGMA + 3  # all of a session's answers together are hidden up to 2^-…
_QUERIES = 64  # log2 of the hashes that a cheater computes, to find shares that suit it
_BIASED = 114  # an element that is drawn from 184 bits is uniform up to 2^-…
_HONEST = 63  # a projection of an honest input leaves its range with a chance of 2^-…: see below


@dataclass(frozen=True, slots=True, order=True)
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
        needs: What it uses up.
        counts: What it makes, opens and sends.
        tiles: The packing.
        scalars: Ciphertexts of scalars.
        matrix: Ciphertexts of the matrix.
        distances: log2 of the statistical distance, by source.
    """

    level: int
    contraction: float
    needs: Demand
    counts: Counts
    tiles: Tiles
    scalars: Lattice
    matrix: Lattice
    distances: dict[str, float]

    @property
    def field(self) -> int:
        """Bits that the field must have."""
        return self.needs.field_bits

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

    def require_room(self) -> None:
        """Refuses what does not fit.

        Raises:
            InputError: 2901.
        """
        if self.exceeded:
            hint = "take more steps, or a greater floor or theta; penalties beyond 32 curvatures are not resolved"
            raise InputError(2901, f"this fit needs {' and '.join(self.exceeded)}", hint=hint)


def require_sound(plan: Plan) -> Budget:
    """The budget of a plan that every part of the protocol has room for.

    Raises:
        InputError: 2901 when one has not.
    """
    budget = budget_of(plan)
    budget.require_room()
    return budget


def budget_of(
    plan: Plan, *, fits: int = 1, again: Plan | None = None, malicious: bool = True, ring: int = RING
) -> Budget:
    """The budget of one session, sound or not.

    Args:
        plan: Of its first fit.
        fits: How many it has.
        again: Of all fits after the first; as the first by default.
        malicious: Whether there are tags and proofs.
        ring: N, less than 32768 for tests alone.
    """
    plans = (plan, *[again or plan] * (fits - 1))
    limits = [bound(one, fits=fits) for one in set(plans)]
    level, contraction = (max(getattr(one, name) for one in limits) for name in ("level", "contraction"))
    needs = demand(plan, level=level, fits=fits, malicious=malicious)
    tiles = _tiles(needs, malicious, ring)
    counts = count(plans, needs, Packing(needs.columns, tiles.tiles, tiles.vectors, ring), malicious=malicious)
    answered = math.log2(plan.parties * (plan.parties - 1) * counts.answered)
    hide = _FLOODS + answered
    scalars = _lattice(1 + counts.batches, 1, hide, malicious, ring)
    matrix = _lattice(fits, tiles.tiles, hide, malicious, ring)
    distances = _distances(needs, counts, malicious, ring) | {
        "flooded answers": answered + max(x.hidden - x.flood for x in (scalars, matrix)) - 1,
    }
    return Budget(level, contraction, needs, counts, tiles, scalars, matrix, distances)


def _distances(needs: Demand, counts: Counts, malicious: bool, ring: int) -> dict[str, float]:
    """log2 of what openings, drawn elements and, with tags, undetected cheats add up to.

    A honest projection that leaves its range ends the session, which says something of an input. Entries of R and of T
    have the squares of their columns' bounds as sums, ``2/(D+1)`` of what M entries at the bound come to, those of Z,
    which T's rounding leaves, less than 0.8 of it at D = 301. So a chance ``2e^-36`` at M entries is below ``2e^-45``.
    """
    parties, pairs = needs.parties, needs.parties * (needs.parties - 1)
    out = {
        "masked truncations": math.log2(needs.hidden) + needs.kept_bits + 1 - needs.hiding_bits,
        "comparisons": math.log2(needs.compared) - needs.high_bits,
        "drawn elements": math.log2(2 * pairs * counts.answered) - _BIASED,
    }
    if malicious:
        opened = sum(counts.openings.values())
        groups = 3 + 3 * needs.fits  # of masks, and of each input
        out |= {
            "ciphertext proofs": math.log2(2 * parties) - ROWS * math.log2(2 * ring + 1),
            "range projections": math.log2(parties * groups) - PROJECTIONS,
            "inputs out of range": math.log2(parties * 3 * needs.fits * PROJECTIONS) - _HONEST,
            "tags": math.log2(pairs * opened) + _QUERIES - MODULUS_BITS,
            "sacrifices, products, relations, keys": math.log2(pairs * (2 * ring + 40 * needs.fits)) - MODULUS_BITS,
        }
    return out


def _tiles(needs: Demand, malicious: bool, ring: int) -> Tiles:
    """The packing with the least traffic."""
    columns, best = needs.columns, (math.inf, Tiles(0, 0, 0))
    for many in range(1, columns + 1):
        proof = response_bytes(many, needs.fits, degree=ring) if malicious else 0
        encrypted = needs.fits * group_bytes(many, degree=ring) + proof
        if encrypted > best[0]:
            break
        wide = math.ceil(columns / many)
        vectors = min((ring + 1 - wide) // (columns * wide), needs.vectors)
        if vectors:
            sizes = [columns * size for size in pieces(needs, Packing(columns, many, vectors, ring))]
            answered = needs.fits * (len(sizes) * answer_bytes(ring) + sum(map(answer_bytes, sizes)))
            best = min(best, (encrypted + answered, Tiles(many, vectors, needs.fits * len(sizes))))
    return best[1]


def _lattice(groups: int, width: int, hide: float, malicious: bool, ring: int) -> Lattice:
    """Of groups of ``width`` polynomials in one proof; ``hide``: the bits by which the flood exceeds its term."""
    slack = BOX_BITS + math.log2(groups) + math.log2(2 * ring) if malicious else 1.0
    inner = _sum(_P_BITS + math.log2(NOISE) + slack, _P_BITS - 1 + slack)  # p e' + m'
    hidden = _sum(math.log2(ring * width * 1.5) + inner, math.log2(ring) + slack + math.log2(NOISE))
    flood = hidden + hide - 1
    modulus = _sum(flood, hidden) + 2 + _P_BITS
    return Lattice(slack, hidden, flood, modulus, _P_BITS + 2 + math.log2(ring + 8))


def _sum(*values: float) -> float:
    """log2 of the sum of 2^v."""
    top = max(values)
    return top + math.log2(sum(2.0 ** (value - top) for value in values))
