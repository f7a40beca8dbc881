"""What the lab wants trained privately: a small convolutional network, its loss, and a batch to trace both with.

It is certified where no picture is (``cloister privacy program network.py:build``); enclaves train the certified graph
and run none of this code. Group norms stand where ``train.py`` has batch norms: a batch norm mixes patients, so that
nobody's part could be bounded. It is smaller, too: the noise is spread over every weight.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("covid-19", "no-finding", "pneumonia")
SIZE = 48
WIDTHS = (16, 32, 32)
GROUPS = 4


class Network(nn.Module):
    """Three convolutions and a linear layer on one grey channel, scaling of the pixels included."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before * 4, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 1, size, size) grey values to (B, classes) logits."""
        features = self.features((images.float() - 128) / 64)
        return self.head(functional.avg_pool2d(features, features.shape[-1] // 2).flatten(1))


def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One loss a picture, (B,): never averaged, so that each patient's part can be bounded."""
    images, labels = batch
    return functional.cross_entropy(network(images), labels, reduction="none")


def build() -> tuple[nn.Module, object, tuple[Tensor, Tensor]]:
    """The network with its first weights, the loss, and a batch of nobody's, as ``cloister privacy check`` takes it."""
    torch.manual_seed(1)
    images = torch.randint(0, 256, (4, 1, SIZE, SIZE), dtype=torch.uint8)
    return Network(), loss, (images, torch.tensor([0, 1, 2, 2]))
