"""The private gradient is the clipped sum of micro-batches of one, whatever the network is made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.clipped_sums import engine_for, exact_gradient, private_gradient, relative
from torch import Tensor, nn

from cloister.privacy._clipping import Automatic, Clipping, Flat, Normalise, PerBlock, PerLayer

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's word to the oracle

CLASSES = 10
ROWS = 7
LABELS = torch.arange(ROWS) * 3 % CLASSES


def loss(outputs: Tensor, rows: Tensor) -> Tensor:
    return F.cross_entropy(outputs, LABELS[rows], reduction="none")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.middle = nn.Embedding(CLASSES, 8, padding_idx=0), nn.Linear(8, 8)
        self.out = nn.Linear(8, CLASSES, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.middle(self.middle(self.words(tokens))))).mean(1)


class Sequences(nn.Module):
    """Attention, a class token, positions, a scale of its own; batch first or not."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.words, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(1, 5, 16) / 8)
        self.first, self.scale = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.ones(16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(tokens), -1, -1), self.words(tokens) + self.places], 1)
        x = self.layer(x) if self.batch_first else self.layer(x.transpose(0, 1)).transpose(0, 1)
        return self.head((x * self.scale)[:, 0])


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-3), self.bias, padding=self.padding)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(4, 8)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.two(F.relu(self.one(x)))).mean((2, 3)))


class Frames(nn.Module):
    """Examples of three pictures each, folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x.flatten(0, 1).unsqueeze(1))).mean((2, 3))
        return self.head(y.unflatten(0, x.shape[:2]).mean(1))


class FramesFirst(nn.Module):
    """The same, time folded in front of the examples: every layer meets an example's frames far from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.narrow = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 2, bias=False)
        self.line, self.norm = nn.Conv1d(4, 4, 2), nn.GroupNorm(2, 4)
        self.slope, self.scale = nn.PReLU(4), nn.Parameter(torch.linspace(0.5, 1, 4))
        self.inner, self.words, self.head = nn.Linear(12, 6), nn.Embedding(3, 6), nn.Linear(6, CLASSES)
        self.last = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(0, 1)
        y = self.slope(self.norm(self.conv(frames.flatten(0, 1))))
        y = torch.tanh(self.line(self.narrow(y).flatten(2))) * self.scale[:, None]
        words = self.words((frames.flatten(2).sum(2) > 0).long().flatten())
        y = self.last(self.inner(y.flatten(1)) + words)
        return self.head(y.unflatten(0, frames.shape[:2]).mean(0))


