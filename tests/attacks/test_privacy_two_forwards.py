"""One backward through several forwards: a record's rows meet in one sum, bounded each by itself and not together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.privacy import make_private

ROWS, WIDTH = 4, 6


def training(model: nn.Module, **settings: Any) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    data = TensorDataset(50 * torch.randn(ROWS, WIDTH))
    return make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=ROWS),  # everybody is drawn in every step
        clip=1.0,
        noise_multiplier="1",
        delta="1e-5",
        **{"micro_batch": ROWS, **settings},
    )


def alone(optimizer: Any) -> float:
    """The norm of what the first record adds to the sum, where a backward went before."""
    engine = optimizer.privacy.engine
    engine.begin()
    engine.gather(torch.tensor([0, -1, -1, -1]))
    return float(engine._total.double().norm()) * float(engine.grid.step)


@pytest.mark.parametrize("settings", [{}, {"arena_bytes": 1}, {"kernels": "torch"}], ids=str)
@pytest.mark.parametrize("forwards", [2, 5])
def test_several_forwards_and_one_backward_exceed_no_bound(forwards: int, settings: dict[str, Any]) -> None:
    """A siamese loss, a discriminator's: ``loss(model(a), model(b))``."""
    model, optimizer, loader = training(nn.Linear(WIDTH, 3), **settings)
    (rows,) = next(iter(loader))
    try:
        sum((model(rows).sum(1) for _ in range(forwards)), torch.zeros(ROWS)).mean().backward()
    except CloisterError:
        return
    assert alone(optimizer) <= 1.0


def test_a_forward_of_an_earlier_micro_batch_contributes_to_no_later_one() -> None:
    """Its rows would be summed as if they were those of whoever has their places in this one."""
    model, optimizer, loader = training(nn.Linear(WIDTH, 3), micro_batch=2)

    def trained() -> None:
        held: list[Tensor] = []
        for (rows,) in loader:
            held.append(model(rows).sum(1).mean())
            if loader.place.is_last:
                torch.stack(held).sum().backward()
                held.clear()
            optimizer.step()

    with pytest.raises(CloisterError):
        trained()


def test_a_loop_that_was_interrupted_begins_anew() -> None:
    """What it left counts for nothing: neither for the next batch nor for an error."""
    model, optimizer, loader = training(nn.Linear(WIDTH, 3))
    (rows,) = next(iter(loader))
    model(rows).sum(1).mean().backward()
    for (rows,) in loader:
        model(rows).sum(1).mean().backward()
        assert alone(optimizer) <= 1.0
        break
