"""A stage with privacy terms that would release what nobody accounted for, or run something else than the engine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import enclaves
from tests.brokers import FakeOffloader
from tests.enclaves import World

from cloister.enclave import StageOutcome
from cloister.enclave._confinement import InProcess, StageScript
from cloister.enclave._sandbox import Outcome
from cloister.errors import CloisterError
from cloister.ledger import (
    LEDGER_FILE,
    ORDER_VARIABLE,
    Ledger,
    Relation,
    StageOrder,
    TrainingOrder,
    Unaccounted,
    begin_ledger,
)
from cloister.manifest import PRIVATE_TRAINING, Limits, OffloadTerms, PrivacyTerms
from cloister.receipt import verify_receipt

TERMS = PrivacyTerms(
    epsilon="2", delta="1e-6", unit="record", units=1000, batch=10, steps=100, noise_multiplier="1", clip="1"
)


def ledger_of(order: TrainingOrder, **fields: Any) -> Ledger:
    event = order.event.model_copy(update=fields)
    return begin_ledger(run=order.id, unit=order.unit, relation=order.relation).append(event)


def honest(order: TrainingOrder) -> bytes:
    return ledger_of(order).canonical()


def nothing(order: TrainingOrder) -> bytes | None:
    return None


def empty(order: TrainingOrder) -> bytes:
    return begin_ledger(run=order.id, unit=order.unit, relation=order.relation).canonical()


def of_another_run(order: TrainingOrder) -> bytes:
    return ledger_of(order.model_copy(update={"id": "e" * 64})).canonical()


def of_another_relation(order: TrainingOrder) -> bytes:
    other = order.model_copy(update={"relation": Relation.ADD_OR_REMOVE_ONE})
    return ledger_of(other).canonical()


def unaccounted(order: TrainingOrder) -> bytes:
    void = Unaccounted(unit=order.unit, relation=order.relation, reason="floating-point noise")
    return ledger_of(order).append(void).canonical()


@pytest.mark.parametrize(
    ("account", "code"),
    [
        (honest, 0),
        (nothing, 5509),
        (lambda order: b"{}", 5509),
        (lambda order: honest(order)[:-1], 5509),
        (lambda order: honest(order).replace(b'"count":100', b'"count":10'), 5509),
        (lambda order: b" " * (5 << 20), 5509),
        (empty, 5509),
        (of_another_run, 5509),
        (of_another_relation, 5509),
        (unaccounted, 7804),
        (lambda order: ledger_of(order, count=101).canonical(), 7804),
        (lambda order: ledger_of(order, noise_multiplier="0.99").canonical(), 7804),
    ],
)
def test_weights_leave_only_with_an_account_that_is_within_the_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    account: Callable[[TrainingOrder], bytes | None],
    code: int,
) -> None:
    class Engine(InProcess):
        """In the engine's place: it was told the order, and leaves ``account``."""

        def run(self, script: StageScript, **_: Any) -> Outcome:
            assert script.order is not None
            (script.work.output("model") / "weights.safetensors").write_bytes(b"weights")
            left = account(script.order)
            if left is not None:
                (script.work.output("model") / LEDGER_FILE).write_bytes(left)
            return Outcome("exited", 0, b"", 0, time.monotonic())

    monkeypatch.setattr(enclaves, "InProcess", Engine)
    here = World.build(tmp_path / "world", stage={"argv": PRIVATE_TRAINING, "privacy": TERMS}, max_bytes=8 << 20)
    outcome = here.launch(inline=True)
    if code:
        with pytest.raises(CloisterError) as refused:
            outcome.require()
        assert refused.value.code == code
        assert not Path(here.job.outputs["model"]).exists()
    else:
        assert outcome.require().images.keys() == {"model"}


OFFLOAD = OffloadTerms(mode="shared3", workers=("gpu-a", "gpu-b", "gpu-c"))


def engine(monkeypatch: pytest.MonkeyPatch, *words: str, account: Callable[[TrainingOrder], bytes] = honest) -> None:
    """In the engine's place: it asks its broker ``words``, and leaves weights and ``account`` whatever was answered."""

    class Engine(InProcess):
        def run(self, script: StageScript, **_: Any) -> Outcome:
            assert script.order is not None
            assert script.broker is not None
            for word in words:
                place = json.loads(script.broker.environment["CLOISTER_OFFLOAD"])
                os.write(place["ask"], f"{word}\n".encode())
                os.read(place["answer"], 64)
            (script.work.output("model") / "weights.safetensors").write_bytes(b"weights")
            (script.work.output("model") / LEDGER_FILE).write_bytes(account(script.order))
            return Outcome("exited", 0, b"", 0, time.monotonic())

    monkeypatch.setattr(enclaves, "InProcess", Engine)


