"""Workers that help private training: one that lies stops it before anything is released; what one sees is uniform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.test_worker_view import _hidden, _is_uniform
from tests.modes import Spy, spies
from tests.private_offloading import always, network, norm, summed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.offload import offload
from cloister.offload._commands import Compute
from cloister.privacy import make_private
from cloister.privacy._clipping import Flat

MODES = ("verify", "shared3", "shared5")
ROLES = ("forward", "input_gradient", "weight_gradient")


@pytest.fixture(autouse=True)
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)


def training(mode: str, workers: list[Spy], side: float = 1.0, **settings: Any) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    offload(model, mode=mode, workers=workers)  # type: ignore[arg-type]
    data = TensorDataset(torch.randn(80, 16) * side, torch.randint(0, 8, (80,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(data, batch_size=20)
    return make_private(model, optimizer, loader, clip=1.0, noise_multiplier=1, delta=1e-5, **settings)


def wrong(role: str) -> tuple[dict[str, bool], Callable[[Compute, Tensor], Tensor]]:
    """A lie about products of one role, told once it is switched on: one bit of one word."""
    lying = {"now": False, "lied": False}

    def lie(command: Compute, answer: Tensor) -> Tensor:
        if lying["now"] and command.form.role == role:
            lying["lied"] = True
            answer = answer.clone()
            answer.view(-1)[answer.numel() // 2] += 2
        return answer

    return lying, lie


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("role", ROLES)
def test_a_wrong_product_ends_the_training_before_anything_is_released(
    mode: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying, lie = wrong(role)
    workers = spies(mode)
    workers[-1].lie = lie
    model, optimizer, loader = training(mode, workers)
    batches = iter(loader)
    inputs, labels = next(batches)
    F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    released: list[int] = []
    monkeypatch.setattr(type(optimizer.privacy.engine.noise), "add_to", lambda self, total: released.append(1))

    inputs, labels = next(batches)
    lying["now"] = True
    F.cross_entropy(model(inputs), labels).backward()
    with pytest.raises(CloisterError) as caught:
        optimizer.step()
    assert lying["lied"]
    assert caught.value.code == 5701
    assert (caught.value.expected, caught.value.got) == (None, None)
    assert not released
    assert optimizer.privacy.steps == 1
    assert [event.count for event in optimizer.privacy.events] == [1]  # type: ignore[union-attr]
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)

    lying["now"] = False  # a verdict is final: nobody tries again
    with pytest.raises(CloisterError) as again:
        model(inputs)
    assert again.value.code in (3851, 5701)
    with pytest.raises(CloisterError) as stepped:
        optimizer.original.step()
    assert stepped.value.code == 5701


def test_a_lie_about_attention_ends_it_too() -> None:
    """Of products without parameters no private form knows; the verdict is the model's all the same."""
    from tests.private_offloading import Attentive

    lying, lie = wrong("forward")
    workers = spies("shared3")
    workers[0].lie = lambda command, answer: lie(command, answer) if len(command.form.x) > 2 else answer
    torch.manual_seed(0)
    model = offload(Attentive(), mode="shared3", workers=workers)  # type: ignore[arg-type]
    data = TensorDataset(torch.randn(40, 3, 16), torch.randint(0, 10, (40,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    made = make_private(model, optimizer, DataLoader(data, batch_size=10), clip=1.0, noise_multiplier=1, delta=1e-5)
    for number, (inputs, labels) in enumerate(made[2]):
        lying["now"] = number > 0
        F.cross_entropy(model(inputs), labels).backward()
        if number == 0:
            made[1].step()
            continue
        with pytest.raises(CloisterError) as caught:
            made[1].step()
        break
    assert caught.value.code == 5701
    assert lying["lied"]
    assert made[1].privacy.steps == 1


def seen(mode: str, side: float) -> list[Spy]:
    """What workers see of a private step on inputs of a size."""
    workers = spies(mode)
    model, optimizer, loader = training(mode, workers, side)
    inputs, labels = next(iter(loader))
    F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    return workers


@pytest.mark.parametrize("mode", ["shared3", "shared5"])
@pytest.mark.parametrize("side", [0.0, 1.0, 1e6])
def test_what_a_worker_sees_of_a_private_step_is_uniform(mode: str, side: float) -> None:
    messages = [tensor for spy in seen(mode, side) for tensor in _hidden(spy)]
    assert len(messages) > 30  # trials, forward, both gradients
    large = [tensor for tensor in messages if tensor.numel() >= 256]
    assert large
    assert all(_is_uniform(tensor) for tensor in large)
    assert not [tensor for spy in seen(mode, side) for _, tensor in spy.tensors if tensor.dtype == torch.int8]


@pytest.mark.parametrize("mode", ["shared3", "shared5"])
def test_all_that_is_not_masked_says_nothing_of_the_data(mode: str) -> None:
    """Neither inputs, nor how many were drawn: commands, order, shapes are the same."""

    def visible(side: float) -> list[Any]:
        return [[command.model_dump() for command in spy.commands] for spy in seen(mode, side)]

    assert visible(0.0) == visible(1.0) == visible(1e6)


def test_an_outliers_part_of_the_sum_is_bounded_and_others_do_not_notice_it() -> None:
    from tests.private_offloading import engines

    model, x = network("linear")
    engine, _ = engines(model, Flat(0.5), 12)
    x = x[:12]
    quiet = summed(engine, x, torch.where(torch.arange(12) == 3, -1, torch.arange(12)))
    x[3] *= 1e12
    loud = summed(engine, x)
    assert 0.97 * float(engine.grid.sensitivity) < norm(loud - quiet) <= float(engine.grid.sensitivity)
    assert torch.equal(summed(engine, x, torch.where(torch.arange(12) == 3, -1, torch.arange(12))), quiet)


def test_rounding_is_drawn_from_nothing_that_a_seed_fixes() -> None:
    """Who knew the bytes would see whose place moved when an example is left out."""
    keys = set()
    for _ in range(3):
        _, optimizer, _ = training("shared3", spies("shared3"))
        keys.add(optimizer.privacy.engine.rounding.state.key)
    assert len(keys) == 3
