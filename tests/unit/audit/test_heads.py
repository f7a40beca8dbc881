"""Completeness: what the auditor's own heads show, and what they do not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.audits import PINS, refuted
from tests.keyworld import NOW, World
from tests.runs import Place

from cloister.audit import verify
from cloister.keys import open_head
from cloister.receipt import Bundle
from cloister.wire import Envelope


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path)
    world.install()
    yield Place.start(world, tmp_path)
    world.close()


def heads(place: Place) -> list[Envelope]:
    return [client.head() for client in place.world.clients.values()]


def complete(bundle: Bundle, given: Sequence[Envelope]) -> list[tuple[str, str]]:
    """Status and reason of completeness at each key manager."""
    report = verify(bundle, at=NOW, pins=PINS, heads=given)
    assert refuted(report) == []
    report.require()
    found = [check for check in report.checks if check.what.startswith("the log is complete")]
    assert not any(check.required for check in found)
    return [(check.status, check.reason) for check in found]


def test_head_of_the_bundles_own_tree(place: Place) -> None:
    bundle = place.run().bundle()
    assert [status for status, _ in complete(bundle, heads(place))] == ["asserted", "asserted"]


def test_without_a_head_nothing_is_claimed(place: Place) -> None:
    told = complete(place.run().bundle(), [])
    assert {status for status, _ in told} == {"unknown"}
    assert "cloister keys head" in told[0][1]


def test_without_a_head_counts_and_dates_are_not_shown_to_bind_the_host(place: Place) -> None:
    bundle = place.run().bundle()

    def told(given: Sequence[Envelope]) -> list[tuple[str, str]]:
        report = verify(bundle, at=NOW, pins=PINS, heads=given)
        return [(c.subject, c.status) for c in report.checks if c.what.startswith("use counts and expiry")]

    assert told([]) == [("keys-a", "unknown"), ("keys-b", "unknown")]
    assert told(heads(place)[:1]) == [("keys-b", "unknown")]
    assert told(heads(place)) == []


def test_head_of_one_key_manager_says_nothing_of_the_other(place: Place) -> None:
    bundle = place.run().bundle()
    assert [status for status, _ in complete(bundle, heads(place)[:1])] == ["asserted", "unknown"]


def test_head_given_twice_and_with_its_proof_is_one_head(place: Place) -> None:
    client = place.world.clients["keys-a"]
    first = open_head(client.head(), client.key)
    bundle = place.run().bundle()
    given = [*heads(place), *heads(place), client.consistency(first)]
    report = verify(bundle, at=NOW, pins=PINS, heads=given)
    told = [(c.subject, c.status) for c in report.checks if "agrees with the head" in c.what]
    assert told == [("keys-a", "asserted"), ("keys-b", "asserted")]


def test_head_from_before_the_run_shows_no_completeness(place: Place) -> None:
    early = heads(place)
    bundle = place.run().bundle(heads=early)
    told = complete(bundle, early)
    assert {status for status, _ in told} == {"unknown"}
    assert "from before the run's end" in told[0][1]


def test_head_that_nothing_connects_is_unknown_and_not_agreement(place: Place) -> None:
    place.run()
    given = heads(place)
    place.world.run()
    bundle = place.bundle()
    report = verify(bundle, at=NOW, pins=PINS, heads=given[:1])
    told = {c.what: (c.status, c.reason) for c in report.checks if (c.group, c.subject) == ("log", "keys-a")}
    size = open_head(given[0], place.world.clients["keys-a"].key).size
    agrees = told[f"agrees with the head of {size} entries that the auditor holds"]
    assert agrees == ("unknown", "no proof connects it with the bundle's log")
    assert complete(bundle, given)[0][0] == "unknown"


def test_bundle_made_with_the_auditors_head_brings_the_proof(place: Place) -> None:
    place.run()
    given = heads(place)
    place.world.run()
    bundle = place.bundle(heads=given)
    assert [status for status, _ in complete(bundle, given)] == ["asserted", "asserted"]


def test_newer_head_says_how_much_is_missing(place: Place) -> None:
    client = place.world.clients["keys-a"]
    bundle = place.run().bundle()
    held = open_head(client.head(), client.key)
    for _ in range(3):
        place.world.run()
    [told, _] = complete(bundle, [client.consistency(held)])
    assert told == ("unknown", "the log has 3 newer entries: make a new bundle")
