from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.audits import PINS, code_of_audit
from tests.keyworld import NOW, World
from tests.runs import Place, with_offload

from cloister.audit import AuditReport, Check, render_html, verify
from cloister.receipt import StageFacts


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = World.make(tmp_path, change=with_offload)
    world.install()
    yield Place.start(world, tmp_path)
    world.close()


def audited(place: Place) -> AuditReport:
    return verify(place.run().bundle(), at=NOW, pins=PINS)


def of_offloading(report: AuditReport) -> dict[str, Check]:
    return {check.status: check for check in report.checks if check.group == "offload"}


def test_what_the_workers_multiplied_is_asserted_with_its_numbers(place: Place) -> None:
    report = audited(place)
    assert code_of_audit(report) == 0
    check = of_offloading(report)["asserted"]
    assert (check.subject, check.required) == ("train", True)
    assert check.what == (
        "mode shared3: its layers were multiplied by 'gpu-x', 'gpu-y', 'gpu-z', and every product was checked"
    )
    assert check.reason == (
        "1,200 products, 1,200 checks: a wrong one passed with a probability of at most 2^-47; "
        "5,000,000 bytes sent, 3,000,000 received"
    )


def test_whether_workers_collude_stays_unknown(place: Place) -> None:
    check = of_offloading(audited(place))["unknown"]
    assert check.what == "what its workers learned, and whether they collude"
    assert not check.required
    assert "that no two of lab, doctor, hospital-b put together what they saw, nothing shows" in check.reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"products": 0, "checks": 0, "models": 0, "error_bits": None}, "nothing was offloaded"),
        ({"late": 1500}, "1,500 blinding products were made late"),
    ],
)
def test_what_a_receipt_says_of_it_is_shown(place: Place, change: dict[str, object], said: str) -> None:
    def lie(facts: StageFacts) -> StageFacts:
        if facts.offload is None:
            return facts
        return facts.model_copy(update={"offload": facts.offload.model_copy(update=change)})

    place.executor.lie = lie
    report = audited(place)
    assert code_of_audit(report) == 0
    assert said in of_offloading(report)["asserted"].reason


def test_a_stage_without_an_accepted_receipt_is_unknown_and_the_run_is_not_accepted(place: Place) -> None:
    place.executor.lie = lambda facts: facts.model_copy(update={"offload": None})
    report = audited(place)
    missing = next(check for check in report.checks if check.group == "offload" and check.required)
    assert (missing.status, missing.reason) == ("unknown", "no accepted receipt of it")


def test_the_page_shows_both(place: Place) -> None:
    page = render_html(audited(place), place.world.manifest)
    assert "every product was checked" in page
    assert "a wrong one passed with a probability of at most 2^-47" in page
    assert "whether they collude" in page
