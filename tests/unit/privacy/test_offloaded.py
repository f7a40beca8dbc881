"""A private gradient that workers help to make is the one that they do not, within what rounding does."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.clipped_sums import private_gradient, relative
from tests.modes import PRIVATE
from tests.private_offloading import CLASSES, NETWORKS, ROWS, always, engines, network, squares, summed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cloister.errors import CloisterError
from cloister.offload import is_offloaded, offload, offloading, onload, plain, report
from cloister.privacy import Trainer, bind, check_model, make_private
from cloister.privacy._clipping import Automatic, Clipping, Flat, Normalise, PerLayer, Quantile
from cloister.privacy._run_key import RunKey
from cloister.ring import Product
from cloister.wire import Secret

pytestmark = pytest.mark.filterwarnings("ignore:.*nested_tensor:UserWarning")
OUTSOURCED = {
    "linear": ["2", "0"],
    "convolutions": ["8", "3", "0"],
    "transformer": [
        "head",
        "block.linear2",
        "block.linear1",
        "block.self_attn.out_proj",
        "block.self_attn:in_proj_weight",
    ],
    "tied": [],
    "swapped": ["(root):v", "(root):w", "along"],
}
"""Layers whose weight's gradient workers sum."""


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)


def each(outputs: Tensor, rows: Tensor) -> Tensor:
    return squares(outputs)


def roles(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Product]]:
    """The products that are asked for from now on."""
    asked: list[tuple[str, Product]] = []
    products = offloading(model).engine.products
    ask = products.ask

    def noted(layer: str, product: Product, *operands: Any) -> Any:
        asked.append((layer, product))
        return ask(layer, product, *operands)

    monkeypatch.setattr(products, "ask", noted)
    return asked


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_same_within_quantisation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(name)
    there, here = engines(model)
    asked = roles(there.model, monkeypatch)
    assert relative(private_gradient(there, [x], each, ROWS), private_gradient(here, [x], each, ROWS)) < 0.04
    sums = dict.fromkeys(layer for layer, product in asked if product.role == "weight_gradient")
    assert [layer for layer in sums if not layer.endswith((":scores", ":context"))] == OUTSOURCED[name]
    made = {product.role for _, product in asked}
    assert {"forward", "input_gradient"} <= made


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("mode", [*PRIVATE, "enclave"])
def test_it_is_so_in_every_mode_that_trains(mode: str) -> None:
    model, x = network("convolutions")
    there, here = engines(model, mode=mode)
    assert relative(private_gradient(there, [x], each, ROWS), private_gradient(here, [x], each, ROWS)) < 0.04


@pytest.mark.usefixtures("sums")
def test_a_simulated_step_has_an_executed_ones_bits() -> None:
    model, x = network("convolutions")
    torch.manual_seed(0)
    executed, _ = engines(model)
    torch.manual_seed(0)
    simulated, _ = engines(model, mode="shared5", execution="simulate")
    assert torch.equal(summed(executed, x), summed(simulated, x))


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("clipping", [Flat(0.05), Flat(50.0), PerLayer(0.5), Automatic(0.5), Normalise(0.5)])
def test_it_is_so_for_every_way_of_clipping(clipping: Clipping) -> None:
    model, x = network("linear")
    there, here = engines(model, clipping)
    assert relative(private_gradient(there, [x], each, ROWS), private_gradient(here, [x], each, ROWS)) < 0.04


@pytest.mark.usefixtures("sums")
def test_a_bound_that_follows_a_quantile_follows_it_here() -> None:
    model, x = network("linear")
    there, here = engines(model, Quantile(0.5, noise=10.0), grouped=False)
    assert relative(private_gradient(there, [x], each, ROWS), private_gradient(here, [x], each, ROWS)) < 0.04


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("numerics", [{"rounding": "nearest"}, {"bits": 6}, {"scales": "channel"}], ids=repr)
def test_it_is_so_however_numbers_are_rounded(numerics: dict[str, Any]) -> None:
    model, x = network("linear")
    there, here = engines(model, **numerics)
    most = 0.3 if "bits" in numerics else 0.04
    assert relative(private_gradient(there, [x], each, ROWS), private_gradient(here, [x], each, ROWS)) < most


@pytest.mark.usefixtures("sums")
def test_rows_of_one_owner_count_as_one_and_are_made_in_the_enclave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network("linear")
    owners = torch.arange(ROWS) // 3
    there, here = engines(model, grouped=True, reduction="sum")
    asked = roles(there.model, monkeypatch)
    made = private_gradient(there, [x], each, ROWS, owners)
    assert relative(made, private_gradient(here, [x], each, ROWS, owners)) < 0.04
    assert {product.role for _, product in asked} == {"forward", "input_gradient"}


