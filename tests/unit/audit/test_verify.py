import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from tests.audits import PINS, Finished, code_of_audit, finished_run
from tests.keyworld import NOW, World, code_of
from tests.runs import Place, many_stages

from cloister.audit import verify
from cloister.errors import error_for
from cloister.manifest import Manifest, OffloadTerms, Worker
from cloister.receipt import parse_bundle
from cloister.wire import OpeningKey

__all__ = ["finished_run"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path)
    made.install()
    yield made
    made.close()


def test_finished_run_is_accepted_and_told(finished_run: Finished) -> None:
    report = finished_run.audit(heads=finished_run.heads)
    report.require()
    assert report.outcome == "asserted"
    assert report.run == finished_run.place.folder.state().run
    assert report.simulated
    assert [(row.stage, row.attempt, row.sandbox) for row in report.ran] == [
        ("prepare", 1, "bubblewrap"),
        ("train", 1, "bubblewrap"),
    ]
    assert ("data-b", "prepare attempt 1", "keys-b") in {(r.what, r.to, r.by) for r in report.released}
    assert ("model", "answers attempt 1", "keys-a") in {(r.what, r.to, r.by) for r in report.released}


def test_audit_is_a_function_of_its_arguments(finished_run: Finished) -> None:
    again = parse_bundle(finished_run.bundle.canonical())
    assert finished_run.audit(again).as_json() == finished_run.audit().as_json()


def test_no_check_is_made_twice(finished_run: Finished) -> None:
    made = [(c.group, c.subject, c.what) for c in finished_run.audit(heads=finished_run.heads).checks]
    assert len(made) == len(set(made))


def test_a_time_without_a_zone_is_no_time(finished_run: Finished) -> None:
    assert code_of(lambda: finished_run.audit(at=datetime(2026, 11, 20))) == 2106


def test_failed_attempts_are_shown_and_accepted(world: World, tmp_path: Path) -> None:
    def script(stage: str, attempt: int, halt: object) -> None:
        if stage == "train" and attempt == 1:
            raise error_for(5501)

    place = Place.start(world, tmp_path)
    place.executor.script = script
    report = verify(place.run().bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == 0
    shown = [c for c in report.checks if (c.group, c.subject) == ("release", "train attempt 1")]
    assert {(c.status, c.required) for c in shown} == {("unknown", False)}
    assert "no receipt came back" in shown[0].reason


def test_attempt_that_ended_before_attestation_is_shown(world: World, tmp_path: Path) -> None:
    place = Place.start(world, tmp_path)
    world.registrar.start_attempt(place.folder.state().grant, "prepare")
    report = verify(place.run().bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == 0
    left = [c for c in report.checks if c.what == "the bundle leaves it out"]
    assert [(c.subject, c.status) for c in left] == [("prepare attempt 1", "unknown")]


def test_refusals_are_told(world: World, tmp_path: Path) -> None:
    place = Place.start(world, tmp_path)
    run = place.folder.state().grant
    assert code_of(lambda: world.registrar.start_attempt(run, "nothing")) == 3428
    report = verify(place.run().bundle(), at=NOW, pins=PINS)
    [told] = [c for c in report.checks if c.group == "refusal"]
    assert (told.status, told.required) == ("asserted", False)
    assert "CLOISTER-3428" in told.reason


def test_uses_by_other_runs_of_the_manifest_are_counted(world: World, tmp_path: Path) -> None:
    Place.start(world, tmp_path / "one").run()
    report = verify(Place.start(world, tmp_path / "two").run().bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == 0
    [uses] = [c for c in report.checks if c.subject == "keys-a" and "more often" in c.what]
    assert uses.reason == "data-a: 2 of 5; scripts: 4 of 50"
    assert {row.stage for row in report.ran} == {"prepare", "train"}


def with_terms(manifest: Manifest) -> Manifest:
    prepare, train = manifest.stages["prepare"], manifest.stages["train"]
    stages = {
        "prepare": prepare,
        "train": train.model_copy(
            update={
                "offload": OffloadTerms(mode="verify", workers=("gpu",)),
                "network": ("gpu",),
            }
        ),
    }
    workers = {"gpu": Worker(operator="doctor", url="tcp://gpu.invalid:8430", key=str(OpeningKey.generate().public))}
    return manifest.model_copy(update={"stages": stages, "workers": workers})


def test_what_nobody_can_see_is_said(tmp_path: Path) -> None:
    world = World.make(tmp_path, change=with_terms)
    world.install()
    report = verify(Place.start(world, tmp_path).run().bundle(), at=NOW, pins=PINS)
    said = {(c.group, c.subject): c.reason for c in report.checks if c.status == "unknown"}
    assert "of data-a, data-b without differential privacy: scripts read it" in said["privacy", "train/model"]
    assert "doctor may ask as often as they like" in said["privacy", "answers"]
    assert "mode verify" in said["offload", "train"]
    assert {"hardware", "time", "code", "data"} <= {group for group, _ in said}
    assert all(not c.required for c in report.checks if c.status == "unknown")
    world.close()


@pytest.mark.slow
def test_a_run_of_a_hundred_stages_is_audited_in_seconds(tmp_path: Path) -> None:
    world = World.make(tmp_path, change=lambda manifest: many_stages(manifest, 100))
    world.install()
    data = Place.start(world, tmp_path).run().bundle().canonical()
    begun = time.monotonic()
    report = verify(parse_bundle(data), at=NOW, pins=PINS)
    assert time.monotonic() - begun < 10
    assert (code_of_audit(report), len(report.ran)) == (0, 100)
    world.close()
