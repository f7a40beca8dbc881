"""What a conversion does to a model, besides its products: nothing."""

import copy
import functools
import inspect
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from tests.offloading import BiasAfter, InPlace, Recorder, near, same, step, twin
from torch import nn
from torch.utils.checkpoint import checkpoint

from cloister.offload import convert, restore
from cloister.offload._modules import is_converted

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


@pytest.fixture
def seeded():
    torch.manual_seed(5)


class Residual(nn.Module):
    """Two paths that meet again, a norm of each kind, and dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.dropout = nn.Dropout(0.3)
        self.layer = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        x = self.batch(self.stem(images)).relu()
        x = x + self.dropout(self.inner(self.group(x))) - x.detach()
        return self.head(self.layer(x.mean((2, 3))))


def perceptron():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def test_residual_paths_norms_and_dropout_are_untouched():
    model = Residual()
    plain = twin(model)
    recorder = InPlace()
    convert(model, recorder)
    with BiasAfter():
        expected = step(plain, torch.ones(3, 3, 4, 4))
    assert same(expected, step(model, torch.ones(3, 3, 4, 4)))
    assert recorder.names == ["stem", "inner", "head"]
    assert recorder.operands[1][0].operator.groups == 4


def test_training_goes_the_same_way_with_the_same_optimizer():
    model = Residual()
    plain = twin(model)
    optimizers = [torch.optim.AdamW(each.parameters(), 0.01) for each in (plain, model)]
    convert(model, InPlace())
    for seed in range(4):
        batch = torch.randn(3, 3, 4, 4)
        for each, optimizer in zip((plain, model), optimizers, strict=True):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            with BiasAfter() if each is plain else torch.enable_grad():
                F.cross_entropy(each(batch), torch.tensor([0, 1, 2])).backward()
            optimizer.step()
    assert same(plain.state_dict(), model.state_dict())


def test_state_parameters_and_names_are_the_same_objects():
    model = Residual()
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys, text = list(model.state_dict()), repr(model)
    convert(model, InPlace())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert list(model.state_dict()) == keys
    assert repr(model) == text
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    plain = Residual()
    assert plain.load_state_dict(torch.load(saved, weights_only=True)).missing_keys == []
    assert same(model.state_dict(), plain.state_dict())


def test_a_converted_module_is_still_one_of_its_class_with_its_signature():
    model = Residual()
    convert(model, InPlace())
    assert type(model) is not Residual
    assert isinstance(model, Residual)
    assert isinstance(model.stem, nn.Conv2d)
    assert (type(model).__name__, type(model).__module__, type(model).__doc__) == (
        Residual.__name__,
        Residual.__module__,
        Residual.__doc__,
    )
    assert inspect.signature(model.forward) == inspect.signature(Residual().forward)
    assert type(model.dropout) is nn.Dropout
    assert type(model.layer) is nn.LayerNorm


def test_two_models_of_a_class_share_the_subclass_and_not_the_multiplier():
    first, second = perceptron(), perceptron()
    one, other = InPlace(), InPlace()
    convert(first, one)
    convert(second, other)
    assert type(first[0]) is type(second[0])
    first(torch.ones(2, 6))
    assert (len(one.operands), len(other.operands)) == (2, 0)


def test_restore_gives_back_the_classes_and_what_was_trained():
    model = Residual()
    classes = [type(module) for module in model.modules()]
    contents = [set(module.__dict__) for module in model.modules()]
    convert(model, InPlace())
    F.cross_entropy(model(torch.ones(2, 3, 4, 4)), torch.tensor([0, 1])).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    trained = copy.deepcopy(model.state_dict())
    restore(model)
    assert [type(module) for module in model.modules()] == classes
    assert [set(module.__dict__) for module in model.modules()] == contents
    assert same(trained, model.state_dict())
    convert(model, InPlace())


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_run_as_they_did(when):
    def hooked(model):
        seen = []
        model[0].register_forward_pre_hook(lambda _, args: seen.append(("pre", args[0].shape)) or (args[0] * 2,))
        model[0].register_forward_hook(lambda _, __, y: seen.append(("forward", y.shape)) or y + 1)
        model[2].register_full_backward_hook(lambda _, dx, dy: seen.append(("backward", dx[0].shape, dy[0].shape)))
        model[2].register_full_backward_pre_hook(lambda _, dy: seen.append(("pre backward", dy[0].shape)))
        model[0].weight.register_hook(lambda gradient: seen.append(("weight", gradient.shape)))
        model.register_forward_pre_hook(lambda _, __, named: seen.append(("root", sorted(named))), with_kwargs=True)
        return seen

    model = perceptron()
    plain = twin(model)
    expected = hooked(plain)
    if when == "before":
        seen = hooked(model)
        convert(model, InPlace())
    else:
        convert(model, InPlace())
        seen = hooked(model)
    with BiasAfter():
        wanted = step(plain, torch.ones(2, 6))
    assert same(wanted, step(model, torch.ones(2, 6)))
    assert seen == expected
    assert len(seen) == 6


def test_a_hook_that_multiplies_is_offloaded_too():
    model = perceptron()
    recorder = InPlace()
    convert(model, recorder)
    model[1].register_forward_hook(lambda _, __, y: y @ torch.eye(5))
    model(torch.ones(2, 6))
    assert recorder.names == ["0", "(root):matmul", "2"]


def test_one_weight_at_two_places_is_one_tensor_under_two_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    plain = twin(model)
    recorder = InPlace()
    convert(model, recorder)
    with BiasAfter():
        expected = step(plain, torch.ones(2, 4))
    assert same(expected, step(model, torch.ones(2, 4)))
    assert recorder.names == ["0", "2"]
    assert recorder.weights[0] is recorder.weights[1] is model[0].weight


def test_one_module_at_two_places_is_one_layer():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    recorder = InPlace()
    conversion = convert(model, recorder)
    model(torch.ones(2, 4))
    assert [(each.layer.name, each.calls) for each in conversion.offloaded] == [("0", 2)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_pass_says_whether_gradients_are_recorded(mode):
    model = Residual().eval()
    plain = twin(model)
    recorder = InPlace()
    convert(model, recorder)
    with mode():
        batch = torch.randn(2, 3, 4, 4)
        answer = model(batch)
        with BiasAfter():
            assert torch.equal(answer, plain(batch))
    assert answer.requires_grad == (mode is torch.enable_grad)
    assert answer.is_inference() == (mode is torch.inference_mode)
    assert recorder.passes == [mode is torch.enable_grad]


def test_a_part_of_the_model_called_alone_is_a_pass_of_its_own():
    model = Residual()
    recorder = InPlace()
    convert(model, recorder)
    assert model.head(torch.ones(2, 8)).shape == (2, 4)
    assert model.head.forward(torch.ones(2, 8)).shape == (2, 4)
    assert (recorder.names, recorder.passes) == (["head"], [True, True])


def test_an_exception_in_the_model_ends_the_pass():
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x, broken):
            y = self.inner(x)
            if broken:
                raise RuntimeError("broken")
            return y

    model = Breaks()
    recorder = InPlace()
    convert(model, recorder)
    with pytest.raises(RuntimeError, match="broken"):
        model(torch.ones(1, 3), True)
    assert (recorder.open, recorder.passes) == (0, [True])
    model(torch.ones(1, 3), False)
    torch.ones(1, 3) @ torch.ones(3, 3)
    assert len(recorder.operands) == 2


def test_what_is_multiplied_outside_of_the_model_is_its_owners():
    model = perceptron()
    recorder = InPlace()
    conversion = convert(model, recorder)
    y = model(torch.ones(2, 6))
    F.linear(y, torch.ones(3, 4))
    assert (recorder.names, conversion.kept) == (["0", "2"], ())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_makes_the_forward_products_twice(reentrant):
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 6)) for _ in range(2)
            )

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    model = Stack()
    plain = twin(model)
    recorder = Recorder()
    convert(model, recorder)
    assert near(step(plain, torch.ones(3, 6)), step(model, torch.ones(3, 6)))
    assert recorder.names == ["blocks.0.0", "blocks.0.3", "blocks.1.0", "blocks.1.3"]
    roles = [product.role for product in recorder.of("blocks.0.0")]
    assert sorted(roles) == ["forward", "forward", "input_gradient", "weight_gradient"]
    assert recorder.open == 0


def test_threads_run_a_model_at_once_and_are_counted():
    model = perceptron().eval()
    plain = twin(model)
    recorder = InPlace()
    conversion = convert(model, recorder)
    together = threading.Barrier(4)

    def run(number):
        batch = torch.full((2, 6), float(number))
        together.wait()
        with torch.no_grad():
            for _ in range(50):
                answer = model(batch)
        return batch, answer

    with ThreadPoolExecutor(4) as pool:
        for batch, answer in pool.map(run, range(4)):
            with BiasAfter(), torch.no_grad():
                assert torch.equal(answer, plain(batch))
    assert [each.calls for each in conversion.offloaded] == [200, 200]
    assert len(recorder.passes) == 200


def test_a_thread_that_a_forward_starts_is_not_in_its_pass():
    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(self.inner, x).result()

    model = Threaded()
    recorder = InPlace()
    convert(model, recorder)
    model(torch.ones(1, 3))
    assert (recorder.names, len(recorder.passes)) == (["inner"], 2)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_converted_and_multiplies_through_the_same(copied):
    model = Residual().eval()
    recorder = InPlace()
    conversion = convert(model, recorder)
    other = copied(model)
    assert is_converted(other)
    assert is_converted(other.head)
    assert type(other) is type(model)
    assert (other.head is model.head) == (copied is copy.copy)
    assert torch.equal(other(torch.ones(2, 3, 4, 4)), model(torch.ones(2, 3, 4, 4)))
    assert [each.calls for each in conversion.offloaded] == [2, 2, 2]
    restore(other)
    assert type(other) is Residual
    assert is_converted(model)
    assert is_converted(model.head) == (copied is copy.deepcopy)


def test_a_class_with_a_copy_of_its_own_is_asked_as_itself():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def __deepcopy__(self, memo):
            assert type(self) is Own
            new = Own()
            new.load_state_dict(self.state_dict())
            return new

        def forward(self, x):
            return self.inner(x) @ torch.eye(3)

    model = Own()
    recorder = InPlace()
    convert(model, recorder)
    other = copy.deepcopy(model)
    assert is_converted(other)
    assert is_converted(model)
    assert torch.equal(other(torch.ones(1, 3)), model(torch.ones(1, 3)))
    assert recorder.names == ["inner", "(root):matmul"]
    restore(other)
    assert type(other) is Own


def test_a_forward_that_was_patched_on_an_instance_runs():
    model = perceptron()
    own = model[0].forward
    model[0].forward = lambda x: own(x) @ torch.eye(5)
    recorder = InPlace()
    convert(model, recorder)
    model(torch.ones(2, 6))
    assert recorder.names == ["0", "0:matmul", "2"]
    restore(model)
    assert model[0].forward(torch.ones(2, 6)).shape == (2, 5)


def test_a_forward_that_is_patched_after_the_conversion_runs_in_the_pass():
    model = perceptron()
    recorder = InPlace()
    convert(model, recorder)
    converted = model[0].forward
    model[0].forward = functools.wraps(converted)(lambda x: converted(x) * 2)
    model(torch.ones(2, 6))
    assert (recorder.names, recorder.passes) == (["0", "2"], [True])


def test_a_list_whose_forward_is_patched_is_converted():
    model = nn.ModuleList([nn.Linear(3, 3)])
    model.forward = lambda x: model[0](x) @ torch.eye(3)
    recorder = InPlace()
    convert(model, recorder)
    model(torch.ones(2, 3))
    assert recorder.names == ["0", "(root):matmul"]


def test_a_graph_that_was_traced_from_a_model_is_a_model():
    model = torch.fx.symbolic_trace(Residual().eval())
    plain = twin(model)
    recorder = InPlace()
    convert(model, recorder)
    with BiasAfter():
        expected = step(plain, torch.ones(3, 3, 4, 4))
    assert same(expected, step(model, torch.ones(3, 3, 4, 4)))
    assert recorder.names == ["stem", "inner", "head"]
    other = copy.deepcopy(model)
    assert is_converted(other)
    assert same(expected, step(other, torch.ones(3, 3, 4, 4)))
    assert len(recorder.operands) == 6
    restore(other)
    assert isinstance(other, torch.fx.GraphModule)


def test_parametrizations_compute_weights_in_the_enclave():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 3))
    nn.utils.parametrizations.spectral_norm(model[1])
    plain = twin(model)
    recorder = InPlace()
    conversion = convert(model, recorder)
    with BiasAfter():
        expected = step(plain, torch.ones(2, 4))
    assert same(expected, step(model, torch.ones(2, 4)))
    assert recorder.names == ["0", "1"]
    assert [each.layer.weight for each in conversion.offloaded] == ["activation", "activation"]
    assert {each.name.partition(".")[0] for each in conversion.kept} == {"1"}


def test_a_parametrization_that_multiplies_matrices_is_left_in_the_enclave():
    class Squared(nn.Module):
        def forward(self, weight):
            return weight @ weight

    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Squared())
    recorder = InPlace()
    conversion = convert(model, recorder)
    model(torch.ones(2, 4))
    assert recorder.names == ["0"]
    assert torch.equal(recorder.weights[0], model[0].weight)
    assert [each.reason for each in conversion.kept] == ["a parametrization computes a weight here"]


def test_parameters_given_for_one_call_are_what_is_multiplied():
    model = perceptron()
    recorder = InPlace()
    convert(model, recorder)
    zeros = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    assert torch.func.functional_call(model, zeros, (torch.ones(2, 6),)).count_nonzero() == 0
    assert [layer.weight for layer, _, _ in recorder.operands] == ["activation", "activation"]
    assert recorder.names == ["0", "2"]


def test_one_converted_model_within_another_goes_to_its_own_multiplier():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    held = [inner]  # a list hides it from the outer model's modules, as an external critic or a teacher is

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x):
            return held[0](self.first(x)) @ torch.eye(4)

    outer = Outer()
    one, other = InPlace(), InPlace()
    outer_conversion = convert(outer, one)
    inner_conversion = convert(inner, other)
    outer(torch.ones(2, 4))
    assert (one.names, other.names) == (["first", "(root):matmul"], ["0"])
    assert outer_conversion.kept == inner_conversion.kept == ()
    assert (len(one.passes), len(other.passes)) == (1, 1)


def test_only_and_skip_take_paths_names_and_patterns():
    def leaving(**choices):
        model = nn.Sequential(perceptron(), nn.MultiheadAttention(4, 2), perceptron())
        conversion = convert(model, InPlace(), **choices)
        model[0](torch.ones(2, 6))
        model[1](*(torch.ones(3, 1, 4),) * 3)
        model[2](torch.ones(2, 6))
        assert all(each.reached for each in conversion.kept)
        return [each.layer.name for each in conversion.offloaded]

    everything = ["0.0", "0.2", "1:in_proj_weight", "1:scores", "1:context", "1.out_proj", "2.0", "2.2"]
    assert leaving() == everything
    assert leaving(only=["0", "2.0"]) == ["0.0", "0.2", "2.0"]
    assert leaving(only=["1:*"]) == everything[2:5]
    assert leaving(skip=["1"]) == ["0.0", "0.2", "2.0", "2.2"]
    assert leaving(skip=["*:scores", "*:context"]) == [
        name for name in everything if name[2:] not in ("scores", "context")
    ]
    assert leaving(only=["*.2"], skip=["0"]) == ["2.2"]
    assert leaving(skip=["*"]) == []


def test_a_planner_is_asked_by_layer_and_shapes_and_obeyed():
    asked = []

    def planner(layer, product):
        asked.append((layer.name, product.role, product.x, product.w))
        return product.x[0] > 1

    model = perceptron()
    recorder = InPlace()
    conversion = convert(model, recorder, skip=["2"], planner=planner)
    model(torch.ones(1, 6))
    assert recorder.names == []
    model(torch.ones(2, 6))
    assert recorder.names == ["0"]
    assert asked == [("0", "forward", (1, 6), (5, 6)), ("0", "forward", (2, 6), (5, 6))]
    assert [(each.name, each.reason) for each in conversion.kept] == [
        ("0", "the plan keeps it here"),
        ("2", "left out by skip='2'"),
    ]


def test_counts_can_begin_anew():
    model = perceptron()
    conversion = convert(model, InPlace(), skip=["2"])
    model(torch.ones(3, 6))
    model(torch.ones(2, 6))
    (offloaded,) = conversion.offloaded
    assert (offloaded.x, offloaded.w, offloaded.calls, offloaded.multiplications) == ((3, 6), (5, 6), 2, 150)
    assert offloaded.as_json() == {
        "name": "0",
        "operator": "matmul",
        "weight": "parameter",
        "x": [3, 6],
        "w": [5, 6],
        "calls": 2,
        "multiplications": 150,
    }
    (kept,) = conversion.kept
    assert kept.as_json() == {
        "name": "2",
        "what": "linear",
        "where": kept.where,
        "reason": "left out by skip='2'",
        "reached": True,
        "calls": 2,
        "multiplications": 60,
    }
    assert kept.where.startswith("torch.nn.modules.linear:")
    assert os.sep not in kept.where
    conversion.clear()
    assert (conversion.offloaded, conversion.kept) == ((), ())
