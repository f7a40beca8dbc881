"""A worker that answers wrongly: never a wrong model, and one way of failing, whatever the lie."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.modes import PRIVATE, PUBLIC, batches, plain_net, spies
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cloister.errors import IntegrityError
from cloister.offload import offload
from cloister.offload._commands import Compute
from cloister.offload._schemes import SCHEMES
from cloister.offload._verdict import EVIDENCE_INFO
from cloister.wire import OpeningKey


def _flip(bit: int) -> Any:
    def lie(_: Compute, answer: Tensor) -> Tensor:
        words = answer.clone()
        words.view(-1)[words.numel() // 2] ^= -(1 << 31) if bit == 31 else 1 << bit
        return words

    return lie


class Replay:
    """Answers with its first answer to the same form."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}

    def __call__(self, command: Compute, answer: Tensor) -> Tensor:
        return self.before.setdefault(repr(command.form), answer.clone())


LIES: dict[str, Any] = {
    "lowest bit": _flip(0),
    "second bit": _flip(1),
    "bit 30": _flip(30),
    "two words": lambda _, answer: answer + torch.eye(1, answer.numel(), dtype=torch.int32).view_as(answer) * 6,
    "zeros": lambda _, answer: torch.zeros_like(answer),
    "rows swapped": lambda _, answer: answer.flip(0),
    "a prime's multiple": lambda _, answer: answer + 2 * 65_537,
    "everything doubled": lambda _, answer: 2 * answer,
}


class Liar:
    """Lies in one of its products."""

    def __init__(self, lie: Any, product: int = 0) -> None:
        self.lie, self.product, self.asked = lie, product, 0

    def __call__(self, command: Compute, answer: Tensor) -> Tensor:
        self.asked += 1
        return self.lie(command, answer) if self.asked == self.product + 1 else answer


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    images, labels = batches(1)[0]
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("mode", PRIVATE)
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("product", [0, 3, 5, 7])  # a forward, an input's gradient, two weights' gradients
def test_no_step_is_taken_on_a_wrong_product(mode: str, lie: str, product: int) -> None:
    for liar in range(SCHEMES[mode].workers):  # type: ignore[index]
        torch.manual_seed(0)
        model = plain_net()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        workers = spies(mode)
        workers[liar].lie = Liar(LIES[lie], product)
        offload(model, mode=mode, workers=workers)  # type: ignore[arg-type]
        with pytest.raises(IntegrityError) as caught:
            _step(model, torch.optim.SGD(model.parameters(), lr=1.0))
        assert caught.value.code == 5701
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        with pytest.raises(IntegrityError):  # a verdict is final
            model(batches(1)[0][0])


@pytest.mark.parametrize("mode", [*PRIVATE, *PUBLIC])
def test_an_answer_from_before_is_a_wrong_one(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).requires_grad_(False)
    workers = spies(mode)
    for worker in workers:
        worker.lie = Replay()
    offload(model, mode=mode, workers=workers)  # type: ignore[arg-type]
    with torch.no_grad():
        model(torch.randn(3, 6))
        with pytest.raises(IntegrityError) as caught:
            model(torch.randn(3, 6))
    assert caught.value.code == 5701


@pytest.mark.parametrize("mode", [*PRIVATE, *PUBLIC])
def test_an_inference_ends_without_an_answer(mode: str) -> None:
    model = plain_net().requires_grad_(False)
    workers = spies(mode)
    workers[-1].lie = Liar(LIES["second bit"])
    offload(model, mode=mode, workers=workers)  # type: ignore[arg-type]
    with torch.no_grad(), pytest.raises(IntegrityError) as caught:
        model(batches(1)[0][0])
    assert caught.value.code == 5701


def test_an_error_that_the_recovery_cannot_see_is_none() -> None:
    """2^31 in the dealer's answer is counted twice, and vanishes modulo 2^32: the product is the right one."""
    torch.manual_seed(0)
    model = plain_net()
    workers = spies("shared3")
    workers[2].lie = _flip(31)
    offload(model, mode="shared3", workers=workers)
    _step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(worker.answers for worker in workers[2:])


def _outside(mode: str, liar: int, lie: str, product: int, folder: Any, keys: Any) -> tuple[Any, ...]:
    """All that is seen of a failed step from outside: the error, what the workers were told, the evidence's size."""
    torch.manual_seed(0)
    model = plain_net()
    workers = spies(mode)
    workers[liar].lie = Liar(LIES[lie], product)
    parties = {"hospital-a": keys.public}
    offload(model, mode=mode, workers=workers, parties=parties, evidence=folder)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError) as caught:
        _step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    told = [[command.model_dump(exclude={"counter"}) for command in worker.commands] for worker in workers]
    sealed = (folder / "hospital-a.evidence").read_bytes()
    return str(caught.value), repr(caught.value), told, len(sealed), caught.value.__cause__


