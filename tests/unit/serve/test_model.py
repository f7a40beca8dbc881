"""The ONNX runner and tables: what does not fit is refused by name, before the runtime sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.unit.serve.models import linear

from cloister.errors import CloisterError
from cloister.serve import ModelCard, OnnxModel, Tensor, TensorSpec, from_tensor, read_rows, to_tensor

pytest.importorskip("onnx", reason="making a test model needs onnx (extra demo)")

MODEL = OnnxModel(linear())


def test_a_model_says_what_it_takes() -> None:
    assert MODEL.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)


def test_a_prediction_is_the_models() -> None:
    (answer,) = MODEL.predict((to_tensor("x", np.ones((2, 3), np.float32)),))
    assert (answer.name, from_tensor(answer).tolist()) == ("y", [[3.0], [3.0]])


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
def test_an_input_that_does_not_fit_is_refused(inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(CloisterError) as caught:
        MODEL.predict(inputs)
    assert caught.value.code == 2604


@pytest.mark.parametrize("data", [b"", b"not a model", linear()[:40]])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(CloisterError) as caught:
        OnnxModel(data)
    assert caught.value.code == 8601


def test_weights_outside_the_file_are_refused_wherever_they_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime would read them from the working folder, which is the host's: it would choose the weights."""
    from onnx import ModelProto, helper

    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(bytes(12))
    model = ModelProto.FromString(linear())
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.ClearField("raw_data")
    weight.data_location = weight.EXTERNAL
    weight.external_data.add(key="location", value="weights")
    hidden = ModelProto.FromString(linear())
    hidden.graph.node.append(helper.make_node("Constant", [], ["unused"], value=weight))
    for each in (model, hidden):
        with pytest.raises(CloisterError) as caught:
            OnnxModel(each.SerializeToString())
        assert caught.value.code == 8602


def test_an_array_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(CloisterError) as caught:
        to_tensor("x", np.array(["text"]))
    assert caught.value.code == 2604


CARD = ModelCard(inputs=MODEL.inputs, features=("a", "b", "c"))


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
        ModelCard(inputs=MODEL.inputs),
        ModelCard(inputs=(*MODEL.inputs, *MODEL.inputs), features=("a",)),
        ModelCard(inputs=(TensorSpec(name="x", datatype="BOOL", shape=(-1, 1)),), features=("a",)),
    ],
)
def test_a_model_that_takes_no_table_says_so(card: ModelCard) -> None:
    with pytest.raises(CloisterError) as caught:
        read_rows(b"a,b,c\n1,2,3\n", card)
    assert caught.value.code == 2606
