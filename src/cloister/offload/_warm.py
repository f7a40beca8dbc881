"""One small step of training in each mode, so that every kernel is compiled once.

A launcher runs this in a sandbox of its own and keeps the machine code, authenticated, for the stages to come: compiled
anew, it would be the larger part of a short one.
"""

from __future__ import annotations

import torch
from torch import nn

from cloister.offload._offload import offload, onload

__all__ = ["compile_kernels"]


class _Small(nn.Module):
    """A layer of every kind that has kernels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 1),
        )
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.features(images).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def compile_kernels() -> None:
    """Compiles what hides, recovers and checks."""
    images = torch.rand(4, 3, 9, 9)
    for mode in ("shared3", "shared5", "verify"):
        for scales in ("tensor", "channel"):
            model = offload(_Small(), mode=mode, workers="inline", scales=scales)
            model(images).square().sum().backward()
            onload(model)
    for mode in ("blind", "blind2"):
        model = offload(_Small().requires_grad_(False), mode=mode, workers="inline")
        with torch.no_grad():
            model(images)
        onload(model)
