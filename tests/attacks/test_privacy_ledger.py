"""Whoever wants more of somebody's privacy than was agreed: each move against a ledger, an account or a book."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from functools import reduce
from typing import Any

import pytest

from cloister.errors import BudgetError, CloisterError, InputError, IntegrityError, RefusedError
from cloister.ledger import (
    Account,
    Book,
    Budget,
    Charge,
    Event,
    Laplace,
    Ledger,
    Method,
    Relation,
    SampledGaussian,
    Selection,
    Unaccounted,
    amount,
    begin_ledger,
    exact,
    merge_ledgers,
    open_book,
    read_book,
    read_ledger,
    require_within,
)
from cloister.ledger._budget import Posting, _link
from cloister.ledger._chain import begin
from cloister.wire import canonical

ADDED = Relation.ADD_OR_REMOVE_ONE
KIND: dict[str, Any] = {"unit": "patient", "relation": ADDED}
TRAINING = SampledGaussian(**KIND, sampling_probability="1/100", noise_multiplier="1.5", count=300)
METRIC = Laplace(**KIND, noise_multiplier="10", count=1)
RUN = "a" * 64
BUDGET = Budget(owner="hospital-a", **KIND, epsilon="2", delta="0.00001")


def ledger_of(*events: Event, run: str = RUN) -> Ledger:
    return reduce(Ledger.append, events, begin_ledger(run=run, **KIND))


def charge_of(name: str, *events: Event, **change: Any) -> Charge:
    fields: dict[str, Any] = {"owner": "hospital-a", **KIND, "events": events or (TRAINING,), "delta": "0.000001"}
    return Charge(id=hashlib.sha256(name.encode()).hexdigest(), **(fields | change))


def charged(book: Book, charge: Charge) -> Book:
    return book.charge(charge, after=book.head, by=Method.RDP)


def code_of(call: Any, kind: type[CloisterError]) -> int:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code


LEDGER = ledger_of(TRAINING, METRIC, TRAINING)
OTHER = ledger_of(METRIC, run="b" * 64)
VALUE = LEDGER.as_json()
LINES = VALUE["lines"]


@pytest.mark.parametrize(
    ("move", "change"),
    [
        ("fewer steps", {"lines": [LINES[0] | {"event": LINES[0]["event"] | {"count": 1}}, *LINES[1:]]}),
        ("more noise", {"lines": [LINES[0] | {"event": LINES[0]["event"] | {"noise_multiplier": "9"}}, *LINES[1:]]}),
        ("no slack", {"lines": [*LINES[:2], LINES[2] | {"link": "0" * 64}]}),
        ("a line dropped", {"lines": [LINES[0], LINES[2]]}),
        ("the first dropped", {"lines": LINES[1:]}),
        ("lines exchanged", {"lines": [LINES[1], LINES[0], LINES[2]]}),
        ("a line replayed", {"lines": [*LINES, LINES[2]]}),
        ("equal events exchanged", {"lines": [LINES[2], LINES[1], LINES[0]]}),
        ("another run's line", {"lines": [*LINES, OTHER.as_json()["lines"][0]]}),
        ("another run", {"run": "b" * 64}),
        ("cut short", {"lines": LINES[:2]}),
        ("emptied", {"lines": []}),
    ],
)
def test_a_ledger_that_is_not_the_signed_one_is_refused(move: str, change: dict[str, Any]) -> None:
    data = canonical(VALUE | change)
    assert code_of(lambda: read_ledger(data, head=LEDGER.head), IntegrityError) == 5801, move


def test_a_ledger_rewritten_with_right_links_has_another_head() -> None:
    shorter = ledger_of(TRAINING)
    assert read_ledger(shorter.canonical(), head=shorter.head) == shorter
    assert code_of(lambda: read_ledger(shorter.canonical(), head=LEDGER.head), IntegrityError) == 5801


def test_every_bit_of_a_ledger_counts() -> None:
    data = LEDGER.canonical()
    for place in range(0, len(data), 7):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(CloisterError) as caught:
            read_ledger(changed, head=LEDGER.head)
        assert caught.value.code in (2002, 2004, 2005, 2801, 2802, 5801)


def test_a_whole_ledger_of_another_unit_or_relation_has_another_head() -> None:
    for change in ({"unit": "record"}, {"relation": "replace-special"}):
        lines = [row | {"event": row["event"] | change} for row in LINES]
        data = canonical(VALUE | change | {"lines": lines})
        assert code_of(lambda data=data: read_ledger(data, head=LEDGER.head), IntegrityError) == 5801


def test_a_line_of_another_unit_or_relation_is_refused() -> None:
    for change in ({"unit": "record"}, {"relation": "replace-special"}):
        lines = [LINES[0] | {"event": LINES[0]["event"] | change}, *LINES[1:]]
        data = canonical(VALUE | {"lines": lines})
        assert code_of(lambda data=data: read_ledger(data, head=LEDGER.head), InputError) == 2802


def test_a_resumed_run_that_forgot_its_past_is_refused() -> None:
    """A checkpoint from before the last thousand steps, put back by the host."""
    for forgetful in (ledger_of(TRAINING), ledger_of(TRAINING, TRAINING, METRIC), OTHER, ledger_of()):
        assert code_of(lambda it=forgetful: it.require_extends(LEDGER), IntegrityError) == 5801


def test_a_run_is_not_merged_twice_and_not_in_two_versions() -> None:
    assert code_of(lambda: merge_ledgers([LEDGER, LEDGER]), IntegrityError) == 5802
    assert code_of(lambda: merge_ledgers([LEDGER, OTHER, ledger_of(TRAINING)]), IntegrityError) == 5802


def test_ledgers_of_different_kinds_are_not_merged() -> None:
    other = begin_ledger(run="c" * 64, unit="patient", relation=Relation.REPLACE_ONE)
    assert code_of(lambda: merge_ledgers([LEDGER, other]), InputError) == 2802


def test_hostile_numbers_cost_nothing() -> None:
    for text in ("9" * 4_000_000, "1e99999999", "0." + "1" * 3_000_000):
        event = TRAINING.as_json() | {"noise_multiplier": text}
        data = canonical(VALUE | {"lines": [LINES[0] | {"event": event}]})
        assert code_of(lambda data=data: read_ledger(data, head=LEDGER.head), InputError) in (2801, 2003)


def test_a_ledger_is_measured_before_it_is_parsed() -> None:
    assert code_of(lambda: read_ledger(b"[" * (4 * 1024 * 1024 + 1), head=None), InputError) == 2003
    assert code_of(lambda: read_ledger(b"[" * 100, head=None), InputError) == 2002


def test_floats_have_no_place_in_a_ledger() -> None:
    data = json.dumps(VALUE | {"lines": [{"event": TRAINING.as_json() | {"count": 1.0}, "link": RUN}]}).encode()
    assert code_of(lambda: read_ledger(data, head=None), InputError) == 2002


def test_a_guarantee_that_is_void_is_neither_summed_nor_charged() -> None:
    void = Unaccounted(**KIND, reason="noise was made of floats")
    assert Account([TRAINING, void], by=Method.RDP).epsilon("1e-5").epsilon is None
    assert code_of(lambda: charged(open_book(BUDGET), charge_of("1", TRAINING, void)), BudgetError) == 7802


def test_a_charge_of_another_owner_unit_or_relation_is_refused() -> None:
    record = TRAINING.model_copy(update={"unit": "record"})
    special = TRAINING.model_copy(update={"relation": Relation.REPLACE_SPECIAL})
    for asked in (
        charge_of("1", owner="hospital-b"),
        charge_of("1", record, unit="record"),
        charge_of("1", special, relation=Relation.REPLACE_SPECIAL),
        charge_of("1", record),  # the charge says patient, its event does not
        charge_of("1", TRAINING, special),
    ):
        assert code_of(lambda asked=asked: charged(open_book(BUDGET), asked), InputError) == 2802


def test_an_id_is_not_used_for_other_terms() -> None:
    book = charged(open_book(BUDGET), charge_of("1", METRIC))
    for asked in (charge_of("1", TRAINING), charge_of("1", METRIC, delta="0.000002")):
        assert code_of(lambda asked=asked: charged(book, asked), IntegrityError) == 5804


def test_two_openings_at_once_do_not_share_one_budget() -> None:
    book = open_book(BUDGET)
    seen = book.head
    stored = book.charge(charge_of("1"), after=seen, by=Method.RDP)
    refused = lambda: stored.charge(charge_of("2"), after=seen, by=Method.RDP)  # noqa: E731
    assert code_of(refused, RefusedError) == 3801
    assert code_of(lambda: stored.charge(charge_of("2"), after="é", by=Method.RDP), RefusedError) == 3801


def test_many_small_charges_are_not_free() -> None:
    """Each below any rounding of its own: a thousandth of a step's noise, a thousand times."""
    faint = TRAINING.model_copy(update={"noise_multiplier": "1000", "count": 1})
    book = open_book(BUDGET)
    for turn in range(30):
        before = book.spent.rdp
        book = charged(book, charge_of(str(turn), faint))
        assert all(a < b for a, b in zip(before, book.spent.rdp, strict=True))


