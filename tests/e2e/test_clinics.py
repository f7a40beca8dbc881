"""The example with three clinics: real processes, real commands, TLS between them, at full size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("adversary", ["malicious", "semi-honest"])
def test_three_clinics_fit_what_scikit_learn_fits_on_joined_rows(adversary: str, tmp_path: Path) -> None:
    work = tmp_path / "run"
    program = [sys.executable, ROOT / "examples/clinics/run.py", "--work", work, "--adversary", adversary]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, table = done.stdout.partition("scikit-learn\n")
    found = [(float(mine), float(theirs)) for _, mine, theirs in map(str.split, table.splitlines())]
    assert len(found) == 10
    assert all(abs(mine - theirs) <= 1e-3 * max(1, abs(theirs)) for mine, theirs in found)
    assert [mine == 0 for mine, _ in found] == [theirs == 0 for _, theirs in found]
    models = [json.loads((work / name / "model.json").read_text()) for name in ("north", "south", "west")]
    assert models[0] == models[1] == models[2]
    assert len(models[0]["signatures"]) == 3
    assert ("SEMI-HONEST" in models[0]["card"]) == (adversary == "semi-honest")
