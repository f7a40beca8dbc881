"""Steps are the textbook's, rounded down; a polynomial between its nodes stays below what they say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.linear_twin import chebyshev

from cloister.linear._chebyshev import coefficients, nodes


@given(
    st.fractions(min_value=Fraction(1, 500), max_value=2, max_denominator=1000),
    st.fractions(min_value=Fraction(1, 2), max_value=2, max_denominator=1000),
    st.integers(min_value=1, max_value=12),
)
def test_the_steps_are_those_of_the_recursion_in_fractions(low: Fraction, width: Fraction, steps: int) -> None:
    assert list(coefficients(low, low + width, steps)) == chebyshev(low, low + width, steps)


def test_long_runs_keep_the_asymptotic_step() -> None:
    """β → ρ², for the limit ρ of T_(k-1)/T_k; and no step is longer than the spectrum's end allows."""
    low, high = Fraction(3, 2000), Fraction(3, 2000) + 1
    sigma = float((high + low) / (high - low))
    rho = sigma - (sigma**2 - 1) ** 0.5
    beta, gamma = coefficients(low, high, 200)[-1]
    assert beta == int(64 * rho**2)
    assert gamma == int((64 + beta) / float((high + low) / 2))


@pytest.mark.parametrize("condition", [30, 300, 3000, 30_000])
def test_the_rounded_iteration_does_not_grow(condition: int) -> None:
    """Whatever the condition, on the interval and below it: β and γ rounded by themselves would grow by 10^3 at 700."""
    low = Fraction(1, condition)
    steps = [(beta / 64, gamma / 64) for beta, gamma in coefficients(low, low + 1, 200)]
    points = np.linspace(0, float(low) + 1, 5001)
    now = before = np.ones_like(points)
    for beta, gamma in steps:
        now, before = now + beta * (now - before) - gamma * points * now, now
        assert np.abs(now).max() <= 1 + 1e-9


@pytest.mark.parametrize("times", [2, 16])
@pytest.mark.parametrize("degree", [1, 2, 5, 16, 47])
def test_what_lies_between_the_nodes_is_bounded(times: int, degree: int) -> None:
    low, high = -0.5, 2.0
    points, factor = nodes(low, high, degree=degree, times=times)
    assert len(points) == times * degree
    between = np.linspace(low, high, 40 * degree + 1)
    generator = np.random.default_rng(degree)
    worst = 0.0
    for trial in range(200):
        wave = np.polynomial.Chebyshev(generator.normal(size=degree + 1), domain=[low, high])
        if trial == 0:  # T_n itself, turned so that its extremes fall between the nodes
            wave = np.polynomial.Chebyshev([0] * degree + [1], domain=[low, high])
        inside, at = float(np.abs(wave(between)).max()), float(np.abs(wave(points)).max())
        assert inside <= at * factor
        worst = max(worst, inside / at)
    assert worst > (1 + (factor - 1) / 10 if times == 2 else 1)
