"""A state that is gone on from under other terms, or changed, or too old: what was made before costs what it cost."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.ledger import Account, Method, SampledGaussian, amount, calibrate
from cloister.privacy import Quantile, RunKey, Trainer, make_private
from cloister.wire import Secret

TERMS: dict[str, Any] = {"noise_multiplier": "1", "delta": "1e-5", "clip": 1.0}
SECRET, SEALING = Secret(bytes(32)), Secret(bytes(range(32)))


@pytest.fixture(autouse=True)
def by_renyi_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """By privacy loss distributions each calibration takes seconds."""
    for name, made in (("Account", Account), ("calibrate", calibrate)):
        monkeypatch.setattr(f"cloister.privacy._spending.{name}", functools.partial(made, by=Method.RDP))


def parts(batch: int = 20) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(100, 6), torch.randint(0, 2, (100,)))
    model = nn.Linear(6, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data, batch_size=batch)


def training(*, keyed: bool = False, batch: int = 20, **terms: Any) -> tuple[nn.Module, Any, Any]:
    key = RunKey(SECRET) if keyed else None
    return make_private(*parts(batch), key=key, kernels="torch", **{**TERMS, **terms})


def train(model: nn.Module, optimizer: Any, loader: Any, steps: int = 5) -> None:
    wanted = optimizer.privacy.steps + steps
    for rows, labels in loader:
        F.cross_entropy(model(rows), labels).backward()
        optimizer.step()
        if optimizer.privacy.steps == wanted:
            break


def cost(optimizer: Any) -> float:
    return float(Account(optimizer.privacy.events, by=Method.RDP).epsilon("1e-5").epsilon or "inf")


def refused(act: Callable[[], object]) -> int:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value.code


# ---- other terms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("terms", [{"noise_multiplier": "8"}, {"batch": 2}, {"noise_multiplier": "8", "clip": 0.1}])
def test_steps_are_charged_at_the_terms_that_they_had(terms: dict[str, Any], keyed: bool) -> None:
    first = training(keyed=keyed)
    train(*first)
    later = training(keyed=keyed, **terms)
    state = first[1].privacy.state
    if keyed and "batch" in terms:  # it could not make the steps of its key
        assert refused(lambda: later[1].privacy.resume(state)) == 5810
        assert later[1].privacy.events == ()
        return
    later[1].privacy.resume(state)
    assert later[1].privacy.events == first[1].privacy.events
    train(*later, steps=2)
    before, after = later[1].privacy.events
    assert (before,) == first[1].privacy.events
    assert (after.noise_multiplier, after.count) == (later[1].privacy.noise_multiplier, 2)
    assert after.sampling_probability == training(**terms)[1].privacy.events_of(1)[0].sampling_probability
    assert cost(later[1]) > cost(first[1])
    assert later[1].privacy.steps == 7
    assert later[1].privacy.events_of(5) == (before,)


def test_steps_under_the_same_terms_are_one_event() -> None:
    """Slack grows with the root of the draws: two events of half the steps would be charged more."""
    first, later, whole = training(), training(), training()
    train(*first, steps=2)
    later[1].privacy.resume(first[1].privacy.state)
    train(*later, steps=3)
    train(*whole, steps=5)
    assert later[1].privacy.events == whole[1].privacy.events


def test_another_units_steps_are_not_added_up() -> None:
    first = training()
    train(*first, steps=1)
    later = training(unit="patient")
    assert refused(lambda: later[1].privacy.resume(first[1].privacy.state)) == 2802


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def trainer(epochs: int, epsilon: str | None, *, batch: int = 20, **settings: Any) -> Trainer:
    model, optimizer, loader = parts(batch)
    kept = {"epochs": epochs, "epsilon": epsilon, "delta": "1e-5", "dangerous_unchecked": True, "kernels": "torch"}
    return Trainer(model, loss, optimizer, loader, **{**kept, **settings})


@pytest.mark.parametrize("keyed", [False, True])
def test_more_epochs_keep_their_epsilon(tmp_path: Path, keyed: bool) -> None:
    """The steps that are left get the noise that those before leave them, and get it again after a crash."""

    def made(epochs: int) -> Trainer:
        return trainer(epochs, "3", key=RunKey(SECRET) if keyed else None)

    begun = made(4)
    begun._epochs = 1  # as if it had been stopped
    begun.fit(checkpoint=tmp_path / "run", key=SEALING)
    longer = made(6)
    longer._epochs = 2
    longer.fit(checkpoint=tmp_path / "run", key=SEALING)
    rest = made(6)
    spent = rest.fit(checkpoint=tmp_path / "run", key=SEALING)
    assert 2.9 < float(spent.epsilon or "inf") <= 3
    before, after = rest.privacy.events
    assert (before,) == begun.privacy.events
    assert (before.count, after.count) == (5, 25)
    assert rest.privacy.noise_multiplier == longer.privacy.noise_multiplier == after.noise_multiplier
    assert float(spent.epsilon or "inf") == cost(rest.optimizer)


def test_a_training_ends_with_its_last_step_also_within_an_epoch(tmp_path: Path) -> None:
    """With another batch an epoch has other steps, and those beyond were not reckoned with."""
    first = trainer(2, None, noise_multiplier="2")
    first.fit(checkpoint=tmp_path / "run", key=SEALING)
    later = trainer(3, None, batch=30, noise_multiplier="2")
    later.fit(checkpoint=tmp_path / "run", key=SEALING)
    assert (first.privacy.steps, later.loader.epoch_steps, later.privacy.steps) == (10, 4, 12)


@pytest.mark.parametrize("terms", [(6, "3"), (2, "1"), (1, "1")])
def test_an_epsilon_that_was_spent_buys_nothing_more(tmp_path: Path, terms: tuple[int, str]) -> None:
    trainer(2, "3").fit(checkpoint=tmp_path / "run", key=SEALING)
    later = trainer(*terms)
    assert refused(lambda: later.fit(checkpoint=tmp_path / "run", key=SEALING)) == 7801
    more = trainer(3, "4")
    spent = more.fit(checkpoint=tmp_path / "run", key=SEALING)
    assert 3 < float(spent.epsilon or "inf") <= 4


def test_what_nobody_knows_is_within_no_epsilon() -> None:
    first = training(dangerous_float_noise=True)
    train(*first, steps=1)
    later = training(noise_multiplier=None, epsilon="3", epochs=2)
    assert refused(lambda: later[1].privacy.resume(first[1].privacy.state)) == 7802
    later = training()
    later[1].privacy.resume(first[1].privacy.state)
    train(*later, steps=1)
    assert Account(later[1].privacy.events, by=Method.RDP).epsilon("1e-5").epsilon is None


def test_new_noise_is_added_from_the_next_step_on() -> None:
    """Also where the old one's bounds are in the memory of a step that was made already."""
    first = training(noise_multiplier=None, epsilon="8", epochs=2)
    train(*first)
    later = training(noise_multiplier=None, epsilon="8", epochs=4)
    train(*later, steps=1)
    old = later[1].privacy.noise_multiplier
    later[1].privacy.resume(first[1].privacy.state)
    assert float(later[1].privacy.noise_multiplier) > float(old)
    train(*later, steps=1)
    engine = later[1].privacy.engine
    assert engine.noise_multiplier == later[1].privacy.noise_multiplier
    assert engine._contributions.radii == engine.radii(engine.grid)


