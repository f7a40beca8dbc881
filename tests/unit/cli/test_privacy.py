"""``cloister privacy``: the library's answers, as text and as JSON, and no slow import before one is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.cli import main
from cloister.ledger import Laplace, Relation, Unaccounted, begin_ledger

TERMS = ("--sampling-probability", "0.01", "--delta", "1e-5", "--relation", "add-or-remove-one", "--steps", "20")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as caught:
        main(["privacy", *arguments, "--json"])
    return int(caught.value.code or 0), json.loads(capsys.readouterr().out)


def test_epsilon_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = run(capsys, "epsilon", *TERMS, "--noise-multiplier", "1.50", "--method", "rdp", "--unit", "patient")
    assert status == 0
    assert (told["by"], told["pld"], told["unit"], told["relation"]) == ("rdp", "none", "patient", "add-or-remove-one")
    assert told["epsilon"] == told["rdp"]
    status, tight = run(capsys, "epsilon", *TERMS, "--noise-multiplier", "1.5")
    assert float(tight["epsilon"]) < float(told["epsilon"])
    assert tight["by"] == "pld"


def test_calibrate_is_the_inverse(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run(capsys, "calibrate", *TERMS, "--epsilon", "1", "--method", "rdp")
    assert status == 0
    arguments = ("--noise-multiplier", found["noise_multiplier"], "--method", "rdp")
    assert run(capsys, "epsilon", *TERMS, *arguments)[1]["epsilon"] == found["epsilon"]
    assert 0.99 < float(found["epsilon"]) <= 1


def test_epsilon_of_ledgers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kind: dict[str, Any] = {"unit": "patient", "relation": Relation.REPLACE_ONE}
    for run_id in "ab":
        ledger = begin_ledger(run=run_id * 64, **kind).append(Laplace(**kind, noise_multiplier="8", count=2))
        (tmp_path / run_id).write_bytes(ledger.canonical())
    files = ("--ledger", str(tmp_path / "a"), "--ledger", str(tmp_path / "b"))
    status, told = run(capsys, "epsilon", "--delta", "1e-9", *files)
    assert (status, told["unit"], told["relation"]) == (0, "patient", "replace-one")
    assert float(told["epsilon"]) == pytest.approx(4 * 2 / 8, rel=1e-3)
    status, told = run(capsys, "epsilon", "--delta", "1e-9", *files, *files)
    assert (status, told["error"]["code"]) == (5, 5802)
    void = begin_ledger(run="c" * 64, **kind).append(Unaccounted(**kind, reason="noise was made of floats"))
    (tmp_path / "c").write_bytes(void.canonical())
    status, told = run(capsys, "epsilon", "--delta", "1e-9", *files, "--ledger", str(tmp_path / "c"))
    assert (status, told["epsilon"], told["unknown"]) == (0, "unknown", "noise was made of floats")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("epsilon", "--delta", "1e-5"), 2019),
        (("epsilon", *TERMS), 2019),
        (("epsilon", *TERMS, "--noise-multiplier", "1", "--ledger", "x"), 2019),
        (("epsilon", *TERMS[:4], "--relation", "add", "--steps", "1", "--noise-multiplier", "1"), 2019),
        (("epsilon", *TERMS, "--noise-multiplier", "1", "--method", "gdp"), 2019),
        (("epsilon", *TERMS, "--noise-multiplier", "one"), 2801),
        (("epsilon", *TERMS, "--noise-multiplier", "1", "--slack", "0.1"), 7803),
        (("epsilon", "--delta", "1e-5", "--ledger", "missing"), 2001),
        (("calibrate", *TERMS, "--epsilon", "0"), 2801),
        (("calibrate", *TERMS), 2019),
    ],
)
def test_a_misuse_has_its_code(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int) -> None:
    status, told = run(capsys, *arguments)
    assert (status, told["error"]["code"]) == (code // 1000, code)


def test_reading_ledgers_and_holding_budgets_needs_no_accountant_library() -> None:
    """What a key manager does with the base install: read, add, compare. And --help imports none of it."""
    program = """
import sys
for name in ("dp_accounting", "scipy", "torch", "attr", "absl"):
    sys.modules[name] = None  # importing it raises
from cloister.cli import command
command()
assert "cloister.ledger" not in sys.modules and "numpy" not in sys.modules
from cloister.ledger import *
kind = {"unit": "patient", "relation": Relation.ADD_OR_REMOVE_ONE}
training = sampled_gaussian(**kind, sampling_probability="0.01", noise_multiplier="2", steps=100)
ledger = begin_ledger(run="a" * 64, **kind).append(training)
events = merge_ledgers([read_ledger(ledger.canonical(), head=ledger.head)])
assert total_of(vector_of(event) for event in events).epsilon("1e-5")
book = open_book(Budget(owner="hospital-a", **kind, epsilon="2", delta="0.00001"))
charge = Charge(id="b" * 64, owner="hospital-a", **kind, events=events, delta="0.000001")
assert book.charge(charge, after=book.head, by=Method.RDP).postings
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
