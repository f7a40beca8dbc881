"""A launcher's receipt that says otherwise of a private training than was agreed, in a bundle that is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.audits import PINS, code_of_audit, refuted
from tests.keyworld import NOW, World
from tests.runs import Place, with_offload, with_privacy

from cloister.audit import verify
from cloister.ledger import Ledger, Relation, SampledGaussian, Unaccounted, begin_ledger
from cloister.manifest import Manifest
from cloister.receipt import StageFacts


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path, change=with_privacy)
    world.install()
    yield Place.start(world, tmp_path)
    world.close()


def changed(ledger: Ledger, **fields: object) -> Ledger:
    """A ledger of the same training, whole in itself, whose event is another."""
    (event,) = ledger.events
    return begin_ledger(run=ledger.run, unit=ledger.unit, relation=ledger.relation).append(
        event.model_copy(update=fields)
    )


def of_another_run(ledger: Ledger) -> Ledger:
    return begin_ledger(run="f" * 64, unit=ledger.unit, relation=ledger.relation).append(*ledger.events)


def of_another_relation(ledger: Ledger) -> Ledger:
    (event,) = ledger.events
    relation = Relation.ADD_OR_REMOVE_ONE
    other = event.model_copy(update={"relation": relation})
    return begin_ledger(run=ledger.run, unit=ledger.unit, relation=relation).append(other)


def relinked(ledger: Ledger) -> Ledger:
    (line,) = ledger.lines
    assert isinstance(line.event, SampledGaussian)
    forged = line.model_copy(update={"event": line.event.model_copy(update={"count": 1})})
    return ledger.model_copy(update={"lines": (forged,)})


def doubled(ledger: Ledger) -> Ledger:
    return ledger.append(*ledger.events)


def unaccounted(ledger: Ledger) -> Ledger:
    return ledger.append(Unaccounted(unit=ledger.unit, relation=ledger.relation, reason="another engine"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda ledger: None, 5351),
        (of_another_run, 5351),
        (of_another_relation, 5351),
        (relinked, 5801),
        (doubled, 7804),
        (unaccounted, 7804),
        (lambda ledger: changed(ledger, count=101), 7804),
        (lambda ledger: changed(ledger, noise_multiplier="0.9"), 7804),
        (lambda ledger: changed(ledger, sampling_probability="11/1000"), 7804),
        (lambda ledger: changed(ledger, slack="0.001"), 7804),
    ],
    ids=[
        "left out", "another run's", "another relation", "a broken chain", "done twice", "unaccounted", "more steps",
        "less noise", "drawn more often", "more slack",
    ],
)  # fmt: skip
def test_a_training_that_was_not_agreed_on(place: Place, change: Callable[[Ledger], Ledger | None], code: int) -> None:
    def lie(facts: StageFacts) -> StageFacts:
        return facts if facts.privacy is None else facts.model_copy(update={"privacy": change(facts.privacy)})

    place.executor.lie = lie
    report = verify(place.run().bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == code
    assert "prepare attempt 1" in {check.subject for check in refuted(report) if check.code == code}
    assert all(check.status != "asserted" for check in report.checks if check.subject == "train/model")


def test_a_training_that_drew_less_often_or_stopped_earlier_is_within(place: Place) -> None:
    def lie(facts: StageFacts) -> StageFacts:
        if facts.privacy is None:
            return facts
        return facts.model_copy(update={"privacy": changed(facts.privacy, sampling_probability="9/1000", count=99)})

    place.executor.lie = lie
    assert code_of_audit(verify(place.run().bundle(), at=NOW, pins=PINS)) == 0


def both(manifest: Manifest) -> Manifest:
    """Both terms in one stage."""
    made = with_privacy(with_offload(manifest))
    terms, stages = made.stages["train"].offload, dict(made.stages)
    assert terms is not None
    stages["prepare"] = stages["prepare"].model_copy(update={"offload": terms, "network": terms.workers})
    return made.model_copy(update={"stages": stages})


@pytest.fixture
def offloaded(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path, change=both)
    world.install()
    yield Place.start(world, tmp_path)
    world.close()


def test_a_private_training_on_workers_is_bounded_and_checked(offloaded: Place) -> None:
    report = verify(offloaded.run().bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == 0
    said = {(check.group, check.subject): check.statement for check in report.checks if check.status == "asserted"}
    assert "every product was checked: 1,200 products" in said["offload", "prepare"]
    assert "the engine's account costs ε" in said["privacy", "prepare"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda facts: {"offload": None}, 5351),
        (lambda facts: {"privacy": None}, 5351),
        (lambda facts: {"offload": None, "privacy": None}, 5351),
        (lambda facts: {"offload": facts.offload.model_copy(update={"mode": "verify"})}, 5351),
        (lambda facts: {"offload": facts.offload.model_copy(update={"checks": 1199})}, 5351),
        (lambda facts: {"privacy": of_another_run(facts.privacy)}, 5351),
        (lambda facts: {"privacy": doubled(facts.privacy)}, 7804),
    ],
    ids=["no report", "no ledger", "neither", "another mode", "unchecked", "another run's ledger", "done twice"],
)
def test_one_report_does_not_stand_for_the_other(
    offloaded: Place, change: Callable[[StageFacts], dict[str, object]], code: int
) -> None:
    def lie(facts: StageFacts) -> StageFacts:
        return facts if facts.stage != "prepare" else facts.model_copy(update=change(facts))

    offloaded.executor.lie = lie
    assert code_of_audit(verify(offloaded.run().bundle(), at=NOW, pins=PINS)) == code


def test_a_script_with_a_ledger_of_its_own(place: Place) -> None:
    """It says so itself: nothing stands behind it."""
    own: list[Ledger] = []

    def lie(facts: StageFacts) -> StageFacts:
        own.extend(() if facts.privacy is None else (facts.privacy,))
        return facts.model_copy(update={"privacy": own[0]})

    place.executor.lie = lie
    assert code_of_audit(verify(place.run().bundle(), at=NOW, pins=PINS)) == 5351
