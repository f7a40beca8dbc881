"""Training and inference in every mode: the same bits as the simulation, each tensor sent once, nothing left behind."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from tests.modes import PRIVATE, PUBLIC, Mixed, batches, plain_net, spies, train
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cloister.errors import CloisterError, InputError
from cloister.offload import InlineWorker, offload, offloading, onload, precompute, report
from cloister.offload._blinding import Folder
from cloister.offload._commands import Compute, Put
from cloister.offload._schemes import SCHEMES


@pytest.mark.slow
@pytest.mark.parametrize("mode", PRIVATE)
def test_simulate_is_bit_identical_over_a_hundred_steps(mode: str) -> None:
    data = batches(100)
    executed = train(mode, data=data)
    simulated = train(mode, "simulate", data=data)
    assert executed.same_as(simulated)
    assert len(set(executed.losses)) > 90
    assert not executed.inside.engine.products.verdict.failed


@pytest.mark.parametrize("mode", PRIVATE)
@pytest.mark.parametrize(
    "choices", [{"scales": "channel"}, {"bits": 5}, {"rounding": "nearest"}], ids=["channel", "5bits", "nearest"]
)
def test_every_choice_of_numbers_is_bit_identical(mode: str, choices: dict[str, object]) -> None:
    assert train(mode, **choices).same_as(train(mode, "simulate", **choices))  # type: ignore[arg-type]


def test_the_enclaves_own_integers_are_the_simulations() -> None:
    assert train("enclave").same_as(train("shared3", "simulate"))


def test_modes_give_the_same_bits() -> None:
    runs = [train(mode) for mode in PRIVATE]
    assert all(run.same_as(runs[0]) for run in runs)


def test_a_seed_repeats_a_run_and_another_does_not() -> None:
    first, again = train("shared3"), train("shared3")
    assert first.same_as(again)
    torch.manual_seed(0)
    model = Mixed()
    torch.manual_seed(99)  # between the model and its conversion: only the rounding differs
    offload(model, mode="shared3", execution="simulate")
    images, labels = batches(1)[0]
    assert F.cross_entropy(model(images), labels).item() != first.losses[0]


def test_quantised_training_stays_near_float() -> None:
    torch.manual_seed(0)
    model = plain_net()
    twin = copy.deepcopy(model)
    offload(model, mode="shared3", execution="simulate")
    images, labels = batches(1, size=64)[0]
    for each in (model, twin):
        F.cross_entropy(each(images), labels).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert F.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.99


def test_rounding_is_stochastic_while_gradients_are_recorded_and_only_then() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    offload(model, mode="verify", workers="inline")
    inputs = torch.randn(50, 6)
    recorded = [model(inputs).detach() for _ in range(2)]
    assert not torch.equal(*recorded)
    with torch.no_grad():
        assert torch.equal(model(inputs), model(inputs))


# ---- each tensor is hidden once --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["verify", "shared3"])
def test_each_of_x_w_and_dy_is_sent_once_a_step(mode: str) -> None:
    workers = spies(mode)
    train(mode, steps=1, net=plain_net, workers=workers)
    layers = 3
    assert len(workers[0].of(Put)) == 3 * layers  # x, W and dy of each
    assert len(workers[0].of(Compute)) == 3 * layers - 1  # nobody needs the gradient of the images


def test_shared5_as_published_sends_two_pieces_and_makes_five_products() -> None:
    workers = spies("shared5")
    train("shared5", steps=1, net=plain_net, workers=workers)
    assert [len(worker.of(Put)) for worker in workers] == [9, 18, 0]  # the difference; share and difference; nothing
    assert SCHEMES["shared5"].products == 5


def test_queries_keys_and_values_share_their_input() -> None:
    worker = spies("verify")[0]
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    offload(model, mode="verify", workers=[worker])
    tokens = torch.randn(2, 5, 8)
    model(tokens, tokens, tokens, need_weights=False)
    shapes = Counter(command.shape for command in worker.of(Put) if isinstance(command, Put))
    assert shapes[10, 8] + shapes[2, 5, 8] <= 2  # the tokens, and what the last projection reads


def test_weights_are_sent_again_only_when_they_changed() -> None:
    worker = spies("verify")[0]
    model = nn.Linear(6, 4)
    offload(model, mode="verify", workers=[worker])
    inputs = torch.randn(3, 6)
    weights = lambda: sum(command.shape == (4, 6) for command in worker.of(Put))  # noqa: E731
    with torch.no_grad():
        model(inputs)
        model(inputs)
        assert weights() == 1
        model.weight += 1
        model(inputs)
        assert weights() == 2


def test_an_optimizer_that_hides_its_writes_is_noticed() -> None:
    class Sly(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.sub_(parameter.grad, alpha=0.1)

    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    offload(model, mode="verify", workers="inline", rounding="nearest")
    inputs = torch.randn(3, 6)
    optimizer = Sly(model.parameters(), lr=0.1)
    model(inputs).square().sum().backward()
    before = model(inputs).detach()
    optimizer.step()
    with torch.no_grad():
        expected = F.linear(inputs, model.weight, model.bias)
        assert torch.allclose(model(inputs), expected, atol=0.05)
        assert not torch.allclose(before, expected, atol=0.05)


@pytest.mark.parametrize("mode", [*PRIVATE])
def test_workers_keep_nothing_that_is_not_needed(mode: str) -> None:
    workers = spies(mode)
    torch.manual_seed(0)
    model = plain_net()
    offload(model, mode=mode, workers=workers)  # type: ignore[arg-type]
    kept = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches(6):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        kept.append([worker.kept for worker in workers])
    assert kept[2:] == [kept[2]] * 4


# ---- autograd, as it is used -----------------------------------------------------------------------------


def test_gradients_accumulate_and_graphs_are_kept() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    offload(model, mode="shared3", workers="inline", rounding="nearest")
    inputs = torch.randn(3, 6)
    loss = model(inputs).square().sum()
    loss.backward(retain_graph=True)
    assert model.weight.grad is not None
    once = model.weight.grad.clone()
    loss.backward()
    assert torch.equal(model.weight.grad, 2 * once)


def test_a_layer_used_twice_sums_its_gradients() -> None:
    torch.manual_seed(0)
    tied = nn.Linear(6, 6)
    model = nn.Sequential(tied, nn.Tanh(), tied)
    twin = copy.deepcopy(model)
    offload(model, mode="shared3", workers="inline", rounding="nearest")
    inputs = torch.randn(32, 6)
    for each in (model, twin):
        each(inputs).square().sum().backward()
    ours, theirs = tied.weight.grad, twin[0].weight.grad
    assert ours is not None
    assert theirs is not None
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_forwards_have_masks_of_their_own(reentrant: bool) -> None:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inside, inputs, use_reentrant=reentrant)

    torch.manual_seed(0)
    model = Saving()
    workers = spies("shared3")
    offload(model, mode="shared3", workers=workers, rounding="nearest")
    model(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    words = [tensor for _, tensor in workers[0].tensors]
    assert len({tensor.numpy().tobytes() for tensor in words}) == len(words)


def test_only_the_gradients_that_somebody_wants_are_made() -> None:
    model = nn.Linear(6, 4)
    worker = spies("verify")[0]
    offload(model, mode="verify", workers=[worker])
    inputs = torch.randn(3, 6, requires_grad=True)
    model.requires_grad_(False)
    model(inputs).sum().backward()
    assert [command.form.role for command in worker.of(Compute) if isinstance(command, Compute)] == [
        "forward",
        "input_gradient",
    ]


def test_a_weight_that_is_changed_between_forward_and_backward_is_noticed() -> None:
    model = nn.Linear(6, 4)
    offload(model, mode="verify", workers="inline")
    loss = model(torch.randn(3, 6)).sum()
    with torch.no_grad():
        model.weight += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_gradients_of_a_transposed_weight_are_laid_out_as_the_weight() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ self.weight

    torch.manual_seed(0)
    model = Transposed()
    inputs = torch.randn(50, 6)
    expected = inputs.T @ torch.ones(50, 4)
    offload(model, mode="shared3", workers="inline", rounding="nearest")
    model(inputs).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.stride() == model.weight.stride()
    assert torch.allclose(model.weight.grad, expected, atol=0.2)


def test_long_sums_are_cut_and_added() -> None:
    torch.manual_seed(0)
    model = nn.Linear(66_000, 2)  # more terms than half the ring holds
    twin = copy.deepcopy(model)
    workers = spies("shared3")
    offload(model, mode="shared3", workers=workers, rounding="nearest")
    inputs = torch.randn(3, 66_000)
    with torch.no_grad():
        made, expected = model(inputs), twin(inputs)
    commands = [command for command in workers[0].of(Compute) if isinstance(command, Compute)]
    assert [(command.left is not None, command.right is not None) for command in commands] == [(True, True)] * 2
    assert torch.allclose(made, expected, atol=0.05 * expected.abs().max().item() + 0.05)
    onload(model)
    torch.manual_seed(0)
    offload(model, mode="shared3", execution="simulate", rounding="nearest")
    with torch.no_grad():
        assert torch.equal(model(inputs), made)


# ---- public weights --------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A frozen layer with a low-rank correction that is trained in the enclave."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(12, 10).requires_grad_(False)
        self.down = nn.Linear(12, 2, bias=False)
        self.up = nn.Linear(2, 10, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + self.up(self.down(inputs))


@pytest.mark.parametrize("mode", PUBLIC)
def test_a_frozen_base_is_public_and_its_inputs_are_not(mode: str) -> None:
    results = []
    for execution in ("simulate", "execute"):
        torch.manual_seed(0)
        model = nn.Sequential(Adapted(), nn.Tanh(), Adapted())
        workers = spies(mode)
        offload(
            model,
            mode=mode,  # type: ignore[arg-type]
            workers=workers,
            execution=execution,  # type: ignore[arg-type]
            only=["*base"],
        )
        inputs = torch.randn(5, 12)[:, :12]
        middle = nn.functional.pad(model[1](model[0](inputs)), (0, 2))
        loss = model[2](middle).square().sum()
        loss.backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(results[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    kinds = Counter(command.dtype for command in workers[0].of(Put) if isinstance(command, Put))
    assert kinds == {"int8": 2, "int32": 3}  # two bases; two inputs and the gradient between them


def test_blinding_is_made_ahead_and_used_once(tmp_path) -> None:
    torch.manual_seed(0)
    model = plain_net().eval().requires_grad_(False)
    twin = copy.deepcopy(model)
    stored = Folder(tmp_path / "blinding")
    offload(model, mode="blind", workers="inline", stored=stored)
    offload(twin, mode="blind", execution="simulate")
    images = batches(1)[0][0]
    with torch.no_grad():
        expected = twin(images)
        assert torch.equal(model(images), expected)
        assert report(model).late == 3
        assert precompute(model, passes=2) == 6
        assert len(stored) == 6
        for left in (3, 0):
            assert torch.equal(model(images), expected)
            assert len(stored) == left
        assert report(model).late == 3
        model(images)
    assert report(model).late == 6


def test_blinding_for_other_shapes_or_weights_is_not_used() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).requires_grad_(False)
    offload(model, mode="blind", workers="inline")
    with torch.no_grad():
        model(torch.randn(3, 6))
        precompute(model)
        model(torch.randn(5, 6))
        model.weight.mul_(2)
        inputs = torch.randn(3, 6)
        assert torch.allclose(model(inputs), F.linear(inputs, model.weight, model.bias), atol=0.2)
    assert report(model).late == 3
    assert precompute(plain_offloaded("verify")) == 0


def plain_offloaded(mode: str) -> nn.Module:
    return offload(plain_net(), mode=mode, workers="inline")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [*PRIVATE, *PUBLIC])
def test_inference_mode_is_an_inference(mode: str) -> None:
    torch.manual_seed(0)
    model = Mixed().eval().requires_grad_(False)
    twin = copy.deepcopy(model)
    offload(model, mode=mode, workers="inline")  # type: ignore[arg-type]
    offload(twin, mode="shared3", execution="simulate")
    images = batches(1)[0][0]
    with torch.inference_mode():
        made = model(images)
    with torch.no_grad():
        near = twin(images)
    if mode in PRIVATE:
        assert torch.equal(made, near)  # with public weights, attention's own products stay in the enclave
    assert torch.allclose(made, near, atol=0.05)


# ---- what is refused, what is reported -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "code"),
    [
        ({"mode": "shared4"}, 2713),
        ({"mode": "shared3", "execution": "pretend"}, 2713),
        ({"mode": "shared3", "plan": "best"}, 2713),
        ({"mode": "shared3", "scales": "row"}, 2713),
        ({"mode": "shared3", "rounding": "up"}, 2713),
        ({"mode": "shared3", "bits": 9}, 2705),
        ({"mode": "shared3", "workers": None}, 2714),
        ({"mode": "shared3", "workers": []}, 2714),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(choices: dict[str, object], code: int) -> None:
    model = plain_net()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(InputError) as caught:
        offload(model, **{"workers": "inline", **choices})  # type: ignore[arg-type]
    assert caught.value.code == code
    assert [type(module) for module in model.modules()] == kinds


def test_workers_of_one_name_are_refused() -> None:
    workers = spies("shared3")
    workers[2].name = workers[0].name
    with pytest.raises(InputError) as caught:
        offload(plain_net(), mode="shared3", workers=workers)
    assert caught.value.code == 2714


def test_a_model_that_was_not_offloaded_has_no_report() -> None:
    with pytest.raises(InputError) as caught:
        report(plain_net())
    assert caught.value.code == 2722


def test_the_report_counts_what_was_made() -> None:
    model = plain_offloaded("shared3")
    images, labels = batches(1)[0]
    F.cross_entropy(model(images), labels).backward()
    found = report(model)
    assert (found.products, found.checks, found.workers) == (8, 8, ("inline-0", "inline-1", "inline-2"))
    assert found.soundness_bits is not None
    assert found.soundness_bits >= 40
    assert found.coverage == 1.0
    assert [layer.name for layer in found.layers] == ["0", "3", "5"]
    assert all(layer.sent_bytes and layer.received_bytes for layer in found.layers)
    assert found.as_json()["products"] == 8
    text = " ".join(str(found).split())
    assert "inputs, weights and gradients" in text
    assert "100.0 %" in text


def test_the_planner_keeps_small_products_in_the_enclave() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    offload(model, mode="shared3", workers="inline", plan="auto")
    model(torch.randn(2, 4))
    found = report(model)
    assert not found.layers
    assert {each.reason for each in found.kept} == {"the plan keeps it here"}
    assert offloading(model).costs is not None


def test_a_planner_of_ones_own_decides_by_layer_and_shapes() -> None:
    model = plain_net()
    offload(model, mode="shared3", workers="inline", plan=lambda layer, product: product.multiplications > 500)
    model(batches(1)[0][0])
    assert [layer.name for layer in report(model).layers] == ["0", "3"]


def test_onload_gives_the_model_back() -> None:
    model = plain_offloaded("shared3")
    onload(model)
    assert type(model[3]) is nn.Linear
    with pytest.raises(InputError):
        report(model)


class Elsewhere(InlineWorker):
    """On the CPU, and expands masks as a worker on ``expands`` does; ``says`` is what it calls itself."""

    def __init__(self, name: str, *, expands: str, says: str) -> None:
        super().__init__(name)
        self._expands, self._says = expands, says

    @property
    def device(self) -> str:
        return self._says

    def start(self, keys: Any) -> None:
        super().start(keys)
        assert self._coprocessor is not None
        self._coprocessor._keys = {stream: key.on(self._expands) for stream, key in keys.items()}


def elsewhere(mode: Any, *, expands: str, says: str) -> list[Elsewhere]:
    return [Elsewhere(f"w{index}", expands=expands, says=says) for index in range(SCHEMES[mode].workers)]


def answered(mode: Any, **how: Any) -> torch.Tensor:
    """One pass of a frozen network, whose weights are public in ``blind2``."""
    torch.manual_seed(3)
    model = offload(plain_net().requires_grad_(False).eval(), mode=mode, **how)
    with torch.no_grad():
        return model(batches(1)[0][0])


@pytest.mark.parametrize("mode", ["blind2", "shared3", "shared5"])
def test_who_expands_masks_on_a_gpu_does_it_by_chacha_and_the_bits_are_the_same(mode: Any) -> None:
    found = answered(mode, workers=elsewhere(mode, expands="cuda:0", says="cuda:0"))
    assert torch.equal(found, answered(mode, execution="simulate"))


@pytest.mark.parametrize("mode", ["blind2", "shared3", "shared5"])
@pytest.mark.parametrize(("expands", "says"), [("cuda:0", "cpu"), ("cpu", "cuda:0")])
def test_a_worker_that_names_another_device_than_it_has_multiplies_something_else(
    mode: Any, expands: str, says: str
) -> None:
    with pytest.raises(CloisterError) as caught:
        answered(mode, workers=elsewhere(mode, expands=expands, says=says))
    assert caught.value.code == 5701
