"""A launcher's receipt that says otherwise of its workers than was agreed, in a bundle that is whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.audits import PINS, code_of_audit, refuted
from tests.keyworld import NOW, World
from tests.runs import Place, with_offload

from cloister.audit import verify
from cloister.receipt import OffloadFacts, StageFacts


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path, change=with_offload)
    world.install()
    yield Place.start(world, tmp_path)
    world.close()


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"mode": "shared5"},
        {"mode": "enclave", "workers": ()},
        {"workers": ("gpu-x", "gpu-y")},
        {"checks": 1199},
        {"error_bits": 29},
        {"error_bits": None},
    ],
    ids=["left out", "another mode", "at home", "without one", "one not checked", "weak checks", "no soundness"],
)
def test_offloading_that_was_not_agreed_on(place: Place, change: dict[str, object] | None) -> None:
    def lie(facts: StageFacts) -> StageFacts:
        said = facts.offload
        if said is None:
            return facts
        return facts.model_copy(update={"offload": None if change is None else said.model_copy(update=change)})

    place.executor.lie = lie
    report = verify(place.run().bundle(), at=NOW, pins=PINS)
    assert code_of_audit(report) == 5351
    [check] = [check for check in refuted(report) if check.code == 5351]
    assert check.subject == "train attempt 1"


def test_workers_that_nobody_agreed_on(place: Place) -> None:
    """Of the other stage, which has none."""
    extra = OffloadFacts(
        mode="verify", workers=("gpu-x",), models=0, products=0, checks=0, sent_bytes=0, received_bytes=0
    )
    place.executor.lie = lambda facts: facts if facts.offload else facts.model_copy(update={"offload": extra})
    assert code_of_audit(verify(place.run().bundle(), at=NOW, pins=PINS)) == 5351
