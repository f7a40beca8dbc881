"""Static scales: fixed by a first pass, the same bits in every mode, clipped beyond, and counted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.modes import PRIVATE, PUBLIC, batches, plain_net, spies, train
from torch import nn
from torch.nn import functional as F

from cloister.errors import InputError
from cloister.offload import (
    Broker,
    InlineWorker,
    load_checkpoint,
    offload,
    offloading,
    onload,
    report,
    save_checkpoint,
)
from cloister.offload._calibration import Calibration
from cloister.offload._commands import Put
from cloister.offload._stage import VARIABLE
from cloister.wire import Secret

# ---- the exponents ---------------------------------------------------------------------------------------


def test_the_first_pass_fixes_the_greatest_exponent_that_it_saw() -> None:
    calibration = Calibration(8)
    seen = [calibration.exponent("0", "x", torch.tensor([most])) for most in (1.0, -4.0, 2.0)]
    assert seen == [-6, -4, -5]
    calibration.begin()
    assert [calibration.exponent("0", "x", torch.tensor([most])) for most in (1.0, 1e9, 0.0)] == [-4, -4, -4]


def test_tensors_are_told_apart_by_layer_and_by_what_they_are() -> None:
    calibration = Calibration(8)
    for place, most in ((("0", "x"), 1.0), (("0", "w"), 2.0), (("1", "x"), 4.0)):
        calibration.exponent(*place, torch.tensor([most]))
    calibration.begin()
    one = torch.tensor([1.0])
    assert [calibration.exponent(*place, one) for place in (("0", "x"), ("0", "w"), ("1", "x"))] == [-6, -5, -4]
    assert calibration.exponent("1", "w", one) == -6  # its own first pass


@pytest.mark.parametrize("zeros", [torch.zeros(3), torch.zeros(0)])
def test_zeros_say_nothing_of_a_scale(zeros: torch.Tensor) -> None:
    calibration = Calibration(8)
    assert calibration.exponent("0", "y", zeros) is None
    calibration.begin()
    assert calibration.exponent("0", "y", torch.tensor([0.5])) == -7
    calibration.begin()
    assert calibration.exponent("0", "y", zeros) == -7


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_what_is_no_magnitude_calibrates_nothing(odd: float) -> None:
    calibration = Calibration(8)
    with pytest.raises(InputError) as caught:
        calibration.exponent("0", "x", torch.tensor([1.0, odd]))
    assert caught.value.code == 2703
    assert calibration.state == {}


# ---- in a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PRIVATE)
def test_simulate_is_bit_identical_with_static_scales(mode: str) -> None:
    executed = train(mode, scales="static")
    assert executed.same_as(train(mode, "simulate", scales="static"))
    assert not executed.same_as(train(mode))


def test_a_stages_script_fixes_its_scales_and_gets_the_bits_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a", "b", "c")
    connect = lambda: [InlineWorker(name) for name in names]  # noqa: E731
    with Broker("shared3", connect, workers=names, memory_bytes=64 << 20, parties={}) as broker:
        with monkeypatch.context() as patch:
            patch.setenv(VARIABLE, broker.environment[VARIABLE])
            there = train(None, scales="static")
        broker.end()
    assert there.same_as(train("shared3", scales="static"))


@pytest.mark.parametrize("mode", [*PRIVATE, *PUBLIC])
def test_what_lies_beyond_the_calibration_is_clipped_and_counted(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False)).requires_grad_(False)
    offload(model, mode=mode, workers="inline", scales="static")  # type: ignore[arg-type]
    inputs = torch.rand(16, 6) - 0.5
    inputs[0, 0] = 0.75
    with torch.no_grad():
        expected = model(inputs)
        offloading(model).engine.products.clear()
        assert torch.equal(model(inputs), expected)  # the pass that is fixed rounds as the one that calibrated
        assert report(model).clipped == 0
        inputs[:5, 0] = 1000.0
        clipped = model(inputs)
    assert report(model).clipped == 5
    assert report(model).as_json()["clipped"] == 5
    assert "5 values were clipped" in str(report(model))
    inputs[:5, 0] = 127 / 128
    assert torch.allclose(clipped, F.linear(inputs, model[0].weight), atol=0.05)
    onload(model)


def test_smaller_values_keep_the_scale() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False).requires_grad_(False)
    offload(model, mode="verify", workers="inline", scales="static")
    inputs = torch.randn(16, 6)
    with torch.no_grad():
        model(inputs)
        assert not model(inputs / 1e4).any()  # below half a step, where a dynamic scale would follow
    onload(model)


@pytest.mark.parametrize("mode", ["verify", "shared3"])
def test_what_is_sent_is_as_large_whatever_the_calibration(mode: str) -> None:
    sizes: list[list[tuple[int, ...]]] = []
    for most in (1.0, 1e6):
        workers = spies(mode)
        torch.manual_seed(0)
        model = plain_net()
        offload(model, mode=mode, workers=workers, scales="static")  # type: ignore[arg-type]
        images, labels = batches(1)[0]
        for factor in (most, 1.0):
            F.cross_entropy(model(factor * images), labels).backward()
        sizes.append([put.shape for worker in workers for put in worker.of(Put) if isinstance(put, Put)])
        onload(model)
    assert sizes[0] == sizes[1]


def test_a_run_goes_on_with_its_scales(tmp_path: Path) -> None:
    key = Secret.random(32)

    def run(steps: int, resumed: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = plain_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        offload(model, mode="shared3", execution="simulate", scales="static")
        if resumed:
            load_checkpoint(tmp_path / "half", model, key=key, optimizer=optimizer)
        data = batches(4)
        for images, labels in data[4 - steps :] if resumed else data[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        if not resumed and steps < 4:
            save_checkpoint(tmp_path / "half", model, key=key, sequence=steps, optimizer=optimizer)
        return [parameter.detach().clone() for parameter in model.parameters()]

    whole = run(4, resumed=False)
    run(2, resumed=False)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(2, resumed=True), strict=True))
