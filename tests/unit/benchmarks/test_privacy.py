"""The benchmarks of private training: networks as described, contenders that make one gradient, scripts that run."""

from __future__ import annotations

import argparse
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
from benchmarks.offload_accuracy import Images
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

    def contenders(network: str, batch: int, narrow: int, draw: int) -> dict[str, object]:
        parts = training.parts
        return {
            name: lambda noisy, make=make: make(parts(network, batch, narrow, torch.contiguous_format, draw), noisy)
            for name, make in makers.items()
        }

    monkeypatch.setattr(training, "contenders", contenders)
    found = training.agreement("vgg9", 8, [*makers])
    assert found["cloister"] <= training.AGREE
    assert found["vmap"] <= 1e-5
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


@pytest.fixture
def utility() -> ModuleType:
    """The script as a module."""
    pytest.importorskip("PIL.Image")
    return importlib.import_module("benchmarks.privacy_utility")


def test_a_rate_is_chosen_by_training_images_that_are_left_out(
    utility: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(quick: bool) -> object:
        train, test = (torch.arange(start, start + 6000) for start in (0, 10_000))
        return Images(train.view(-1, 1, 1, 1), train, test.view(-1, 1, 1, 1), test)

    monkeypatch.setattr(utility, "images", images)
    chosen, final = (utility.read(argparse.Namespace(quick=False, validate=validate)) for validate in (True, False))
    trained, tested = set(chosen.train.tensors[1].tolist()), set(chosen.test_labels.tolist())
    assert trained | tested == set(range(6000))
    assert (len(trained), len(tested)) == (1000, 5000)
    assert not trained & tested
    assert set(final.test_labels.tolist()) == set(range(10_000, 16_000))
    assert set(final.train.tensors[1].tolist()) == set(range(6000))


def test_the_small_network_is_as_small_as_it_says(utility: ModuleType) -> None:
    assert sum(parameter.numel() for parameter in utility.cnn().parameters()) == 68_426
    assert utility.cnn(8)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_what_is_tested_is_the_average_of_all_weights_but_the_first(utility: ModuleType) -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    of = argparse.Namespace(both={"model": model}, average=average)
    for step in range(1, 400):
        model.weight.data.fill_(step % 2)  # noise that goes away in the mean
        utility.Run.follow(of, step)
    assert abs(average.weight.item() - 0.5) < 0.02


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_utility_benchmark_runs_and_goes_on(shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "cifar10").is_dir():
        pytest.skip("no cifar10 in the shared data")
    settings = ("--quick", "--dir", tmp_path, "--json", tmp_path / "found", "--plot", tmp_path / "found.svg")
    run("privacy_utility.py", *settings, "--hours", "0")
    assert all(not each["curve"] for each in json.loads((tmp_path / "found").read_text())["runs"])
    for _ in range(2):  # the second time everything is there already
        run("privacy_utility.py", *settings)
        runs = json.loads((tmp_path / "found").read_text())["runs"]
        assert all(len(each["curve"]) == each["epochs"] for each in runs)
        assert {each["variant"] for each in runs} >= {"cloister"}
        for each in runs:
            assert [epoch["steps"] for epoch in each["curve"]] == [10 * (at + 1) for at in range(each["epochs"])]
            assert 7.5 < each.get("epsilon_by_prv", 8) < 8.1
        assert len({each["noise"] for each in runs if each["epochs"] == 2}) == 1
    assert "<svg" in (tmp_path / "found.svg").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_audit_benchmark_tells_the_right_engine_from_broken_ones(shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "bank_marketing").is_dir():
        pytest.skip("no bank_marketing in the shared data")
    run("privacy_audit.py", "--quick", "--json", tmp_path / "found", "--plots", tmp_path / "plots")
    found = json.loads((tmp_path / "found").read_text())
    verdicts = {name: row["verdict"] for name, row in found["canaries"].items()}
    assert verdicts.pop("right") == "not contradicted"
    assert len(verdicts) > 3
    assert set(verdicts.values()) == {"contradicted"}
    assert [*found["membership"]] == ["not private", "ε = 1", "ε = 8"]  # sorted
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names >= {"canaries-right.svg", "membership-not-private.svg", "membership-epsilon-8.svg"}


@pytest.mark.slow
def test_private_steps_with_workers_are_compared(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    run("privacy_offload.py", "--quick", "--networks", "wide", "--json", found)
    (rows,) = json.loads(found.read_text())["steps"].values()
    assert set(rows) == {"plain", "private", "offloaded", "both", "both, rows"}
    assert rows["both"]["apart"] < 2 * rows["offloaded"]["apart"] + 0.01
    assert rows["both, rows"]["sums"] == 0
    assert all(row["gpu_s"] is None or row["gpu_s"] > 0 for row in rows.values())
