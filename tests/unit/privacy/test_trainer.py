"""A whole training: within its ε, resumable to the bit, and refused for a model that mixes examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.privacy import RunKey, Trainer
from cloister.wire import Secret

RECORDS = 240


def loss(model: nn.Module, batch: Any) -> Tensor:
    x, labels = batch
    return F.cross_entropy(model(x), labels, reduction="none")


def trainer(*layers: nn.Module, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    x = torch.randn(RECORDS, 10)
    model = nn.Sequential(nn.Linear(10, 16), *layers, nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=40, shuffle=True)
    chosen: dict[str, Any] = {"epochs": 4, "delta": "1e-5", "noise_multiplier": 1, "micro_batch": 64} | settings
    return Trainer(model, loss, optimizer, loader, **chosen)


def test_it_trains_within_its_epsilon_and_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(noise_multiplier=None, epsilon=2, clip=1.0)
    spent = made.fit()
    assert spent.epsilon is not None
    assert 1.9 < float(spent.epsilon) <= 2
    assert made.certificate is not None
    assert made.privacy.steps == 24
    out, shown = capsys.readouterr()
    assert "24/24" in shown
    assert f"ε = {spent.epsilon}" in shown
    assert out == ""


def test_what_was_checked_is_what_is_trained() -> None:
    made = trainer(epochs=1)
    before = [parameter.detach().clone() for parameter in made.model.parameters()]

    class Other(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            raise AssertionError("the model's code ran")

    made.model.__class__ = Other
    made.fit()
    assert all(not torch.equal(one, other) for one, other in zip(made.model.parameters(), before, strict=True))


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    secret, key = Secret.random(32), Secret.random(32)
    whole = trainer(nn.Dropout(0.1), key=RunKey(secret))
    whole.fit()
    path = tmp_path / "training"
    part = trainer(nn.Dropout(0.1), key=RunKey(secret))
    part._epochs = 2
    part.fit(checkpoint=path, key=key)
    rest = trainer(nn.Dropout(0.1), key=RunKey(secret))
    spent = rest.fit(checkpoint=path, key=key)
    assert rest.privacy.steps == 24
    assert spent == whole.privacy.spent()
    for one, other in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_a_kept_key_it_goes_on_and_still_counts(tmp_path: Path) -> None:
    key = Secret.random(32)
    part = trainer()
    part._epochs = 1
    part.fit(checkpoint=tmp_path / "training", key=key)
    rest = trainer()
    rest.fit(checkpoint=tmp_path / "training", key=key)
    (event,) = rest.privacy.events
    assert event.count == 24


def test_a_state_is_of_whole_batches_and_of_this_run() -> None:
    made = trainer(key=RunKey(), micro_batch=16)
    batches = iter(made.loader)
    made._trained(next(batches)).mean().backward()
    made.optimizer.step()
    with pytest.raises(CloisterError) as refused:
        _ = made.privacy.state
    assert refused.value.code == 2857
    for state, code in (({}, 2812), (trainer(key=RunKey()).privacy.state, 5810)):
        with pytest.raises(CloisterError) as refused:
            made.privacy.resume(state)
        assert refused.value.code == code


def test_a_model_that_mixes_examples_is_refused_before_a_step() -> None:
    with pytest.raises(CloisterError) as refused:
        trainer(nn.BatchNorm1d(16))
    assert 8830 <= refused.value.code <= 8841
    with pytest.raises(CloisterError) as refused:
        trainer(nn.BatchNorm1d(16), dangerous_unchecked=True).fit()
    assert refused.value.code == 8852


def test_a_loss_that_is_averaged_is_refused() -> None:
    made = trainer(dangerous_unchecked=True)
    made._loss = lambda model, batch: loss(model, batch).mean()
    with pytest.raises(CloisterError) as refused:
        made.fit()
    assert refused.value.code == 2850
