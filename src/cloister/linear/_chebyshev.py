"""Chebyshev's iteration for ``A x = b`` with the spectrum of A in [low, high]: its steps, and bounds of polynomials.

A step is ``x_next = x + β (x - x_prev) + γ (b - A x)``. With ``centre = (low + high)/2``, ``radius = (high - low)/2``,
``σ = centre/radius`` and Chebyshev's polynomials T, ``β_k = T_(k-2)(σ)/T_k(σ)`` and ``γ_k = (1 + β_k)/centre`` (Saad,
"Iterative Methods for Sparse Linear Systems", algorithm 12.1, rearranged).

*Bounds, not samples.* What a polynomial does between the points where it was evaluated is bounded by its degree:
Markov's inequality for its derivative, here in Bernstein's and M. Riesz's form, which needs fewer points. Let p have
degree n on [low, high], and ``q(φ) = p(centre + radius·cos φ)``, a trigonometric polynomial of degree n whose
greatest magnitude is at φ*. Then ``|q(φ)| ≥ max|q|·cos(n(φ - φ*))`` while ``n|φ - φ*| ≤ π/2``. The zeros of T_M lie
π/M apart in φ, so one is within π/2M of φ*, and ``max|p| ≤ max over the zeros / cos(nπ/2M)`` for M > n.

>>> coefficients(Fraction(1, 4), Fraction(5, 4), 3)  # in units of 2^-6
((0, 85), (18, 109), (10, 98))
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["STEP_BITS", "coefficients", "nodes"]

STEP_BITS = 6
"""Fractional bits of β and γ."""

_FLOAT_MARGIN = 1 + 2.0**-20  # above what float64 rounds off in a few thousand steps of a recursion that does not grow


def coefficients(low: Fraction, high: Fraction, steps: int) -> tuple[tuple[int, int], ...]:
    """(β, γ) of each step in units of 2^-6, rounded down: β first, and γ to what that β allows.

    With γ = (1 + β)/centre for the *rounded* β, ``γ·a < 2(1 + β)`` holds up to a = high, and no mode grows. Rounded
    each by itself they break this by up to 2^-7, where the margin is low/high: the iteration grows from a condition of
    a few hundred on. All is done in integers, ``q^k T_k(p/q)`` for σ = p/q.

    Returns:
        For each step the integers ``floor(64 β)`` and ``floor((64 + floor(64 β))/centre)``.
    """
    centre = (low + high) / 2
    p, q = (2 * centre / (high - low)).as_integer_ratio()
    before, now, beta, out = 1, p, 0, []
    for _ in range(steps):
        out.append((beta, math.floor((2**STEP_BITS + beta) / centre)))
        earlier, before, now = before, now, 2 * p * now - q * q * before
        beta = (q * q * earlier << STEP_BITS) // now
    return tuple(out)


def nodes(low: float, high: float, *, degree: int, times: int) -> tuple[NDArray[np.float64], float]:
    """Points to evaluate a polynomial at, and the factor that makes a bound of the greatest magnitude found.

    Args:
        low: Where the interval begins.
        high: Where it ends.
        degree: Of the polynomial, at most.
        times: M = times · degree points, 2 or more.

    Returns:
        The zeros of T_M on [low, high], shape (M,), and ``1/cos(π/(2·times))``, with a margin for float64.
    """
    many = times * degree
    angles = (np.arange(many) + 0.5) * (math.pi / many)
    points = (low + high) / 2 + (high - low) / 2 * np.cos(angles)
    return points, _FLOAT_MARGIN / math.cos(math.pi / (2 * times))
