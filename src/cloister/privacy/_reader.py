"""Reads an exported program into a graph: sizes as multiples of the batch's, arguments by name, constants by digest."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node as Traced

from cloister.errors import UnsupportedError
from cloister.privacy._graph import (
    MAX_EMBEDDED_BYTES,
    Constant,
    Graph,
    Node,
    Parameter,
    Row,
    Size,
    Spec,
    Times,
    argument,
    float_argument,
    referred,
    size_argument,
)
from cloister.privacy._independence import Place
from cloister.privacy._places import place_of

__all__ = ["Exported", "Reader", "bytes_of"]

_BIG = 2**53


@dataclass(frozen=True, slots=True)
class Exported:
    """A graph, and where its calls stand in the user's code.

    Attributes:
        graph: Forward and loss.
        places: By number of the node.
    """

    graph: Graph
    places: Mapping[int, Place]


class Reader:
    """Reads an exported program into a :class:`Graph`.

    Args:
        whole: Model and loss.
        program: Functional, on ATen.
        rows: Places of the batch's tensors, in order.
    """

    def __init__(self, whole: nn.Module, program: torch.export.ExportedProgram, rows: Sequence[str]) -> None:
        self._whole, self._program, self._rows = whole, program, list(rows)
        self._numbers: dict[Traced, int] = {}
        self._parts: dict[Traced, int] = {}  # first number of a call with several results
        self._tensors: dict[int, int] = {}  # by identity, so that a tied weight is one value
        self._next = 0
        self._batch: Any = None
        self._places: dict[int, Place] = {}

    def read(self) -> Exported:
        """The graph."""
        given = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        kinds = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        named = [(node, kinds[node.name]) for node in given]
        inputs = [node for node, spec in named if spec.kind is InputKind.USER_INPUT]
        self._batch = inputs[0].meta["val"].shape[0].node.expr
        live = self._live()
        constants = [(node, spec.target) for node, spec in named if _is_constant(spec.kind) and node in live]
        parameters = [(node, spec.target) for node, spec in named if spec.kind is InputKind.PARAMETER]
        unknown = {spec.kind for _, spec in named} - {InputKind.USER_INPUT, InputKind.PARAMETER}
        if other := [kind for kind in unknown if not _is_constant(kind)]:
            raise UnsupportedError(8836, f"the graph takes an input of kind {other[0].name}")
        first = tuple(made for node, name in parameters if (made := self._parameter(node, str(name))) is not None)
        second = tuple(self._constant(node, str(name)) for node, name in constants)
        batch = tuple(self._row(node, name) for node, name in zip(inputs, self._rows, strict=True))
        nodes = [made for node in self._program.graph.nodes if (made := self._node(node, live)) is not None]
        loss = self._returned()
        read = {loss} | {number for node in nodes for number in referred(list(map(argument, node.args.values())))}
        begin = len(first) + len(second) + len(batch)
        graph = Graph(parameters=first, constants=second, batch=batch, nodes=_read_only(nodes, read, begin), loss=loss)
        return Exported(graph, self._places)

    def _returned(self) -> int:
        output = next(node for node in self._program.graph.nodes if node.op == "output")
        returned = [node for node in output.args[0] if isinstance(node, Traced)]
        if len(output.args[0]) != 1 or len(returned) != 1 or returned[0] not in self._numbers:
            raise UnsupportedError(
                8834, "the loss returns something else than one tensor", got=str(output.args[0])[:80]
            )
        return self._numbers[returned[0]]

    def _live(self) -> set[Traced]:
        """What the result is made of."""
        stack = [node for node in self._program.graph.nodes if node.op == "output"]
        live: set[Traced] = set(stack)
        while stack:
            for node in stack.pop().all_input_nodes:
                if node not in live:
                    live.add(node)
                    stack.append(node)
        return live

    def _number(self, node: Traced, results: int = 1) -> None:
        self._numbers[node] = self._next
        self._next += results

    def _parameter(self, node: Traced, name: str) -> Parameter | None:
        """A parameter; None for a second name of one that is known."""
        tensor = self._whole.get_parameter(name)
        if id(tensor) in self._tensors:
            self._numbers[node] = self._tensors[id(tensor)]
            return None
        self._tensors[id(tensor)] = self._next
        self._number(node)
        paths = (path for path, each in self._whole.named_parameters(remove_duplicate=False) if each is tensor)
        also = tuple(path for path in paths if path != name)
        spec = self._spec(node)
        return Parameter(name=name, trained=tensor.requires_grad, also=also, dtype=spec.dtype, shape=spec.shape)

    def _constant(self, node: Traced, name: str) -> Constant:
        self._number(node)
        tensor = self._program.constants.get(name)
        tensor = self._program.state_dict.get(name) if tensor is None else tensor
        if not isinstance(tensor, Tensor):
            raise UnsupportedError(8836, f"{name}: the graph takes an object that is no tensor")
        if tensor.requires_grad:
            raise UnsupportedError(8835, f"{name.removeprefix('model.')} is trained, and no parameter of the model")
        data = bytes_of(tensor)
        spec, held = self._spec(node), None
        if name not in dict(self._whole.named_buffers(remove_duplicate=False)):
            if len(data) > MAX_EMBEDDED_BYTES:
                what = f"{name.removeprefix('model.')}: a constant of {len(data)} bytes is no buffer of the model"
                raise UnsupportedError(8833, what, hint="register it as a buffer")
            held = data
        sha256 = hashlib.sha256(data).hexdigest()
        return Constant(name=name, sha256=sha256, data=held, dtype=spec.dtype, shape=spec.shape)

    def _row(self, node: Traced, name: str) -> Row:
        self._number(node)
        spec = self._spec(node)
        return Row(name=name, dtype=spec.dtype, shape=spec.shape)

    def _node(self, node: Traced, live: set[Traced]) -> Node | None:
        """A call as data; None for what only gives sizes, asserts them, or takes a result of several."""
        if node.op != "call_function" or node not in live or _is_size(node.meta.get("val")):
            return None
        source, at = (*node.args, None, None)[:2]
        if getattr(node.target, "__name__", "") == "getitem" and isinstance(source, Traced) and source in self._parts:
            self._numbers[node] = self._parts[source] + int(str(at))
            return None
        place = place_of(node)
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            what = (
                f"{place}: {getattr(target, '__name__', target)} is no operator that a rule could say something about"
            )
            raise UnsupportedError(8831, what, got=place.code or None)
        op = f"{target.namespace}::{target._opname}.{target._overloadname}"
        value = node.meta.get("val")
        several = isinstance(value, list | tuple)
        where = f"{place}: {target._opname}"
        specs = [self._spec_of(each, where) for each in value] if several else [self._spec_of(value, where)]
        args = self._arguments(target, node, place)
        self._places[len(self._places)] = place
        if several:
            self._parts[node] = self._next
        self._number(node, len(specs))
        return Node(op=op, args=args, results=tuple(specs))

    def _arguments(self, target: torch._ops.OpOverload, node: Traced, place: Place) -> dict[str, JsonValue]:
        """By the schema's names, with its defaults; absent ones left out."""
        schema = target._schema.arguments
        given = {each.name: each.default_value for each in schema if each.has_default_value()}
        given |= {each.name: value for each, value in zip(schema, node.args, strict=False)}
        given |= node.kwargs
        args: dict[str, JsonValue] = {}
        for name, value in given.items():
            if value is not None and name not in ("device", "pin_memory", "layout"):
                args[name] = self._argument(value, f"{place}: {target._opname}: {name}")
            elif name == "layout" and value not in (None, torch.strided):
                raise UnsupportedError(8831, f"{place}: {target._opname}: a layout of {value}")
        return args

    def _argument(self, value: Any, where: str) -> JsonValue:
        if isinstance(value, Traced):
            return self._traced(value, where)
        if isinstance(value, list | tuple):
            return [None if item is None else self._argument(item, where) for item in value]
        if isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return value if -_BIG < value < _BIG else {"int": str(value)}
        if isinstance(value, float):
            return float_argument(value)
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.memory_format):
            return {"memory_format": str(value).removeprefix("torch.")}
        if isinstance(value, torch.SymInt):
            return size_argument(self._size(value, where))
        raise UnsupportedError(8831, f"{where}: an argument of type {type(value).__name__}")

    def _traced(self, node: Traced, where: str) -> JsonValue:
        if node in self._numbers and node not in self._parts:
            return {"value": self._numbers[node]}
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int):
            return size_argument(self._size(value, where))
        if isinstance(value, torch.SymFloat | torch.SymBool):
            raise UnsupportedError(8832, f"{where}: a number made of the batch's size")
        raise UnsupportedError(8831, f"{where}: a value of type {type(value).__name__}")

    def _spec(self, node: Traced) -> Spec:
        spec = self._spec_of(node.meta["val"])
        if spec is None:
            raise UnsupportedError(8836, f"{node.name}: the graph takes an input that is no tensor")
        return spec

    def _spec_of(self, value: Any, where: str = "an input") -> Spec | None:
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise UnsupportedError(8831, f"{where}: a result of type {type(value).__name__}")
        shape = tuple(self._size(size, where) for size in value.shape)
        written = tuple(f"{size.count}B" if isinstance(size, Times) else size for size in shape)
        return Spec(dtype=str(value.dtype).removeprefix("torch."), shape=written)

    def _size(self, size: Any, where: str) -> Size:
        """An integer, or a multiple of the batch's size."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if expression.is_Integer:
            return int(expression)
        if expression.free_symbols - {self._batch}:
            raise UnsupportedError(8836, f"{where}: a size depends on data")
        times = expression / self._batch
        if times.is_Integer and int(times) > 0:
            return Times(int(times))
        raise UnsupportedError(8840, f"{where}: a size is {expression}, no multiple of the batch's")


def _read_only(nodes: Sequence[Node], read: set[int], begin: int) -> tuple[Node, ...]:
    """Calls without what nobody reads of their results: it often has no shape that can be relied on."""
    kept: list[Node] = []
    for node in nodes:
        results = tuple(each if begin + at in read else None for at, each in enumerate(node.results))
        kept.append(node if results == node.results else Node(op=node.op, args=node.args, results=results))
        begin += len(node.results)
    return tuple(kept)


def _is_constant(kind: InputKind) -> bool:
    return kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def _is_size(value: Any) -> bool:
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's elements in row-major order, little end first."""
    flat = tensor.detach().cpu().contiguous().flatten()
    if not flat.numel():
        return b""
    if sys.byteorder != "little":
        raise UnsupportedError(8836, "constants are read on machines whose words begin with the little end")
    return flat.view(torch.uint8).numpy().tobytes()