def test_failures_cannot_be_told_apart_from_outside(tmp_path: Any) -> None:
    keys = OpeningKey.generate()
    seen = [
        _outside("shared3", liar, lie, product, tmp_path / f"{liar}-{index}-{product}", keys)
        for liar in range(3)
        for index, lie in enumerate(LIES)
        for product in (0, 2, 7)
    ]
    assert all(each == seen[0] for each in seen)


def test_the_parties_read_what_failed(tmp_path: Any) -> None:
    keys = OpeningKey.generate()
    _outside("shared3", 1, "lowest bit", 3, tmp_path, keys)
    sealed = (tmp_path / "hospital-a.evidence").read_bytes()
    record = json.loads(keys.open(sealed, info=EVIDENCE_INFO))
    assert record["count"] >= 1
    first = record["failures"][0]
    assert (first["layer"], first["role"], first["odd"]) == ("5", "input_gradient", 1)
    assert first["workers"] == ["worker-0", "worker-1", "worker-2"]


def test_a_recomputed_forward_does_not_tell_earlier() -> None:
    """Checkpointing runs forwards inside backward: a failure that stopped there would say when it happened."""

    class Recomputing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)])

        def forward(self, inputs: Tensor) -> Tensor:
            for block in self.blocks:
                inputs = checkpoint(block, inputs, use_reentrant=False)
            return inputs

    for product in range(11):
        torch.manual_seed(0)
        model = Recomputing()
        workers = spies("verify", lie=Liar(LIES["zeros"], product))
        offload(model, mode="verify", workers=workers)
        model(torch.randn(3, 6)).square().sum().backward()
        with pytest.raises(IntegrityError):
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert len(workers[0].of(Compute)) == 11


def test_nineteen_lies_read_nothing_of_a_private_value() -> None:
    """Lies of the size that moved a value out of range, for some values only, in a system with two kinds of failure."""
    outcomes = set()
    for shift in range(1, 20):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        workers = spies("shared3")
        workers[0].lie = lambda _, answer, shift=shift: answer + (1 << 30) - (1 << shift)
        offload(model, mode="shared3", workers=workers)
        with torch.no_grad(), pytest.raises(IntegrityError) as caught:
            model(torch.tensor([[0.3]]))
        outcomes.add((str(caught.value), len(workers[0].commands)))
    assert len(outcomes) == 1


def test_what_follows_a_lie_is_made_of_zeros() -> None:
    """A lie that makes numbers explode would otherwise end the run somewhere else, by another error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    workers = spies("verify")
    workers[0].lie = Liar(lambda _, answer: torch.full_like(answer, (1 << 31) - 1))
    offload(model, mode="verify", workers=workers)
    made = model[0](torch.randn(3, 6))
    assert torch.equal(made, model[0].bias.expand_as(made))
    with pytest.raises(IntegrityError):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_another_models_optimizer_takes_no_step_either() -> None:
    """Gradients flow on, into parameters that no layer of the converted model has."""
    torch.manual_seed(0)
    before, model = nn.Linear(6, 6), nn.Linear(6, 4).requires_grad_(False)
    workers = spies("verify")
    workers[0].lie = Liar(LIES["zeros"])
    offload(model, mode="verify", workers=workers)
    model(before(torch.randn(3, 6))).sum().backward()
    optimizer = torch.optim.SGD(before.parameters(), lr=0.1)
    for _ in range(2):  # catching the error changes nothing
        with pytest.raises(IntegrityError):
            optimizer.step()


def test_a_new_start_is_not_held_up_by_an_old_verdict() -> None:
    torch.manual_seed(0)
    failed = plain_net()
    workers = spies("verify", lie=LIES["zeros"])
    offload(failed, mode="verify", workers=workers)
    with pytest.raises(IntegrityError):
        _step(failed, torch.optim.SGD(failed.parameters(), lr=0.1))
    fresh = plain_net()
    offload(fresh, mode="verify", workers="inline")
    _step(fresh, torch.optim.SGD(fresh.parameters(), lr=0.1))
    with pytest.raises(IntegrityError):  # another optimizer of the failed one's parameters
        torch.optim.Adam(failed.parameters()).step()
