"""``cloister privacy program``: what a stage with privacy terms trains, out of a file of the consumer's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli import main
from cloister.privacy import Recipe, read_program
from cloister.wire import parse_message

NET = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")

def build():
    return nn.Linear(5, 3), loss, (torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
"""


def run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    (folder / "net.py").write_text(NET)
    command = ["privacy", "program", f"{folder}/net.py:build", "--out", str(folder / "program"), *arguments, "--json"]
    try:
        status = main(command)
    except SystemExit as ended:
        status = int(ended.code or 0)
    said = capsys.readouterr()
    return int(status or 0), json.loads(said.out or said.err)


def test_a_program_is_three_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, facts = run(capsys, tmp_path, "--learning-rate", "1e-1", "--momentum", "0.90", "--schedule", "cosine")
    assert status == 0
    assert facts["verdict"] == "independent"
    program = read_program(tmp_path / "program")
    assert {name for name, _ in program.named_parameters()} >= {"weight", "bias"}
    value = json.loads((tmp_path / "program" / "training.json").read_text())
    recipe = parse_message(Recipe, value, what="recipe")
    assert (recipe.learning_rate, recipe.momentum, recipe.schedule) == ("0.1", "0.9", "cosine")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--learning-rate", "much"), 2801),
        (("--learning-rate", "0.1", "--optimizer", "lion"), 2005),
        (("--learning-rate", "0.1", "--schedule", "often"), 2005),
    ],
)
def test_a_misuse_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    status, facts = run(capsys, tmp_path, *arguments)
    assert status == 2
    assert facts["error"]["code"] == code  # type: ignore[index]
    assert not (tmp_path / "program").exists()


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "program").mkdir()
    assert run(capsys, tmp_path, "--learning-rate", "0.1")[1]["error"]["code"] == 2007  # type: ignore[index]
