"""Which entries concern what: the fast files against the rule, and the rule against what strangers can cause."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.keyworld import World, code_of

from cloister.keys import Entry, LogQuery, Selection, parse_entry
from cloister.keys._selection import Filing, selects
from cloister.wire import canonical, parse_message

ONE, OTHER = "a" * 64, "b" * 64
RUN, ELSEWHERE = "1" * 32, "2" * 32
AT = {"at": "2026-11-20T12:00:00Z"}

REFUSED = {"kind": "refusal", "action": "attempt", "code": 3428, "what": "no", "trace": []}

MADE: list[dict[str, Any]] = [
    {"kind": "genesis", "key_manager": "x", "hpke": "y"},
    REFUSED,
    *(
        {
            "kind": "refusal",
            "action": "attempt",
            "code": 3428,
            "what": "no",
            "trace": [],
            "manifest": manifest,
            "run": run,
        }
        for manifest in (ONE, OTHER)
        for run in (RUN, ELSEWHERE)
    ),
    {**REFUSED, "manifest": ONE},
    *({"kind": "run", "manifest": manifest, "run": run} for manifest in (ONE, OTHER) for run in (RUN, ELSEWHERE)),
    *({"kind": "attempt", "manifest": ONE, "run": run, "consumer": "a", "attempt": 1} for run in (RUN, ELSEWHERE)),
    *(
        {
            "kind": "collect",
            "manifest": manifest,
            "run": run,
            "output": "o",
            "party": "p",
            "image": ONE,
            "statement": ONE,
            "assurance": "simulated",
        }
        for manifest in (ONE, OTHER)
        for run in (RUN, ELSEWHERE)
    ),
    *(
        {
            "kind": "checkpoint",
            "manifest": ONE,
            "run": run,
            "stage": "a",
            "attempt": 1,
            "sequence": 1,
            "checkpoint": ONE,
            "statement": ONE,
        }
        for run in (RUN, ELSEWHERE)
    ),
    {"kind": "suspension", "manifest": ONE, "party": "p", "reason": "", "statement": ONE},
    {"kind": "revocation", "manifest": ONE, "image": "i", "owner": "p", "statement": ONE},
]


def entry(fields: dict[str, Any]) -> Any:
    return parse_entry(canonical(fields | AT))


def query(selection: Selection, run: str | None, size: int = 1000) -> LogQuery:
    return LogQuery(manifest=ONE, run=run, selection=selection, size=size)


def test_account_has_what_counts_and_nothing_that_a_stranger_can_cause() -> None:
    chosen = [fields for fields in MADE if selects(query("account", RUN), entry(fields))]
    assert {fields["manifest"] for fields in chosen} == {ONE}
    told = [(fields["kind"], fields.get("run")) for fields in chosen]
    assert told == [
        ("run", RUN),
        ("attempt", RUN),
        ("collect", RUN),
        ("collect", ELSEWHERE),
        ("checkpoint", RUN),
        ("suspension", None),
        ("revocation", None),
    ]


def test_every_kind_of_entry_counts_unless_it_is_named() -> None:
    """A new kind must not be left out of accounts by being forgotten."""

    class Later:
        manifest = ONE

    assert selects(query("account", RUN), Later())


def test_refusals_of_a_run_name_it() -> None:
    chosen = [fields for fields in MADE if selects(query("refusals", RUN), entry(fields))]
    assert [(fields["kind"], fields["manifest"], fields["run"]) for fields in chosen] == [("refusal", ONE, RUN)]


@given(
    st.lists(st.sampled_from(MADE), max_size=40),
    st.sampled_from(["all", "account", "refusals"]),
    st.sampled_from([None, RUN, ELSEWHERE]),
    st.integers(1, 45),
)
def test_files_agree_with_the_rule(
    made: list[dict[str, Any]], selection: Selection, run: str | None, size: int
) -> None:
    if selection == "account" and run is None:
        run = RUN
    entries = [entry(fields) for fields in made]
    filing = Filing()
    for place, each in enumerate(entries):
        filing.add(place, each)
    asked = query(selection, run, size)
    slow = [place for place, each in enumerate(entries[:size]) if selects(asked, each)]
    assert list(filing.places(asked)) == slow


@pytest.mark.parametrize(
    "change",
    [
        {"selection": "account"},
        {"selection": "some"},
        {"manifest": "a"},
        {"run": "a"},
        {"size": 0},
        {"start": -1},
        {"count": 501},
        {"more": 1},
    ],
)
def test_what_is_no_question(change: dict[str, Any]) -> None:
    value = {"manifest": ONE, "size": 1, **change}
    assert code_of(lambda: parse_message(LogQuery, value, what="question")) == 2005


def test_all_kinds_are_tried_here() -> None:
    """Those that need a whole run to be made are in the worlds of other tests."""
    union = Entry.__origin__  # pyright: ignore
    kinds = {each.model_fields["kind"].default for each in union.__args__}
    elsewhere = {"manifest", "key", "release", "registration"}
    assert kinds - elsewhere == {fields["kind"] for fields in MADE}


def test_keys_and_releases_count(world: World) -> None:
    world.install()
    run = world.run()
    world.finish(run, "prepare")
    world.run()
    name = next(iter(world.services["keys-a"].desk.core._state.runs))
    kinds = [each.kind for each in world.shown("keys-a", run=name, selection="account")]
    assert kinds == ["manifest", "key", "key", "run", "attempt", "release", "registration"]
    assert [each.kind for each in world.shown("keys-a")] == [*kinds, "run"]
