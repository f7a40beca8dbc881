"""A stage's offloading in two halves: the script's and the broker's, over shared memory and two pipes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.modes import Mixed, Run, batches, plain_net, train
from torch import nn
from torch.nn import functional as F

from cloister.errors import CloisterError, InputError
from cloister.offload import Broker, Ended, InlineWorker, Worker, offload, offloading, onload, precompute, report
from cloister.offload._schemes import SCHEMES
from cloister.offload._stage import VARIABLE

PRIVATE = ("verify", "shared3", "shared5")


def inline(mode: str) -> list[Worker]:
    return [InlineWorker(f"worker-{index}") for index in range(SCHEMES[mode].workers)]  # type: ignore[index]


@contextmanager
def stage(
    mode: str, monkeypatch: pytest.MonkeyPatch, *, workers: Any = None, memory_bytes: int = 64 << 20, **more: Any
) -> Iterator[Broker]:
    """A broker, and the variable that its script would find."""

    def connect() -> Sequence[Worker]:
        return inline(mode) if workers is None else workers()

    with Broker(mode, connect, workers=("a", "b", "c"), memory_bytes=memory_bytes, parties={}, **more) as broker:
        with monkeypatch.context() as patch:
            patch.setenv(VARIABLE, broker.environment[VARIABLE])
            yield broker
        broker.end()


def trained(steps: int = 3, net: Any = Mixed, **choices: Any) -> Run:
    """As :func:`tests.modes.train`, by a script that names no mode."""
    return train(None, steps=steps, net=net, **choices)


@pytest.mark.parametrize("mode", PRIVATE)
def test_a_stages_script_gets_the_bits_of_a_notebook(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = train(mode)
    with stage(mode, monkeypatch) as broker:
        there = trained()
    assert there.same_as(here)
    ended = broker.end()
    assert (ended.code, ended.models) == (None, 1)
    assert ended.products > 0
    assert ended.checks >= ended.products
    assert ended.error is not None
    assert ended.error < 2**-58
    assert ended.sent_bytes > 0
    assert ended.received_bytes > 0
    assert ended.evidence == {}


@pytest.mark.parametrize("mode", ["blind", "blind2"])
def test_a_public_base_is_inferred_in_a_stage(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images = batches(1)[0][0]
    plain = plain_net().requires_grad_(False)
    twin = plain_net().requires_grad_(False)
    twin.load_state_dict(plain.state_dict())
    with torch.no_grad():
        wanted = offload(plain, mode=mode, workers="inline")(images)  # type: ignore[arg-type]
        with stage(mode, monkeypatch) as broker:
            model = offload(twin)
            assert torch.equal(model(images), wanted)
            if mode == "blind":
                assert precompute(model, 2) == 6
                model(images)
                assert report(model).late == 3
    assert broker.end().late == (3 if mode == "blind" else 0)


def test_mode_enclave_needs_no_broker_and_says_so_in_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("enclave", monkeypatch) as broker:
        assert broker.descriptors == ()
        there = trained()
    assert there.same_as(train("enclave"))
    assert broker.end() == Ended(None, 0, 0, 0, None, 0, 0, 0, {})


def test_the_report_of_a_stage_is_that_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("shared3", monkeypatch):
        model = offload(plain_net())
        F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        there = report(model)
    here = offload(plain_net(), mode="shared3", workers="inline")
    F.cross_entropy(here(batches(1)[0][0]), batches(1)[0][1]).backward()
    assert there.workers == ("a", "b", "c")
    for one, other in zip(there.layers, report(here).layers, strict=True):
        assert (one.name, one.products, one.checks, one.sent_bytes) == (
            other.name,
            other.products,
            other.checks,
            other.sent_bytes,
        )


def test_outside_a_stage_the_same_line_leaves_the_model_as_it_is() -> None:
    assert VARIABLE not in os.environ
    model = plain_net()
    classes = [type(module) for module in model.modules()]
    assert offload(model) is model
    assert [type(module) for module in model.modules()] == classes
    found = report(model)
    assert (found.mode, found.products, found.workers) == ("plain", 0, ())
    assert precompute(model) == 0
    assert onload(model) is model
    with pytest.raises(CloisterError) as caught:
        report(model)
    assert caught.value.code == 2722


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"mode": "verify"}, "mode"),
        ({"workers": "inline"}, "workers"),
        ({"mode": "shared3", "parties": {}}, "parties"),
        ({"stored": {}}, "stored"),
    ],
)
def test_2726_in_a_stage_the_manifest_decides(
    choices: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage("shared3", monkeypatch), pytest.raises(InputError) as caught:
        offload(plain_net(), **choices)
    assert (caught.value.code, caught.value.got) == (2726, named)


def test_the_manifests_own_mode_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("verify", monkeypatch) as broker, torch.no_grad():
        offload(plain_net(), mode="verify")(batches(1)[0][0])
    assert broker.end().products == 3


@pytest.mark.parametrize("text", ["shared3", "{}", '{"format": "cloister/offload-stage/v2"}'])
def test_2728_a_variable_that_no_launcher_set(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InputError) as caught:
        offload(plain_net())
    assert caught.value.code == 2728


def test_memory_is_used_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte is enough for as many steps as one likes."""
    with stage("shared3", monkeypatch, memory_bytes=1 << 18) as broker:
        there = trained(steps=12)
    assert broker.end().code is None
    assert there.same_as(train("shared3", steps=12))


def test_2727_a_tensor_beyond_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("shared3", monkeypatch, memory_bytes=1 << 14), pytest.raises(InputError) as caught:
        offload(nn.Linear(64, 128))(torch.zeros(128, 64))
    assert caught.value.code == 2727


def test_a_value_that_is_no_number_is_the_scripts_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("shared3", monkeypatch) as broker:
        model = offload(nn.Linear(4, 4))
        with pytest.raises(InputError) as caught:
            model(torch.full((2, 4), float("nan")))
        assert caught.value.code == 2703
    assert broker.end().code is None


def test_rounding_goes_on_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("verify", monkeypatch):
        products = offloading(offload(plain_net())).engine.products
        state = products.rounding
        products.rounding = state._replace(counter=state.counter + 3)
        assert products.rounding.counter == state.counter + 3
        assert products.rounding.key == state.key


def test_a_plan_is_measured_where_the_workers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("shared3", monkeypatch) as broker:
        model = offload(plain_net(), plan="auto")
        costs = offloading(model).costs
        assert costs is not None
        assert min(costs.hide_s, costs.recover_s, costs.multiply_s, costs.call_s) > 0
    ended = broker.end()
    assert ended.products == 0
    assert min(ended.sent_bytes, ended.received_bytes) > 0  # the trial products' own


def test_a_model_is_given_up_and_another_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    with stage("shared3", monkeypatch) as broker, torch.no_grad():
        for _ in range(3):
            model = offload(plain_net())
            model(batches(1)[0][0])
            onload(model)
            del model
            gc.collect()
    ended = broker.end()
    assert (ended.code, ended.models, ended.products) == (None, 3, 9)
