"""Engines that release more than they claim: an audit contradicts each, and the right one not.

A right engine is contradicted in one of a million runs at most, so these tests need no seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.broken_engines import BROKEN, accepting_batch_norms, audited

from cloister.privacy import CanaryReport

FALSE_ALARM = 1e-6
USUAL: dict[str, Any] = {"epochs": 4, "noise_multiplier": "2"}
SIX = ("no noise", "clipped too late", "batch norm", "shuffled", "sum and mean", "drawn twice")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dashed(name: str) -> str:
    return name.replace(" ", "-")


def found(name: str | None, *, epochs: int, noise_multiplier: str) -> CanaryReport:
    normed = name == "batch norm"
    with accepting_batch_norms() if normed else nullcontext():
        audit = audited(normed=normed, noise_multiplier=noise_multiplier)
        if name is not None:
            BROKEN[name][0](audit)
        return audit.run(epochs=epochs, false_alarm=FALSE_ALARM)


def test_the_right_engine_is_not_contradicted() -> None:
    report = found(None, epochs=3, noise_multiplier="2")
    assert report.contradicted == ()
    assert report.verdict == "not contradicted"
    assert report.epsilon_bound <= float(report.claimed.epsilon or 0)


@pytest.mark.parametrize("name", SIX, ids=dashed)
def test_a_broken_engine_is_contradicted_by_what_is_broken(name: str) -> None:
    # what outliers do to others is little beside much noise: an audit with less of it sees it sooner
    report = found(name, **({"epochs": 7, "noise_multiplier": "0.25"} if name == "batch norm" else USUAL))
    assert report.verdict == "contradicted"
    assert set(report.contradicted) >= BROKEN[name][1], report.findings
    if name in ("no noise", "sum and mean"):  # guesses alone show it too, with nothing assumed
        assert report.epsilon_bound > float(report.claimed.epsilon or "inf")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BROKEN) - set(SIX)), ids=dashed)
def test_other_broken_engines_are_contradicted_too(name: str) -> None:
    report = found(name, **USUAL)
    assert set(report.contradicted) >= BROKEN[name][1], report.findings


@pytest.mark.slow
def test_a_batch_norm_is_noticed_beside_as_much_noise_as_is_usual() -> None:
    report = found("batch norm", epochs=14, noise_multiplier="0.8")
    assert "isolation" in report.contradicted, report.findings


@pytest.mark.slow
@pytest.mark.parametrize("noise_multiplier", ["0.5", "1", "4"])
def test_the_right_engine_is_not_contradicted_whatever_its_noise(noise_multiplier: str) -> None:
    assert found(None, epochs=8, noise_multiplier=noise_multiplier).contradicted == ()
