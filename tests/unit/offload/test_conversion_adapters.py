"""Fine-tuning a public base: frozen weights may be shown, what is trained stays in the enclave, PEFT is unchanged."""

import pytest
import torch
from tests.offloading import EXAMPLES, BiasAfter, InPlace, Recorder, near, same, step, twin
from torch import nn

from cloister.errors import UnsupportedError
from cloister.offload import check, convert, restore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bases():
    torch.manual_seed(3)
    return {name: EXAMPLES[name]() for name in ("hf-bert", "hf-gpt2", "hf-vit")}


def lora(base, **options):
    """The base with adapters that do something from the beginning."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    config = LoraConfig(r=2, **{"init_lora_weights": False, "target_modules": ["query"], **options})
    return get_peft_model(twin(base.model), config)


KINDS = {
    "lora of bert": ("hf-bert", {"target_modules": ["query", "value"], "lora_dropout": 0.1}),
    "lora of gpt2": ("hf-gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "lora of vit, a trained head": ("hf-vit", {"target_modules": "all-linear", "modules_to_save": ["classifier"]}),
    "dora": ("hf-bert", {"target_modules": ["dense"], "use_dora": True}),
    "lora of an embedding": ("hf-bert", {"target_modules": ["word_embeddings", "query"]}),
    "trained tokens": ("hf-bert", {"target_modules": ["query"], "trainable_token_indices": [1, 2]}),
    "rslora with biases": ("hf-bert", {"target_modules": ["query"], "use_rslora": True, "bias": "lora_only"}),
}


@pytest.fixture(params=KINDS)
def tuned(request, bases):
    """A model with adapters that do something, and its batch."""
    base, options = KINDS[request.param]
    return lora(bases[base], **options), bases[base].batch


class TestPublicBase:
    def test_the_model_trains_as_it_did(self, tuned):
        model, batch = tuned
        plain = twin(model)
        keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
        convert(model, InPlace(), public_weights=True)
        with BiasAfter():
            expected = step(plain, batch)
        got = step(model, batch)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained
        gradients = {name.removeprefix("gradient of ") for name in got if name.startswith("gradient of ")}
        assert gradients - {"the batch"} <= trained
        assert same(expected, got) or near(expected, got, part=1e-6)
        assert list(model.state_dict()) == keys
        restore(model)
        assert [type(module) for module in model.modules()] == classes

    def test_only_frozen_weights_of_the_base_leave(self, tuned):
        model, batch = tuned
        frozen = {parameter.data_ptr() for parameter in model.parameters() if not parameter.requires_grad}
        recorder = Recorder()
        conversion = convert(model, recorder, public_weights=True)
        step(model, batch)
        assert len(recorder.operands) > 8
        assert {w.data_ptr() for w in recorder.weights} <= frozen
        assert {layer.weight for layer, _, _ in recorder.operands} == {"frozen"}
        assert {product.role for _, product in recorder.made} == {"forward", "input_gradient"}
        assert all(each.reached for each in conversion.kept)
        reasons = {each.name: each.reason for each in conversion.kept}
        for name, reason in reasons.items():
            activations = name.endswith((":scores", ":context"))
            assert reason == (
                "neither operand is a public weight"
                if activations
                else "an adapter holds what was trained, and its weights would be public"
            )
        adapted = [name for name in reasons if "lora_A" in name or "modules_to_save" in name or "token" in name]
        assert adapted

    def test_where_weights_are_private_adapters_leave_too(self, tuned):
        model, batch = tuned
        recorder = Recorder()
        conversion = convert(model, recorder)
        step(model, batch)
        assert any("lora_A" in name for name in recorder.names) or any("embedding" in n for n in recorder.names)
        assert all(each.reached for each in conversion.kept)

    def test_check_says_the_same_before(self, tuned):
        model, batch = tuned
        found = check(model, (batch,), public_weights=True)
        assert found.ok
        recorder = InPlace()
        convert(model, recorder, public_weights=True)
        with torch.no_grad():
            model.eval()(batch)
        assert {each.name for each in found.offloaded if each.calls} == set(recorder.names)
        assert all(each.weight == "frozen" for each in found.offloaded)


def test_a_base_that_is_trained_is_refused(bases):
    model = lora(bases["hf-bert"])
    model.base_model.model.bert.encoder.layer[0].intermediate.dense.weight.requires_grad_(True)
    with pytest.raises(UnsupportedError) as caught:
        convert(model, InPlace(), public_weights=True)
    assert caught.value.code == 8707
    assert "bert.encoder.layer.0.intermediate.dense" in caught.value.what


def test_training_with_the_optimizer_of_the_adapters_moves_them_alone(bases):
    example = bases["hf-gpt2"]
    model = lora(example, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=True)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    convert(model, Recorder(), public_weights=True)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(example.batch, labels=example.batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_adapters_may_be_switched_off_for_a_while(bases):
    example = bases["hf-bert"]
    model = lora(example).eval()
    plain = twin(example.model).eval()
    convert(model, InPlace(), public_weights=True)
    with torch.no_grad(), model.disable_adapter():
        assert torch.allclose(model(example.batch).logits, plain(example.batch).logits, atol=1e-6)


def test_a_linear_layer_of_ones_own_may_hold_the_adapter():
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(6, 6).requires_grad_(False)
            self.down = nn.Linear(6, 2)

        def forward(self, x):
            return self.base(x) + nn.functional.linear(self.down(x), self.down.weight.mT)

    recorder = Recorder()
    model = Adapted()
    plain = twin(model)
    conversion = convert(model, recorder, public_weights=True, skip=["down"])
    assert near(step(plain, torch.ones(2, 6)), step(model, torch.ones(2, 6)))
    assert recorder.names == ["base"]
    assert {each.reason for each in conversion.kept} == {"left out by skip='down'"}
