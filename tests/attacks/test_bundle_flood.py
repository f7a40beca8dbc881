"""Strangers fill a key manager's log: bundles stay as they were, and say what they leave out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.audits import PINS, code_of_audit
from tests.keyworld import NOW, World, code_of
from tests.runs import Place

from cloister.audit import verify
from cloister.errors import CloisterError
from cloister.keys import AttemptRequest, LogPage, RunRequest, open_signed
from cloister.receipt import Bundle
from cloister.run import _bundling
from cloister.wire import Envelope

STRANGERS = 700  # entries of each kind: more than a page


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path)
    world.install()
    yield Place.start(world, tmp_path).run()
    world.close()


def ask(world: World, action: Any, bodies: list[Any]) -> list[CloisterError | None]:
    """What becomes of many requests, at the registrar."""
    desk = world.services[world.manifest.registrar].desk
    return [desk.finish(future.result())[1] for future in [desk.submit(action, body) for body in bodies]]


def refusals(world: World, run: Envelope) -> None:
    """Anybody who knows the run's id can have requests refused that name it."""
    codes = {
        error.code for error in ask(world, "attempt", [AttemptRequest(run=run, consumer="x")] * STRANGERS) if error
    }
    assert codes == {3428}


def runs(world: World, _: Envelope) -> None:
    """Anybody who knows the manifest's id can be granted runs, and attempts in them."""
    assert set(ask(world, "run", [RunRequest(manifest=world.manifest.id)] * STRANGERS)) == {None}
    mine = world.run()
    assert set(ask(world, "attempt", [AttemptRequest(run=mine, consumer="prepare")] * STRANGERS)) == {None}


def account(world: World, bundle: Bundle) -> list[tuple[int, str]]:
    key = world.clients["keys-a"].key
    opened = [open_signed(LogPage, each, key) for each in bundle.key_managers["keys-a"].account]
    return [(item.index, item.entry.kind) for page in opened for item in page.entries]


@pytest.mark.parametrize("flood", [refusals, runs])
def test_strangers_do_not_lengthen_a_bundle(place: Place, flood: Callable[[World, Envelope], None]) -> None:
    before = place.bundle()
    flood(place.world, place.folder.state().grant)
    after = place.bundle()
    assert account(place.world, after) == account(place.world, before)
    shown = _bundling.REFUSALS_SHOWN * 1000  # bytes of a refusal
    assert len(after.canonical()) < len(before.canonical()) + shown
    heads = [client.head() for client in place.world.clients.values()]
    report = verify(after, at=NOW, pins=PINS, heads=heads)
    assert code_of_audit(report) == 0
    told = [c for c in report.checks if c.what.startswith("the log is complete")]
    assert [c.status for c in told] == ["asserted", "asserted"]
    [note] = [c.reason for c in report.checks if (c.group, c.subject) == ("log", "keys-a") and "none missing" in c.what]
    size = place.world.stores["keys-a"].size()
    assert note.startswith(f"{len(account(place.world, before))} of {size} entries count here")


def test_refusals_beyond_the_first_are_counted(place: Place) -> None:
    refusals(place.world, place.folder.state().grant)
    report = verify(place.bundle(), at=NOW, pins=PINS)
    told = [c for c in report.checks if c.group == "refusal"]
    assert sum(c.status == "asserted" for c in told) == _bundling.REFUSALS_SHOWN
    [rest] = [c for c in told if c.status == "unknown"]
    assert rest.reason.startswith(f"{_bundling.REFUSALS_SHOWN} of {STRANGERS};")
    assert not rest.required


def test_large_refusals_leave_room_for_what_counts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals(place.world, place.folder.state().grant)
    for room, shown in ((40_000, range(1, 100)), (1, range(1))):
        monkeypatch.setattr(_bundling, "REFUSALS_BYTES", room)
        bundle = place.bundle()
        page = open_signed(LogPage, bundle.key_managers["keys-a"].refusals, place.world.clients["keys-a"].key)
        assert page.total == STRANGERS
        assert len(page.entries) in shown
        assert code_of_audit(verify(bundle, at=NOW, pins=PINS)) == 0


def test_bundle_that_no_audit_could_read_is_not_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(place.bundle().canonical())
    monkeypatch.setattr(_bundling, "MAX_BUNDLE_BYTES", size)
    assert len(place.bundle().canonical()) <= size
    monkeypatch.setattr(_bundling, "MAX_BUNDLE_BYTES", size - 1000)
    assert code_of(place.bundle) == 2557


def test_account_without_end_is_not_gathered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds while the pages come, not after all of them are in memory."""
    monkeypatch.setattr("cloister.keys._client.MAX_PAGE_ENTRIES", 1)
    client = place.world.clients["keys-a"]
    asked, get = list[str](), client._get

    def counting(path: str, query: dict[str, str] | None = None) -> Envelope:
        asked.append(path)
        return get(path, query)

    monkeypatch.setattr(client, "_get", counting)
    monkeypatch.setattr(_bundling, "MAX_BUNDLE_BYTES", 10)
    assert code_of(place.bundle) == 2557
    assert asked.count("/v1/log/entries") == 1