# ---- changed states ----------------------------------------------------------------------------------------------


def changed(state: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    place: Any = state
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return state


CHANGES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "fewer steps": (("parts", 0, "steps"), 1),
    "no steps": (("parts",), []),
    "another part": (("parts", 0, "id"), "0" * 32),
    "more noise": (("parts", 0, "terms", "noise_multiplier"), "2"),
    "rarer draws": (("parts", 0, "terms", "sampling_probability"), "1/50"),
    "no slack": (("parts", 0, "terms", "draws"), 1),
    "a target": (("target",), {"epsilon": "3", "delta": "0.00001", "steps": 5}),
    "a larger bound": (("norm",), (2.0).hex()),
    "older noise": (("noise",), 0),
    "older rounding": (("rounding",), 7),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_state_is_not_one_of_the_key(name: str) -> None:
    first = training(keyed=True)
    train(*first)
    path, value = CHANGES[name]
    later = training(keyed=True)
    state = first[1].privacy.state
    assert refused(lambda: later[1].privacy.resume(changed(state, *path, to=value))) == 5810
    assert later[1].privacy.steps == 0
    later[1].privacy.resume(state)
    assert later[1].privacy.steps == 5


NO_STATES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "a word of its own": (("steps",), 1),
    "another format": (("format",), "cloister/private-run/v9"),
    "part of a step": (("parts", 0, "steps"), 0.5),
    "steps that are none": (("parts", 0, "steps"), 0),
    "steps that are given back": (("parts", 0, "steps"), -4),
    "no probability": (("parts", 0, "terms", "sampling_probability"), "0/1"),
    "a number of any length": (("parts", 0, "terms", "overflow"), "1e999999999"),
    "noise that is text": (("parts", 0, "terms", "noise_multiplier"), "much"),
    "a bound without end": (("norm",), "inf"),
}


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("name", NO_STATES)
def test_what_is_no_state_is_refused_before_anything_is_made_of_it(name: str, keyed: bool) -> None:
    first = training(keyed=keyed)
    train(*first, steps=1)
    path, value = NO_STATES[name]
    assert refused(lambda: first[1].privacy.resume(changed(first[1].privacy.state, *path, to=value))) == 2812
    assert first[1].privacy.steps == 1


