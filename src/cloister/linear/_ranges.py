"""How wide masks and field elements must be, from public counts: what a truncation leaves, hides and needs.

Sizes in bits. A cheater's masks are proven in range only up to a slack, which is a factor of what an honest party's
projections reach: the root of the number of masks, and the tail that σ = 40 asks for.

>>> from fractions import Fraction
>>> plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
>>> slack_bits(plan), truncations(plan), field_bits(plan, level=5)
(11, 18473, 170)
"""

from __future__ import annotations

import math

from cloister.linear._plan import ITERATE_BITS, SHIFT_BITS, Plan

__all__ = ["MODULUS_BITS", "PROJECTIONS", "SIGMA", "field_bits", "kept_bits", "mask_bits", "slack_bits", "truncations"]

MODULUS_BITS = 183
"""2^183 < p."""
SIGMA = 40
"""A session's statistical distance is at most 2^-40."""
PROJECTIONS = 64
"""Random projections of a group of masks that are proven in range."""
_ONE_OPENING = SIGMA + 3
_SMALL = 4  # of a result beyond its level: the sign, the sum of an iterate and its change


def truncations(plan: Plan, *, fits: int = 1) -> int:
    """Openings under a bounded mask in a session of ``fits`` fits, the certificate's included."""
    certificate = 3 * plan.columns
    if plan.method == "ridge":
        return fits * (plan.steps * plan.columns + certificate)
    return fits * (plan.rounds * ((2 * plan.half + 1) * plan.columns + plan.features) + certificate)


def slack_bits(plan: Plan, *, fits: int = 1) -> int:
    """s: a cheater shifts a truncation by at most 2^s ulp."""
    many = truncations(plan, fits=fits)
    honest = 0.5 * math.log2(many * math.log(2 * PROJECTIONS * 2.0**SIGMA * 16)) - 1
    return math.ceil(honest) + 2


def kept_bits(level: int) -> int:
    """Of a truncation's result."""
    return ITERATE_BITS + level + _SMALL


def mask_bits(plan: Plan, *, level: int, fits: int = 1) -> int:
    """Of the part of a mask that hides a truncation's result, so that all openings together hide up to 2^-43."""
    return kept_bits(level) + 1 + _ONE_OPENING + math.ceil(math.log2(truncations(plan, fits=fits)))


def field_bits(plan: Plan, *, level: int, fits: int = 1, malicious: bool = True) -> int:
    """That the field must have: for a masked truncation, and for the certificate's sum of squares."""
    proven = slack_bits(plan, fits=fits) - 1 if malicious else 0
    parties = math.ceil(math.log2(plan.parties))
    truncation = SHIFT_BITS + mask_bits(plan, level=level, fits=fits) + proven + parties + 2
    squares = 2 * (ITERATE_BITS + level) + 9 + _ONE_OPENING + proven + 2 * parties + 2
    return max(truncation, squares)
