"""The additive vector: whole numbers that bound the divergences and add exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.ledger import (
    NOTHING,
    ORDERS,
    UNBOUNDED,
    Account,
    Event,
    Gaussian,
    Laplace,
    Method,
    Relation,
    SampledGaussian,
    Selection,
    Unaccounted,
    Vector,
    amount,
    exact,
    total_of,
    vector_of,
)
from cloister.ledger._renyi import divergence, epsilon_at
from cloister.ledger._vector import cap_at
from cloister.wire import parse_message

KIND: dict[str, Any] = {"unit": "record", "relation": Relation.ADD_OR_REMOVE_ONE}

vectors = st.builds(
    lambda rdp, slack: Vector(rdp=tuple(rdp), slack=amount(Fraction(slack, 10**20))),
    st.lists(st.integers(0, UNBOUNDED), min_size=len(ORDERS), max_size=len(ORDERS)),
    st.integers(0, 10**20),
)
counts = st.integers(1, 10**4)
noises = st.integers(2000, 10**6).map(lambda n: amount(Fraction(n, 10_000)))
mechanisms = st.one_of(
    st.builds(
        lambda n, d, noise, count: SampledGaussian(
            **KIND,
            sampling_probability=f"{Fraction(n, n + d).numerator}/{Fraction(n, n + d).denominator}",
            noise_multiplier=noise,
            count=count,
        ),
        st.integers(1, 1000),
        st.integers(0, 10**6),
        noises,
        st.integers(1, 10**6),
    ),
    st.builds(
        lambda noise, count: Gaussian(**KIND, noise_multiplier=noise, count=count), noises, st.integers(1, 10**4)
    ),
    st.builds(lambda noise, count: Laplace(**KIND, noise_multiplier=noise, count=count), noises, counts),
)


def test_the_orders_never_change() -> None:
    assert ORDERS == (3, 5, 8, 12, 18, 28, 40, 80)


@settings(max_examples=50, deadline=None)
@given(mechanisms)
def test_each_entry_is_above_its_divergence_by_less_than_a_unit(event: Event) -> None:
    vector = vector_of(event)
    for order, entry in zip(ORDERS, vector.rdp, strict=True):
        true = Fraction(divergence(event, order)) * 2**20
        assert true <= entry < true + 1 or entry == UNBOUNDED


@given(vectors, vectors, vectors)
def test_addition_is_exact_whatever_the_grouping(a: Vector, b: Vector, c: Vector) -> None:
    assert (a + b) + c == a + (b + c) == total_of([c, b, a])
    assert a + NOTHING == a
    assert all(s >= max(x, y) for s, x, y in zip((a + b).rdp, a.rdp, b.rdp, strict=True))
    assert exact((a + b).slack) == exact(a.slack) + exact(b.slack)


@settings(max_examples=30, deadline=None)
@given(mechanisms, st.integers(1, 50))
def test_pieces_cost_at_least_the_whole_and_at_most_a_unit_more_each(event: Any, pieces: int) -> None:
    whole = event.model_copy(update={"count": event.count * pieces})
    together, apart = vector_of(whole), total_of([vector_of(event)] * pieces)
    for one, many in zip(together.rdp, apart.rdp, strict=True):
        assert one - 1 <= many <= one + pieces or many == UNBOUNDED


def test_an_unbounded_entry_stays_so() -> None:
    void = vector_of(Unaccounted(**KIND, reason="float noise"))
    assert set(void.rdp) == {UNBOUNDED}
    assert set((void + void + NOTHING).rdp) == {UNBOUNDED}
    assert void.epsilon("1e-5") is None


@settings(max_examples=20, deadline=None)
@given(mechanisms)
def test_a_vectors_epsilon_is_a_bound_and_not_far_from_all_orders(event: Event) -> None:
    shown = vector_of(event).epsilon("1e-6")
    account = Account([event], by=Method.RDP).epsilon("1e-6")
    if shown is not None:
        assert account.epsilon is not None
        assert exact(shown) >= exact(account.epsilon) - Fraction(2, 10**6)


def test_the_eight_orders_cost_little() -> None:
    for q, noise, count in (("1/100", "1.1", 5000), ("16/3125", "0.8", 20_000), ("1/10", "4", 1000)):
        event = SampledGaussian(**KIND, sampling_probability=q, noise_multiplier=noise, count=count)
        shown, best = vector_of(event).epsilon("1e-6"), Account([event], by=Method.RDP).epsilon("1e-6").epsilon
        assert exact(shown or "500") <= exact(best or "0") * Fraction(115, 100)


def test_slack_is_in_a_vectors_epsilon() -> None:
    event = SampledGaussian(**KIND, sampling_probability="1/100", noise_multiplier="1", count=1000, slack="0.0000003")
    ideal = vector_of(event.model_copy(update={"slack": "0"}))
    real = vector_of(event)
    assert (real.rdp, real.slack) == (ideal.rdp, "0.0000003")
    shown = exact(real.epsilon("1e-5") or "0")
    assert shown > exact(ideal.epsilon("1e-5") or "0")
    assert exact(Account([event], by=Method.RDP).epsilon("1e-5").epsilon or "0") <= shown
    assert Vector(rdp=ideal.rdp, slack="0.00001").epsilon("1e-5") is None


def test_a_searchs_slack_is_its_means_many_trials() -> None:
    trial = SampledGaussian(**KIND, sampling_probability="1/100", noise_multiplier="2", count=10, slack="0.0001")
    search = Selection(**KIND, trial=(trial,), distribution="geometric", mean="2.5")
    assert vector_of(search).slack == "0.00025"


@pytest.mark.parametrize("order", ORDERS)
def test_a_cap_is_the_largest_entry_that_still_shows_the_guarantee(order: int) -> None:
    for epsilon, delta in (("1", Fraction(1, 10**6)), ("8", Fraction(1, 10**9)), ("3", Fraction(1, 10**5))):
        cap = cap_at(order, epsilon=epsilon, delta=delta)
        if cap >= 0:
            assert epsilon_at({order: cap / 2**20}, float(delta)) <= float(epsilon) * (1 + 1e-8)
            assert epsilon_at({order: (cap + 4) / 2**20}, float(delta)) > float(epsilon)
        else:
            assert epsilon_at({order: 0.0}, float(delta)) > float(epsilon) - 1e-5


def test_a_vector_of_another_shape_is_refused() -> None:
    whole = NOTHING.as_json()
    for change in ({"rdp": [0] * 7}, {"rdp": [0] * 9}, {"rdp": [-1] + [0] * 7}, {"rdp": [UNBOUNDED + 1] + [0] * 7}):
        with pytest.raises(InputError) as caught:
            parse_message(Vector, whole | change, what="vector")
        assert caught.value.code in (2005, 2002)