def test_a_budget_ends_and_what_is_spent_never_comes_back() -> None:
    book, turn = open_book(BUDGET), 0
    while turn < 200:
        try:
            book = charged(book, charge_of(str(turn)))
        except BudgetError:
            break
        turn += 1
    assert 1 < turn < 200
    for name in ("again", "once more"):
        assert code_of(lambda name=name: charged(book, charge_of(name)), BudgetError) == 7801
    basic = sum(exact(posting.price.epsilon or "500") for posting in book.postings)
    assert basic <= 2 or any(entry <= cap for entry, cap in zip(book.spent.rdp, BUDGET.caps, strict=True))


def test_one_open_order_is_not_taken_for_all_of_delta() -> None:
    """Choosing the best of eight orders after the fact costs a share of delta each: a cap at all of it is larger."""
    from cloister.ledger._vector import ORDERS, cap_at

    whole = [cap_at(order, epsilon=BUDGET.epsilon, delta=exact(BUDGET.delta)) for order in ORDERS]
    assert all(cap < naive for cap, naive in zip(BUDGET.caps, whole, strict=True))


def test_a_slack_that_is_spread_over_many_charges_is_added_up() -> None:
    """Too little each time to matter, and together more than its share of delta."""
    sloppy = TRAINING.model_copy(update={"noise_multiplier": "30", "count": 1, "slack": "0.00000015"})
    book, refused = open_book(BUDGET), None
    for turn in range(12):
        try:
            book = charged(book, charge_of(str(turn), sloppy, delta="0.0000045"))
        except BudgetError as error:
            refused = error.code
            break
    assert refused == 7801


