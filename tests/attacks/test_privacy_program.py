"""A certificate and its weights come from a stranger: what was changed on the way is refused before it is run."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.clipped_sums import engine_for
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import CloisterError
from cloister.privacy import check_model
from cloister.privacy._certificate import Certificate, bind
from cloister.privacy._clipping import Flat
from cloister.privacy._program import load_program, read_program, save_program, weights_of
from cloister.privacy._weights import write_weights

BATCH = (torch.randn(4, 6), torch.tensor([0, 1, 2, 1]))


class Small(nn.Module):
    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("kept", torch.tensor([True, True, False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.first(x)) * self.kept)


def classes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture(scope="module")
def whole() -> tuple[Certificate, dict[str, Tensor]]:
    torch.manual_seed(3)
    model = Small()
    certificate = check_model(model, classes, BATCH)
    return certificate, weights_of(bind(certificate, model, classes))


def refused(call: Callable[[], Any], code: int) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        call()
    assert caught.value.code == code, caught.value
    return caught.value


def changed(certificate: Certificate, change: Callable[[dict[str, Any]], Any], *, honest: bool) -> bytes:
    """A certificate with a change; an honest one has the digest and the statement that then belong to it."""
    from cloister.privacy._independence import kinds

    value = json.loads(certificate.canonical())
    change(value)
    if honest:
        graph = type(certificate.graph).model_validate_json(json.dumps(value["graph"]))
        value["graph_digest"], value["kinds"] = graph.graph_digest(), [str(kind) for kind in kinds(graph)]
    return json.dumps(value).encode()


def turned(nodes: list[dict[str, Any]]) -> None:
    """``(B, 5)`` viewed as ``(5, B)``, and said to be ``(B, 5)`` still."""
    relu = next(node for node in nodes if node["op"] == "aten::relu.default")
    relu.update(op="aten::view.default", args={"self": relu["args"]["self"], "size": [5, {"size": 1}]})


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], bool, int]] = {
    "another graph": (lambda value: value["graph"]["nodes"][0]["args"].pop("bias"), False, 5830),
    "other rules": (lambda value: value.update(rules=99), False, 3830),
    "another statement": (lambda value: value["kinds"].__setitem__(0, "example at 0"), False, 5831),
    "a call that mixes": (
        lambda value: next(
            node for node in value["graph"]["nodes"] if node["op"] == "aten::relu.default"
        ).update(op="aten::flip.default", args={"self": {"value": 7}, "dims": [0]}),
        False,
        5830,
    ),
    "a frozen parameter": (lambda value: value["graph"]["parameters"][0].update(trained=False), False, 5830),
    "a larger parameter": (lambda value: value["graph"]["parameters"][0].update(shape=[7, 6]), True, 5832),
    "an element type that is a function": (
        lambda value: value["graph"]["parameters"][0].update(dtype="load"), True, 5832
    ),
    "a parameter with the batch's size": (
        lambda value: value["graph"]["parameters"][1].update(shape=["1B"]), True, 2832
    ),
    "a name outside the model": (lambda value: value["graph"]["parameters"][0].update(name="weight"), True, 2832),
    "a name without an end": (lambda value: value["graph"]["parameters"][0].update(name="model.first."), True, 2832),
    "one name for two": (
        lambda value: value["graph"]["parameters"][0].update(name="model.first.bias"), True, 2832
    ),
    "a tie to another's name": (
        lambda value: value["graph"]["parameters"][0].update(also=["model.first.bias"]), True, 2832
    ),
    "a name under a tensor": (
        lambda value: value["graph"]["parameters"][-1].update(also=["model.first.bias.more"]), True, 2832
    ),
    "a name above a tensor": (
        lambda value: value["graph"]["parameters"][0].update(also=["model.last.bias.more"]), True, 2832
    ),
    "a shape that the call does not give": (lambda value: turned(value["graph"]["nodes"]), True, 5832),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_certificate_that_was_changed_on_the_way_is_refused(
    whole: tuple[Certificate, dict[str, Tensor]], name: str
) -> None:
    certificate, tensors = whole
    change, honest, code = CHANGES[name]
    refused(lambda: load_program(changed(certificate, change, honest=honest), write_weights(tensors)), code)


OTHERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "another shape": lambda given: given | {"first.weight": torch.zeros(6, 5)},
    "another element type": lambda given: given | {"first.weight": given["first.weight"].double()},
    "one more": lambda given: given | {"second.weight": torch.zeros(1)},
    "one missing": lambda given: {name: each for name, each in given.items() if name != "last.bias"},
    "another constant": lambda given: given | {"kept": ~given["kept"]},
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_are_not_the_certificates_are_refused(
    whole: tuple[Certificate, dict[str, Tensor]], name: str
) -> None:
    certificate, tensors = whole
    refused(lambda: load_program(certificate, write_weights(OTHERS[name](tensors))), 5832)


def pulled(tensors: dict[str, Tensor], change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file of weights with another header."""
    data = write_weights(tensors)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data[8 + length :]


