"""What one session of a plan needs, counted before it begins: products, triples, bits, openings, authenticated values.

Every number follows from the plan and its level; a session makes exactly that much correlated randomness, and no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloister.linear._plan import (
    COMPARE_BITS,
    FACTOR_BITS,
    FINE_BITS,
    GRAM_BITS,
    ITERATE_BITS,
    RELAXATION_BITS,
    RESOLUTION_BITS,
    SHIFT_BITS,
    Plan,
)
from cloister.linear._ranges import PROJECTIONS, truncations

__all__ = ["CURVATURE_BITS", "Counts", "count", "digits", "threshold_triples"]

CURVATURE_BITS = 40
"""Fractional bits of the triangular factor that proves a party's curvature."""
_HIGH_BITS = 120  # of the masks that only hide, at most
_CERTIFICATE_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one session.

    Attributes:
        products: Secret matrix times secret vector.
        thresholds: Of single coordinates, in rounds.
        triples: Of secret multiplications.
        bits: Random shared bits.
        openings: Field elements opened online.
        rounds: Of openings.
        private_bits: Bits of one party, in its proofs.
        authenticated: Values that one party authenticates, by use.
    """

    products: int
    thresholds: int
    triples: int
    bits: int
    openings: int
    rounds: int
    private_bits: int
    authenticated: dict[str, int]


def digits(level: int, resolution: int) -> int:
    """In base 4, of what a decision to 2^-resolution compares."""
    return math.ceil((level + resolution + 1) / 2)


def threshold_triples(many: int) -> int:
    """Of one threshold of D digits: squares for 2D+1 bits, D one-hot products, two comparisons of D+3, two more."""
    return (2 * many + 1) + many + 2 * (many + 3) + 2


def count(plan: Plan, *, level: int, fits: int = 1, malicious: bool = True) -> Counts:
    """What ``fits`` fits of ``plan`` need in one session.

    Args:
        plan: What was agreed.
        level: Its bound, in bits.
        fits: More than one for Newton's rounds.
        malicious: Whether inputs, masks and products are proven.
    """
    width, features, lasso = plan.columns, plan.features, plan.method == "lasso"
    coarse, fine = digits(level, RESOLUTION_BITS), digits(level, FINE_BITS)
    wide = digits(2 * (level + ITERATE_BITS) + 8, -COMPARE_BITS)
    steps = plan.rounds * 2 * plan.half if lasso else plan.steps
    thresholds = fits * plan.rounds * features if lasso else 0
    final = fits * features if lasso else 0
    products = fits * (steps + 1)
    triples = thresholds * threshold_triples(coarse) + final * threshold_triples(fine)
    triples += fits * (width + threshold_triples(wide))
    bits = thresholds * (2 * coarse + 3) + final * (2 * fine + 3) + fits * (2 * wide + 3)
    depth = math.ceil(math.log2(coarse + 2))
    rounds = plan.rounds * (2 * plan.half + 4 + depth) if lasso else steps
    opened = truncations(plan, fits=fits)
    square = width * (width + 1) // 2
    proofs = _private_bits(plan, thresholds, fits) if malicious else 0
    corner = (width + 1) * (width + 2) // 2
    return Counts(
        products=products,
        thresholds=thresholds,
        triples=triples,
        bits=bits,
        openings=opened + 2 * triples + bits + fits * (square + 2 * width),
        rounds=fits * (rounds + _CERTIFICATE_ROUNDS),
        private_bits=proofs,
        authenticated={
            "mat-vec: U, masks, U·mask": fits * square + 3 * (products + fits) * width,
            "other masks": 2 * (opened - products * width if lasso else 3 * width * fits),
            "random": bits + bits // 8,
            "inputs and proofs": proofs + fits * corner * (4 if malicious else 2) + 64,
        },
    )


def _private_bits(plan: Plan, thresholds: int, fits: int) -> int:
    """Of projections, of bounds of the inputs, and of the narrow masks, which are proven exactly."""
    # one group of projections a width of masks, never two scaled to one: 2^a·r small mod p does not make r small
    masks = (SHIFT_BITS + 12) + (_HIGH_BITS + 12) + ((64 + 10) if plan.method == "lasso" else 0)
    inputs = (FACTOR_BITS + 10) + (CURVATURE_BITS + 10) + (CURVATURE_BITS + 4 + 10)
    out = PROJECTIONS * (masks + fits * inputs) + fits * (plan.columns + 3) * (GRAM_BITS + 2) + 100 * fits
    if plan.method == "lasso":
        out += thresholds * (ITERATE_BITS - RESOLUTION_BITS) + plan.features * (ITERATE_BITS - FINE_BITS)
        out += plan.rounds * plan.columns * RELAXATION_BITS
    return out
