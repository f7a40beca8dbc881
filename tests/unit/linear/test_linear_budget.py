"""The budget script: every reference plan has room, the page's numbers, and a plan beyond it turns the check red."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[3] / "scripts" / "linear_budget.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("linear_budget", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["linear_budget"] = module
    spec.loader.exec_module(module)
    return module


def test_every_reference_plan_has_room(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert "NO ROOM" not in printed
    assert printed.count("distance 2^-4") == 3 + len(script.sessions())


def test_numbers_that_do_not_depend_on_the_bound(script: ModuleType) -> None:
    one = script.session("lasso", 90, 4)
    counts = one.budget.counts
    assert (counts.products, counts.thresholds) == (321, 1800)
    assert counts.authenticated["mat-vec: U, masks, U·mask"] == 92_092
    assert (one.budget.tiles.tiles, one.budget.tiles.vectors, one.budget.tiles.answers) == (4, 15, 22)
    assert script.session("ridge", 90, 4).budget.counts.products == 201
    assert script.session("newton", 90, 4).budget.counts.products == 484


@pytest.mark.parametrize(
    ("name", "value"), [("SIGMA", 70), ("MODULUS_BITS", 160), ("BOX_BITS", 60), ("ROWS", 2), ("PROJECTIONS", 30)]
)
def test_a_budget_that_is_exceeded_turns_the_check_red(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: int
) -> None:
    """Fewer repetitions, a smaller field, more slack: each is noticed."""
    monkeypatch.setattr(f"cloister.linear._budget.{name}", value)
    monkeypatch.setattr(script, "sessions", lambda: [script.session("lasso", 90, 4)])
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert "NO ROOM" in capsys.readouterr().out