@pytest.mark.parametrize(("rows", "summed_there"), [(256, True), (16, False)])
def test_the_cost_of_shapes_decides_who_sums(rows: int, summed_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    there, here = engines(nn.Linear(1024, 256), examples=rows)
    asked = roles(there.model, monkeypatch)
    x = torch.randn(rows, 1024)
    assert relative(private_gradient(there, [x], each, rows), private_gradient(here, [x], each, rows)) < 0.04
    assert any(product.role == "weight_gradient" for _, product in asked) == summed_there


def test_few_examples_have_their_rows_made_in_the_enclave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network("linear")
    there, here = engines(model, examples=4)
    asked = roles(there.model, monkeypatch)
    made = private_gradient(there, [x[:4]], each, 4)
    assert relative(made, private_gradient(here, [x[:4]], each, 4)) < 0.04
    assert {product.role for _, product in asked} == {"forward", "input_gradient"}


@pytest.mark.usefixtures("sums")
def test_micro_batches_add_up() -> None:
    model, x = network("linear")
    there, here = engines(model, examples=2 * ROWS)
    made = []
    for engine in (there, here):
        for part in (x, x.flip(0) * 2):
            squares(engine.forward(engine.model.__call__, ((part,), {}), ROWS)).mean().backward()
            engine.gather(torch.arange(ROWS))
        engine.release()
        made.append(torch.cat([parameter.grad.flatten() for parameter in engine.model.parameters()]))  # type: ignore[union-attr]
    assert relative(*made) < 0.04


@pytest.mark.usefixtures("sums")
def test_long_micro_batches_are_summed_in_pieces_that_float32_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 5), torch.randn(2500, 6)
    there, here = engines(model, examples=2500)
    asked = roles(there.model, monkeypatch)
    assert relative(private_gradient(there, [x], each, 2500), private_gradient(here, [x], each, 2500)) < 0.04
    assert [product.terms for _, product in asked if product.role == "weight_gradient"] == [1024, 1024, 452]


@pytest.mark.parametrize("mode", ["blind", "blind2"])
def test_frozen_layers_are_offloaded_where_weights_are_public(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 24), nn.Linear(24, CLASSES)),
        torch.randn(9, 12),
    )
    model[2].requires_grad_(False)
    there, here = engines(model, examples=9, mode=mode, skip=["0", "3"])
    asked = roles(there.model, monkeypatch)
    assert relative(private_gradient(there, [x], each, 9), private_gradient(here, [x], each, 9)) < 0.04
    assert {(layer, product.role) for layer, product in asked} == {("2", "forward"), ("2", "input_gradient")}


def test_what_the_offloading_keeps_is_torchs_and_said() -> None:
    model, x = network("linear")
    there, here = engines(model, skip=["2"])
    assert relative(private_gradient(there, [x], each, ROWS), private_gradient(here, [x], each, ROWS)) < 0.04
    assert [(kept.name, kept.reason) for kept in offloading(there.model).conversion.kept] == [
        ("2", "left out by skip='2'")
    ]


def test_a_copy_for_every_example_is_made_in_the_enclave_and_said() -> None:
    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(4, 6)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.table @ x.unsqueeze(2)).squeeze(2))

    torch.manual_seed(0)
    there, here = engines(Copied(), examples=5)
    x = torch.randn(5, 6)
    assert relative(private_gradient(there, [x], each, 5), private_gradient(here, [x], each, 5)) < 0.04
    (kept,) = offloading(there.model).conversion.kept
    assert "gradients an example are made in the enclave" in kept.reason


def test_a_weight_that_is_computed_is_offloaded_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(input, w, self.bias)

    torch.manual_seed(0)
    there, here = engines(nn.Sequential(Standardised(3, 6, 3), nn.Flatten(), nn.Linear(24, 3)), examples=8)
    x = torch.randn(8, 3, 4, 4)
    asked = roles(there.model, monkeypatch)
    assert relative(private_gradient(there, [x], each, 8), private_gradient(here, [x], each, 8)) < 0.04
    assert any("0" in layer for layer, _ in asked)
    assert offloading(there.model).conversion.kept == ()


