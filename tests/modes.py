"""Small networks under every mode, workers that remember or lie, and what a training run leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloister.offload import InlineWorker, Offloading, offload, offloading
from cloister.offload._commands import Command, Compute, Drop, Expand, Put
from cloister.offload._schemes import SCHEMES

PRIVATE = ("verify", "shared3", "shared5")
"""Modes that train."""
PUBLIC = ("blind", "blind2")
"""Modes with public weights."""


@dataclass
class Spy:
    """A worker that does its work and keeps a copy of everything that it was sent.

    Attributes:
        commands: In order.
        tensors: What followed each ``put``, by handle.
        streams: Roles of the keys that it was dealt.
    """

    name: str
    lie: Callable[[Compute, Tensor], Tensor] | None = None
    commands: list[Command] = field(default_factory=list)
    tensors: list[tuple[int, Tensor]] = field(default_factory=list)
    streams: tuple[str, ...] = ()
    answers: int = 0

    def __post_init__(self) -> None:
        self._inside = InlineWorker(self.name)

    @property
    def device(self) -> str:
        return self._inside.device

    def start(self, keys: Any) -> None:
        self.streams = tuple(sorted(keys))
        self._inside.start(keys)

    def submit(self, command: Command, tensor: Tensor | None = None) -> Future[Tensor | None]:
        self.commands.append(command)
        if tensor is not None:
            assert isinstance(command, Put)
            self.tensors.append((command.handle, tensor.clone()))
        asked = self._inside.submit(command, tensor)
        if self.lie is None or not isinstance(command, Compute):
            return asked
        answer = asked.result()
        assert answer is not None
        self.answers += 1
        changed: Future[Tensor | None] = Future()
        changed.set_result(self.lie(command, answer))
        return changed

    def close(self) -> None:
        self._inside.close()

    def of(self, *kinds: type) -> list[Command]:
        return [command for command in self.commands if isinstance(command, kinds)]

    @property
    def kept(self) -> int:
        """How many tensors it was asked to keep and not to drop."""
        dropped = sum(len(command.handles) for command in self.commands if isinstance(command, Drop))
        return len(self.of(Put, Expand)) - dropped


def spies(mode: str, **arguments: Any) -> list[Spy]:
    return [Spy(f"worker-{index}", **arguments) for index in range(SCHEMES[mode].workers)]  # type: ignore[index]


class Mixed(nn.Module):
    """A little of everything: convolutions (strided, depthwise), norms, attention, a tied weight, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(8)
        self.tied = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.first(images)))
        features = F.relu(self.depthwise(features))
        tokens = features.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = self.tied(F.gelu(self.tied(self.layer_norm(tokens))))
        return self.head(tokens.mean(1))


def plain_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 3 * 3, 10), nn.ReLU(), nn.Linear(10, 4)
    )


def batches(count: int, *, size: int = 4, side: int = 8, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, side, side, generator=generator), torch.randint(0, 4, (size,), generator=generator))
        for _ in range(count)
    ]


@dataclass
class Run:
    """What a training run leaves."""

    losses: list[float]
    state: dict[str, Tensor]
    inside: Offloading

    def same_as(self, other: Run) -> bool:
        return self.losses == other.losses and all(torch.equal(self.state[k], other.state[k]) for k in self.state)


def train(
    mode: str | None,
    execution: str = "execute",
    *,
    steps: int = 3,
    net: Callable[[], nn.Module] = Mixed,
    workers: Sequence[Any] | str | None = None,
    data: list[tuple[Tensor, Tensor]] | None = None,
    **choices: Any,
) -> Run:
    """Trains a network as anybody would, offloaded; the same seeds in every mode."""
    torch.manual_seed(0)
    model = net()
    if workers is None and execution == "execute" and mode not in (None, "enclave"):
        workers = "inline"
    offload(model, mode=mode, execution=execution, workers=workers, **choices)  # type: ignore[arg-type]
    inside = offloading(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses: list[float] = []
    for images, labels in data or batches(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inside.engine.close()
    return Run(losses, state, inside)
