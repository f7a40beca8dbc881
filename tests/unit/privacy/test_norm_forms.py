"""Norms in private training: whatever of them is trained, however often they are used, wherever examples lie."""

import itertools
from collections.abc import Callable

import pytest
import torch
from tests.clipped_sums import PlainRows, engine_for, exact_gradient, private_gradient, relative
from torch import Tensor, nn
from torch.nn import functional as F

from cloister.privacy._clipping import Flat
from cloister.privacy._kernels import row_kernels
from cloister.privacy._shortcuts import rectified_group_norm

ROWS, CLASSES = 5, 3
LABELS = torch.arange(ROWS) % CLASSES
KERNELS = {"plain": PlainRows, **{name: lambda name=name: row_kernels(CPU, prefer=name) for name in ("cpu", "torch")}}
CPU = torch.device("cpu")


def loss(outputs: Tensor, rows: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(1)[:, :CLASSES], LABELS[rows], reduction="none")


class Two(nn.Module):
    """One norm, used twice."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.norm(x)) * 2 + x)


class Tied(nn.Module):
    """Two norms with one weight, and a bias that is another's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.GroupNorm(2, 4), nn.GroupNorm(4, 4)
        self.two.weight = self.one.weight
        self.two.bias = self.two.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Derived(nn.Module):
    """Factors that are computed from a parameter, every second of it."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x, 2, torch.exp(self.raw)[::2], self.bias)
        return F.layer_norm(y, y.shape[-1:], torch.sigmoid(self.raw[: y.shape[-1]]))


class Folded(nn.Module):
    """Examples of several pictures, folded into the batch in front of the examples or behind them."""

    def __init__(self, *, examples_first: bool) -> None:
        super().__init__()
        self.first, self.group, self.layer = examples_first, nn.GroupNorm(2, 4), nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        folded = x.flatten(0, 1).unsqueeze(1).expand(-1, 4, -1) * torch.tensor([1.0, 2.0, -1.0, 0.5])[:, None]
        y = self.layer(torch.tanh(self.group(folded))).mean(1)
        y = y.unflatten(0, x.shape[:2])
        return (y if self.first else y.transpose(0, 1)).sum(1)


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(5), nn.LayerNorm((3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(self.norm(x.transpose(0, 1)).transpose(0, 1)))


class Overloads(nn.Module):
    """As a certified graph calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm(5)
        self.instance = nn.InstanceNorm1d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        aten = torch.ops.aten
        y = torch.tanh(aten.group_norm.default(x, 2, self.group.weight, self.group.bias))
        y = aten.instance_norm.default(y, self.instance.weight, self.instance.bias, None, None, True, 0.1, 1e-5, False)
        y = aten.native_layer_norm.default(y, [5], self.layer.weight, self.layer.bias, 1e-5)[0]
        return aten.layer_norm.default(torch.tanh(y), [5], self.layer.weight, self.layer.bias)


class Residual(nn.Module):
    """What a certified graph makes of a residual block's end."""

    def __init__(self, *, plus: bool) -> None:
        super().__init__()
        self.one, self.two, self.group = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)
        self.plus, self.head = plus, nn.Linear(6 * 9, CLASSES)
        if not plus:
            freeze(self, "two.weight", "two.bias")

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, summand = self.group.weight, self.group.bias, self.two(x) if self.plus else None
        y = rectified_group_norm(torch.tanh(self.one(x)), 2, weight, bias, 1e-5, summand)
        return self.head(y.flatten(1))


def freeze(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def groups(channels: int = 4, count: int = 2, *frozen: str, **other: bool) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, channels, 3), freeze(nn.GroupNorm(count, channels, **other), *frozen), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, CLASSES),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "groups": (groups(), (3, 6, 6)),
    "written over": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten()), (4, 2, 3)),
    "one group": (groups(7, 1), (3, 6, 6)),
    "as many groups as channels": (groups(6, 6), (3, 6, 6)),
    "nothing to train": (groups(4, 2, affine=False), (3, 6, 6)),
    "no weight to train": (groups(4, 2, "weight"), (3, 6, 6)),
    "no bias to train": (groups(4, 2, "bias"), (3, 6, 6)),
    "frozen": (groups(4, 2, "weight", "bias"), (3, 6, 6)),
    "no gradient of the input": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Tanh()), (4, 5, 3)),
    "one position": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.LayerNorm(6)), (4,)),
    "no layer's bias": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6, bias=False)), (4,)),
    "five axes": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm((2, 3))), (4, 2, 2, 3)),
    "groups twice": (lambda: Two(nn.GroupNorm(2, 4)), (4, 5)),
    "layers twice": (lambda: Two(nn.LayerNorm((4, 5))), (4, 5)),
    "tied": (Tied, (4, 5)),
    "derived": (Derived, (4, 5)),
    "folded": (lambda: Folded(examples_first=True), (3, 5)),
    "folded in front": (lambda: Folded(examples_first=False), (3, 5)),
    "sequences first": (SequenceFirst, (3, 5)),
    "overloads": (Overloads, (4, 5)),
    "rectified": (lambda: Residual(plus=False), (4, 5, 5)),
    "rectified with a sum": (lambda: Residual(plus=True), (4, 5, 5)),
    "rectified with a frozen norm": (lambda: freeze(Residual(plus=True), "group.weight", "group.bias"), (4, 5, 5)),
}


def drawn_parameters(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return model


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_clipped_sum(name: str, kernels: str) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(3)
    model, x = drawn_parameters(build()), torch.randn(ROWS, *shape)
    for arena_bytes in (1 << 30, 1 << 5):
        engine = engine_for(model, Flat(0.5), ROWS, arena_bytes=arena_bytes, kernels=KERNELS[kernels]())
        last = x.movedim(1, -1).contiguous().movedim(-1, 1)
        for given in (x, last):
            gradient = private_gradient(engine, [given], loss, ROWS)
            assert relative(gradient, exact_gradient(engine, [x], loss, range(ROWS))) <= 2e-6


@pytest.mark.parametrize(("name", "kernels"), [*itertools.product(("groups", "folded"), ("cpu", "torch"))])
def test_the_input_s_gradient_is_torch_s(name: str, kernels: str) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(3)
    model, x = drawn_parameters(build()), torch.randn(ROWS, *shape)
    engine = engine_for(model, Flat(0.5), ROWS, kernels=KERNELS[kernels]())
    found = []
    for forward in (lambda x: engine.forward(model.__call__, ((x,), {}), ROWS), model):
        given = x.clone().requires_grad_()
        outputs = forward(given)
        loss(outputs, torch.arange(ROWS)).mean().backward()
        found.append((outputs.detach(), given.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
