"""The interpreter on graphs written by hand: what it passes on, what it refuses, what it calls malformed."""

import json
from typing import Any

import pytest

from cloister.errors import CloisterError, UnsupportedError
from cloister.privacy._graph import Graph
from cloister.privacy._independence import Place, kinds


def spec(*shape: int | str, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}


def node(op: str, args: dict[str, Any], *results: Any) -> dict[str, Any]:
    return {"op": f"aten::{op}", "args": args, "results": list(results)}


LINEAR = node("linear.default", {"input": {"value": 2}, "weight": {"value": 0}, "bias": {"value": 1}}, spec("1B", 3))
SUM = node("sum.dim_IntList", {"self": {"value": 3}, "dim": [1], "keepdim": False}, spec("1B"))


def graph(*nodes: dict[str, Any], loss: int = 4, **changes: Any) -> Graph:
    """A linear layer whose outputs are summed, or other calls on its parameters 0, 1 and its batch 2."""
    return Graph.model_validate_json(
        json.dumps(
            {
                "parameters": [
                    {"name": "model.weight", "trained": True, **spec(3, 4)},
                    {"name": "model.bias", "trained": True, **spec(3)},
                ],
                "constants": [],
                "batch": [{"name": "0", **spec("1B", 4)}],
                "nodes": list(nodes or (LINEAR, SUM)),
                "loss": loss,
                **changes,
            }
        )
    )


def refused(code: int, *nodes: dict[str, Any], places: dict[int, Place] | None = None, **changes: Any) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        kinds(graph(*nodes, **changes), places)
    assert caught.value.code == code, caught.value
    return caught.value


def test_every_value_gets_what_is_known_of_it() -> None:
    assert [str(kind) for kind in kinds(graph())] == [
        "public",
        "public",
        "example at 0",
        "example at 0",
        "example at 0",
    ]


def test_a_refusal_names_operator_module_line_and_code() -> None:
    mean = node("mean.dim", {"self": {"value": 3}, "dim": [0], "keepdim": False}, spec(3))
    error = refused(8830, LINEAR, mean, places={1: Place("features.3", "net.py", 17, "x.mean(0)")})
    assert isinstance(error, UnsupportedError)
    assert error.what == "features.3 (net.py:17): mean.dim: it would reduce over the batch"
    assert error.got == "x.mean(0)"


def test_an_unknown_operator_is_refused() -> None:
    refused(8831, LINEAR, node("frobnicate.default", {"self": {"value": 3}}, spec("1B")))


def test_the_batchs_size_enters_no_value() -> None:
    refused(8832, LINEAR, node("mul.Scalar", {"self": {"value": 3}, "other": {"size": 1}}, spec("1B", 3)))


def test_a_stated_shape_that_the_rule_contradicts_is_refused() -> None:
    refused(8830, LINEAR, node("relu.default", {"self": {"value": 3}}, spec(3, "1B")))
    refused(8830, LINEAR, node("relu.default", {"self": {"value": 3}}, spec("2B", 3)))


def test_a_result_that_nobody_reads_may_not_be_read_after_all() -> None:
    sort = node("sort.default", {"self": {"value": 3}, "dim": 1}, spec("1B", 3), None)
    assert len(
        kinds(graph(LINEAR, sort, node("sum.dim_IntList", {"self": {"value": 4}, "dim": [1]}, spec("1B")), loss=6))
    )
    refused(8830, LINEAR, sort, node("sum.dim_IntList", {"self": {"value": 5}, "dim": [1]}, spec("1B")), loss=6)


@pytest.mark.parametrize("loss", [0, 3])
def test_what_is_returned_is_one_loss_a_row(loss: int) -> None:
    refused(8834, loss=loss)


def test_a_loss_is_a_number_with_a_fraction() -> None:
    whole = node("argmax.default", {"self": {"value": 3}, "dim": 1}, spec("1B", dtype="int64"))
    refused(8834, LINEAR, whole)


def test_folded_rows_are_no_rows() -> None:
    flat = node("view.default", {"self": {"value": 3}, "size": [-1]}, spec("3B"))
    refused(8834, LINEAR, flat)


@pytest.mark.parametrize("cut", ["detach.default", "sign.default", "round.default"])
def test_a_trained_parameter_that_gets_no_gradient_is_refused(cut: str) -> None:
    stopped = node(cut, {"self": {"value": 3}}, spec("1B", 3))
    error = refused(
        8835, LINEAR, stopped, node("sum.dim_IntList", {"self": {"value": 4}, "dim": [1]}, spec("1B")), loss=5
    )
    assert error.what.startswith("weight is trained")


def test_a_frozen_parameter_needs_no_gradient() -> None:
    frozen = [
        {"name": "model.weight", "trained": False, **spec(3, 4)},
        {"name": "model.bias", "trained": False, **spec(3)},
    ]
    detached = node("detach.default", {"self": {"value": 3}}, spec("1B", 3))
    summed = node("sum.dim_IntList", {"self": {"value": 4}, "dim": [1]}, spec("1B"))
    assert kinds(graph(LINEAR, detached, summed, loss=5, parameters=frozen))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": 9},
        {"loss": -1},
        {"batch": []},
        {"batch": [{"name": "0", **spec(5, 4)}]},
        {"batch": [{"name": "0", **spec("2B", 4)}]},
        {"nodes": [node("linear.default", {"input": {"value": 7}, "weight": {"value": 0}}, spec("1B", 3))]},
        {"nodes": [node("linear.default", {"input": {"value": 2}}, spec("1B", 3))]},
        {"nodes": [node("linear.default", {"input": {"nobody": 2}}, spec("1B", 3))]},
        {"nodes": [node("linear.default", {"input": {"float": "1/2"}}, spec("1B", 3))]},
        {"nodes": [node("linear.default", {"input": 4, "weight": 5}, spec("1B", 3))]},
        {"nodes": [node("sum.dim_IntList", {"self": {"value": 2}, "dim": [5]}, spec("1B"))]},
        {"nodes": [node("sum.dim_IntList", {"self": {"value": 2}, "dim": ["1"]}, spec("1B"))]},
        {"nodes": [node("cat.default", {"tensors": []}, spec("1B"))]},
        {"nodes": [node("split.Tensor", {"self": {"value": 2}, "dim": 9}, spec("1B", 2), spec("1B", 2))]},
    ],
)
def test_a_graph_that_is_none_is_called_so(changes: dict[str, Any]) -> None:
    error = refused(2832, **changes) if "nodes" not in changes else None
    if error is None:
        with pytest.raises(CloisterError) as caught:
            kinds(graph(*changes["nodes"], loss=3))
        assert caught.value.code in (2832, 8830)
