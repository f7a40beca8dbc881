"""A forward that leaves what it saw in the model's state, which is released with no noise on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.privacy import make_private

ROWS, WIDTH = 40, 6


class Leaking(nn.Module):
    """A linear layer; ``leave`` is called with the rows before it."""

    kept: Tensor

    def __init__(self, leave: Callable[[Leaking, Tensor], None]) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(WIDTH))
        self.frozen = nn.Parameter(torch.full((50, WIDTH), 3.0), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(WIDTH))
        self.norm = nn.InstanceNorm1d(3, track_running_stats=True)
        self.layer = nn.Linear(WIDTH, 2)
        self.leave, self.seen = leave, False

    def forward(self, rows: Tensor) -> Tensor:
        self.leave(self, rows.detach())
        return self.layer(rows) + self.shift[:2]


def assigned(of: Leaking, rows: Tensor) -> None:
    of.kept = 0.9 * of.kept + 0.1 * rows.mean(0)


def queued(of: Leaking, rows: Tensor) -> None:
    of.kept = torch.cat([rows, of.kept.reshape(-1, WIDTH)])[:32]  # records themselves


def written_out(of: Leaking, rows: Tensor) -> None:
    torch.mean(rows, 0, out=of.kept)


def set_as_data(of: Leaking, rows: Tensor) -> None:
    of.kept.data = rows.mean(0)


def written_among_others(of: Leaking, rows: Tensor) -> None:
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [of.kept], [rows.mean(0)], 0.1
    )


def running_statistics(of: Leaking, rows: Tensor) -> None:
    of.norm(rows.reshape(-1, 3, 2))


def renormalised(of: Leaking, rows: Tensor) -> None:
    F.embedding(rows[:, 0].long() % 50, of.frozen, max_norm=1.0)  # which words were read


def copied_to_a_trained_one(of: Leaking, rows: Tensor) -> None:
    with torch.no_grad():
        of.shift.copy_(rows.mean(0))


def added_to_a_trained_one(of: Leaking, rows: Tensor) -> None:
    with torch.no_grad():
        of.shift.add_(rows.mean(0))


def at_first(of: Leaking, rows: Tensor) -> None:
    """An initialisation by data, as ActNorm has it."""
    if not of.seen:
        copied_to_a_trained_one(of, rows)
    of.seen = True


@pytest.mark.parametrize(
    "leave",
    [
        assigned,
        queued,
        written_out,
        set_as_data,
        written_among_others,
        running_statistics,
        renormalised,
        copied_to_a_trained_one,
        added_to_a_trained_one,
        at_first,
    ],
)
def test_state_does_not_follow_data(leave: Callable[[Leaking, Tensor], None]) -> None:
    model = Leaking(leave)
    data = TensorDataset(1000 + torch.randn(ROWS, WIDTH), torch.randint(0, 2, (ROWS,)))
    model, optimizer, loader = make_private(
        model,
        torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.0),
        DataLoader(data, batch_size=8),
        clip=1.0,
        noise_multiplier="1",
        delta="1e-5",
        kernels="torch",
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def trained() -> None:
        for rows, labels in loader:
            F.cross_entropy(model(rows), labels).backward()
            optimizer.step()

    with pytest.raises(CloisterError) as refused:
        trained()
    assert refused.value.code in (8853, 8854)
    after = model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert not changed, f"{changed[0]} holds what nobody put noise on"


class Counting(nn.Module):
    """State that follows no data: a counter, a row of a table, an average of the weights."""

    calls: Tensor
    table: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.zeros(3, WIDTH))
        self.register_buffer("average", torch.zeros(2, WIDTH))
        self.layer = nn.Linear(WIDTH, 2)

    def forward(self, rows: Tensor) -> Tensor:
        self.calls += 1
        self.table[1].add_(1.0)
        self.average = 0.5 * self.average + 0.5 * self.layer.weight.detach()
        return self.layer(rows)


def test_state_that_follows_no_data_is_kept_and_no_trial_counts() -> None:
    model = Counting()
    data = TensorDataset(torch.randn(ROWS, WIDTH), torch.randint(0, 2, (ROWS,)))
    model, optimizer, loader = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=8),
        clip=1.0,
        noise_multiplier="1",
        delta="1e-5",
        kernels="torch",
    )
    for count, (rows, labels) in enumerate(loader, 1):
        before = model.layer.weight.detach().clone()
        F.cross_entropy(model(rows), labels).backward()
        optimizer.step()
        assert model.calls == count
        assert torch.equal(model.table, torch.tensor([[0.0], [count], [0.0]]).expand(3, WIDTH))
        assert count > 1 or torch.equal(model.average, 0.5 * before)
