"""What cannot be converted: refused with its code, by module path, with a remedy, and nothing is changed."""

import copy
import io
import pickle
from typing import ClassVar

import pytest
import torch
from tests.offloading import InPlace
from torch import nn

from cloister.errors import InputError, UnsupportedError
from cloister.offload import check, convert, restore
from cloister.offload._modules import is_converted


def model_with(module):
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), module))


def refused(model, code, where, kind=UnsupportedError, **choices):
    """The error, of which nothing in the model may show."""
    classes = [type(module) for module in model.modules()]
    with pytest.raises(kind) as caught:
        convert(model, InPlace(), **choices)
    assert caught.value.code == code
    assert where in f"{caught.value.what} {caught.value.got}"
    assert caught.value.hint
    assert [type(module) for module in model.modules()] == classes
    assert not any("_cloister" in module.__dict__ for module in model.modules())
    return caught.value


def test_2720_a_part_that_is_converted_already():
    inner = nn.Linear(4, 4)
    convert(inner, InPlace())
    model = model_with(inner)
    with pytest.raises(InputError) as caught:
        convert(model, InPlace())
    assert (caught.value.code, is_converted(model), is_converted(inner)) == (2720, False, True)
    assert "1.1 is converted already" in str(caught.value)
    with pytest.raises(InputError) as caught:
        convert(inner, InPlace())
    assert caught.value.code == 2720
    with pytest.raises(InputError) as caught:
        check(model)
    assert caught.value.code == 2720


@pytest.mark.parametrize("choice", ["only", "skip"])
@pytest.mark.parametrize("pattern", ["2", "1.l*r", "linear", "", "2:scores"])
def test_2721_a_pattern_that_fits_no_module(choice, pattern):
    refused(model_with(nn.Linear(4, 4)), 2721, repr(pattern)[1:-1], InputError, **{choice: ["0", pattern]})


@pytest.mark.parametrize("pattern", ["1.1", "1", "*", "(root)", "1.?", "1.[12]", "1.1:scores"])
def test_a_pattern_that_fits_a_module_is_taken(pattern):
    convert(model_with(nn.Linear(4, 4)), InPlace(), skip=[pattern])


def test_2722_a_model_that_is_not_converted():
    model = model_with(nn.Linear(4, 4))
    for other in (model, None, 3):
        with pytest.raises(InputError) as caught:
            restore(other)
        assert caught.value.code == 2722
    convert(model, InPlace())
    restore(model)
    with pytest.raises(InputError) as caught:
        restore(model)
    assert caught.value.code == 2722


@pytest.mark.parametrize("work", [pickle.dumps, lambda model: torch.save(model, io.BytesIO())])
def test_2724_a_pickle_of_a_converted_model(work):
    model = model_with(nn.Linear(4, 4))
    convert(model, InPlace())
    for part in (model, model[1][1], {"model": model}):
        with pytest.raises(InputError) as caught:
            work(part)
        assert caught.value.code == 2724
    with pytest.raises(InputError) as caught:
        pickle.dumps(model[1][1])
    assert caught.value.got == "1.1, a Linear"
    restore(model)
    assert torch.equal(pickle.loads(pickle.dumps(model))[0].weight, model[0].weight)  # noqa: S301 - our own bytes


@pytest.mark.parametrize("thing", [None, nn.Linear, "model", torch.ones(2), [nn.Linear(2, 2)]])
def test_2725_something_else_than_a_module(thing):
    for ask in (lambda: convert(thing, InPlace()), lambda: check(thing)):
        with pytest.raises(InputError) as caught:
            ask()
        assert caught.value.code == 2725


class Scripted(nn.Module):
    def forward(self, x):
        return x @ x


def compiled_call():
    module = nn.Linear(4, 4)
    module.compile(backend="eager")
    return module


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: torch.compile(nn.Linear(4, 4), backend="eager"), "_orig_mod"),
        (lambda: nn.DataParallel(nn.Linear(4, 4)), "model.module"),
        (compiled_call, "module.compile()"),
    ],
    ids=["compiled", "parallel", "compiled call"],
)
def test_8702_a_module_that_stands_in_a_models_place(make, remedy):
    error = refused(model_with(make()), 8702, "1.1")
    assert remedy in error.hint


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_8702_a_scripted_module():
    error = refused(model_with(torch.jit.script(Scripted())), 8702, "1.1")
    assert "scripted from" in error.hint


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_8702_a_converted_model_is_not_compiled(backend):
    model = model_with(nn.Linear(4, 4))
    convert(model, InPlace())
    model.compile(backend=backend)
    with pytest.raises(UnsupportedError) as caught:
        model(torch.ones(2, 4))
    assert caught.value.code == 8702


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_8702_a_converted_model_is_not_traced():
    model = model_with(nn.Linear(4, 4))
    convert(model, InPlace())
    with pytest.raises(UnsupportedError) as caught:
        torch.jit.trace(model, torch.ones(2, 4))
    assert caught.value.code == 8702


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_8703_a_parameter_of_another_type(dtype):
    error = refused(model_with(nn.Linear(4, 4).to(dtype)), 8703, f"1.1.weight: it is {str(dtype)[6:]}")
    assert "float()" in error.hint


