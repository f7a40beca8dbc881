"""Whole models: converted, they compute what they computed before, and every product of theirs is accounted for."""

import pytest
import torch
from tests.offloading import EXAMPLES, BiasAfter, Doubling, InPlace, Recorder, near, outputs, same, step, twin
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cloister.offload import convert, restore

FUSED = ("hf-vit", "hf-bert", "hf-gpt2")
"""Torch's fused attention sums a softmax block by block: another association than two products with one between."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def examples():
    made = {}

    def example(name):
        if name not in made:
            torch.manual_seed(3)
            made[name] = EXAMPLES[name]()
        return made[name]._replace(model=twin(made[name].model))

    return example


def flops(model, batch, work):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work(model, batch)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_converted_model_gives_the_same_scores_gradients_and_statistics(examples, name, training):
    model, batch, products = examples(name)
    model.train(training)
    plain = twin(model)
    state, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    recorder = InPlace()
    conversion = convert(model, recorder)
    assert list(model.state_dict()) == state
    with BiasAfter():
        expected = step(plain, batch)
    got = step(model, batch)
    assert near(expected, got) if name in FUSED else same(expected, got)
    assert len(recorder.operands) == sum(each.calls for each in conversion.offloaded) == products
    assert (recorder.passes, recorder.open) == ([True], 0)
    restore(model)
    assert [type(module) for module in model.modules()] == classes
    with BiasAfter():
        assert same(step(twin(plain), batch, seed=1), step(model, batch, seed=1))
    assert len(recorder.operands) == products


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_multiplication_is_offloaded_or_recorded_as_kept(examples, name):
    model, batch, _ = examples(name)
    plain = twin(model)
    recorder = Recorder()
    conversion = convert(model, recorder, skip=["*0"])
    inside = flops(model, batch, step)
    kept = sum(each.calls * each.multiplications for each in conversion.kept)
    forward = recorder.multiplications("forward")
    assert kept > 0
    assert forward == sum(each.multiplications for each in conversion.offloaded) > 0
    assert {each.reason for each in conversion.kept} == {"left out by skip='*0'"}
    assert all(each.reached for each in conversion.kept)
    assert forward + kept == flops(plain, batch, outputs)
    if name != "hf-mobilenet":  # torch counts a depthwise convolution's gradients as if it had one group
        assert recorder.multiplications() + inside == flops(plain, batch, step)


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_is_multiplied_outside_of_the_multiplier(examples, name):
    model, batch, _ = examples(name)
    conversion = convert(model, Recorder())
    assert flops(model, batch, step) == 0
    assert conversion.kept == ()


@pytest.mark.parametrize("name", ["resnet18", "hf-mobilenet", "hf-bert", "hf-gpt2"])
def test_the_products_are_those_of_the_model_in_float64(examples, name):
    model, batch, _ = examples(name)
    plain = twin(model)
    convert(model, Recorder())
    assert near(step(plain.eval(), batch), step(model.eval(), batch), part=1e-4)


@pytest.mark.parametrize("name", ["resnet32", "hf-vit", "hf-bert", "hf-gpt2-eager"])
def test_the_model_uses_the_answer_to_every_product(examples, name):
    """Nothing is multiplied twice, once for the record and once for the result."""
    model, batch, _ = examples(name)
    model.eval()
    recorder = InPlace()
    convert(model, recorder)
    with torch.no_grad():
        expected = outputs(model, batch)
        restore(model)
        for layer in recorder.names:
            convert(model, Doubling(layer))
            assert not torch.allclose(outputs(model, batch), expected, rtol=0, atol=1e-6), layer
            restore(model)


def test_layers_have_the_names_of_modules_and_functions_say_what_they_make(examples):
    model, batch, _ = examples("hf-bert")
    recorder = InPlace()
    convert(model, recorder)
    outputs(model, batch)
    attention = "bert.encoder.layer.0.attention"
    assert recorder.names[:6] == [
        f"{attention}.self.query",
        f"{attention}.self.key",
        f"{attention}.self.value",
        f"{attention}.self:scores",
        f"{attention}.self:context",
        f"{attention}.output.dense",
    ]
    assert recorder.names[-1] == "cls.predictions.decoder"
    modules = {name for name, _ in model.named_modules()}
    assert {name.partition(":")[0] for name in recorder.names} <= modules


@pytest.mark.parametrize("name", ["hf-bert", "hf-gpt2"])
def test_a_tied_weight_is_the_embedding_itself_and_sums_both_gradients(examples, name):
    model, batch, _ = examples(name)
    embedding = model.get_input_embeddings().weight
    recorder = InPlace()
    convert(model, recorder)
    assert model.get_output_embeddings().weight is embedding
    outputs(model, batch)
    assert recorder.weights[-1] is embedding
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 7.0
    assert model.get_output_embeddings().weight[0, 0] == 7.0


def test_a_generation_loop_of_the_library_runs(examples):
    model, batch, _ = examples("hf-gpt2")
    model.eval()
    plain = twin(model)
    recorder = InPlace()
    convert(model, recorder)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(batch)}
    assert torch.equal(model.generate(batch, **options), plain.generate(batch, **options))
    assert recorder.passes == [False] * 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_librarys_gradient_checkpointing_runs(examples, reentrant):
    model, batch, products = examples("hf-gpt2")
    model.train()
    plain = twin(model)
    for each in (plain, model):
        each.activation_checkpointing_enable({"use_reentrant": reentrant})
    recorder = Recorder()
    conversion = convert(model, recorder)
    assert near(step(plain, batch), step(model, batch))
    blocks = [layer.name for layer, _, _ in recorder.operands if ".h." in layer.name]
    assert len(blocks) == 2 * (products - 1), "each block is computed once more on the way back"
    assert sorted(set(blocks)) == sorted(each.layer.name for each in conversion.offloaded if ".h." in each.layer.name)
    assert (recorder.open, conversion.kept) == (0, ())
