"""The discrete Gaussian over the integers, exactly: no float, no table, any variance.

``N_Z(0, σ²)`` gives the integer x the probability ``exp(-x²/2σ²) / Σ_y exp(-y²/2σ²)``. Source: Canonne, Kamath and
Steinke, "The Discrete Gaussian for Differential Privacy" (2020), algorithms 1 to 3; randomness is the operating
system's, through ``secrets``.

The engine for training (``cloister.privacy``) has a faster sampler, for σ up to 2^34, within 2^-73 of the ideal and in
constant time; it needs torch's room. Here σ may be greater, a few thousand draws are all that a fit takes (0.1 s), and
nothing but the operating system's randomness is assumed.

*Time.* Draws are rejected and repeated, so how long they take says a little of their sizes. They are made by their
owner alone, all at once, before anything is sent: others see when the party is ready, and no more.

>>> abs(discrete_gaussian(Fraction(100))) < 200
True
"""

from __future__ import annotations

import math
from fractions import Fraction
from secrets import randbelow

__all__ = ["discrete_gaussian"]


def discrete_gaussian(variance: Fraction) -> int:
    """One draw; ``variance`` is σ², positive and exact."""
    scale = math.isqrt(math.floor(variance)) + 1
    p, q = variance.numerator, variance.denominator
    while True:
        draw = _laplace(scale)
        # exp(-(|x| - σ²/t)²/2σ²)
        if _coin((abs(draw) * q * scale - p) ** 2, 2 * p * q * scale**2):
            return draw


def _laplace(scale: int) -> int:
    """An integer x with a probability proportional to exp(-|x|/scale)."""
    while True:
        size = randbelow(scale)
        if not _coin(size, scale):
            continue
        while _coin(1, 1):
            size += scale
        if randbelow(2):
            return size
        if size:  # 0 has one sign
            return -size


def _coin(numerator: int, denominator: int) -> bool:
    """True with probability exp(-γ), γ ≥ 0 a fraction."""
    while numerator > denominator:
        if not _coin(1, 1):
            return False
        numerator -= denominator
    # of successes with chances γ/1, γ/2, … in a row there is an even number with this probability
    k = 1
    while randbelow(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