def test_an_older_book_is_not_taken_for_the_current_one() -> None:
    older = charged(open_book(BUDGET), charge_of("1"))
    current = charged(older, charge_of("2", METRIC))
    assert code_of(lambda: read_book(older.canonical(), head=current.head), IntegrityError) == 5801


def test_a_book_with_a_cheaper_price_or_a_larger_budget_is_refused() -> None:
    book = charged(charged(open_book(BUDGET), charge_of("1")), charge_of("2", METRIC))
    value = book.as_json()
    rows = value["postings"]
    cheaper = rows[0] | {"price": rows[0]["price"] | {"epsilon": "0"}}
    lighter = rows[0] | {"price": rows[0]["price"] | {"vector": {"rdp": [0] * 8, "slack": "0"}}}
    for change in (
        {"postings": [cheaper, rows[1]]},
        {"postings": [lighter, rows[1]]},
        {"postings": [rows[1]]},
        {"postings": [rows[1], rows[0]]},
        {"budget": value["budget"] | {"epsilon": "20"}},
    ):
        data = canonical(value | change)
        assert code_of(lambda data=data: read_book(data, head=book.head), IntegrityError) == 5801


def test_a_charge_does_not_stand_twice_in_a_book() -> None:
    """Whoever can write the chain could hide a charge behind an id that is there already."""
    book = charged(open_book(BUDGET), charge_of("1"))
    row = book.postings[0]
    again = Posting(
        charge=row.charge,
        contents=row.contents,
        price=row.price,
        link=_link(row.link, 1, row.charge, row.contents, row.price),
    )
    twice = book.model_copy(update={"postings": (row, again)})
    assert row.link == _link(
        begin("cloister-privacy-book/v1", BUDGET.as_json()), 0, row.charge, row.contents, row.price
    )
    assert code_of(lambda: read_book(twice.canonical(), head=twice.head), IntegrityError) == 5802


def test_a_book_is_not_taken_for_a_ledger() -> None:
    book = open_book(BUDGET)
    assert code_of(lambda: read_ledger(book.canonical(), head=book.head), InputError) == 2004
    assert code_of(lambda: read_book(LEDGER.canonical(), head=LEDGER.head), InputError) == 2004


def test_more_is_not_done_than_was_agreed() -> None:
    agreed = (TRAINING, METRIC, Selection(**KIND, trial=(METRIC,), distribution="poisson", mean="3"))
    half = TRAINING.model_copy(update={"count": 150})
    require_within([half, METRIC, half], agreed)
    require_within(agreed, agreed)
    require_within([], agreed)
    for done in (
        [half, half, half],
        [TRAINING.model_copy(update={"noise_multiplier": "1.4", "count": 1})],
        [TRAINING.model_copy(update={"slack": "0.0000001"})],
        [agreed[2], agreed[2]],
        [METRIC, METRIC],
        [Unaccounted(**KIND, reason="another engine")],
        [TRAINING.model_copy(update={"unit": "record", "count": 1})],
    ):
        assert code_of(lambda done=done: require_within(done, agreed), BudgetError) == 7804


def test_a_search_is_not_charged_as_one_trial() -> None:
    search = Selection(**KIND, trial=(TRAINING,), distribution="geometric", mean="30")
    one, all_of_it = (Account([event], by=Method.RDP).epsilon("1e-6").epsilon or "0" for event in (TRAINING, search))
    assert exact(all_of_it) > 2 * exact(one)
    budget = BUDGET.model_copy(update={"epsilon": amount(exact(one) * Fraction(3, 2))})
    assert charged(open_book(budget), charge_of("1")).postings
    assert code_of(lambda: charged(open_book(budget), charge_of("2", search)), BudgetError) == 7801


def test_a_trial_does_not_carry_another_unit_in() -> None:
    record = TRAINING.model_copy(update={"unit": "record"})
    build = lambda: Selection(**KIND, trial=(record,), distribution="poisson", mean="3")  # noqa: E731
    assert code_of(build, InputError) == 2802