def test_an_integer_parameter_is_nobodys_product():
    model = model_with(nn.Linear(4, 4))
    model.register_parameter("steps", nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False))
    convert(model, InPlace())


def test_8704_a_parameter_elsewhere():
    refused(model_with(nn.Linear(4, 4, device="meta")), 8704, "1.1.weight: it is on meta")


def test_8705_a_parameter_without_a_shape():
    model = model_with(nn.LazyLinear(4))
    refused(model, 8705, "1.1.weight")
    model(torch.ones(2, 4))
    convert(model, InPlace())


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*TypedStorage", "ignore:.*quantize")
def test_8706_a_quantised_module():
    model = model_with(nn.Linear(4, 4))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    refused(quantised, 8706, "0")


def test_8707_a_trained_weight_that_would_be_public():
    model = model_with(nn.Linear(4, 4))
    assert "requires_grad_" in refused(model, 8707, "0", public_weights=True).hint
    model[0].requires_grad_(False)
    refused(model, 8707, "1.1", public_weights=True)
    convert(model, InPlace(), public_weights=True, skip=["1"])
    restore(model)
    model.requires_grad_(False)
    convert(model, InPlace(), public_weights=True)


def test_8707_a_trained_weight_that_no_module_declares_is_found_when_it_is_used():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            return x @ self.matrix

    recorder = InPlace()
    model = Bare()
    convert(model, recorder, public_weights=True)
    with pytest.raises(UnsupportedError) as caught:
        model(torch.ones(2, 4))
    assert (caught.value.code, recorder.operands, recorder.open) == (8707, [], 0)
    assert "(root):matrix" in str(caught.value)
    assert [problem.code for problem in check(Bare(), torch.ones(2, 4), public_weights=True).problems] == [8707]


def test_8708_autocast():
    model = model_with(nn.Linear(4, 4))
    recorder = InPlace()
    convert(model, recorder)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype), pytest.raises(UnsupportedError) as caught:
            model(torch.ones(2, 4))
        assert caught.value.code == 8708
    with torch.autocast("cpu", enabled=False):
        model(torch.ones(2, 4))
    assert (len(recorder.operands), recorder.open) == (2, 0)
    assert len(recorder.passes) == 1, "the multiplier is not even asked"


def test_8708_autocast_within_the_model():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    model = Mixed()
    recorder = InPlace()
    convert(model, recorder)
    with pytest.raises(UnsupportedError) as caught:
        model(torch.ones(2, 4))
    assert (caught.value.code, recorder.operands) == (8708, [])
    assert "inner" in str(caught.value)


class Subclass(torch.Tensor):
    pass


def test_8709_a_parameter_of_a_subclass():
    class OwnParameter(nn.Parameter):
        pass

    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.ones(4, 4).as_subclass(Subclass))
    refused(model_with(linear), 8709, "1.1.weight: it is a Subclass")
    linear = nn.Linear(4, 4)
    linear.bias = OwnParameter(torch.ones(4))
    refused(model_with(linear), 8709, "1.1.bias")


def test_8710_a_class_that_takes_no_subclass():
    class Final(type):
        def __new__(cls, name, bases, namespace):
            if any(isinstance(base, Final) for base in bases):
                raise TypeError("this class is final")
            return super().__new__(cls, name, bases, namespace)

    class Closed(nn.Module, metaclass=Final):
        def forward(self, x):
            return x

    refused(model_with(Closed()), 8710, "1.1: Closed takes no subclass")


def test_a_class_that_keeps_its_subclasses_by_name_keeps_the_original():
    class Counted(nn.Module):
        names: ClassVar[dict[str, type]] = {}

        def __init_subclass__(cls) -> None:
            Counted.names[cls.__name__] = cls

        def forward(self, x):
            return x

    class One(Counted):
        pass

    model = model_with(One())
    convert(model, InPlace())
    assert Counted.names["One"] is One
    assert type(model[1][1]).__name__ == "One"
    assert copy.deepcopy(model)[1][1] is not model[1][1]


def test_a_class_that_asks_its_subclasses_for_more_than_a_name_is_converted_all_the_same():
    class Asks(nn.Module):
        def __init_subclass__(cls, *, kind) -> None:
            cls.kind = kind

        def forward(self, x):
            return x @ x

    class One(Asks, kind="one"):
        pass

    model = model_with(One())
    recorder = InPlace()
    convert(model, recorder)
    model(torch.ones(4, 4))
    assert (recorder.names, model[1][1].kind) == (["0", "1.1:matmul"], "one")


def test_an_error_that_is_not_ours_undoes_the_conversion_too():
    class Odd(type):
        def __new__(cls, name, bases, namespace):
            if any(isinstance(base, Odd) for base in bases):
                raise KeyError("odd")
            return super().__new__(cls, name, bases, namespace)

    class Closed(nn.Module, metaclass=Odd):
        def forward(self, x):
            return x

    model = model_with(Closed())
    with pytest.raises(KeyError):
        convert(model, InPlace())
    assert not any(is_converted(module) for module in model.modules())
