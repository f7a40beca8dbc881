"""Whatever the model does, a worker of a mode with public weights is shown no weight that was trained in private.

The multiplier here stands for all workers: what it is handed as ``w`` in such a mode is sent as it is.
"""

import copy

import pytest
import torch
from tests.offloading import EXAMPLES, InPlace
from torch import nn

from cloister.errors import UnsupportedError
from cloister.offload import UnreachedWarning, convert


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(3)
    return EXAMPLES["hf-bert"]()


def adapted(model, **options):
    """The model with adapters that were trained: they change what it computes."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    return get_peft_model(
        model, LoraConfig(r=2, **{"init_lora_weights": False, "target_modules": ["query"], **options})
    )


def tuned(base, **options):
    return adapted(copy.deepcopy(base.model), **options).eval()


def shown(recorder, base):
    """Weights that were shown and are not the public base's, to the last bit."""
    public = [parameter.detach() for parameter in base.model.parameters()]
    return [
        layer.name
        for layer, _, w in recorder.operands
        if not any(w.numel() == one.numel() and torch.equal(w.reshape(one.shape), one) for one in public)
        and not any(w.mT.shape == one.shape and torch.equal(w.mT, one) for one in public)
    ]


def test_the_oracle_sees_a_weight_that_is_not_the_bases(base):
    model = tuned(base)
    recorder = InPlace()
    convert(model, recorder)
    model(base.batch)
    assert any("lora_A" in name for name in shown(recorder, base))


def test_an_adapter_that_was_merged_before(base):
    model = tuned(base)
    model.merge_adapter()
    with pytest.raises(UnsupportedError) as caught:
        convert(model, InPlace(), public_weights=True)
    assert caught.value.code == 8707
    assert "query: an adapter is merged into its base" in caught.value.what
    assert "unmerge_adapter()" in caught.value.hint


def test_an_adapter_that_is_merged_afterwards(base):
    model = tuned(base)
    recorder = InPlace()
    convert(model, recorder, public_weights=True)
    model.merge_adapter()
    parts = (model, model.base_model.model.bert.encoder.layer[0].attention.self.query.base_layer)
    for part, x in zip(parts, (base.batch, torch.ones(1, 32)), strict=True):
        with pytest.raises(UnsupportedError) as caught:
            part(x)
        assert caught.value.code == 8707
    assert recorder.operands == []
    model.unmerge_adapter()
    model(base.batch)
    assert recorder.operands


def test_an_adapter_merged_into_an_embedding_that_a_decoder_shares(base):
    """The decoder is no adapter's base, and its weight holds what was trained all the same."""
    model = tuned(base, target_modules=["word_embeddings"])
    recorder = InPlace()
    convert(model, recorder, public_weights=True)
    model.merge_adapter()
    with pytest.raises(UnsupportedError) as caught:
        model(base.batch)
    assert (caught.value.code, recorder.operands) == (8707, [])


def test_a_frozen_adapter_that_is_attached_afterwards(base):
    model = copy.deepcopy(base.model).requires_grad_(False).eval()
    recorder = InPlace()
    conversion = convert(model, recorder, public_weights=True)
    adapted(model).requires_grad_(False).eval()(base.batch)
    assert recorder.operands
    assert shown(recorder, base) == []
    late = [each for each in conversion.kept if "lora_" in each.name]
    assert {each.reason for each in late} == {
        "its weight is none of those that were public when the model was converted"
    }


def test_a_trained_adapter_that_is_attached_afterwards(base):
    model = copy.deepcopy(base.model).requires_grad_(False)
    recorder = InPlace()
    convert(model, recorder, public_weights=True)
    with pytest.raises(UnsupportedError) as caught:
        adapted(model)(base.batch)
    assert caught.value.code == 8707
    assert shown(recorder, base) == []


@pytest.mark.parametrize("options", [{"use_dora": True}, {"target_modules": "all-linear"}, {"bias": "all"}], ids=str)
def test_weights_that_are_computed_from_the_base_and_an_adapter(base, options):
    model = tuned(base, **options)
    recorder = InPlace()
    convert(model, recorder, public_weights=True)
    for training in (False, True):
        model.train(training)(base.batch)
    assert recorder.operands
    assert shown(recorder, base) == []


def test_a_weight_that_is_thawed_afterwards():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    recorder = InPlace()
    convert(model, recorder, public_weights=True)
    model[1].weight.requires_grad_(True)
    with pytest.raises(UnsupportedError) as caught:
        model(torch.ones(2, 4))
    assert caught.value.code == 8707
    assert [layer.name for layer, _, _ in recorder.operands] == ["0"]


class Keeps(nn.Module):
    """A frozen layer, and beside it private tensors of every other kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("memory", torch.randn(4, 4))
        self.trained = nn.Parameter(torch.randn(4, 4))
        self.secret = torch.randn(4, 4)

    def forward(self, x):
        x = self.layer(x) @ self.memory
        x = x @ (self.layer.weight * self.trained)
        x = nn.functional.linear(x, self.secret)
        x = nn.functional.linear(x, self.layer.weight + 0)
        x = x @ self.trained.detach()
        return x @ x.mT


def test_buffers_computed_weights_and_activations():
    model = Keeps()
    recorder = InPlace()
    convert(model, recorder, public_weights=True)
    model(torch.ones(2, 4))
    assert [(layer.name, layer.weight) for layer, _, _ in recorder.operands] == [("layer", "frozen")]
    assert recorder.weights[0] is model.layer.weight


class Scaled(nn.Linear):
    """A frozen layer that multiplies with something else than its weight."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.requires_grad_(False)
        self.register_buffer("learnt", torch.randn(4, 4))

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.learnt, self.bias)


def test_a_computed_weight_under_the_name_of_a_public_one():
    model = nn.Sequential(Scaled(), nn.Linear(4, 4).requires_grad_(False))
    recorder = InPlace()
    conversion = convert(model, recorder, public_weights=True)
    model(torch.ones(2, 4))
    assert recorder.names == ["1"]
    assert [(each.name, each.reason) for each in conversion.kept] == [("0", "neither operand is a public weight")]


def test_a_weight_that_was_trained_when_the_model_was_converted_and_frozen_then():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return x @ self.matrix

    model = Bare()
    recorder = InPlace()
    convert(model, recorder, public_weights=True)
    model.requires_grad_(False)
    model(torch.ones(2, 4))
    assert recorder.operands == []


def test_a_parameter_of_another_model_is_not_this_ones():
    other = nn.Linear(4, 4).requires_grad_(False)
    held = [other]

    class Borrows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4).requires_grad_(False)

        def forward(self, x):
            return held[0](self.layer(x))

    model = Borrows()
    recorder = InPlace()
    conversion = convert(model, recorder, public_weights=True)
    model(torch.ones(2, 4))
    assert recorder.weights == [model.layer.weight]
    assert [each.name for each in conversion.kept] == ["(root):linear"]


def test_no_product_goes_by_in_silence():
    """Whoever computes beside the offloaded forms is named: a model is not slow, or elsewhere, without a word."""

    class Beside(nn.Module):
        def forward(self, x):
            y = torch.einsum("bi,oi->bo", x, x)
            return torch.ops.aten.mm(y, y)

    model = Beside()
    recorder = InPlace()
    conversion = convert(model, recorder)
    with pytest.warns(UnreachedWarning) as seen:
        model(torch.ones(3, 3))
    assert recorder.operands == []
    assert [each.what for each in conversion.kept] == ["einsum", "mm"]
    assert len(seen) == 2
