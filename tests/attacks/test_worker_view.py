"""What one worker sees is uniform, and the same whatever the data is: each message, and each pair of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from tests.modes import Spy, spies
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cloister.offload import offload, offloading
from cloister.offload._commands import Compute, Drop, Expand, Put
from cloister.offload._schemes import SCHEMES

HIDING = ("blind", "blind2", "shared3", "shared5")
_LEVEL = 1e-9  # of a chi-square test: a false alarm in a billion


class Constant(nn.Module):
    """Layers of one size over inputs, weights and gradients that are the same number everywhere."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        for parameter in self.parameters():
            parameter.data.fill_(0.5)
            parameter.requires_grad_(not frozen)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(checkpoint(self.second, self.first(inputs), use_reentrant=False))


def _views(mode: str, value: float, *, steps: int = 2, rounds: int = 2) -> list[Spy]:
    """Trains on constant tensors: micro-batches, a layer used twice, a recomputed one, steps, a new start."""
    seen: list[Spy] = []
    for _ in range(rounds):
        torch.manual_seed(0)
        model = Constant(frozen=bool(SCHEMES[mode].public))  # type: ignore[index]
        workers = spies(mode)
        offload(model, mode=mode, workers=workers, rounding="nearest")  # type: ignore[arg-type]
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1)), *model.parameters()], lr=0.0)
        for _ in range(steps):
            for _ in range(2):
                inputs = torch.full((64, 64), value, requires_grad=True)
                model(inputs).sum().backward()
            optimizer.step()
        offloading(model).engine.close()
        seen = [*seen, *workers]
    return seen


def _hidden(spy: Spy) -> list[Tensor]:
    return [tensor for _, tensor in spy.tensors if tensor.dtype == torch.int32]


def _is_uniform(words: Tensor) -> bool:
    """Chi-square over each of the four bytes of the words."""
    for shift in (0, 8, 16, 24):
        counts = torch.bincount(((words.flatten() >> shift) & 255).long(), minlength=256).double()
        expected = counts.sum() / 256
        statistic = ((counts - expected) ** 2 / expected).sum().item()
        if chi2.sf(statistic, 255) < _LEVEL:
            return False
    return True


@pytest.mark.parametrize("mode", HIDING)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.7e4])
def test_every_message_is_uniform_whatever_the_data(mode: str, value: float) -> None:
    messages = [tensor for spy in _views(mode, value) for tensor in _hidden(spy)]
    assert len(messages) >= 16
    assert all(_is_uniform(tensor) for tensor in messages)


@pytest.mark.parametrize("mode", [*HIDING[:-1], pytest.param("shared5", marks=pytest.mark.slow)])
def test_differences_of_messages_are_uniform_too(mode: str) -> None:
    """A mask that is used twice passes a test of each message; the difference of the two gives it away."""
    for name, same in itertools.groupby(sorted(_views(mode, 1.0), key=lambda spy: spy.name), lambda spy: spy.name):
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for spy in same:  # both starts: a key that was kept would show here
            for tensor in _hidden(spy):
                by_shape[tuple(tensor.shape)].append(tensor)
        for tensors in by_shape.values():
            pairs = list(itertools.combinations(tensors, 2))
            assert pairs, name
            assert all(_is_uniform(a - b) for a, b in pairs)
            assert all(_is_uniform(a + b) for a, b in pairs)


def test_the_tests_above_see_a_mask_that_is_used_twice() -> None:
    mask = torch.randint(-(1 << 31), 1 << 31, (64, 64), dtype=torch.int64).to(torch.int32)
    first, second = mask + 3, mask + 5
    assert _is_uniform(first)
    assert _is_uniform(second)
    assert not _is_uniform(first - second)
    assert not _is_uniform((first + 1) + (7 - mask))  # W + U and W - U


@pytest.mark.parametrize("mode", HIDING)
def test_all_that_is_not_masked_is_independent_of_the_data(mode: str) -> None:
    """Commands, their order, shapes and types are the same for any inputs; only words under masks differ."""

    def visible(value: float) -> list[Any]:
        return [[command.model_dump() for command in spy.commands] for spy in _views(mode, value, rounds=1)]

    assert visible(0.0) == visible(1.0) == visible(-3.7e4)


@pytest.mark.parametrize("mode", HIDING)
def test_what_is_sent_in_clear_is_a_public_weight(mode: str) -> None:
    for spy in _views(mode, 1.0, rounds=1):
        clear = [tensor for _, tensor in spy.tensors if tensor.dtype == torch.int8]
        if not SCHEMES[mode].public:  # type: ignore[index]
            assert not clear
        assert all(tensor.shape == (64, 64) and tensor.unique().numel() == 1 for tensor in clear)


@pytest.mark.parametrize("mode", HIDING)
def test_no_worker_has_both_a_mask_and_what_it_hides(mode: str) -> None:
    for spy in _views(mode, 1.0, rounds=1):
        expanded = {command.stream for command in spy.of(Expand) if isinstance(command, Expand)}
        assert expanded <= set(spy.streams)
        hidden_too = bool(_hidden(spy)) and bool(expanded - {"share"})
        assert not hidden_too


def test_two_points_of_one_mask_go_to_two_workers() -> None:
    first, second, dealer = _views("shared3", 1.0, rounds=1)
    assert not _hidden(dealer)
    for one, other in zip(_hidden(first), _hidden(second), strict=True):
        total = one + other  # twice the integers: what the two would learn together
        assert total.unique().numel() == 1


def test_a_new_start_has_new_masks() -> None:
    runs = [_hidden(_views("shared3", 1.0, rounds=1)[0]) for _ in range(2)]
    assert all(not torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_nothing_but_the_four_verbs_is_said() -> None:
    for spy in _views("shared5", 1.0, rounds=1):
        assert all(isinstance(command, Put | Expand | Compute | Drop) for command in spy.commands)
