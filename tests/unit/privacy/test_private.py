"""Three objects in, three out, and the loop as it was."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.ledger import Unaccounted
from cloister.privacy._clipping import Automatic, Quantile
from cloister.privacy._groups import Groups
from cloister.privacy._private import make_private

RECORDS = 240


def parts(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(seed)
    x = torch.randn(RECORDS, 10)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    labels = (x[:, 0] + x[:, 1] > 0).long()
    return model, optimizer, DataLoader(TensorDataset(x, labels), batch_size=40, shuffle=True)


def train(model: nn.Module, optimizer: Any, loader: Any, epochs: int) -> None:
    for _ in range(epochs):
        for x, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()


def accuracy(model: nn.Module, loader: Any) -> float:
    x, labels = loader.dataset.tensors
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == labels).double().mean())


def test_an_unchanged_loop_learns_within_its_epsilon() -> None:
    given = parts()
    model, optimizer, loader = make_private(*given, clip=1.0, epsilon=3, delta=1e-5, epochs=6, micro_batch=32)
    assert model is given[0]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    assert optimizer.privacy.spent() is None
    for _ in range(6):
        train(model, optimizer, loader, 1)
        scheduler.step()
    spent = optimizer.privacy.spent()
    assert spent is not None
    assert spent.epsilon is not None
    assert 2.9 < float(spent.epsilon) <= 3
    assert optimizer.privacy.steps == 36
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert accuracy(model, loader) > 0.85


def test_the_same_without_noise_to_speak_of_is_ordinary_training() -> None:
    model, optimizer, loader = make_private(*parts(), clip=100.0, noise_multiplier="0.125", delta=1e-5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    (x, labels) = next(iter(loader))
    F.cross_entropy(model(x), labels).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer.step()
    real = loader.mask
    expected = copy.deepcopy(model)
    for parameter, old in zip(expected.parameters(), before, strict=True):
        parameter.data.copy_(old)
    F.cross_entropy(expected(x[real]), labels[real], reduction="sum").div(40).backward()
    for parameter, old, other in zip(model.parameters(), before, expected.parameters(), strict=True):
        assert other.grad is not None
        noise = 100 * 0.125 / 40
        assert float((old - parameter.detach() - other.grad).abs().max()) < 6 * noise


def test_every_step_has_its_noise() -> None:
    model, optimizer, loader = make_private(*parts(), clip=1e-3, noise_multiplier=20, delta=1e-5)
    made = []
    for x, labels in loader:
        before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        optimizer.param_groups[0]["momentum"] = 0.0
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        made.append((before - after).double() * 40)
    # 40 examples of norm 0.001 are little beside 210 numbers of standard deviation 0.02
    deviations = [float(each.std()) for each in made]
    assert all(0.014 < deviation < 0.028 for deviation in deviations), deviations
    assert abs(float(torch.corrcoef(torch.stack(made[:2]))[0, 1])) < 0.4


def test_a_kept_run_key_makes_the_same_steps_again() -> None:
    from cloister.privacy._run_key import RunKey
    from cloister.wire import Secret

    secret = Secret.random(32)
    weights = []
    for _ in range(2):
        model, optimizer, loader = make_private(
            *parts(), clip=1.0, noise_multiplier=1, delta=1e-5, key=RunKey(secret), micro_batch=64
        )
        train(model, optimizer, loader, 1)
        weights.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_groups_are_drawn_and_clipped_as_one() -> None:
    model, optimizer, loader = parts()
    groups = Groups.of([row // 3 for row in range(RECORDS)], most_rows=3)
    model, optimizer, private = make_private(
        model,
        optimizer,
        loader,
        clip=1.0,
        noise_multiplier=1,
        delta=1e-5,
        groups=groups,
        expected_batch=10,
        unit="user",
    )
    train(model, optimizer, private, 1)
    (event,) = optimizer.privacy.events
    assert (event.unit, event.count) == ("user", 8)


def test_float_noise_says_that_it_guarantees_nothing() -> None:
    model, optimizer, loader = make_private(
        *parts(), clip=1.0, noise_multiplier=1, delta=1e-5, dangerous_float_noise=True
    )
    train(model, optimizer, loader, 1)
    (event,) = optimizer.privacy.events
    assert isinstance(event, Unaccounted)
    spent = optimizer.privacy.spent()
    assert spent is not None
    assert spent.epsilon is None


def test_a_bound_that_follows_a_quantile_settles_there() -> None:
    clipping = Quantile(10.0, quantile=0.5, noise=10.0)
    model, optimizer, loader = make_private(*parts(), clip=clipping, noise_multiplier=1, delta=1e-5)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, loader, 8)
    x, labels = loader.dataset.tensors
    model.eval()
    norms = []
    for row in range(RECORDS):
        gradients = torch.autograd.grad(
            F.cross_entropy(model(x[row : row + 1]), labels[row : row + 1]), [*model.parameters()]
        )
        norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
    share = sum(norm <= clipping.norm for norm in norms) / RECORDS
    assert 0.2 < share < 0.8  # the quantile's own noise moves it by a few hundredths, the sampling as much


def test_outside_training_the_model_is_the_one_it_was() -> None:
    model, optimizer, loader = parts()
    plain = copy.deepcopy(model)
    private, *_ = make_private(model, optimizer, loader, clip=1.0, noise_multiplier=1, delta=1e-5)
    x = torch.randn(3, 10)
    assert torch.equal(private.eval()(x), plain(x))
    with torch.no_grad():
        assert torch.equal(private.train()(x), plain(x))
    assert list(private.state_dict()) == list(plain.state_dict())
    for other in (copy.deepcopy(private), pickle.loads(pickle.dumps(private))):  # noqa: S301 - our own bytes
        assert type(other) is nn.Sequential
        assert torch.equal(other.train()(x), plain(x))


def test_what_does_not_belong_together_is_refused() -> None:
    settings: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1, "delta": 1e-5}
    model, optimizer, loader = parts()
    cases = [
        (2855, lambda: make_private(model, optimizer, loader, clip=1.0, delta=1e-5)),
        (2855, lambda: make_private(model, optimizer, loader, **settings, epsilon=1, epochs=1)),
        (2856, lambda: make_private(model, torch.optim.SGD([model[0].weight]), loader, **settings)),
        (2850, lambda: make_private(model, optimizer, loader, **settings | {"clip": 0.0})),
        (2850, lambda: make_private(model, optimizer, loader, **settings | {"clip": Automatic(1.0, gamma=0)})),
    ]  # fmt: skip
    for code, call in cases:
        with pytest.raises(CloisterError) as refused:
            call()
        assert refused.value.code == code
    model, private, loader = make_private(model, optimizer, loader, **settings)
    with pytest.raises(CloisterError) as refused:
        make_private(model, optimizer, parts()[2], **settings)
    assert refused.value.code == 2856
    with pytest.raises(CloisterError) as refused:
        private.step(lambda: 0.0)
    assert refused.value.code == 2853
    with pytest.raises(CloisterError) as refused:
        private.add_param_group({"params": []})
    assert refused.value.code == 2854


def test_the_counts_noise_must_leave_some_for_the_gradient() -> None:
    with pytest.raises(CloisterError) as refused:
        make_private(*parts(), clip=Quantile(1.0, noise=0.4), noise_multiplier=1, delta=1e-5)
    assert refused.value.code == 2852
