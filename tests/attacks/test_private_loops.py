"""Loops that would let a record count more often than it is accounted: each is refused, by its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.privacy import Groups, make_private

ROWS, WIDTH = 60, 3
Training = tuple[nn.Module, Any, Any]


def training(*, groups: bool = False, micro_batch: int | None = 9) -> Training:
    data = TensorDataset(torch.randn(ROWS, WIDTH), torch.randint(0, 2, (ROWS,)))
    model = nn.Linear(WIDTH, 2)
    owners = Groups.of([row // 3 for row in range(ROWS)], most_rows=3) if groups else None
    return make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=6),
        clip=1.0,
        noise_multiplier="1",
        delta="1e-5",
        micro_batch=micro_batch,
        groups=owners,
        expected_batch=6,
        kernels="torch",
    )


def step(model: nn.Module, optimizer: Any, batch: tuple[Tensor, Tensor]) -> None:
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def listed(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for batch in list(loader):
        step(model, optimizer, batch)


def looking_ahead(model: nn.Module, optimizer: Any, loader: Any) -> None:
    def ahead() -> Iterator[Any]:
        batches = iter(loader)
        now = next(batches)
        for then in batches:
            yield now
            now = then

    for batch in ahead():
        step(model, optimizer, batch)


def skipping(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for number, batch in enumerate(loader):
        if number % 2:
            step(model, optimizer, batch)


def stepping_twice(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for batch in loader:
        step(model, optimizer, batch)
        step(model, optimizer, batch)


def keeping_the_first(model: nn.Module, optimizer: Any, loader: Any) -> None:
    first = None
    for batch in loader:
        first = first or batch
        step(model, optimizer, first)


def keeping_a_part(model: nn.Module, optimizer: Any, loader: Any) -> None:
    kept: list[Tensor] = []
    for inputs, labels in loader:
        kept.append(inputs)
        step(model, optimizer, (kept[0][:].view(-1, WIDTH), labels))


def last_epochs_batch(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for batch in loader:
        step(model, optimizer, batch)
    for _ in loader:
        step(model, optimizer, batch)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(
    ("loop", "code"),
    [
        (listed, 3850),
        (looking_ahead, 3850),
        (skipping, 3850),
        (stepping_twice, 3851),
        (keeping_the_first, 3851),
        (keeping_a_part, 3851),
        (last_epochs_batch, 3851),
    ],
)
def test_a_loop_that_uses_a_batch_out_of_its_turn_is_refused(
    loop: Callable[..., None], code: int, groups: bool
) -> None:
    with pytest.raises(CloisterError) as refused:
        loop(*training(groups=groups))
    assert refused.value.code == code


def usual(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for batch in loader:
        step(model, optimizer, batch)
    for number, batch in enumerate(loader):  # an epoch that is left early, with a batch in hand
        if number == 5:
            break
        step(model, optimizer, batch)
    for batch in loader:
        step(model, optimizer, batch)


def augmenting(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for inputs, labels in loader:
        step(model, optimizer, (inputs.flip(1).double().float(), labels))


def looking_at_it_first(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for inputs, labels in loader:
        with torch.no_grad():
            model(inputs)
        step(model, optimizer, (inputs, labels))


def by_hand(model: nn.Module, optimizer: Any, loader: Any) -> None:
    for _ in range(4):
        step(model, optimizer, next(iter(loader)))


@pytest.mark.parametrize("loop", [usual, augmenting, looking_at_it_first, by_hand])
def test_a_loop_that_takes_turns_is_not(loop: Callable[..., None]) -> None:
    model, optimizer, loader = training(micro_batch=None if loop is by_hand else 9)
    loop(model, optimizer, loader)
    assert optimizer.privacy.steps > 0