def test_a_convolution_whose_pictures_are_not_examples_stays() -> None:
    """Four patches of an example lie side by side in one picture: its scale would be all examples'."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            wide = x.permute(2, 0, 1).unsqueeze(0)  # (1, C, B, T)
            return self.head(self.frozen(wide)[0].permute(1, 2, 0).mean(1))

    torch.manual_seed(0)
    there, here = engines(Folded(), examples=6)
    x = torch.randn(6, 4, 3)
    assert relative(private_gradient(there, [x], each, 6), private_gradient(here, [x], each, 6)) < 0.04
    assert [kept.name for kept in offloading(there.model).conversion.kept] == ["frozen"]


# ---- the front door ----------------------------------------------------------------------------------------------


def parts(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(seed)
    x = torch.randn(240, 10)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    return model, optimizer, DataLoader(TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long()), batch_size=40)


def losses(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_a_loop_over_an_offloaded_model_learns() -> None:
    model, optimizer, loader = parts()
    offload(model, mode="shared3", workers="inline")
    model, optimizer, loader = make_private(model, optimizer, loader, clip=1.0, epsilon=3, delta=1e-5, epochs=4)
    for _ in range(4):
        for batch in loader:
            losses(model, batch).mean().backward()
            optimizer.step()
    x, labels = loader.dataset.tensors
    with torch.no_grad():
        assert float((model.eval()(x).argmax(1) == labels).double().mean()) > 0.8
    assert optimizer.privacy.steps == 24
    assert {layer.name for layer in report(model).layers} == {"0", "2"}


def test_a_trainer_trains_the_certified_graph_by_the_models_workers() -> None:
    model, optimizer, loader = parts()
    offload(model, mode="shared3", workers="inline")
    trainer = Trainer(model, losses, optimizer, loader, epochs=2, delta=1e-5, noise_multiplier=1, clip=1.0)
    assert trainer.certificate is not None
    assert is_offloaded(trainer._trained)
    assert offloading(trainer._trained) is offloading(model)
    trainer.fit()
    assert {layer.name for layer in report(model).layers} == {"0", "2"}
    assert report(model).kept == ()
    assert type(onload(model)[0]) is nn.Linear


@pytest.mark.parametrize("name", ["convolutions", "transformer", "swapped"])
def test_a_certified_graph_is_offloaded_by_its_operators(name: str) -> None:
    """What a traced graph calls is ATen's; every product of it is made by workers, none is passed over."""
    model, x = network(name)

    def scored(module: nn.Module, batch: Any) -> Tensor:
        return squares(module(batch))

    graph = bind(check_model(model.train(), scored, x), model, scored)
    there, here = engines(graph, examples=9)
    made = private_gradient(there, [x[:9]], lambda losses, rows: losses, 9)
    few = math.sqrt(ROWS / 9)  # examples are rounded each by itself: the fewer, the more it counts
    assert relative(made, private_gradient(here, [x[:9]], lambda losses, rows: losses, 9)) < 0.04 * few
    named = {layer.name for layer in report(there.model).layers}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)}
    assert linear <= named
    assert offloading(there.model).conversion.kept == ()


@pytest.mark.usefixtures("sums")
def test_a_kept_key_makes_the_same_steps_again_also_after_a_resume() -> None:
    secret, weights = Secret.random(32), []
    for resumed in (False, True):
        model, optimizer, loader = parts()
        torch.manual_seed(7)
        offload(model, mode="shared3", workers="inline")
        settings = {"clip": 1.0, "noise_multiplier": 1, "delta": 1e-5, "micro_batch": 64}
        made = make_private(model, optimizer, loader, key=RunKey(secret), **settings)
        for number in range(4):
            if resumed and number == 2:
                state, rounding = made[1].privacy.state, offloading(model).engine.products.rounding
                fresh = parts()[0]
                fresh.load_state_dict(model.state_dict())
                optimizer = torch.optim.SGD(fresh.parameters(), lr=1.0, momentum=0.5)
                optimizer.load_state_dict(made[1].state_dict())
                model = offload(fresh, mode="shared3", workers="inline")
                offloading(model).engine.products.rounding = rounding
                made = make_private(model, optimizer, loader, key=RunKey(secret), **settings)
                made[1].privacy.resume(state)
            for batch in made[2]:
                losses(made[0], batch).mean().backward()
                made[1].step()
                if made[2].place.is_last:
                    break
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_model_is_offloaded_first_and_then_made_private() -> None:
    model, optimizer, loader = parts()
    model, optimizer, loader = make_private(model, optimizer, loader, clip=1.0, noise_multiplier=1, delta=1e-5)
    offload(model, mode="shared3", workers="inline")
    with pytest.raises(CloisterError) as caught:
        model(next(iter(loader))[0])
    assert caught.value.code == 8867


def test_a_scale_that_the_first_batch_fixes_is_refused() -> None:
    model, x = network("linear")
    there, _ = engines(model, scales="static")
    with pytest.raises(CloisterError) as caught:
        private_gradient(there, [x], each, ROWS)
    assert caught.value.code == 8711


def test_a_model_has_its_own_classes_while_it_is_traced_and_is_offloaded_after() -> None:
    model, _, loader = parts()
    kinds = [type(module) for module in model.modules()]
    offload(model, mode="shared3", workers="inline")
    with plain(model):
        assert [type(module) for module in model.modules()] == kinds
        check_model(model, losses, next(iter(loader)))
    assert [type(module) for module in model.modules()] != kinds
    assert report(model).products == 0
    model(torch.randn(3, 10))
    assert report(model).products == 2


def test_a_copy_of_a_private_offloaded_model_is_offloaded_and_not_private() -> None:
    model, optimizer, loader = parts()
    offload(model, mode="shared3", workers="inline")
    model, _, _ = make_private(model, optimizer, loader, clip=1.0, noise_multiplier=1, delta=1e-5)
    copied = copy.deepcopy(model)
    copied(torch.randn(4, 10)).sum().backward()
    assert copied[0].weight.grad is not None


@pytest.mark.parametrize("outsourced", [True, False])
def test_a_result_may_be_written_over(outsourced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.along, self.head = nn.Linear(6, 8), nn.Conv1d(3, 4, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.along(self.rows(x).relu_()).relu_()).relu_().sum(1)

    if outsourced:
        always(monkeypatch)
    torch.manual_seed(0)
    there, here = engines(Over(), examples=9)
    x = torch.randn(9, 3, 6)
    assert relative(private_gradient(there, [x], each, 9), private_gradient(here, [x], each, 9)) < 0.1
