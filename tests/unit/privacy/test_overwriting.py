"""A certified graph writes over what nobody reads again, and its numbers are those of the model, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cloister.privacy import bind, check_model
from cloister.privacy._replay import Calls


class Block(nn.Module):
    """A convolution, a norm, a shortcut; what differs is how the two meet."""

    def __init__(self, meeting: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.Linear(48, 4)
        self.scale = nn.Parameter(torch.linspace(-1, 1, 3).reshape(1, 3, 1, 1))
        self.meeting = meeting
        used = meeting.__code__.co_names
        for name in ("norm", "scale"):  # what is not used is frozen: a trained parameter has to be used
            if name not in used:
                getattr(self, name).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.meeting(self, x).flatten(1))


MEETINGS = {
    "a chain": (lambda of, x: F.relu(of.norm(of.conv(x))), 1),
    "a residual": (lambda of, x: F.relu(of.norm(of.conv(x)) + x), 2),
    "a sum onto the batch": (lambda of, x: F.relu(x + of.conv(x)), 1),  # the batch is the caller's
    "read again": (lambda of, x: (lambda y: F.relu(y) + y)(of.conv(x)), 0),
    "read before": (lambda of, x: (lambda y: y.sigmoid() * F.relu(y))(of.conv(x)), 0),
    "a view": (lambda of, x: F.relu(of.conv(x).transpose(1, 2)), 0),
    "an output that is kept": (lambda of, x: F.relu(torch.sigmoid(of.conv(x))), 0),
    "a weight's own": (lambda of, x: of.conv(x) * F.relu(of.scale + of.scale), 0),
    "a sum that is broadcast": (lambda of, x: F.relu(of.conv(x).mean((2, 3), keepdim=True) + x), 1),
    "twice the same": (lambda of, x: (lambda y: y + y)(of.conv(x)), 0),
}


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("name", list(MEETINGS))
def test_what_is_written_over_is_read_by_nobody(name: str) -> None:
    torch.manual_seed(0)
    meeting, expected = MEETINGS[name]
    model = Block(meeting)
    batch = torch.randn(5, 3, 4, 4), torch.arange(5) % 4
    given = batch[0].clone()
    certificate = check_model(model, loss, batch)
    assert len(Calls(certificate.graph)._over) == expected
    other = copy.deepcopy(model)
    bound = bind(certificate, model, loss)
    for _ in range(2):
        losses = bound(batch)
        losses.sum().backward()
        plain = loss(other, batch)
        plain.sum().backward()
        assert torch.equal(losses, plain)
        assert torch.equal(batch[0], given)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