def offloaded(folder: Path) -> World:
    return World.build(folder / "world", stage={"argv": PRIVATE_TRAINING, "privacy": TERMS}, offload=OFFLOAD)


def code_of(outcome: StageOutcome) -> int:
    with pytest.raises(CloisterError) as refused:
        outcome.require()
    return refused.value.code


def test_a_private_stage_whose_layers_leave_accounts_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine(monkeypatch, "multiply", "multiply")
    here = offloaded(tmp_path)
    result = here.launch(inline=True, offloader=FakeOffloader()).require()
    facts = verify_receipt(result.receipt, key=here.session.public, manifest=here.signed.manifest)
    assert facts.offload is not None
    assert facts.privacy is not None
    assert (facts.offload.mode, facts.offload.workers, facts.offload.products) == ("shared3", OFFLOAD.workers, 2)
    assert [event.kind for event in facts.privacy.events] == ["sampled-gaussian"]


@pytest.mark.parametrize(
    ("words", "account", "code"),
    [
        (("multiply", "lie hidden"), honest, 5701),
        (("lie hidden",), of_another_run, 5701),
        (("break 6705", "lie hidden"), honest, 5701),
        (("multiply", "break 6705"), honest, 6705),
        (("multiply",), of_another_run, 5509),
        (("multiply",), lambda order: ledger_of(order, count=101).canonical(), 7804),
    ],
    ids=["a lie", "a lie before the account", "a lie after a link", "a link", "no account", "more than agreed"],
)
def test_weights_leave_only_with_right_products_and_with_an_account(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    account: Callable[[TrainingOrder], bytes],
    code: int,
) -> None:
    engine(monkeypatch, *words, account=account)
    here = offloaded(tmp_path)
    assert code_of(here.launch(inline=True, offloader=FakeOffloader())) == code
    assert not Path(here.job.outputs["model"]).exists()


def test_a_host_that_leaves_workers_or_the_broker_out_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(monkeypatch)
    here = offloaded(tmp_path)
    without = here.job.model_copy(update={"workers": {}})
    assert code_of(here.launch(without, inline=True, offloader=FakeOffloader())) == 2505
    assert code_of(here.launch(inline=True)) == 3503
    stage = here.signed.manifest.stages["train"].model_copy(update={"offload": None, "network": ()})
    manifest = here.signed.manifest.model_copy(update={"stages": {"train": stage}})
    other = here.job.model_copy(update={"manifest": here.signed.model_copy(update={"manifest": manifest})})
    assert code_of(here.launch(other, inline=True)) == 5301
    assert here.obtained == 0


SHADOW = """
import pathlib
pathlib.Path("/outputs/model/weights.safetensors").write_bytes(open("/inputs/data/x.txt", "rb").read())
"""


@pytest.mark.slow
def test_a_program_that_brings_modules_of_the_engines_name_is_not_run(tmp_path: Path) -> None:
    names = ("torch", "safetensors", "sitecustomize", "usercustomize")
    files = {f"{name}.py": SHADOW for name in names}
    files |= {"cloister.py": '__path__ = ["/code"]', "privacy.py": SHADOW}  # a package of that name, and its part
    here = World.build(
        tmp_path / "world",
        files=files,
        stage={"argv": PRIVATE_TRAINING, "privacy": TERMS, "limits": Limits(memory_bytes=2 << 30, time_s=120)},
    )
    with pytest.raises(CloisterError) as refused:
        here.launch().require()
    assert refused.value.code == 5501  # the engine finds no certificate, and nothing else ran
    assert not Path(here.job.outputs["model"]).exists()


def test_the_order_says_what_was_agreed_and_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[StageOrder] = []

    class Listening(InProcess):
        def run(self, script: StageScript, **_: Any) -> Outcome:
            from cloister.enclave._training import training_environment

            assert script.order is not None
            places = {"program": "/code", "inputs": "/inputs/{}", "outputs": "/outputs/{}"}
            said = training_environment(script.order, script.stage, **places)
            told.append(StageOrder.model_validate_json(said[ORDER_VARIABLE]))
            (script.work.output("model") / LEDGER_FILE).write_bytes(honest(script.order))
            return Outcome("exited", 0, b"", 0, time.monotonic())

    monkeypatch.setattr(enclaves, "InProcess", Listening)
    here = World.build(tmp_path / "world", stage={"argv": PRIVATE_TRAINING, "privacy": TERMS})
    facts = here.launch(inline=True).require()
    (order,) = told
    assert (order.inputs, order.output, order.checkpoint) == (("/inputs/data",), "/outputs/model", False)
    assert (order.training.units, order.training.batch, order.training.steps) == (1000, 10, 100)
    assert facts.receipt is not None
