"""What the lab wants trained: a network of biopsies, its loss, and a batch to trace both with.

It is certified where no data is (``cloister privacy program network.py:build``); enclaves train the certified graph and
run none of this code. Scaling is inside the network, by round numbers of the size that such measurements have: a mean
of the hospitals' own patients would be one more thing that is computed of them, and would have to be paid for.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 16
USUAL = (  # radius, texture, perimeter, area, smoothness, compactness, concavity, concave points, symmetry, fractal
    *(14.0, 20.0, 90.0, 650.0, 0.1, 0.1, 0.1, 0.05, 0.2, 0.06),  # mean
    *(0.4, 1.0, 3.0, 40.0, 0.007, 0.025, 0.03, 0.01, 0.02, 0.004),  # standard error
    *(16.0, 25.0, 110.0, 900.0, 0.13, 0.25, 0.25, 0.1, 0.3, 0.08),  # worst
)
SPREAD = (
    *(4.0, 4.0, 25.0, 350.0, 0.015, 0.05, 0.08, 0.04, 0.03, 0.007),
    *(0.3, 0.5, 2.0, 45.0, 0.003, 0.02, 0.03, 0.006, 0.01, 0.003),
    *(5.0, 6.0, 35.0, 600.0, 0.02, 0.15, 0.2, 0.07, 0.06, 0.02),
)
MOST = 4.0  # spreads: a measurement beyond counts as that


class Network(nn.Module):
    """Two linear layers on scaled measurements."""

    usual: Tensor
    spread: Tensor
    most: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.tensor(USUAL))
        self.register_buffer("spread", torch.tensor(SPREAD))
        self.register_buffer("most", torch.tensor(MOST))
        self.hidden = nn.Linear(len(USUAL), HIDDEN)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, measurements: Tensor) -> Tensor:
        """Shapes: (B, 30) raw measurements to (B, 1) logits."""
        scaled = (measurements - self.usual) / self.spread
        bounded = torch.minimum(torch.maximum(scaled, -self.most), self.most)
        return self.head(torch.tanh(self.hidden(bounded)))


def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One loss a patient, (B,): never averaged, so that each can be bounded by itself."""
    measurements, malignant = batch
    return F.binary_cross_entropy_with_logits(network(measurements)[:, 0], malignant, reduction="none")


def build() -> tuple[nn.Module, object, tuple[Tensor, Tensor]]:
    """The network with its first weights, the loss, and a batch of nobody's, as ``cloister privacy check`` takes it."""
    torch.manual_seed(0)
    return Network(), loss, (torch.tensor(USUAL).repeat(4, 1), torch.tensor([0.0, 1.0, 1.0, 0.0]))
