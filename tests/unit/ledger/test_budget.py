"""Budgets: two filters, charged before data is opened, never given back; safe to crash and to ask twice."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import BudgetError, InputError, RefusedError
from cloister.ledger import (
    ORDERS,
    Book,
    Budget,
    Charge,
    Event,
    Gaussian,
    Method,
    Relation,
    SampledGaussian,
    exact,
    open_book,
    price_of,
    read_book,
)
from cloister.ledger import _budget as budget_module

ADDED = Relation.ADD_OR_REMOVE_ONE
KIND: dict[str, Any] = {"unit": "patient", "relation": ADDED}
BUDGET = Budget(owner="hospital-a", **KIND, epsilon="3", delta="0.00001")
TRAINING = SampledGaussian(**KIND, sampling_probability="1/100", noise_multiplier="2", count=500)


def name(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def charge_of(text: object, *events: Event, delta: str = "0.000001", **change: Any) -> Charge:
    fields: dict[str, Any] = {"owner": "hospital-a", **KIND, "events": events or (TRAINING,), "delta": delta}
    return Charge(id=name(text), **(fields | change))


def charged(book: Book, charge: Charge, by: Method = Method.RDP) -> Book:
    return book.charge(charge, after=book.head, by=by)


def filled(by: Method = Method.RDP) -> tuple[Book, int]:
    """A book charged until it refuses, and how often it was charged."""
    book = open_book(BUDGET)
    for turn in range(100):
        try:
            book = charged(book, charge_of(turn), by)
        except BudgetError:
            return book, turn
    raise AssertionError("the budget was never used up")


def test_a_charge_is_added_and_the_shorter_book_stays() -> None:
    empty = open_book(BUDGET)
    book = charged(empty, charge_of(1))
    assert len(empty.postings) == 0
    assert book.spent == price_of([TRAINING], delta="0.000001", by=Method.RDP).vector
    assert exact(book.epsilon_spent() or "0") > 0
    assert read_book(book.canonical(), head=book.head) == book


def test_the_refusal_names_owner_unit_spent_asked_and_cap() -> None:
    book, _ = filled()
    with pytest.raises(BudgetError) as caught:
        charged(book, charge_of("one more"))
    told = caught.value.as_json()
    assert told["code"] == 7801
    assert "hospital-a" in str(told["what"])
    assert "patient" in str(told["what"])
    assert f"spent epsilon {book.epsilon_spent()}" in str(told["got"])
    assert "asked epsilon" in str(told["got"])
    assert "epsilon at most 3 at delta 0.00001 (add-or-remove-one)" in str(told["expected"])


def test_composing_the_vector_admits_more_than_adding_epsilons() -> None:
    price = price_of([TRAINING], delta="0.000001", by=Method.RDP)
    _, times = filled()
    assert times > exact(BUDGET.epsilon) / exact(price.epsilon or "0")


def test_a_single_run_is_admitted_by_its_own_tight_epsilon() -> None:
    """The filter by orders is too loose for it: the first rule is what lets it in."""
    budget = BUDGET.model_copy(update={"epsilon": "1", "delta": "0.00002"})
    run = SampledGaussian(**KIND, sampling_probability="4/3125", noise_multiplier="1", count=23_437)
    asked = charge_of(1, run, delta="0.00001")
    with pytest.raises(BudgetError) as caught:
        charged(open_book(budget), asked, Method.RDP)
    assert caught.value.code == 7801
    book = charged(open_book(budget), asked, Method.PLD)
    assert book.epsilon_spent() == "0.979016"
    with pytest.raises(BudgetError):
        charged(book, charge_of(2, run, delta="0.00001"), Method.PLD)


def test_one_charge_may_ask_for_at_most_half_of_delta_by_the_first_rule() -> None:
    large = Gaussian(**KIND, noise_multiplier="1.8", count=1)
    budget = BUDGET.model_copy(update={"epsilon": "2.5"})
    assert charged(open_book(budget), charge_of(1, large, delta="0.000005"), Method.PLD).postings
    with pytest.raises(BudgetError):
        charged(open_book(budget), charge_of(1, large, delta="0.000006"), Method.PLD)


def test_a_budgets_caps_share_delta_out() -> None:
    assert len(BUDGET.caps) == len(ORDERS)
    for order, cap in zip(ORDERS, BUDGET.caps, strict=True):
        wider = BUDGET.model_copy(update={"epsilon": "3.5"}).caps[ORDERS.index(order)]
        assert wider - cap == pytest.approx(2**19, abs=2)


def test_the_same_charge_twice_is_one_charge_and_another_attempt_is_another() -> None:
    book = charged(open_book(BUDGET), charge_of(1))
    assert charged(book, charge_of(1)) == book
    assert book.charge(charge_of(1), after=open_book(BUDGET).head, by=Method.RDP) == book  # its answer was lost
    assert len(charged(book, charge_of(2)).postings) == 2


def test_a_used_up_budget_still_answers_for_what_was_charged() -> None:
    book, times = filled()
    assert charged(book, charge_of(times - 1)) == book


def test_of_two_charges_decided_at_once_one_is_stored() -> None:
    book = open_book(BUDGET)
    first, second = charge_of(1), charge_of(2)
    seen = book.head
    book = book.charge(first, after=seen, by=Method.RDP)
    with pytest.raises(RefusedError) as caught:
        book.charge(second, after=seen, by=Method.RDP)
    assert caught.value.code == 3801
    assert len(charged(book, second).postings) == 2


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["1", "2", "5", "20"]), st.integers(1, 2000), st.booleans(), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_crashes_nothing_is_opened_uncharged_and_spending_never_shrinks(
    asks: list[tuple[str, int, bool, bool]],
) -> None:
    """A store that may crash before or after writing; the opener asks again with the same id."""
    stored, opened = open_book(BUDGET).canonical(), set[str]()
    head = open_book(BUDGET).head
    before: tuple[int, ...] = (0,) * len(ORDERS)
    for turn, (noise, count, crash_before, crash_after) in enumerate(asks):
        asked = charge_of(turn, TRAINING.model_copy(update={"noise_multiplier": noise, "count": count}))
        for again in range(2):
            book = read_book(stored, head=head)
            try:
                following = charged(book, asked)
            except BudgetError:
                break
            if crash_before and not again:
                continue
            stored, head = following.canonical(), following.head
            if crash_after and not again:
                continue
            opened.add(asked.id)
        now = read_book(stored, head=head)
        assert opened <= {posting.charge for posting in now.postings}
        assert len({posting.charge for posting in now.postings}) == len(now.postings)
        assert all(a <= b for a, b in zip(before, now.spent.rdp, strict=True))
        before = now.spent.rdp
        basic = sum((exact(p.price.epsilon or "500") for p in now.postings), Fraction(0)) <= exact(BUDGET.epsilon)
        assert basic or any(entry <= cap for entry, cap in zip(before, BUDGET.caps, strict=True))


def test_a_full_book_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "_MOST_POSTINGS", 1)
    book = charged(open_book(BUDGET), charge_of(1))
    with pytest.raises(InputError) as caught:
        charged(book, charge_of(2))
    assert caught.value.code == 2803


@pytest.mark.parametrize("change", [{"epsilon": "0"}, {"epsilon": "501"}, {"delta": "0"}, {"delta": "1"}])
def test_a_budget_that_caps_nothing_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        Budget(owner="hospital-a", **KIND, **({"epsilon": "3", "delta": "0.00001"} | change))
    assert caught.value.code == 2801


def test_slack_beyond_its_share_closes_the_rule_by_orders() -> None:
    quiet = TRAINING.model_copy(update={"noise_multiplier": "40", "count": 1})
    spread = [quiet.model_copy(update={"slack": "0.00000001"})] * 20  # (1 + e^3) · 2e-7 > delta / 4
    apart = charge_of(1, *spread, delta="0.000009")  # and more δ than the first rule may take
    with pytest.raises(BudgetError) as caught:
        charged(open_book(BUDGET), apart)
    assert caught.value.code == 7801
    assert charged(open_book(BUDGET), charge_of(1, *[quiet] * 20, delta="0.000009")).postings
