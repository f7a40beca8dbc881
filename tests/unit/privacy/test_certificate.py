"""Certificates: issued, rechecked, bound to a model; what does not fit is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.honest_models import HONEST, SLOW, Triple, classes
from torch import Tensor, nn
from torch.nn import functional

from cloister.cli import main
from cloister.errors import CloisterError
from cloister.privacy import _rules
from cloister.privacy._certificate import Certificate, bind, check_model, recheck
from cloister.privacy._domain import PerExample


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("scale", torch.full((5,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.first(x)) * self.scale + torch.tensor([1.0, 0, 0, 0, 1]))


BATCH = (torch.randn(4, 6), torch.tensor([0, 1, 2, 1]))


@pytest.fixture(scope="module")
def small() -> tuple[Small, Certificate]:
    torch.manual_seed(3)
    model = Small()
    return model, check_model(model, classes, BATCH)


def changed(certificate: Certificate, change: Any, *, digest: bool = True) -> bytes:
    """A certificate with a change, its digest made to fit unless told not to."""
    value = json.loads(certificate.canonical())
    change(value)
    if digest:
        graph = type(certificate.graph).model_validate_json(json.dumps(value["graph"]))
        value["graph_digest"] = graph.graph_digest()
    return json.dumps(value).encode()


def refused(data: Any, code: int) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        recheck(data)
    assert caught.value.code == code, caught.value
    return caught.value


def test_a_certificate_is_the_same_each_time_and_rechecks(small: tuple[Small, Certificate]) -> None:
    model, certificate = small
    assert recheck(certificate.canonical()) == certificate
    assert check_model(model, classes, BATCH).canonical() == certificate.canonical()


def test_a_recheck_needs_nothing_of_torch() -> None:
    for name in ("_rules", "_independence", "_domain", "_graph", "_certificate"):
        source = Path(_rules.__file__).with_name(f"{name}.py").read_text()
        assert "\nimport torch" not in source
        assert "\nfrom torch" not in source


def test_another_graph_under_an_old_digest_is_refused(small: tuple[Small, Certificate]) -> None:
    def other(value: dict[str, Any]) -> None:
        value["graph"]["parameters"][0]["trained"] = False

    refused(changed(small[1], other, digest=False), 5830)
    assert recheck(changed(small[1], other))


def test_other_rules_are_refused(small: tuple[Small, Certificate]) -> None:
    refused(changed(small[1], lambda value: value.update(rules=value["rules"] + 1)), 3830)


def test_a_statement_that_the_graph_does_not_show_is_refused(small: tuple[Small, Certificate]) -> None:
    refused(changed(small[1], lambda value: value["kinds"].__setitem__(0, "example at 0")), 5831)
    refused(changed(small[1], lambda value: value["kinds"].pop()), 5831)


def test_a_graph_that_mixes_is_refused_though_its_certificate_says_otherwise(small: tuple[Small, Certificate]) -> None:
    def mixing(value: dict[str, Any]) -> None:
        relu = next(node for node in value["graph"]["nodes"] if node["op"] == "aten::relu.default")
        relu["op"], relu["args"]["dim"] = "aten::cumsum.default", 0

    error = refused(changed(small[1], mixing), 8830)
    assert "cumsum" in error.what


def test_a_certificate_of_another_format_or_shape_is_refused(small: tuple[Small, Certificate]) -> None:
    refused(changed(small[1], lambda value: value.update(format="cloister/privacy-certificate/v9")), 2004)
    refused(changed(small[1], lambda value: value.update(verdict="trust me")), 2005)
    refused(changed(small[1], lambda value: value.update(extra=1)), 2005)
    refused(changed(small[1], lambda value: value["graph"]["nodes"][0].update(op="os.system"), digest=False), 2005)
    refused(b"{", 2002)


def test_a_bound_graph_gives_the_models_losses_and_gradients(small: tuple[Small, Certificate]) -> None:
    model, certificate = small
    losses = bind(certificate, model, classes)(BATCH)
    own = classes(model, BATCH)
    assert torch.allclose(losses, own, atol=1e-6)
    losses.sum().backward()
    expected = torch.autograd.grad(own.sum(), list(model.parameters()))
    for parameter, slope in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, slope, atol=1e-5)
        parameter.grad = None


def test_a_bound_graph_runs_nothing_of_the_models_code(small: tuple[Small, Certificate]) -> None:
    _, certificate = small

    class Spy(Small):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the model's code ran")

    assert bind(certificate, Spy(), classes)(BATCH).shape == (4,)


def test_a_bound_graph_takes_any_number_of_rows_and_no_other_structure(small: tuple[Small, Certificate]) -> None:
    model, certificate = small
    bound = bind(certificate, model, classes)
    assert bound((torch.randn(9, 6), torch.zeros(9, dtype=torch.int64))).shape == (9,)
    for wrong, code in (({"x": BATCH[0], "y": BATCH[1]}, 2831), ((BATCH[0][:, :5], BATCH[1]), 5832)):
        with pytest.raises(CloisterError) as caught:
            bound(wrong)
        assert caught.value.code == code


class Larger(Small):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


def others() -> Iterator[nn.Module]:
    yield nn.Linear(6, 3)
    yield Larger()
    model = Small()
    model.scale.fill_(0.7)
    yield model
    model = Small()
    model.first.weight.requires_grad_(False)
    yield model
    yield Small().double()


@pytest.mark.parametrize("number", range(5))
def test_a_model_that_is_not_the_certified_one_is_refused(small: tuple[Small, Certificate], number: int) -> None:
    with pytest.raises(CloisterError) as caught:
        bind(small[1], list(others())[number], classes)
    assert caught.value.code == 5832


def test_a_strangers_shapes_are_held_to_what_the_calls_give(small: tuple[Small, Certificate]) -> None:
    """``(B, 5)`` viewed as ``(5, B)`` and said to be ``(B, 5)`` still, a softmax over the batch, and back."""
    model, certificate = small

    def lying(value: dict[str, Any]) -> None:
        nodes = {node["op"]: node for node in value["graph"]["nodes"]}
        for op, lie, more in (
            ("aten::relu.default", "aten::view.default", {"size": [5, {"size": 1}]}),
            ("aten::mul.Tensor", "aten::softmax.int", {"dim": 1}),
            ("aten::add.Tensor", "aten::view.default", {"size": [{"size": 1}, 5]}),
        ):
            nodes[op].update(op=lie, args={"self": nodes[op]["args"]["self"], **more})

    forged = recheck(changed(certificate, lying))
    with pytest.raises(CloisterError) as caught:
        bind(forged, model, classes)
    assert caught.value.code == 5832


def test_embedded_bytes_are_held_to_their_digest(small: tuple[Small, Certificate]) -> None:
    model, certificate = small

    def swapped(value: dict[str, Any]) -> None:
        held = next(each for each in value["graph"]["constants"] if "data" in each)
        held["data"] = "A" * len(held["data"].rstrip("=")) + "=" * held["data"].count("=")

    with pytest.raises(CloisterError) as caught:
        bind(recheck(changed(certificate, swapped)), model, classes)
    assert caught.value.code == 5832


def test_a_rule_that_is_wrong_is_found_before_a_certificate_is_issued(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sorting(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sort(0).values)

    _rules.rules()
    loose = _rules.Rule(lambda call: [PerExample(0)] * len(call.shapes))
    monkeypatch.setitem(_rules._TABLE, "aten::sort.default", loose)
    with pytest.raises(CloisterError) as caught:
        check_model(Sorting(), classes, BATCH)
    assert caught.value.code == 5833


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_gets_a_certificate(name: str) -> None:
    certify(HONEST[name]())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SLOW)
def test_an_honest_model_of_a_library_gets_a_certificate(name: str) -> None:
    certify(SLOW[name]())


def certify(triple: Triple) -> None:
    model, loss, batch = triple
    certificate = check_model(model, loss, batch)
    assert recheck(certificate.canonical()).graph_digest == certificate.graph_digest
    rows = next(iter(batch.values())) if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch
    assert bind(certificate, model, loss)(batch).shape == (len(rows),)


# ---- the command ------------------------------------------------------------------------------------------------

SOURCE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")

def batch():
    return torch.randn(4, 6), torch.tensor([0, 1, 2, 1])

def honest():
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), loss, batch()

def mixing():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), loss, batch()

def broken():
    return None

def failing():
    raise KeyError("no")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        main(["privacy", *arguments, "--json"])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def test_the_command_writes_a_certificate_and_rechecks_it(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.with_name("certificate.json")
    status, facts = run(capsys, "check", f"{source}:honest", "--out", str(out))
    assert (status, facts["verdict"], facts["trained"]) == (0, "independent", 6)
    assert run(capsys, "recheck", str(out)) == (0, facts)
    status, facts = run(capsys, "check", f"{source}:honest", "--out", str(out))
    assert (status, facts["error"]["code"]) == (2, 2007)


@pytest.mark.parametrize(
    ("function", "code"), [("mixing", 8830), ("broken", 2830), ("failing", 2830), ("absent", 2830), ("no:where", 2830)]
)
def test_the_command_tells_why_not(source: Path, capsys: pytest.CaptureFixture[str], function: str, code: int) -> None:
    status, facts = run(capsys, "check", f"{source}:{function}")
    assert (status, facts["error"]["code"]) == (code // 1000, code)


def test_the_command_takes_modules_and_wants_a_function(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("nowhere_at_all:model", "net.py", ":model"):
        assert run(capsys, "check", wrong)[1]["error"]["code"] == 2830
