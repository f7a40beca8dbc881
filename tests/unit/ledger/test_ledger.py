"""A run's ledger: what is written is what is read, and it only grows."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, IntegrityError
from cloister.ledger import (
    Gaussian,
    Laplace,
    Ledger,
    Relation,
    SampledGaussian,
    Unaccounted,
    begin_ledger,
    merge_ledgers,
    read_ledger,
)
from cloister.ledger import _ledger as ledger_module

ADDED = Relation.ADD_OR_REMOVE_ONE
KIND: dict[str, Any] = {"unit": "patient", "relation": ADDED}
EVENTS = (
    SampledGaussian(**KIND, sampling_probability="1/100", noise_multiplier="1.1", count=10),
    Laplace(**KIND, noise_multiplier="20", count=1),
    Gaussian(**KIND, noise_multiplier="3", count=2, slack="0.0001"),
    Unaccounted(**KIND, reason="float noise"),
)


def ledger_of(*events: Any, run: str = "a" * 64) -> Ledger:
    return reduce(Ledger.append, events, begin_ledger(run=run, **KIND))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_a_ledger_survives_its_bytes(events: list[Any]) -> None:
    ledger = ledger_of(*events)
    assert read_ledger(ledger.canonical(), head=ledger.head) == ledger
    assert ledger.events == tuple(events)


def test_appending_leaves_the_shorter_ledger_as_it_was() -> None:
    short = ledger_of(EVENTS[0])
    before = short.canonical()
    longer = short.append(EVENTS[1])
    assert short.canonical() == before
    assert longer.lines[:1] == short.lines
    assert longer.head != short.head
    longer.require_extends(short)
    longer.require_extends(longer)


def test_equal_lines_at_different_places_have_different_links() -> None:
    ledger = ledger_of(EVENTS[0], EVENTS[0])
    assert ledger.lines[0].link != ledger.lines[1].link


def test_ledgers_of_two_runs_have_nothing_in_common() -> None:
    one, other = ledger_of(EVENTS[0]), ledger_of(EVENTS[0], run="b" * 64)
    assert one.head != other.head
    assert merge_ledgers([one, other]) == (EVENTS[0], EVENTS[0])
    assert merge_ledgers([]) == ()


def test_an_event_of_another_kind_is_not_appended() -> None:
    for change in ({"unit": "record"}, {"relation": Relation.REPLACE_ONE}):
        with pytest.raises(InputError) as caught:
            ledger_of(EVENTS[0].model_copy(update=change))
        assert caught.value.code == 2802


def test_a_full_ledger_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_MOST_LINES", 2)
    with pytest.raises(InputError) as caught:
        ledger_of(EVENTS[0], EVENTS[0], EVENTS[0])
    assert caught.value.code == 2803


def test_a_ledger_without_a_head_is_only_consistent_in_itself() -> None:
    ledger = ledger_of(*EVENTS)
    cut = ledger.model_copy(update={"lines": ledger.lines[:1]})
    assert read_ledger(cut.canonical(), head=None).events == EVENTS[:1]
    with pytest.raises(IntegrityError) as caught:
        read_ledger(cut.canonical(), head=ledger.head)
    assert caught.value.code == 5801


def test_another_format_is_told_apart_from_a_broken_file() -> None:
    value = ledger_of().canonical()
    for data, code in ((value.replace(b"ledger/v1", b"ledger/v2"), 2004), (value[:-1], 2002), (b"{}", 2005)):
        with pytest.raises(InputError) as caught:
            read_ledger(data, head=None)
        assert caught.value.code == code
