"""Rényi divergences: upper bounds, against exact sums, high-precision integrals and another library."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.ledger import Gaussian, Laplace, Relation, SampledGaussian, Selection, Unaccounted, amount, ratio
from cloister.ledger._numbers import exact
from cloister.ledger._renyi import delta_at, divergence, divergences, epsilon_at
from cloister.ledger._replaced import replaced_divergence

ADDED, REPLACED, SPECIAL = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE, Relation.REPLACE_SPECIAL
CLOSE = 2.0**-27  # how far above the truth an upper bound may lie, relatively


def sampled(q: str, noise: str, count: int = 1, relation: Relation = ADDED) -> SampledGaussian:
    return SampledGaussian(
        unit="record",
        relation=relation,
        sampling_probability=ratio(q),
        noise_multiplier=amount(noise),
        count=count,
    )


def exact_sampled(q: str, noise: str, order: int) -> Any:
    with mpmath.workdps(60):
        p, s = exact(q), exact(noise)
        q_, s_ = mpmath.mpf(p.numerator) / p.denominator, mpmath.mpf(s.numerator) / s.denominator
        total = mpmath.fsum(
            mpmath.binomial(order, k) * (1 - q_) ** (order - k) * q_**k * mpmath.exp((k * k - k) / (2 * s_**2))
            for k in range(order + 1)
        )
        return mpmath.log(total) / (order - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["1e-9", "1e-6", "64/50000", "0.01", "0.3", "0.999"]),
    st.sampled_from(["0.05", "0.5", "1", "3.7", "1000"]),
    st.sampled_from([2, 3, 8, 40, 128]),
)
def test_a_sampled_gaussian_is_just_above_the_exact_sum(q: str, noise: str, order: int) -> None:
    true = exact_sampled(q, noise, order)
    ours = divergence(sampled(q, noise), order)
    assert true <= ours <= true * (1 + CLOSE)


def test_no_digit_is_lost_where_the_sampling_probability_is_tiny() -> None:
    # q² (e^(1/σ²) - 1) at order 2: a sum that holds its 1 would show 0, or noise
    ours = divergence(sampled("1e-12", "1"), 2)
    assert 1 <= ours / (1e-24 * math.expm1(1)) <= 1 + CLOSE


@pytest.mark.parametrize("relation", [ADDED, SPECIAL])
def test_the_direction_of_adding_is_the_smaller_one(relation: Relation) -> None:
    for q, s, order in ((0.01, 1.0, 4), (0.3, 0.7, 3), (0.5, 2.0, 16)):

        def removed(x: Any, q: float = q, s: float = s, order: int = order) -> Any:  # N(0) against the mixture
            base = mpmath.npdf(x, 0, s)
            return base * (base / ((1 - q) * base + q * mpmath.npdf(x, 1, s))) ** (order - 1)

        other = mpmath.log(mpmath.quad(removed, mpmath.linspace(-20 * s, 20 * s, 41))) / (order - 1)
        assert other < divergence(sampled(str(q), str(s), relation=relation), order)


@pytest.mark.parametrize("order", [2, 7, 64])
def test_a_unit_replaced_counts_twice_where_nothing_is_sampled(order: int) -> None:
    for relation, factor in ((ADDED, 1), (SPECIAL, 1), (REPLACED, 4)):
        gaussian = Gaussian(unit="record", relation=relation, noise_multiplier="2", count=3)
        assert 1 <= divergence(gaussian, order) / (factor * 3 * order / 8) <= 1 + CLOSE
        certain = sampled("1", "2", 3, relation)
        assert divergence(certain, order) == divergence(gaussian, order)
    once = Laplace(unit="record", relation=ADDED, noise_multiplier="2", count=1)
    twice = Laplace(unit="record", relation=REPLACED, noise_multiplier="4", count=1)
    assert divergence(once, order) == divergence(twice, order)


@pytest.mark.parametrize(
    ("q", "noise", "order"),
    [
        (0.01, 1.0, 2),
        (0.9, 0.7, 5),
        (1e-9, 4.0, 3),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0.01, 1.0, 8), (0.5, 1.0, 8), (1e-6, 2.0, 16))),
    ],
)
def test_a_replaced_unit_is_just_above_the_integral(q: float, noise: float, order: int) -> None:
    with mpmath.workdps(34):
        p, s = mpmath.mpf(q), mpmath.mpf(noise)

        def excess(x: Any) -> Any:  # the integral of P^a Q^(1-a), less 1, without cancelling
            base = mpmath.npdf(x, 0, s)
            up, down = ((1 - p) * base + p * mpmath.npdf(x, m, s) for m in (1, -1))
            return up**order * down ** (1 - order) - down - order * (up - down)

        ends = mpmath.linspace(-12 * s - 2, order + 12 * s + 2, 31)
        true = mpmath.log1p(mpmath.quad(excess, ends)) / (order - 1)
    assert true <= replaced_divergence(q, noise, order) <= true * (1 + CLOSE)


def test_a_replaced_unit_tends_to_twice_the_distance() -> None:
    assert replaced_divergence(1 - 1e-12, 1.0, 4) == pytest.approx(4 * 4 / 2, rel=1e-8)


def test_an_order_that_would_cost_too_much_is_unbounded_not_slow() -> None:
    assert replaced_divergence(0.01, 0.016, 1024) == math.inf


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-7, 50), st.integers(2, 200))
def test_laplace_is_just_above_the_closed_form(epsilon: float, order: int) -> None:
    event = Laplace(unit="record", relation=ADDED, noise_multiplier=amount(f"{1 / epsilon:.12f}"), count=1)
    with mpmath.workdps(60):
        e = 1 / mpmath.mpf(event.noise_multiplier)
        a = mpmath.mpf(order)
        total = a / (2 * a - 1) * mpmath.exp((a - 1) * e) + (a - 1) / (2 * a - 1) * mpmath.exp(-a * e)
        true = mpmath.log(total) / (a - 1)
    assert true <= divergence(event, order) <= true * (1 + CLOSE)


def test_another_library_finds_the_same() -> None:
    orders = (2, 5, 13, 48)
    theirs = RdpAccountant(orders=list(orders))
    theirs.compose(dp_event.PoissonSampledDpEvent(0.02, dp_event.GaussianDpEvent(1.3)), 500)
    theirs.compose(dp_event.LaplaceDpEvent(7.0), 4)
    theirs.compose(dp_event.GaussianDpEvent(9.0), 2)
    kind: dict[str, Any] = {"unit": "record", "relation": ADDED}
    ours = divergences(
        [
            sampled("0.02", "1.3", 500),
            Laplace(**kind, noise_multiplier="7", count=4),
            Gaussian(**kind, noise_multiplier="9", count=2),
        ],
        orders,
    )
    for order, rho in zip(orders, theirs.rdp, strict=True):
        assert ours[order] == pytest.approx(float(rho), rel=1e-7)


@pytest.mark.parametrize("distribution", ["poisson", "geometric"])
def test_a_search_costs_as_another_library_says_and_never_less_than_one_trial(distribution: Any) -> None:
    trial = sampled("0.01", "1.5", 1000)
    search = Selection(unit="record", relation=ADDED, trial=(trial,), distribution=distribution, mean="16")
    orders = list(range(2, 65))
    theirs = RdpAccountant(orders=orders)
    shape = math.inf if distribution == "poisson" else 1
    one = dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(0.01, dp_event.GaussianDpEvent(1.5)), 1000)
    theirs.compose(dp_event.RepeatAndSelectDpEvent(one, mean=16, shape=shape))
    ours = divergences([search])
    assert epsilon_at(ours, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=2e-3)
    assert all(ours[a] > divergence(trial, a) for a in orders)
    every = [trial.model_copy(update={"count": 16_000})]
    assert epsilon_at(ours, 1e-5) < epsilon_at(divergences(every), 1e-5)


def test_what_is_not_accounted_for_is_unbounded() -> None:
    void = Unaccounted(unit="record", relation=ADDED, reason="float noise")
    total = divergences([sampled("0.01", "1"), void])
    assert set(total.values()) == {math.inf}
    assert epsilon_at(total, 1e-5) == math.inf
    assert delta_at(total, 100.0) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 20), st.floats(1e-12, 0.1))
def test_epsilon_and_delta_are_each_others_inverse(noise: float, delta: float) -> None:
    total = divergences(
        [Gaussian(unit="record", relation=ADDED, noise_multiplier=amount(f"{noise + 0.1:.6f}"), count=1)]
    )
    epsilon = epsilon_at(total, delta)
    assert delta_at(total, epsilon) <= delta * (1 + 1e-6)
    if epsilon > 1e-3:
        assert delta_at(total, epsilon * 0.99) > delta


def test_nothing_costs_nothing() -> None:
    nothing = divergences([])
    assert epsilon_at(nothing, 0.0) == 0.0
    assert delta_at(nothing, 0.0) == 0.0
    assert epsilon_at(divergences([sampled("0.5", "1")]), 0.0) == math.inf
