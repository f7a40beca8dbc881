"""What an audit says of privacy: bounded where a training bounds it, and unknown wherever a script comes between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.audits import PINS, code_of_audit
from tests.keyworld import NOW, World
from tests.runs import Place, with_privacy

from cloister.audit import AuditReport, verify
from cloister.manifest import Manifest, Release


def audited(folder: Path, change: Callable[[Manifest], Manifest]) -> AuditReport:
    world = World.make(folder, change=change)
    world.install()
    try:
        return verify(Place.start(world, folder).run().bundle(), at=NOW, pins=PINS)
    finally:
        world.close()


def said(report: AuditReport, subject: str) -> list[tuple[str, str]]:
    return [(c.status, f"{c.what}: {c.reason}") for c in report.checks if (c.group, c.subject) == ("privacy", subject)]


def asked(report: AuditReport) -> list[tuple[str, str]]:
    """What nobody can know of what a service was asked."""
    return [(c.status, f"{c.what}: {c.reason}") for c in report.checks if c.what.startswith("what was asked")]


def epsilon(text: str) -> float:
    """The last that is said, before what all runs together may cost."""
    return float(text.partition("; ")[0].rpartition("ε = ")[2].split()[0])


def test_what_comes_of_a_private_training_is_bounded_whatever_becomes_of_it(tmp_path: Path) -> None:
    report = audited(tmp_path, with_privacy)
    assert code_of_audit(report) == 0
    ((status, text),) = said(report, "prepare")
    assert status == "asserted"
    assert "at most ε = 2 at δ = 1e-6 per record: the engine's account costs ε = 1.51" in text
    bounds = said(report, "train/model")  # a script's, which reads nothing but what is private already
    assert [status for status, _ in bounds] == ["asserted", "asserted"]
    assert all("ε = 1.51" in text and "all runs together by its budget, ε ≤ 2" in text for _, text in bounds)
    assert [status for status, text in asked(report) if "what all answers reveal together is bounded" in text] == [
        "unknown"
    ]


def test_without_a_budget_other_runs_are_said_to_count_apart(tmp_path: Path) -> None:
    report = audited(tmp_path, lambda manifest: with_privacy(manifest, budget=None))
    assert all("other runs count apart" in text for _, text in said(report, "train/model"))


def read_again(manifest: Manifest) -> Manifest:
    """``train`` reads hospital-b's data beside what was trained."""
    made = with_privacy(manifest, budget=None)
    train = made.stages["train"].model_copy(update={"inputs": ("joined", "data-b")})
    return made.model_copy(update={"stages": {**made.stages, "train": train}})


def test_an_image_that_a_script_reads_too_is_not_bounded(tmp_path: Path) -> None:
    report = audited(tmp_path, read_again)
    (bounded, open_) = said(report, "train/model")
    assert (bounded[0], open_[0]) == ("asserted", "unknown")
    assert "of data-a is bounded" in bounded[1]
    assert "of data-b without differential privacy" in open_[1]
    ((_, text),) = asked(report)
    assert text.startswith("what was asked, and what the answers reveal together: ")
    assert "bounded" not in text


def prepared(manifest: Manifest) -> Manifest:
    """A script joins the data, and the training reads what it made."""
    made = with_privacy(manifest, budget=None)
    swapped = {
        "prepare": made.stages["prepare"].model_copy(update={"argv": ("python", "main.py"), "privacy": None}),
        "train": made.stages["train"].model_copy(
            update={
                "argv": made.stages["prepare"].argv,
                "privacy": made.stages["prepare"].privacy,
                "outputs": {"model": made.stages["train"].outputs["model"]},
            }
        ),
    }
    releases = tuple(each for each in made.releases if each.output != "metrics")
    return made.model_copy(update={"stages": swapped, "releases": releases})


def test_a_script_before_the_training_leaves_the_image_unknown(tmp_path: Path) -> None:
    report = audited(tmp_path, prepared)
    assert code_of_audit(report) == 0
    assert [status for status, _ in said(report, "train")] == ["asserted"]
    ((status, text),) = said(report, "train/model")
    assert status == "unknown"
    assert "of data-a, data-b through a private training, and a script before it" in text


def twice(manifest: Manifest) -> Manifest:
    """Two trainings of one image in one run, both released."""
    made = with_privacy(manifest)
    again = made.stages["prepare"].model_copy(
        update={"inputs": ("data-a",), "outputs": {"second": made.stages["prepare"].outputs["joined"]}}
    )
    releases = (*made.releases, Release(output="second", party="hospital-b"))
    return made.model_copy(update={"stages": {**made.stages, "again": again}, "releases": releases})


def test_all_trainings_of_an_image_in_a_run_are_added(tmp_path: Path) -> None:
    report = audited(tmp_path, twice)
    ((_, once),) = said(report, "prepare")
    bounds = {text.split(" is bounded: ")[0][-6:]: text for _, text in said(report, "train/model")}
    assert epsilon(once) == epsilon(bounds["data-b"]) < epsilon(bounds["data-a"]) < 2 * epsilon(once)


@pytest.mark.parametrize("relation", ["replace-one"])
def test_trainings_that_nothing_adds_up_leave_it_unknown(tmp_path: Path, relation: str) -> None:
    def change(manifest: Manifest) -> Manifest:
        made = twice(with_privacy(manifest, budget=None))
        images = {name: image.model_copy(update={"budget": None}) for name, image in made.images.items()}
        again = made.stages["again"]
        assert again.privacy is not None
        other = again.model_copy(update={"privacy": again.privacy.model_copy(update={"relation": relation})})
        return made.model_copy(update={"images": images, "stages": {**made.stages, "again": other}})

    report = audited(tmp_path, change)
    found = {text.split(" is bounded: ")[0][-6:]: (status, text) for status, text in said(report, "train/model")}
    assert found["data-b"][0] == "asserted"
    assert found["data-a"][0] == "unknown"
    assert "nothing adds up" in found["data-a"][1]
