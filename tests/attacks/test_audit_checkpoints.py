"""A run with a stage that was killed and went on: what its logs and its receipt must say of checkpoints."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.test_checkpoint_record import saving
from tests.audits import PINS, code_of_audit
from tests.keyworld import World
from tests.runs import Place, relog

from cloister.audit import AuditReport, verify
from cloister.errors import PeerError
from cloister.keys import CheckpointEntry, ReleaseEntry, RunEntry
from cloister.manifest import Manifest
from cloister.receipt import Bundle, Resumed, StageFacts

Entries = list[Any]
WHAT = "its checkpoints follow one another, and each attempt went on from the last"


def killed_once(stage: str, attempt: int, _halt: Any) -> None:
    if (stage, attempt) == ("prepare", 1):
        raise PeerError(6701)


def finished(world: World, folder: Path, lie: Callable[[StageFacts], StageFacts] = lambda facts: facts) -> Place:
    place = Place.start(world, folder)
    place.executor.script, place.executor.lie = killed_once, lie
    place.executor.saves = lambda stage, attempt: 2 if stage == "prepare" else 0
    return place.run()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("checkpoints")
    world = World.make(folder, change=saving)
    world.install()
    yield finished(world, folder)
    world.close()


def audited(place: Place, bundle: Bundle) -> AuditReport:
    return verify(bundle, at=place.world.clock(), pins=PINS)


def codes(place: Place, change: Callable[[Entries], Entries], name: str = "keys-a") -> set[int | None]:
    report = audited(place, relog(place.world, place.bundle(), name, change))
    return {check.code for check in report.checks if check.status == "refuted"}


def changed(number: int, **fields: Any) -> Callable[[Entries], Entries]:
    """The log with one checkpoint's entry changed; no receipt of the bundle is about it."""

    def change(entries: Entries) -> Entries:
        saved = [entry for entry in entries if isinstance(entry, CheckpointEntry)]
        other = saved[number].model_copy(update=fields)
        grown = next(entry for entry in entries if isinstance(entry, RunEntry)).model_copy(update={"run": "f" * 32})
        return [*(other if entry is saved[number] else entry for entry in entries), grown]

    return change


def test_a_stage_that_went_on_is_accepted_and_shown(place: Place) -> None:
    report = audited(place, place.bundle())
    report.require()
    (check,) = [each for each in report.checks if each.what == WHAT]
    assert (check.subject, check.reason) == (
        "prepare",
        "4 checkpoints saved; attempt 2 went on from number 2 of attempt 1",
    )


def test_a_stage_without_terms_is_not_spoken_of(place: Place) -> None:
    assert "train" not in {check.subject for check in audited(place, place.bundle()).checks if check.what == WHAT}


@pytest.mark.parametrize("fields", [{"sequence": 1}, {"attempt": 1}, {"attempt": 3}])
def test_a_log_in_which_a_checkpoint_goes_back_is_refused(place: Place, fields: dict[str, int]) -> None:
    assert 5370 in codes(place, changed(3, **fields))


def test_a_checkpoint_after_the_end_is_refused(place: Place) -> None:
    def late(entries: Entries) -> Entries:
        last = [entry for entry in entries if isinstance(entry, CheckpointEntry)][-1]
        return [*entries, last.model_copy(update={"sequence": 9, "at": entries[-1].at})]

    assert codes(place, late) == {5370}


def test_a_checkpoint_of_a_stage_that_saves_none_is_refused(place: Place) -> None:
    """Between its release and its registration, so that nothing else is wrong with it."""

    def other(entries: Entries) -> Entries:
        last = [entry for entry in entries if isinstance(entry, CheckpointEntry)][-1]
        at = next(i for i, e in enumerate(entries) if isinstance(e, ReleaseEntry) and e.consumer == "train") + 1
        return [*entries[:at], last.model_copy(update={"stage": "train", "attempt": 1}), *entries[at:]]

    assert 5370 in codes(place, other)


def test_two_logs_that_know_one_number_for_two_checkpoints_are_refused(place: Place) -> None:
    assert codes(place, changed(0, checkpoint="0" * 64)) == {5370}


@pytest.mark.parametrize("resumed", [None, Resumed(attempt=1, sequence=1)])
def test_a_launcher_that_went_on_from_another_checkpoint_is_refused(tmp_path: Path, resumed: Resumed | None) -> None:
    world = World.make(tmp_path, change=saving)
    world.install()

    def lie(facts: StageFacts) -> StageFacts:
        return facts.model_copy(update={"resumed": resumed}) if facts.stage == "prepare" else facts

    bundle = finished(world, tmp_path, lie).bundle()
    assert code_of_audit(verify(bundle, at=world.clock(), pins=PINS)) == 5371
    world.close()


@pytest.mark.parametrize(
    ("change", "resumed"),
    [
        (lambda manifest: manifest, Resumed(attempt=1, sequence=1)),
        (saving, Resumed(attempt=2, sequence=2)),
        (saving, Resumed(attempt=3, sequence=2)),
    ],
)
def test_a_receipt_that_goes_on_where_nothing_was_saved_fits_no_manifest(
    tmp_path: Path, change: Callable[[Manifest], Manifest], resumed: Resumed
) -> None:
    world = World.make(tmp_path, change=change)
    world.install()
    place = Place.start(world, tmp_path)
    place.executor.script = killed_once
    place.executor.lie = lambda facts: (
        facts.model_copy(update={"resumed": resumed}) if facts.stage == "prepare" else facts
    )
    bundle = place.run().bundle()
    assert code_of_audit(verify(bundle, at=world.clock(), pins=PINS)) == 5351
    world.close()