class Left(nn.Module):
    """Weights on the right of products, as in Hugging Face's Conv1D; a bias that is added by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(6, 12) / 3), nn.Parameter(torch.randn(12, CLASSES) / 3)
        self.bias, self.other = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.addmm(self.bias, x.reshape(-1, 6), self.one).view(*x.shape[:2], -1)
        return (torch.sigmoid(hidden) @ self.two).sum(1) + self.other


def pictures(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(ROWS, *shape)


def tokens(length: int, words: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, words, (ROWS, length))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, CLASSES)),
        pictures(3, 4, 4),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same"), nn.GroupNorm(4, 8), nn.PReLU(8), nn.Conv2d(8, 8, 3, stride=2, groups=8),
            nn.Conv2d(8, 6, 3, dilation=2, groups=2, padding=2), nn.Flatten(), nn.LayerNorm(54), nn.Linear(54, CLASSES),
        ),
        pictures(3, 8, 8),
    ),
    "convolutions along a line": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 4, padding="same"), nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES)),
        pictures(2, 9),
    ),
    "residual": (Residual, pictures(3, 6, 6)),
    "tied": (Tied, tokens(4, CLASSES)),
    "sequences": (lambda: Sequences(batch_first=True), tokens(5, 20)),
    "sequences first": (lambda: Sequences(batch_first=False), tokens(5, 20)),
    "standardised": (
        lambda: nn.Sequential(
            Standardised(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
        ),
        pictures(3, 6, 6),
    ),
    "frames": (Frames, pictures(3, 5, 5)),
    "frames first": (FramesFirst, pictures(3, 2, 5, 5)),
    "products": (Left, pictures(3, 6)),
}  # fmt: skip


@pytest.fixture
def made(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(5)
    build, data = NETWORKS[request.param]
    return build(), data()


@pytest.mark.parametrize("arena_bytes", [1 << 30, 1 << 11], ids=["kept", "twice"])
@pytest.mark.parametrize("made", NETWORKS, indirect=True)
def test_it_is_the_clipped_sum(made: tuple[nn.Module, Tensor], arena_bytes: int) -> None:
    model, x = made
    engine = engine_for(model, Flat(0.5), ROWS, arena_bytes=arena_bytes)
    for _ in range(2):  # the second step has the plan already, and the memory of the first
        gradient = private_gradient(engine, [x], loss, ROWS)
        assert relative(gradient, exact_gradient(engine, [x], loss, range(ROWS))) <= 1e-6


@pytest.mark.parametrize(
    "clipping",
    [Flat(20.0), Normalise(2.0), Automatic(1.0, gamma=0.5), PerLayer(0.5), PerBlock(0.5, ("layer", "head"))],
    ids=lambda clipping: type(clipping).__name__,
)
def test_it_is_so_for_every_way_of_clipping(clipping: Clipping) -> None:
    torch.manual_seed(5)
    model, x = Sequences(batch_first=True), torch.randint(0, 20, (ROWS, 5))
    engine = engine_for(model, clipping, ROWS)
    gradient = private_gradient(engine, [x], loss, ROWS)
    assert relative(gradient, exact_gradient(engine, [x], loss, range(ROWS))) <= 1e-6


def test_channels_last_is_the_same_sum() -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    one = private_gradient(engine_for(model, Flat(0.5), ROWS), [x], loss, ROWS)
    last: Tensor = x.to(memory_format=torch.channels_last)
    other = private_gradient(
        engine_for(model.to(memory_format=torch.channels_last), Flat(0.5), ROWS), [last], loss, ROWS
    )
    assert relative(other, one) <= 1e-6


def test_a_summed_loss_is_the_same_as_a_mean_one() -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    one = private_gradient(engine_for(model, Flat(0.5), ROWS, reduction="sum"), [x], loss, ROWS)
    other = private_gradient(engine_for(model, Flat(0.5), ROWS), [x], loss, ROWS)
    assert relative(other, one) <= 1e-6


def test_padding_contributes_nothing_whatever_it_holds() -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    engine = engine_for(model, Normalise(1.0), ROWS)
    mask = torch.arange(ROWS) % 3 != 0
    gradient = private_gradient(engine, [x], loss, ROWS, torch.where(mask, torch.arange(ROWS), -1))
    assert relative(gradient, exact_gradient(engine, [x], loss, mask.nonzero().flatten().tolist())) <= 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_an_example_that_is_no_number_harms_no_other(value: float) -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    engine = engine_for(model, Flat(0.5), ROWS)
    private_gradient(engine, [x], loss, ROWS)
    x[2] = value
    others = [row for row in range(ROWS) if row != 2]
    gradient = private_gradient(engine, [x], loss, ROWS)
    assert relative(gradient, exact_gradient(engine, [x], loss, others)) <= 1e-6


def test_rows_of_one_owner_count_as_one() -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    owners = torch.tensor([0, 0, 1, -1, 2, 2, 2])
    engine = engine_for(model, Flat(0.5), ROWS, grouped=True, reduction="sum")
    gradient = private_gradient(engine, [x], loss, ROWS, owners)

    # an owner's rows, their losses summed, as one example
    total = torch.zeros_like(gradient)
    for owner in range(3):
        rows = (owners == owner).nonzero().flatten()
        parameters = list(model.parameters())
        losses = loss(model(x[rows]), rows).sum()
        flat = torch.cat([each.double().flatten() for each in torch.autograd.grad(losses, parameters)])
        radius = engine.radii(engine.grid)[0] * float(engine.grid.step)
        total += flat * min(1.0, radius / float(flat.norm()))
    assert relative(gradient, total / ROWS) <= 1e-5  # the oracle is float32 here


def test_micro_batches_add_up() -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(2 * ROWS, 3, 6, 6)
    labels = torch.arange(2 * ROWS) % CLASSES
    engine = engine_for(model, Flat(0.5), 2 * ROWS)
    model.train()
    for part in (slice(0, ROWS), slice(ROWS, 2 * ROWS)):
        outputs = engine.forward(model.__call__, ((x[part],), {}), ROWS)
        F.cross_entropy(outputs, labels[part]).backward()
        engine.gather(torch.arange(ROWS))
    engine.release()
    made = torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])
    for parameter in model.parameters():
        parameter.grad = None

    def whole(outputs: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels[rows], reduction="none")

    assert relative(made, exact_gradient(engine, [x], whole, range(2 * ROWS))) <= 1e-6


def test_frozen_parameters_have_no_part_in_it() -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    model.one.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    engine = engine_for(model, Flat(0.5), ROWS)
    gradient = private_gradient(engine, [x], loss, ROWS)
    assert relative(gradient, exact_gradient(engine, [x], loss, range(ROWS))) <= 1e-6
    assert model.one.weight.grad is None


@pytest.mark.parametrize("clipping", [Flat(1e-12), Normalise(1.0)], ids=["flat", "normalise"])
def test_rows_of_next_to_nothing_are_bounded_though_their_squares_are_lost(clipping: Clipping) -> None:
    torch.manual_seed(5)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(ROWS, 4)
    engine = engine_for(model, clipping, ROWS, reduction="sum")
    outputs = engine.forward(model.__call__, ((x,), {}), ROWS)
    (outputs.sum(1) * 1e-30).sum().backward()
    engine.gather(torch.where(torch.arange(ROWS) == 0, 0, -1))
    moved = math.sqrt(sum(value * value for value in engine._total.tolist()))
    assert moved <= engine.grid.sensitivity


def test_groups_share_the_sensitivity() -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    engine = engine_for(model, PerLayer(0.001), ROWS)  # every row is longer than that, in every group
    sums = []
    for left_out in (-1, 4):
        outputs = engine.forward(model.__call__, ((x,), {}), ROWS)
        loss(outputs, torch.arange(ROWS)).mean().backward()
        engine.gather(torch.where(torch.arange(ROWS) == left_out, -1, torch.arange(ROWS)))
        sums.append(engine._total.clone())
        engine._total.zero_()
    moved = math.isqrt(sum(value * value for value in (sums[0] - sums[1]).tolist()))
    assert engine.grid.sensitivity * (1 - 1 / 1000) <= moved <= engine.grid.sensitivity


@pytest.mark.parametrize("clip", [0.05, 5.0])
def test_one_example_moves_the_sum_by_the_sensitivity_at_most(clip: float) -> None:
    torch.manual_seed(5)
    model, x = Residual(), torch.randn(ROWS, 3, 6, 6)
    engine = engine_for(model, Normalise(clip), ROWS)
    sums = []
    for left_out in (-1, 4):
        outputs = engine.forward(model.__call__, ((x,), {}), ROWS)
        loss(outputs, torch.arange(ROWS)).mean().backward()
        engine.gather(torch.where(torch.arange(ROWS) == left_out, -1, torch.arange(ROWS)))
        sums.append(engine._total.clone())
        engine._total.zero_()
    moved = math.isqrt(sum(value * value for value in (sums[0] - sums[1]).tolist()))
    assert engine.grid.sensitivity * (1 - 1 / 1000) <= moved <= engine.grid.sensitivity


def test_no_sum_and_no_row_is_in_a_repr() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, CLASSES))
    engine = engine_for(model, Flat(1.0), ROWS)
    outputs = engine.forward(model.__call__, ((torch.randn(ROWS, 1, 4, 4),), {}), ROWS)
    F.cross_entropy(outputs, LABELS).backward()
    engine.gather(torch.arange(ROWS))
    assert "tensor" not in repr(engine)
    assert "tensor" not in repr(engine._contributions)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_lies_as_its_parameter(layout: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(16, CLASSES))
    model.to(memory_format=layout)  # type: ignore[call-overload]
    engine = engine_for(model, Flat(1.0), ROWS)
    outputs = engine.forward(model.__call__, ((torch.randn(ROWS, 4, 4, 4),), {}), ROWS)
    F.cross_entropy(outputs, LABELS).backward()
    engine.gather(torch.arange(ROWS))
    engine.release()
    assert [each.grad.stride() for each in model.parameters()] == [each.stride() for each in model.parameters()]