def test_a_state_without_a_proof_is_no_state_of_a_key() -> None:
    first = training()
    train(*first, steps=1)
    assert refused(lambda: training(keyed=True)[1].privacy.resume(first[1].privacy.state)) == 2812
    kept = training(keyed=True)
    train(*kept, steps=1)
    bare = {name: value for name, value in kept[1].privacy.state.items() if name != "proof"}
    assert refused(lambda: training(keyed=True)[1].privacy.resume(bare)) == 2812


# ---- earlier states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_steps_that_this_process_released_stay_charged(keyed: bool) -> None:
    made = training(keyed=keyed)
    train(*made, steps=2)
    state = made[1].privacy.state
    train(*made, steps=3)
    before = cost(made[1])
    made[1].privacy.resume(state)
    assert made[1].privacy.steps == 5
    assert cost(made[1]) == before
    train(*made, steps=1)
    made[1].privacy.resume(made[1].privacy.state)
    assert made[1].privacy.steps == 6
    (event,) = made[1].privacy.events
    assert event.count == 6


def test_steps_of_two_runs_are_both_charged() -> None:
    """As many steps under the same terms are not therefore the same steps."""
    here, there = training(), training()
    train(*here, steps=3)
    train(*there, steps=5)
    here[1].privacy.resume(there[1].privacy.state)
    assert here[1].privacy.steps == 8


def test_an_earlier_state_draws_nothing_again() -> None:
    """With a key, a step that is made again from other weights would be a second release from one batch."""
    made = training(keyed=True)
    train(*made, steps=1)
    state = made[1].privacy.state
    train(*made, steps=3)
    noise, rounding = made[1].privacy.engine.noise, made[1].privacy.engine.rounding.state
    made[1].privacy.resume(state)
    assert made[2].step == 4
    assert made[1].privacy.engine.noise.state.position == noise.state.position
    assert made[1].privacy.engine.rounding.state == rounding


