"""A served model answers from its own process, and tables: what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tests.unit.serve.models import endless, linear, running

from cloister.errors import CloisterError
from cloister.serve import ModelCard, Tensor, TensorSpec, from_tensor, read_rows, to_tensor
from cloister.serve._model import SandboxedModel

pytest.importorskip("onnx", reason="making a test model needs onnx (extra demo)")

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)


@pytest.fixture(scope="module")
def model() -> Iterator[SandboxedModel]:
    with running(linear()) as served:
        yield served


def test_a_model_says_what_it_takes(model: SandboxedModel) -> None:
    assert (model.inputs, model.ready) == (INPUTS, True)


@pytest.mark.parametrize("rows", [0, 1, 2, 65_536])
def test_a_prediction_is_the_models(model: SandboxedModel, rows: int) -> None:
    (answer,) = model.predict((to_tensor("x", np.ones((rows, 3), np.float32)),))
    assert answer.name == "y"
    assert np.array_equal(from_tensor(answer), np.full((rows, 1), 3, np.float32))


X = to_tensor("x", np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    "inputs",
    [
        (),
        (X, X),
        (to_tensor("z", np.ones((2, 3), np.float32)),),
        (to_tensor("x", np.ones((2, 3), np.float64)),),
        (to_tensor("x", np.ones((2, 4), np.float32)),),
        (to_tensor("x", np.ones((3,), np.float32)),),
        (to_tensor("x", np.ones((70_000, 3), np.float32)),),
        (Tensor(name="x", datatype="FP32", shape=(2, 3), data=b"short"),),
        (Tensor(name="x", datatype="FP32", shape=(1 << 31, 3), data=b""),),
    ],
    ids=["none", "doubled", "name", "type", "width", "rank", "rows", "bytes", "huge"],
)
def test_an_input_that_does_not_fit_is_refused(model: SandboxedModel, inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(CloisterError) as caught:
        model.predict(inputs)
    assert caught.value.code == 2604


def code_of(model: bytes) -> int:
    with pytest.raises(CloisterError) as caught, running(model):
        pass
    return caught.value.code


@pytest.mark.parametrize("data", [b"", b"not a model", linear()[:40]])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    assert code_of(data) == 8601


def test_weights_outside_the_file_are_refused_wherever_they_hide() -> None:
    """The runtime would read them from a file that nobody registered: whoever wrote it would choose the weights."""
    from onnx import ModelProto, helper

    model = ModelProto.FromString(linear())
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    weight.data_location = weight.EXTERNAL
    weight.external_data.add(key="location", value="../dev/zero")
    hidden = ModelProto.FromString(linear())
    hidden.graph.node.append(helper.make_node("Constant", [], ["unused"], value=weight))
    for each in (model, hidden):
        assert code_of(each.SerializeToString()) == 8602


def test_a_graph_without_an_end_costs_its_request_and_no_more() -> None:
    with running(endless(), time_s=1) as model:
        for _ in range(2):
            with pytest.raises(CloisterError) as caught:
                model.predict((X,))
            assert caught.value.code == 6604


def test_a_model_that_fails_on_an_input_goes_on() -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("Gather", ["w", "x"], ["y"])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 6.0])
    graph = helper.make_graph(
        [node],
        "gather",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with running(made.SerializeToString()) as model:
        with pytest.raises(CloisterError) as caught:
            model.predict((to_tensor("x", np.array([7])),))
        assert (caught.value.code, "7" in str(caught.value.as_json())) == (2604, False)
        (answer,) = model.predict((to_tensor("x", np.array([1, 0])),))
        assert from_tensor(answer).tolist() == [6.0, 5.0]


def test_a_model_that_was_closed_is_down(model: SandboxedModel) -> None:
    with running(linear()) as other:
        other.close()
        with pytest.raises(CloisterError) as caught:
            other.predict((X,))
        assert (caught.value.code, other.ready, model.ready) == (6606, False, True)


def test_an_array_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(CloisterError) as caught:
        to_tensor("x", np.array(["text"]))
    assert caught.value.code == 2604


CARD = ModelCard(inputs=INPUTS, features=("a", "b", "c"))


def test_columns_are_found_by_name_and_the_rest_names_the_rows() -> None:
    rows = read_rows(b"c,patient,a,b\n3,p1,1,2\n6,p2,4,5\n", CARD)
    assert from_tensor(rows.tensor).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert rows.labels == ("p1", "p2")


def test_rows_without_a_name_are_numbered() -> None:
    assert read_rows(b"a,b,c\n1,2,3\n", CARD).labels == ("row 1",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a,b\n1,2\n",
        b"a,a,b,c\n1,1,2,3\n",
        b"a,b,c\n1,2,x\n",
        b"a,b,c\n1,2\n",
        b"a,b,c\n",
        b"\xff\xfe",
        b'a,b,c\n"1,2,3\n',
    ],
)
def test_a_table_that_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(CloisterError) as caught:
        read_rows(data, CARD)
    assert caught.value.code == 2606


@pytest.mark.parametrize(
    "card",
    [
        ModelCard(inputs=INPUTS),
        ModelCard(inputs=(*INPUTS, *INPUTS), features=("a",)),
        ModelCard(inputs=(TensorSpec(name="x", datatype="BOOL", shape=(-1, 1)),), features=("a",)),
    ],
)
def test_a_model_that_takes_no_table_says_so(card: ModelCard) -> None:
    with pytest.raises(CloisterError) as caught:
        read_rows(b"a,b,c\n1,2,3\n", card)
    assert caught.value.code == 2606
