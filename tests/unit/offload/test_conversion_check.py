"""``check`` says beforehand what a conversion does, and leaves no trace."""

import json

import pytest
import torch
import torch.nn.functional as F
from tests.offloading import EXAMPLES, InPlace, outputs, same, twin
from torch import nn

from cloister.errors import UnsupportedError
from cloister.offload import check, convert

pytestmark = pytest.mark.usefixtures("one_thread")


class Small(nn.Module):
    """A layer of each fate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 2)

    def forward(self, images, *, scale=1.0):
        x = self.norm(self.stem(images)).flatten(2).mT
        x, _ = self.attention(x, x, x)
        x, _ = self.recurrent(x)
        return self.head(F.dropout(x, 0.5, self.training).mean(1)) * scale


@pytest.fixture
def small():
    torch.manual_seed(1)
    return Small()


IMAGES = torch.ones(2, 3, 2, 3)


def test_without_inputs_it_lists_what_modules_declare(small):
    found = check(small)
    assert found.ok
    assert (found.example, found.share, found.kept, found.problems) == (False, None, (), ())
    assert [(each.name, each.operator, each.weight, each.w, each.x) for each in found.offloaded] == [
        ("stem", "conv2d", "parameter", (4, 3, 3, 3), None),
        ("attention:in_proj_weight", "matmul", "parameter", (12, 4), None),
        ("attention.out_proj", "matmul", "parameter", (4, 4), None),
        ("head", "matmul", "parameter", (2, 4), None),
        ("unused", "matmul", "parameter", (2, 4), None),
    ]
    assert [(each.name, each.kind, each.reason) for each in found.resident] == [
        ("norm", "BatchNorm2d", "no linear layer"),
        ("recurrent", "GRU", "it has no offloaded form"),
    ]
    assert "attention) are found when example inputs are given" in str(found)


def test_with_inputs_it_counts_them(small):
    found = check(small, IMAGES)
    rows = {each.name: (each.x, each.w, each.calls, each.multiplications) for each in found.offloaded}
    assert rows == {
        "stem": ((2, 3, 2, 3), (4, 3, 3, 3), 1, 2 * 4 * 6 * 27),
        "attention:in_proj_weight": ((12, 4), (12, 4), 1, 12 * 12 * 4),
        "attention:scores": ((4, 6, 2), (4, 6, 2), 1, 4 * 6 * 6 * 2),
        "attention:context": ((4, 6, 6), (4, 2, 6), 1, 4 * 6 * 6 * 2),
        "attention.out_proj": ((12, 4), (4, 4), 1, 12 * 4 * 4),
        "head": ((2, 4), (2, 4), 1, 2 * 2 * 4),
        "unused": (None, (2, 4), 0, 0),
    }
    (kept,) = found.kept
    assert (kept.name, kept.what, kept.reached) == ("recurrent", "gru", False)
    leaving = sum(row[3] for row in rows.values())
    assert found.share == leaving / (leaving + (kept.multiplications or 0))


@pytest.mark.parametrize("name", ["resnet32", "hf-mobilenet", "hf-vit", "hf-bert", "hf-gpt2-eager"])
def test_a_conversion_does_what_was_said(name):
    torch.manual_seed(3)
    model, batch, _ = EXAMPLES[name]()
    found = check(model, batch, skip=["*0"])
    conversion = convert(model, InPlace(), skip=["*0"])
    with torch.no_grad():
        outputs(model.eval(), batch)
    said = {each.name: (each.x, each.w, each.calls, each.multiplications) for each in found.offloaded if each.calls}
    assert said == {
        each.layer.name: (each.x, each.w, each.calls, each.multiplications) for each in conversion.offloaded
    }
    assert set(found.kept) == set(conversion.kept)
    assert 0 < found.share < 1
    total = sum(each.calls * each.multiplications for each in found.kept)
    assert found.share == pytest.approx(1 - total / (total + sum(row[3] for row in said.values())))


@pytest.mark.parametrize(
    "inputs", [IMAGES, (IMAGES,), [IMAGES], {"images": IMAGES}, {"images": IMAGES, "scale": 2.0}], ids=str
)
def test_inputs_are_a_tensor_a_sequence_or_a_mapping(small, inputs):
    assert check(small, inputs).example


def test_the_model_the_generators_and_the_modes_are_as_before(small):
    small.attention.eval()
    small.register_forward_hook(lambda _, __, y: y + torch.rand(()))
    plain = twin(small)
    torch.manual_seed(9)
    classes, modes = [type(each) for each in small.modules()], [each.training for each in small.modules()]
    before = torch.get_rng_state()
    check(small, IMAGES)
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(each) for each in small.modules()] == classes
    assert [each.training for each in small.modules()] == modes
    assert same(plain.state_dict(), small.state_dict())
    assert all(parameter.grad is None for parameter in small.parameters())


def test_what_the_model_raises_is_not_caught_and_undone_all_the_same(small):
    with pytest.raises(RuntimeError):
        check(small, torch.ones(2, 5, 2, 3))
    assert type(small) is Small
    assert small.training
    convert(small, InPlace())


def test_every_problem_is_named_at_once():
    model = nn.Sequential(
        nn.Linear(4, 4).half(), nn.LazyLinear(4), nn.Linear(4, 4, device="meta"), nn.DataParallel(nn.ReLU())
    )
    found = check(model, torch.ones(2, 4))
    assert not found.ok
    assert not found.example
    assert [(each.code, each.name) for each in found.problems] == [
        (8703, "0.weight"),
        (8703, "0.bias"),
        (8705, "1.weight"),
        (8705, "1.bias"),
        (8704, "2.weight"),
        (8704, "2.bias"),
        (8702, "3"),
    ]
    with pytest.raises(UnsupportedError) as caught:
        convert(model, InPlace())
    first = found.problems[0]
    assert (caught.value.code, caught.value.what, caught.value.hint) == (8703, f"0.weight: {first.what}", first.remedy)
    text = " ".join(str(found).split())
    assert "cannot be converted" in text
    assert all(str(each.code) in text for each in found.problems)


def test_a_problem_that_only_a_run_shows():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    assert check(Mixed()).ok
    found = check(Mixed(), torch.ones(2, 4))
    assert [(each.code, each.name) for each in found.problems] == [(8708, "inner")]
    assert not found.example


def test_choices_are_those_of_a_conversion(small):
    found = check(
        small, IMAGES, only=["attention", "head"], skip=["*:scores"], planner=lambda layer, _: layer.name != "head"
    )
    assert [each.name for each in found.offloaded] == [
        "attention:in_proj_weight",
        "attention.out_proj",
        "attention:context",
    ]
    reasons = {each.name: each.reason for each in found.kept}
    assert reasons["stem"] == "not among only=…"
    assert reasons["attention:scores"] == "left out by skip='*:scores'"
    assert reasons["head"] == "the plan keeps it here"
    assert {each.name: each.reason for each in found.resident if each.kind in ("Conv2d", "Linear")} == {
        "stem": "not among only=…",
        "head": "see the linear calls in the enclave",
        "unused": "not among only=…",
    }


def test_where_weights_are_public_activations_stay(small):
    assert [each.code for each in check(small, IMAGES, public_weights=True).problems] == [8707] * 5
    small.requires_grad_(False)
    found = check(small, IMAGES, public_weights=True)
    assert found.ok
    assert [each.name for each in found.offloaded if each.calls] == [
        "stem",
        "attention:in_proj_weight",
        "attention.out_proj",
        "head",
    ]
    assert {each.name for each in found.kept} == {"attention:scores", "attention:context", "recurrent"}


def test_a_weight_that_is_computed_has_no_shape_yet():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    (found,) = check(model).offloaded
    assert (found.name, found.w, found.weight) == ("0", None, "activation")
    (found,) = check(model, torch.ones(2, 4)).offloaded
    assert (found.w, found.x, found.calls) == ((3, 4), (2, 4), 1)


def test_conv1d_of_transformers_is_shown_as_workers_see_it():
    from transformers.pytorch_utils import Conv1D

    (found,) = check(nn.Sequential(Conv1D(6, 4))).offloaded
    assert (found.w, found.weight) == ((6, 4), "parameter")


def test_it_prints_a_table_and_is_json(small):
    found = check(small, IMAGES)
    text = str(found)
    assert "offloaded: 7 layers" in text
    assert "attention:scores" in text
    assert "modules in the enclave" in text
    rows = json.loads(json.dumps(found.as_json()))
    assert rows["share"] == found.share
    assert [each["name"] for each in rows["offloaded"]] == [each.name for each in found.offloaded]
    assert rows["kept"][0]["where"] == found.kept[0].where
    assert rows["problems"] == []