def borrowed(head: dict[str, Any]) -> None:
    """The second tensor takes bytes of the first, so that the whole fits."""
    first, second = sorted(head, key=lambda name: head[name]["data_offsets"])[:2]
    head[first]["data_offsets"][1] -= 4
    head[second]["data_offsets"][0] -= 4


FILES: dict[str, tuple[Callable[[dict[str, Tensor]], bytes], int]] = {
    "empty": (lambda given: b"", 2858),
    "no JSON": (lambda given: struct.pack("<Q", 8) + b"tensors!" + bytes(300), 2858),
    "no table": (lambda given: struct.pack("<Q", 2) + b"[]" + bytes(300), 2858),
    "a header of many gigabytes": (lambda given: b"\xff" * 8 + b"{}", 2858),
    "a header beyond the end": (lambda given: struct.pack("<Q", 4096) + b"{}", 2858),
    "cut off": (lambda given: write_weights(given)[:-1], 2858),
    "something behind": (lambda given: write_weights(given) + b"\0", 2858),
    "huge": (lambda given: write_weights(given) + bytes(17 << 20), 2858),
    "overlapping": (
        lambda given: pulled(given, lambda head: head["last.bias"].update(data_offsets=[0, 12])), 2858
    ),
    "negative": (lambda given: pulled(given, lambda head: head["last.bias"].update(data_offsets=[-12, 0])), 2858),
    "of another length": (
        lambda given: pulled(given, lambda head: head["last.bias"].update(data_offsets=[0, 16])), 2858
    ),
    "with borrowed bytes": (lambda given: pulled(given, borrowed), 2858),
    "offsets that are no numbers": (
        lambda given: pulled(given, lambda head: head["last.bias"].update(data_offsets=[False, "12"])), 2858
    ),
    "not described": (lambda given: pulled(given, lambda head: head["last.bias"].pop("dtype")), 2858),
    "a truth of two": (lambda given: write_weights(given)[:-1] + b"\2", 2858),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_weights_that_is_none_is_refused(whole: tuple[Certificate, dict[str, Tensor]], name: str) -> None:
    certificate, tensors = whole
    make, code = FILES[name]
    refused(lambda: load_program(certificate, make(tensors)), code)


def test_a_folder_with_more_than_a_program_can_have_is_refused(
    whole: tuple[Certificate, dict[str, Tensor]], tmp_path: Any
) -> None:
    certificate, tensors = whole
    save_program(certificate, load_program(certificate, write_weights(tensors)), tmp_path)
    with open(tmp_path / "weights.safetensors", "ab") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    refused(lambda: read_program(tmp_path), 2003)
    (tmp_path / "weights.safetensors").unlink()
    refused(lambda: read_program(tmp_path), 2001)


class Normalised(nn.Module):
    """Batch norms by ATen's own operator."""

    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self.weight, self.training_norm = nn.Parameter(torch.ones(3)), training
        self.register_buffer("one", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        given = (self.weight, None, self.one, self.one, self.training_norm, 0.1, 1e-5, True)
        return torch.ops.aten.batch_norm.default(x, *given)


def test_an_operator_that_normalises_over_the_batch_is_refused_by_any_name() -> None:
    given = (torch.randn(4, 3),), {}
    model = Normalised(training=True)
    engine = engine_for(model, Flat(1.0), 4)
    refused(lambda: engine.forward(model.__call__, given, 4), 8852)
    model = Normalised(training=False)
    engine = engine_for(model, Flat(1.0), 4)
    assert engine.forward(model.__call__, given, 4).shape == (4, 3)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.RNN(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0][:, -1])


def test_a_certified_call_without_a_private_form_is_refused_by_its_number() -> None:
    batch = torch.randn(4, 3, 6), torch.tensor([0, 1, 2, 1])
    model = Recurrent()
    certificate = check_model(model, classes, batch)
    number = next(at for at, node in enumerate(certificate.graph.nodes) if "rnn_tanh" in node.op)
    program = bind(certificate, model, classes)
    engine = engine_for(program, Flat(1.0), 4)
    error = refused(lambda: engine.forward(program.__call__, ((batch,), {}), 4), 8855)
    assert str(error.got).startswith(f"call {number} of the certificate, aten::rnn_tanh.input: rnn_tanh of memory.")


def test_an_operator_of_another_library_is_not_taken_for_torchs_own() -> None:
    library = torch.library.Library("cloister_attack", "DEF")
    library.define("add(Tensor a, Tensor b) -> Tensor")
    library.impl("add", lambda a, b: a + b.flip(0) * a.mean(0), "CompositeImplicitAutograd")

    class Posing(nn.Module):
        def __init__(self, operator: Callable[..., Tensor]) -> None:
            super().__init__()
            self.scale, self.operator = nn.Parameter(torch.ones(3)), operator

        def forward(self, x: Tensor) -> Tensor:
            return self.operator(x, self.scale)

    for operator in (torch.ops.cloister_attack.add, torch.ops.cloister_attack.add.default):
        model = Posing(operator)
        engine = engine_for(model, Flat(1.0), 4)
        given = (torch.randn(4, 3),), {}
        error = refused(lambda engine=engine, model=model, given=given: engine.forward(model.__call__, given, 4), 8855)
        assert "cloister_attack::add" in str(error.got)
