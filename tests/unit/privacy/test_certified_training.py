"""Training a certified graph gives the clipped sum that training its model gives, whatever the network is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.clipped_sums import engine_for, relative
from tests.honest_models import HONEST, SLOW, Triple, classes, images, tokens, vectors
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from cloister.errors import CloisterError
from cloister.privacy._certificate import bind, check_model
from cloister.privacy._clipping import Flat, PerBlock
from cloister.privacy._engine import Engine
from cloister.privacy._forward_loss import Loss, resized

ROWS = 5

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's word to the oracle


class Wide(nn.Module):
    """Strided, depthwise, dilated and one-dimensional convolutions; norms of groups, instances and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(4, 8)
        self.deep, self.single = nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.InstanceNorm2d(8, affine=True)
        self.far, self.slope = nn.Conv2d(8, 6, 3, padding=2, dilation=2, groups=2, bias=False), nn.PReLU(6)
        self.line, self.last = nn.Conv1d(6, 4, 4, padding="same"), nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.slope(self.far(x + self.single(self.deep(x))))
        return self.head(self.last(self.line(x.flatten(2)).mean(2)))


class Attentive(nn.Module):
    """Attention with a class token, places, a learned mask, learned queries, RMS norms and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(30, 8, padding_idx=0), nn.Parameter(torch.randn(1, 10, 8) / 8)
        self.first, self.near = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(2, 11, 11) / 8)
        self.asked, self.mixed = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(5, 11) / 4)
        self.norm, self.scale = nn.RMSNorm(8), nn.Parameter(torch.ones(8))
        self.packed, self.head = nn.Parameter(torch.randn(24, 8) / 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.table(x) + self.places], 1)
        heads = [
            functional.linear(self.norm(x), each).unflatten(2, (2, 4)).transpose(1, 2) for each in self.packed.chunk(3)
        ]
        y = functional.scaled_dot_product_attention(*heads, attn_mask=self.near).transpose(1, 2).flatten(2)
        asked = functional.scaled_dot_product_attention(self.asked.expand(len(x), -1, -1), y, x * self.scale)
        return self.head(asked.mean(1) + (self.mixed @ y).mean(1))


class Stored(nn.Module):
    """A batch norm that keeps its statistics, and is trained; weights that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(8, 6), nn.BatchNorm1d(6).eval()
        self.low, self.high = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 4))
        self.norm.running_mean = torch.rand(6)

    def train(self, mode: bool = True) -> Stored:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.high.sum(0), self.norm(self.one(x)), self.low @ self.high)


NETWORKS: dict[str, Callable[[], Triple]] = {
    "wide": lambda: images(Wide(), 12),
    "attentive": lambda: tokens(Attentive()),
    "stored": lambda: vectors(Stored()),
    **{name: HONEST[name] for name in ("tied_weights", "gradient_stopped", "weight_normalisation", "loss_module")},
}


def still(model: nn.Module) -> nn.Module:
    """Without dropout, of which a single example would draw other numbers."""
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def gradient(engine: Engine, rows: Any) -> Tensor:
    engine.model.train()
    engine.forward(engine.model.__call__, ((rows,), {}), ROWS).mean().backward()
    engine.gather(torch.arange(ROWS))
    engine.release()
    made = torch.cat([each.grad.double().flatten() for each in engine.model.parameters() if each.requires_grad])  # type: ignore[union-attr]
    for parameter in engine.model.parameters():
        parameter.grad = None
    return made


def exact(engine: Engine, model: nn.Module, loss: Loss, rows: Any) -> Tensor:
    """From micro-batches of one in float64, each clipped to the grid's own radius, by the model's own code."""
    wide = copy.deepcopy(model).double()
    loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
    parameters = [each for each in wide.parameters() if each.requires_grad]
    radius = engine.radii(engine.grid)[0] * float(engine.grid.step)
    total = torch.zeros(sum(each.numel() for each in parameters), dtype=torch.float64)
    for row in range(ROWS):
        one = pytree.tree_map(lambda leaf: _double(leaf[row : row + 1]), rows)  # noqa: B023 - used at once
        slopes = torch.autograd.grad(loss(wide, one).sum(), parameters, allow_unused=True, materialize_grads=True)
        flat = torch.cat([each.flatten() for each in slopes])
        total += flat * min(1.0, radius / float(flat.norm()))
    return total / ROWS


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


def require_clipped_sum(triple: Triple) -> None:
    model, loss, batch = triple
    still(model)
    program = bind(check_model(model, loss, batch), model, loss)
    assert [name for name, _ in program.named_parameters()] == [name for name, _ in model.named_parameters()]
    engine, rows = engine_for(program, Flat(0.5), ROWS), resized(batch, ROWS)
    expected = exact(engine, model, loss, rows)
    for _ in range(2):  # the second step has the plan already, and the memory of the first
        # attention comes to 9.5e-7 with one processor's order of sums; test_engine.py holds the forms to 1e-6
        assert relative(gradient(engine, rows), expected) <= 2e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_clipped_sum(name: str) -> None:
    torch.manual_seed(5)
    require_clipped_sum(NETWORKS[name]())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["vgg11", "transformer_encoder", "resnet18", "mobilenet", "vision_transformer", "frozen_batch_norm", "bert", "gpt2",
     "llama", "vit_of_transformers", "low_rank_adapters"],
)  # fmt: skip
def test_it_is_so_for_networks_of_libraries(name: str) -> None:
    torch.manual_seed(5)
    require_clipped_sum((HONEST | SLOW)[name]())


def test_a_block_is_named_as_the_model_names_it() -> None:
    torch.manual_seed(5)
    model, loss, batch = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)), classes, vectors(nn.Identity())[2]
    program, rows = bind(check_model(model, loss, batch), model, loss), resized(batch, ROWS)
    engine, other = (engine_for(each, PerBlock(0.5, ("0", "2")), ROWS) for each in (program, model))
    made = gradient(engine, rows)
    other.forward(model.__call__, ((rows[0],), {}), ROWS)
    assert [slot.group for slot in engine.slots] == [slot.group for slot in other.slots] == [0, 0, 1, 1]
    assert float(made.norm()) > 0


def test_each_row_has_dropout_of_its_own_in_the_graph_too() -> None:
    torch.manual_seed(5)
    model, loss, batch = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 4)), classes, None
    x = torch.randn(1, 8).expand(ROWS, -1).contiguous()
    batch = x, torch.zeros(ROWS, dtype=torch.int64)
    program = bind(check_model(model, loss, batch), model, loss)
    torch.manual_seed(6)
    losses = program(batch)
    torch.manual_seed(6)
    assert torch.equal(losses, loss(model, batch))
    assert len(set(losses.tolist())) == ROWS
    assert len(set(program.eval()(batch).tolist())) == ROWS  # what was certified is what runs, whatever the mode


def test_what_is_taken_for_a_weight_is_no_data() -> None:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, torch.zeros_like(x)[:3], self.bias)

    engine = engine_for(Hyper(), Flat(1.0), ROWS)
    with pytest.raises(CloisterError) as refused:
        engine.forward(engine.model.__call__, ((torch.randn(ROWS, 4),), {}), ROWS)
    assert refused.value.code == 8855
