"""What a certified graph makes in another way has the model's numbers, bit for bit, and so have its gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cloister.privacy import bind, check_model
from cloister.privacy._shortcuts import shortcuts


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
    "a ReLU behind a convolution": (lambda of, x: F.relu(of.conv(x)), 1),
    "a ReLU behind a norm": (lambda of, x: F.relu(of.norm(of.conv(x))), 2),
    "a residual": (lambda of, x: F.relu(of.norm(of.conv(x)) + x), 3),
    "a residual the other way round": (lambda of, x: F.relu(x + of.norm(of.conv(x))), 3),
    "a residual of its own input": (lambda of, x: (lambda y: F.relu(of.norm(y) + y))(of.conv(x)), 3),
    "a residual of the norm itself": (lambda of, x: (lambda y: F.relu(y + y))(of.norm(of.conv(x))), 1),
    "two norms that meet": (lambda of, x: F.relu(of.norm(of.conv(x)) + of.norm(x)), 3),
    "a multiple": (lambda of, x: F.relu(torch.add(of.norm(of.conv(x)), x, alpha=2)), 2),
    "a norm that is read again": (lambda of, x: (lambda y: F.relu(y) + y)(of.norm(of.conv(x))), 0),
    "a sum that is read again": (lambda of, x: (lambda y: F.relu(y) + y)(of.norm(of.conv(x)) + x), 1),
    "a residual that is broadcast": (lambda of, x: F.relu(of.norm(of.conv(x)) + x[:, :, :1]), 2),
    "a ReLU before a pooling": (lambda of, x: F.max_pool2d(F.relu(of.conv(x)), 3, 1, 1), 2),
    "the same on ties": (
        lambda of, x: (lambda y: F.max_pool2d(F.relu(torch.cat([y, y], 3)), (1, 5), 1))(of.conv(x)),
        2,
    ),
    "a norm before a pooling": (lambda of, x: F.max_pool2d(F.relu(of.norm(of.conv(x))), 3, 1, 1), 2),
    "a ReLU that is read again": (lambda of, x: (lambda y: F.max_pool2d(y, 3, 1, 1) + y)(F.relu(of.conv(x))), 1),
    "two poolings": (lambda of, x: (lambda y: F.max_pool2d(y, 3, 1, 1) * F.max_pool2d(y, 1))(F.relu(of.conv(x))), 1),
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
def test_a_graph_with_shortcuts_has_the_numbers_of_its_model(name: str) -> None:
    torch.manual_seed(0)
    meeting, expected = MEETINGS[name]
    model = Block(meeting)
    batch = torch.randn(5, 3, 4, 4), torch.arange(5) % 4
    given = batch[0].clone()
    certificate = check_model(model, loss, batch)
    assert len(shortcuts(certificate.graph)) == expected
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
