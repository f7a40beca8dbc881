"""Export to a graph: what it holds, what it does not depend on, what it refuses."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import CloisterError
from cloister.privacy._export import export_graph, leaves, resized
from cloister.privacy._graph import Dtype, Format, Graph, Times, Value, argument, float_argument, size_argument, sizes


def squares(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).square().sum(1)


def exported(model: nn.Module, batch: Any = None, loss: Any = squares) -> Graph:
    return export_graph(model, loss, (torch.randn(3, 4),) if batch is None else batch).graph


def test_arguments_are_read_as_they_were_written() -> None:
    for value in (0.1, -0.0, 1e300, float("inf")):
        assert argument(float_argument(value)) == value
    assert argument(size_argument(Times(3))) == Times(3)
    assert argument([{"value": 1}, None, {"dtype": "float32"}]) == [Value(1), None, Dtype("float32")]
    assert argument({"int": str(2**63 - 1)}) == 2**63 - 1
    assert argument({"memory_format": "channels_last"}) == Format("channels_last")


@pytest.mark.parametrize(
    "value", [0.5, {}, {"value": "1"}, {"value": True}, {"a": 1, "b": 2}, {"int": "x"}, {"float": "?"}]
)
def test_an_argument_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(CloisterError) as caught:
        argument(value)
    assert caught.value.code == 2832


def test_a_graph_is_the_same_whatever_the_example_and_wherever_it_was_made() -> None:
    first = exported(nn.Linear(4, 3), (torch.randn(3, 4),))
    second = exported(nn.Linear(4, 3), (torch.randn(9, 4),))
    assert first.graph_digest() == second.graph_digest()
    assert exported(nn.Linear(4, 5)).graph_digest() != first.graph_digest()
    assert __file__ not in first.canonical().decode()


def test_a_batchs_size_is_a_multiple_and_never_a_number() -> None:
    graph = exported(
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(0, 1), nn.Linear(2, 3), nn.Unflatten(0, (-1, 2))),
        loss=lambda model, batch: model(batch[0]).sum((1, 2)),
    )
    shapes = [sizes(result) for node in graph.nodes for result in node.results if result is not None]
    assert (Times(2), 2) in shapes
    assert all(isinstance(shape[0], Times) for shape in shapes)


def test_a_size_that_equals_the_batchs_by_chance_is_not_taken_for_it() -> None:
    batch = (torch.randn(11, 11), torch.randn(11, 13))
    graph = exported(nn.Linear(11, 11), batch, lambda model, batch: model(batch[0]).sum(1) + batch[1].sum(1))
    assert [row.shape for row in graph.batch] == [("1B", 11), ("1B", 13)]


def test_a_tied_weight_is_one_parameter_with_two_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    parameters = {parameter.name: parameter for parameter in exported(model).parameters}
    assert parameters["model.0.weight"].also == ("model.1.weight",)
    assert "model.1.weight" not in parameters


def test_constants_are_held_to_their_bytes_and_embedded_where_no_module_names_them() -> None:
    class Scaled(nn.Linear):
        def __init__(self, scale: float) -> None:
            super().__init__(4, 3)
            self.register_buffer("scale", torch.full((4,), scale))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.scale * torch.tensor([1.0, 2.0, 3.0, 4.0]))

    one, two = exported(Scaled(1.0)), exported(Scaled(2.0))
    named = {constant.name: constant for constant in one.constants}
    assert named["model.scale"].data is None
    assert any(constant.data == torch.tensor([1.0, 2, 3, 4]).numpy().tobytes() for constant in one.constants)
    assert one.graph_digest() != two.graph_digest()


def test_a_large_constant_that_no_module_names_is_refused() -> None:
    table = torch.randn(4, 8192)

    class Hidden(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x @ table).sum(1, keepdim=True)

    with pytest.raises(CloisterError) as caught:
        exported(Hidden(4, 3))
    assert caught.value.code == 8833


def test_what_ran_without_gradients_is_cut_off() -> None:
    class Stopped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = torch.tanh(super().forward(x))
                with torch.no_grad():
                    scale = scale * 2
            return super().forward(x) * scale

    operators = [node.op for node in exported(Stopped(4, 3)).nodes]
    assert "aten::detach.default" in operators
    assert operators.count("aten::linear.default") == 2


def test_calls_that_do_not_reach_the_loss_are_left_out() -> None:
    class Idle(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            functional.softmax(x, 0)
            return super().forward(x)

    assert not any("softmax" in node.op for node in exported(Idle(4, 3)).nodes)


def test_a_batch_is_tensors_with_as_many_rows_each() -> None:
    assert list(leaves({"a": torch.ones(2), "b": [torch.ones(2, 3)]})) == ["a", "b.0"]
    assert resized((torch.arange(3),), 7)[0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    for wrong in ((torch.ones(2), torch.ones(3)), (torch.ones(2), 5), torch.tensor(1.0), (torch.ones(0, 3),), {}):
        with pytest.raises(CloisterError) as caught:
            leaves(wrong)
        assert caught.value.code == 2831


def test_a_graph_is_json_without_floats() -> None:
    text = exported(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))).canonical()
    json.loads(text, parse_float=lambda found: pytest.fail(found))
