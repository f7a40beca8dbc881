"""The benchmarks of offloading: networks as published, stages that add up, counts that are made, scripts that run."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from benchmarks import _projection, _stages, networks
from tests.modes import batches, plain_net
from torch import nn
from torch.nn import functional as F

from cloister.offload import offload, onload
from cloister.offload._costs import Costs

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")

# ---- networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "millions"),
    [("vgg16", 138.358), ("mobilenet", 4.232), ("resnet50", 25.557), ("vit", 86.568), ("resnet18", 11.174)],
)
def test_networks_have_as_many_parameters_as_published(build: str, millions: float) -> None:
    with torch.device("meta"):
        model = getattr(networks, build)()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize("build", ["resnet50", "mobilenet", "resnet18"])
def test_a_folded_network_gives_the_same_scores_without_normalisation(build: str) -> None:
    torch.manual_seed(0)
    model = getattr(networks, build)(narrow=8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(images)
        made = networks.folded(model)(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert torch.allclose(made, expected, rtol=1e-3, atol=1e-4)


def test_a_causal_block_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    block = networks.TransformerBlock(16, 2, causal=True)
    tokens = torch.randn(1, 5, 16)
    changed = tokens.clone()
    changed[:, 3:] += 1
    with torch.no_grad():
        before, after = block(tokens), block(changed)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-2)


# ---- stages ----------------------------------------------------------------------------------------------


def test_each_moment_belongs_to_the_innermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(_stages.time, "perf_counter", lambda: float(next(ticks)))
    clock = _stages.Clock()

    def work() -> None:
        with clock.stage("quantise"), clock.stage("PRG"):
            pass

    taken, stages = clock.step(work, [])
    # the clock is read at the start, at both beginnings and both ends, at the end, and once for the whole
    assert taken == 6
    assert stages == {"PRG": 1, "quantise": 2, "transfer": 0, "GEMM": 0, "verify": 0, "non-linear": 2}


def trained(mode: str) -> tuple[nn.Module, list[_stages.TimedWorker]]:
    torch.manual_seed(0)
    workers = _stages.timed_workers(mode, CPU)
    model = offload(plain_net(), mode=mode, workers=workers or None)  # type: ignore[arg-type]
    step(model)
    return model, workers


def step(model: nn.Module) -> None:
    images, labels = batches(1)[0]
    F.cross_entropy(model(images), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()  # so that the weights are shared again


@pytest.mark.parametrize("mode", ["enclave", "verify", "shared3", "shared5"])
def test_the_stages_of_a_step_add_up_to_it(mode: str) -> None:
    model, workers = trained(mode)
    taken, stages = _stages.Clock().step(lambda: step(model), workers)
    assert tuple(stages) == _stages.STAGES
    assert sum(stages.values()) == pytest.approx(taken, abs=1e-3)
    assert stages["GEMM"] > 0
    assert (stages["transfer"] > 0) == bool(workers)
    onload(model)


@pytest.mark.parametrize(("mode", "uploads"), [("verify", 1), ("shared3", 1), ("shared5", 2)])
def test_every_operand_is_read_twice_and_sent_once_a_piece(mode: str, uploads: int) -> None:
    model, workers = trained(mode)
    found = _stages.counts(model, workers, lambda: step(model))
    assert found["uploads"] == uploads
    assert found["passes_out"] == 2  # the greatest magnitude; rounding and masking
    assert found["passes_back"] == 1
    assert 0 < found["check_reads"] <= 2
    assert found["sent_bytes_published"] > 0
    onload(model)


def test_a_projection_is_of_one_step_and_knows_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = Costs(multiply_s=1e-12, hide_s=1e-9, recover_s=1e-9, worker_s=1.0, call_s=1e-6)
    monkeypatch.setattr(_projection, "_measured", {"shared3": costs})
    model, workers = trained("shared3")
    say = lambda calls, training: _projection.projected_s(  # noqa: E731
        model, "shared3", calls=calls, besides_s=1.0, training=training
    )
    once = say(1, True)
    step(model)
    assert say(2, True) == pytest.approx(once)
    assert 1.0 < say(2, False) < once < 1.1  # the worker that is assumed, not the one that was measured
    onload(model)
    assert len(workers) == 3


# ---- scripts ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "contenders"),
    [
        ("offload_inference", ["--networks", "mobilenet"], {"fp32", "int8", "enclave", "verify", "blind"}),
        ("offload_training", ["--networks", "vgg11"], {"fp32", "enclave", "verify", "shared5", "shared3"}),
    ],
)
def test_a_script_runs_quickly_and_says_what_it_found(
    tmp_path: Path, script: str, arguments: list[str], contenders: set[str]
) -> None:
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.svg"
    command = [sys.executable, f"benchmarks/{script}.py", "--quick", "--rounds", "1", "--device", "cpu", *arguments]
    done = subprocess.run(
        [*command, "--json", str(numbers), "--plot", str(picture)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROJECTED, not measured" in done.stdout
    found = json.loads(numbers.read_text())
    assert found["machine"]["cpu"]
    (rows,) = found["networks"].values()
    assert set(rows) == contenders
    assert all(row["same"] for row in rows.values())
    offloaded = {name for name in contenders if name not in ("fp32", "int8")}
    assert {name for name in contenders if set(rows[name].get("stages_s", ())) == set(_stages.STAGES)} == offloaded
    assert {name for name in contenders if "projected_s" in rows[name]} == offloaded - {"enclave"}
    assert picture.read_text().startswith("<?xml")
