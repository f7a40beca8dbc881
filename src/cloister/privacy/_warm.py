"""Two small private steps, so that every kernel is compiled once.

A launcher runs this in a sandbox of its own and keeps the machine code, authenticated, for the stages to come: compiled
anew, it would be the larger part of a short one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.privacy._groups import Groups
from cloister.privacy._private import make_private

__all__ = ["compile_kernels"]


class _Small(nn.Module):
    """A layer of every kind that has kernels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, groups=32),
            nn.ReLU(),
            nn.Conv2d(32, 16, 1),
        )
        self.words = nn.Embedding(8, 16)
        self.norm = nn.LayerNorm(16)
        self.mixed = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        tokens = self.features(images).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens, self.words(words)], 1))
        return self.head(torch.tanh(self.mixed(tokens)).mean(1))


def compile_kernels() -> None:
    """Compiles rows, norms, sums and noise, in both layouts."""
    data = TensorDataset(torch.rand(12, 3, 9, 9), torch.randint(0, 8, (12, 2)), torch.randint(0, 4, (12,)))
    for layout in (torch.contiguous_format, torch.channels_last):
        for groups in (None, Groups.of([row // 2 for row in range(12)], most_rows=2)):
            model = _Small().to(memory_format=layout)  # type: ignore[call-overload]
            model, optimizer, loader = make_private(
                model,
                torch.optim.SGD(model.parameters(), lr=0.1),
                DataLoader(data, batch_size=4),
                clip=1.0,
                noise_multiplier="1",
                delta="1e-5",
                groups=groups,
                expected_batch=2,
            )
            images, words, labels = next(iter(loader))
            outputs = model(images.contiguous(memory_format=layout), words)
            nn.functional.cross_entropy(outputs, labels).backward()
            optimizer.step()
