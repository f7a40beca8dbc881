"""Private training inside offloading: small networks, engines with and without workers, and integer sums."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.clipped_sums import engine_for
from torch import Tensor, nn

from cloister.offload import offload
from cloister.privacy._clipping import Clipping, Flat
from cloister.privacy._engine import Engine
from cloister.ring import RoundingState, RoundingStream

CLASSES = 10
ROWS = 48
"""Of a micro-batch."""
NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]]
STATE = RoundingState("5a" * 32, 0)
"""Where rounding begins in tests that compare sums."""


class Attentive(nn.Module):
    """A transformer block, its mean over positions, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


class Tied(nn.Module):
    """A Linear whose weight is an embedding's, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.middle = nn.Embedding(CLASSES, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, CLASSES, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.middle(self.middle(self.words(tokens))))).mean(1)


class Swapped(nn.Module):
    """Products with the weight on the right as it lies, and a convolution along one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.along = nn.Conv1d(3, 16, 3, padding=1)
        self.w, self.b = nn.Parameter(torch.randn(16 * 4, 32) / 8), nn.Parameter(torch.zeros(32))
        self.v = nn.Parameter(torch.randn(32, CLASSES) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(self.b, torch.relu(self.along(x)).flatten(1), self.w)) @ self.v


def _linear() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, CLASSES)), torch.randn(ROWS, 24)


def _convolutions() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 48, 2, padding=1, stride=2)]
    layers += [nn.GroupNorm(4, 48), nn.Tanh(), nn.Conv2d(48, 48, 2, groups=4), nn.Flatten(), nn.Linear(48, CLASSES)]
    return nn.Sequential(*layers), torch.randn(ROWS, 3, 8, 8)


NETWORKS = {
    "linear": _linear,
    "convolutions": _convolutions,
    "transformer": lambda: (Attentive(), torch.randn(ROWS, 3, 16)),
    "tied": lambda: (Tied(), torch.randint(0, CLASSES, (ROWS, 4))),
    "swapped": lambda: (Swapped(), torch.randn(ROWS, 3, 4)),
}


def network(name: str, seed: int = 3) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and a micro-batch for it."""
    torch.manual_seed(seed)
    return NETWORKS[name]()


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets workers sum every gradient that they can, however small the layer."""
    monkeypatch.setattr("cloister.privacy._offloaded.pays", lambda **shapes: True)


def engines(
    model: nn.Module, clipping: Clipping | None = None, examples: int = ROWS, *, mode: str = "shared3", **other: Any
) -> tuple[Engine, Engine]:
    """Engines without noise for a copy of a model that is offloaded, and for one that is not.

    Rounding begins at :data:`STATE` and torch's seed, so that what it costs is the same in every run.
    """
    kept = {name: other.pop(name) for name in list(other) if name in ("grouped", "reduction", "expected")}
    execution = other.pop("execution", "execute")
    inline = None if execution == "simulate" or mode == "enclave" else other.pop("workers", "inline")
    there = offload(copy.deepcopy(model), mode=mode, workers=inline, execution=execution, **other)  # type: ignore[arg-type]
    made = (clipping or Flat(0.5), copy.deepcopy(clipping) or Flat(0.5))  # one that follows a quantile changes
    offloaded = engine_for(there, made[0], examples, **kept)
    offloaded.rounding = RoundingStream(STATE)
    return offloaded, engine_for(copy.deepcopy(model), made[1], examples, **kept)


def summed(
    engine: Engine, x: Tensor, owners: Tensor | None = None, *, loss: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The integers that one micro-batch adds to the sum, before noise."""
    engine.model.train()
    engine.forward(engine.model.__call__, ((x,), {}), len(x)) if engine.plan is None else None
    if engine._contributions is not None:
        engine._contributions.clear()
    engine.rounding = RoundingStream(STATE)
    outputs = engine.forward(engine.model.__call__, ((x,), {}), len(x))
    (loss or squares)(outputs).mean().backward()
    engine.gather(torch.arange(len(x)) if owners is None else owners)
    made = engine._total.clone()
    engine._total.zero_()
    return made


def squares(outputs: Tensor) -> Tensor:
    """A loss a row."""
    return outputs.flatten(1).square().sum(1)


def norm(integers: Tensor) -> float:
    """Of a vector of integers, however large."""
    return float(sum(value * value for value in integers.tolist())) ** 0.5
