"""Small ONNX models, and a process that runs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cloister.enclave import Sandboxed
from cloister.manifest import Limits
from cloister.serve._model import SandboxedModel, sealed_file

__all__ = ["endless", "linear", "running"]

LIMITS = Limits(memory_bytes=1 << 30, processes=64)


@contextmanager
def running(model: bytes, *, time_s: float = 20.0, limits: Limits = LIMITS) -> Iterator[SandboxedModel]:
    """The model in its sandbox."""
    served = SandboxedModel(sealed_file(model), sandbox=lambda: Sandboxed(limits), time_s=time_s)
    try:
        yield served
    finally:
        served.close()


def linear(columns: int = 3) -> bytes:
    """y = x @ 1."""
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [columns, 1], [1.0] * columns)
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [columns], [1], weights)


def endless() -> bytes:
    """y = x, after as many rounds as an INT64 counts."""
    from onnx import TensorProto, helper

    def put(name: str, kind: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [])

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["state"], ["next"])],
        "body",
        [put("round", TensorProto.INT64), put("go", TensorProto.BOOL), put("state", TensorProto.FLOAT)],
        [put("on", TensorProto.BOOL), put("next", TensorProto.FLOAT)],
    )
    rounds = helper.make_tensor("rounds", TensorProto.INT64, [], [2**63 - 1])
    loop = helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)
    return _model([loop], [3], [3], rounds)


def _model(nodes: list[Any], takes: list[int], gives: list[int], constant: Any) -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *takes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", *gives])],
        [constant],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
