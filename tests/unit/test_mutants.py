"""Each row of tests/mutants.toml is about code that is there: another would switch off nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_changes_one_place_and_names_a_test(name: str) -> None:
    row = ROWS[name]
    assert (ROOT / row["file"]).read_text(encoding="utf-8").count(row["find"]) == 1
    assert row["replace"] != row["find"]
    assert all((ROOT / test.partition("::")[0]).exists() for test in row["test"].split())
