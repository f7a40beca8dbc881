"""The budget script: every reference plan has room, the page's numbers, and a plan beyond it turns the check red."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloister.errors import InputError
from cloister.linear._budget import require_sound

PATH = Path(__file__).parents[3] / "scripts" / "linear_budget.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("linear_budget", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["linear_budget"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load()


def test_every_reference_plan_has_room(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert "NO ROOM" not in printed
    assert printed.count("distance 2^-4") == 3 + len(script.sessions())


def test_numbers_that_do_not_depend_on_the_bound(script: ModuleType) -> None:
    one = script.session("lasso", 90, 4).budget
    assert (one.counts.products, one.needs.coarse.count) == (321, 1800)
    assert one.counts.authenticated["products"] == 322 * 91
    assert (one.tiles.tiles, one.tiles.vectors, one.tiles.answers) == (4, 15, 22)
    assert script.session("ridge", 90, 4).budget.counts.products == 201
    assert script.session("newton", 90, 4).budget.counts.products == 4 * 121


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODULUS_BITS", 160),
        ("BOX_BITS", 60),
        ("ROWS", 2),
        ("PROJECTIONS", 30),
        ("_FLOODS", 39),
        ("_LEAST_CONTRACTION", 0),
    ],
)
def test_a_budget_that_is_exceeded_turns_the_check_red(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: int
) -> None:
    """Fewer repetitions, a smaller field, more slack, less flood: each is noticed."""
    monkeypatch.setattr(f"cloister.linear._budget.{name}", value)
    monkeypatch.setattr(script, "sessions", lambda: [script.session("lasso", 90, 4)])
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert "NO ROOM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"l1": Fraction(1, 10**7)}, "a field of"),
        ({"rows": (10_000,) * 8, "rounds": 500, "half": 64, "mean_squares": (Fraction(2),) * 301}, "a modulus of"),
        ({"half": 2, "curvature": Fraction(5000)}, "of an error"),
    ],
    ids=["field", "modulus", "steps"],
)
def test_2901_plans_without_room(script: ModuleType, change: dict[str, Any], what: str) -> None:
    plan = replace(script.session("lasso", 90, 4).plan, **change)
    with pytest.raises(InputError) as refused:
        require_sound(plan)
    assert refused.value.code == 2901
    assert what in refused.value.what


@pytest.mark.parametrize(("name", "value"), [("ROWS", 2), ("PROJECTIONS", 30), ("_HONEST", 40)])
def test_2901_a_distance_that_is_too_great(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(f"cloister.linear._budget.{name}", value)
    with pytest.raises(InputError) as refused:
        require_sound(script.session("lasso", 90, 4).plan)
    assert refused.value.code == 2901
    assert "a statistical distance of" in refused.value.what
