"""The example of private training: a record's copies are one row, and a run goes on where it was stopped."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.clipped_sums import engine_for, exact_gradient, private_gradient, relative
from torch import Tensor

from cloister.privacy import Flat

pytest.importorskip("PIL.Image")

SCRIPT = Path(__file__).parents[3] / "examples" / "private-cifar10" / "train.py"
RECORDS, COPIES = 4, 3


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The script as a module, without running it."""
    spec = importlib.util.spec_from_file_location("private_cifar10", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_copies_gradients_are_averaged_before_one_is_clipped(example: ModuleType) -> None:
    torch.manual_seed(1)
    model = example.Copies(example.wide_resnet(10, 1))
    records = torch.randn(RECORDS, COPIES, 3, 8, 8)
    labels = torch.arange(RECORDS)

    def loss(scores: Tensor, rows: Tensor) -> Tensor:
        return example.loss(lambda _: scores, (records[rows], labels[rows]))

    engine = engine_for(model, Flat(0.5), RECORDS)
    made = private_gradient(engine, [records], loss, RECORDS)
    assert relative(made, exact_gradient(engine, [records], loss, range(RECORDS))) <= 1e-5

    # by hand: K gradients a record, one by one
    parameters = [*model.parameters()]
    total = torch.zeros_like(made)
    for record, label in zip(records, labels, strict=True):
        mean = torch.zeros_like(made)
        for copy in record:
            scores = model.network(copy[None])
            gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(scores, label[None]), parameters)
            mean += torch.cat([gradient.double().flatten() for gradient in gradients]) / COPIES
        total += mean * min(1.0, 0.5 / float(mean.norm()))
    assert relative(made, total / RECORDS) <= 1e-4  # float32


def test_copies_are_shifted_and_mirrored_each_by_itself(example: ModuleType) -> None:
    pixels = torch.arange(2 * 32 * 32 * 3, dtype=torch.uint8).view(2, 32, 32, 3).numpy()
    torch.manual_seed(2)
    copies, label = example.Augmented(pixels, torch.tensor([3, 4]).numpy(), 16)[1]
    assert copies.shape == (16, 3, 32, 32)
    assert int(label) == 4
    assert len({copy.numpy().tobytes() for copy in copies}) > 8
    whole = torch.nn.functional.pad(example.scaled(pixels)[1], [4] * 4, mode="reflect")
    parts = whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    for copy in copies:
        assert any(torch.equal(copy, part) or torch.equal(copy.flip(2), part) for part in parts)


def started(data: Path, work: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", SCRIPT, "--data", data, "--work", work, "--quick"]
    return subprocess.Popen([str(each) for each in command], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_stopped_goes_on_with_its_account(shared_data: Path, tmp_path: Path) -> None:
    if not (data := shared_data / "cifar10").is_dir():
        pytest.skip("no cifar10 in the shared data")
    with started(data, tmp_path) as first:
        assert first.stdout is not None
        assert any(line.startswith("epoch 1:") for line in first.stdout)
        first.kill()
    out, _ = started(data, tmp_path).communicate(timeout=1000)
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert "epoch 1:" not in out
    assert "epoch 2:" in out
    assert len(report["accuracy"]) == 2
    assert 7.5 < float(report["epsilon"]) <= 8