def test_a_batch_that_was_out_when_a_state_was_taken_up_is_not_stepped_with() -> None:
    model, optimizer, loader = training(micro_batch=4)
    state = optimizer.privacy.state
    batches = iter(loader)
    for _ in range(2):
        rows, labels = next(batches)
        F.cross_entropy(model(rows), labels).backward()
        if not optimizer.privacy.engine.halfway:
            optimizer.step()
    optimizer.privacy.resume(state)
    assert refused(optimizer.step) == 3851
    assert refused(lambda: next(batches)) == 9810


# ---- noise that is not the one that is accounted -----------------------------------------------------------------


def test_noise_that_is_changed_under_way_is_refused() -> None:
    for clip, change in (
        (1.0, lambda engine: setattr(engine, "noise_multiplier", "0.5")),
        (Quantile(1.0, noise=10.0), lambda engine: setattr(engine.clipping, "noise", 0.6)),
    ):
        made = training(clip=clip)
        train(*made, steps=1)
        before = made[0].weight.detach().clone()
        change(made[1].privacy.engine)
        assert refused(lambda made=made: train(*made, steps=1)) == 3854
        assert made[1].privacy.steps == 1
        assert torch.equal(made[0].weight, before)
        assert made[0].weight.grad is None


@pytest.mark.parametrize("name", ["noise_multiplier", "unit", "relation", "delta", "steps", "events"])
def test_what_an_account_says_is_not_set(name: str) -> None:
    privacy = training()[1].privacy
    with pytest.raises(AttributeError):
        setattr(privacy, name, getattr(privacy, name))


def test_a_step_is_charged_before_anybody_sees_it() -> None:
    model, optimizer, loader = training()
    engine = optimizer.privacy.engine
    released = engine.kernels

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            if name == "release":
                raise KeyboardInterrupt
            return getattr(released, name)

    engine.kernels = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, loader, steps=1)
    assert optimizer.privacy.steps == 1


# ---- one key, one run --------------------------------------------------------------------------------------------


def test_a_key_of_two_runs_is_refused() -> None:
    """They would draw the same records in every step."""
    key = RunKey()
    make_private(*parts(), key=key, **TERMS)
    assert refused(lambda: make_private(*parts(), key=key, **TERMS)) == 3853
    unused = RunKey()
    model, _, loader = parts()
    assert refused(lambda: make_private(model, torch.optim.SGD([model.weight]), loader, key=unused, **TERMS)) == 2856
    make_private(*parts(), key=unused, **TERMS)


@pytest.mark.parametrize("terms", [{"noise_multiplier": "2"}, {"clip": 0.5}, {"unit": "patient"}])
def test_other_terms_under_a_key_have_other_noise(terms: dict[str, Any]) -> None:
    """The same noise on two sums would say that they are the same integers, for example that nobody was drawn."""

    def noise(**some: Any) -> Tensor:
        total = torch.zeros(14, dtype=torch.int64)
        training(keyed=True, **some)[1].privacy.engine.noise.add_to(total)
        return total

    assert torch.equal(noise(), noise())
    assert not torch.equal(noise(), noise(**terms))


def test_a_quantiles_gradient_has_at_least_the_noise_that_is_told() -> None:
    """Both releases together, exactly: 1/m² + 1/(2n)² is at most 1/z²."""
    for steps in range(200):
        told, noise = amount(Fraction(500 + 17 * steps, 1000)), 4 + steps / 7
        if 2 * Fraction(noise) <= Fraction(told):
            continue
        gradient = Fraction(Quantile(1.0, noise=noise).gradient_noise(told))
        assert 1 / gradient**2 + 1 / (2 * Fraction(noise)) ** 2 <= 1 / Fraction(told) ** 2
        assert gradient < Fraction(told) * (1 + 1 / (2 * Fraction(noise) / Fraction(told)) ** 2)


def test_events_are_of_the_ledgers_own_kind() -> None:
    first = training()
    train(*first, steps=1)
    (event,) = first[1].privacy.events
    assert isinstance(event, SampledGaussian)
    assert event == first[1].privacy.events_of(1)[0]
