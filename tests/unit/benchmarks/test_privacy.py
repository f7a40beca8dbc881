"""The benchmarks of private training: networks as described, contenders that make one gradient, scripts that run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks import _private_networks as networks
from torch import nn

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, which finds its neighbours as it does when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("privacy_training")
    for name in ("privacy_training", "_machine", "_private_networks"):
        sys.modules.pop(name, None)


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=1000).stdout


@pytest.mark.parametrize(("build", "millions"), [("vgg9", 0.88), ("resnet32", 0.467), ("vit", 2.694)])
def test_networks_have_as_many_parameters_as_they_say(build: str, millions: float) -> None:
    pytest.importorskip("transformers")
    model = networks.NETWORKS[build](1)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == millions
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_who_makes_another_gradient_gets_no_time(training: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(of: object, noisy: bool) -> object:
        made = training.vmapped(of, noisy)

        def step() -> None:
            made.step()
            for parameter in made.model.parameters():
                parameter.grad.mul_(1.001)

        return training.Contender(step, made.rest, made.model)

    makers = {"vmap": training.vmapped, "cloister": training.ours, "wrong": shorter}

    def contenders(network: str, batch: int, narrow: int) -> dict[str, object]:
        parts = training.parts
        return {
            name: lambda noisy, make=make: make(parts(network, batch, narrow, torch.contiguous_format), noisy)
            for name, make in makers.items()
        }

    monkeypatch.setattr(training, "contenders", contenders)
    found = training.agreement("vgg9", 8, [*makers])
    assert found["cloister"] <= training.AGREE
    assert found["vmap"] == 0
    assert "another gradient" in found["wrong"]


def test_parts_and_padding_change_nothing_of_our_gradient(training: ModuleType) -> None:
    makers = training.contenders("resnet32", 40, 8)
    one, parts, padded = (training.gradient(makers[f"cloister{how}"](False)) for how in ("", ", parts", ", padded"))
    # 40 rows in parts of 32: the second part has rows of nobody
    assert float((parts - one).norm() / one.norm()) <= 1e-4
    assert float((padded - one).norm() / one.norm()) <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_training_benchmark_runs(tmp_path: Path) -> None:
    run("privacy_training.py", "--quick", "--networks", "resnet32", "--only", "cloister", "--json", tmp_path / "found")
    (rows,) = json.loads((tmp_path / "found").read_text())["steps"].values()
    assert {"sgd", "sgd, last", "cloister", "cloister, last", "cloister, parts", "cloister, padded"} <= rows.keys()
    assert max(row["wall_ratio"] for name, row in rows.items() if name.startswith("sgd")) == 1


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_utility_benchmark_runs_and_goes_on(shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "cifar10").is_dir():
        pytest.skip("no cifar10 in the shared data")
    settings = ("--quick", "--dir", tmp_path, "--json", tmp_path / "found")
    run("privacy_utility.py", *settings, "--hours", "0")
    assert all(not each["curve"] for each in json.loads((tmp_path / "found").read_text())["runs"])
    for _ in range(2):  # the second time everything is there already
        run("privacy_utility.py", *settings)
        runs = json.loads((tmp_path / "found").read_text())["runs"]
        assert all(len(each["curve"]) == each["epochs"] for each in runs)
        assert {each["variant"] for each in runs} >= {"cloister"}
