"""Calls of a certified graph that may be made in another way: the same numbers, and less memory to read and write.

A graph says who reads what. So

* a ReLU and a sum write over an operand that nobody reads again;
* a group norm waits for the ReLU that alone reads it, or for the sum that alone reads it and whose ReLU alone reads
  that, and is then made together with both;
* a ReLU waits for the max pooling that alone reads it: the largest of rectified numbers is the largest one, rectified,
  and there are fewer of those. A gradient goes the same way: where the largest is above zero, it is in the same place,
  and where it is not, nothing passes.

A torch function can be watched, so what is made together is one (:func:`rectified_group_norm`), with a private form.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from cloister.privacy._graph import Graph, Node, Spec, Value, argument, referred

__all__ = ["Waiting", "rectified_group_norm", "shortcuts"]

_ADD, _GROUP_NORM, _RELU = "aten::add.Tensor", "aten::group_norm.default", "aten::relu.default"
_POOLS: Mapping[str, Callable[..., Tensor]] = {
    "aten::max_pool1d.default": torch.ops.aten.max_pool1d.default,
    "aten::max_pool2d.default": torch.ops.aten.max_pool2d.default,
    "aten::max_pool3d.default": torch.ops.aten.max_pool3d.default,
}
_OVER: Mapping[str, Callable[..., Any]] = {_RELU: torch.ops.aten.relu_.default, _ADD: torch.ops.aten.add_.Tensor}
_FRESH = frozenset((_ADD, "aten::conv1d.default", "aten::conv2d.default", "aten::convolution.default", _GROUP_NORM))
"""What makes a tensor that is nobody's view, and that its derivative does not need: a Linear's, of more axes than two,
is a view."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A group norm that is made with what follows it: what it will be made of."""

    arguments: tuple[Any, ...]
    summand: Tensor | None = None


def rectified_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    summand: Tensor | None = None,
) -> Tensor:
    """``relu(group_norm(input) + summand)``.

    Args:
        input: ``(B, C, …)``.
        num_groups: Of channels.
        weight: ``(C,)``, or None.
        bias: Likewise.
        eps: Added to each variance.
        summand: As the input, or None.
    """
    given = input, num_groups, weight, bias, eps, summand
    if has_torch_function(tensors := (input, weight, bias, summand)):
        return handle_torch_function(rectified_group_norm, tensors, *given)
    made = torch.group_norm(input, num_groups, weight, bias, eps)
    return (made if summand is None else made.add_(summand)).relu_()


def shortcuts(graph: Graph) -> Mapping[int, Callable[..., Any]]:
    """By a call's number, what is called in place of its operator, with the same arguments.

    Args:
        graph: Already checked.

    Returns:
        Functions; a call may give a :class:`Waiting` in place of a tensor, which only the next one of them is given.
    """
    reads = _Reads.of(graph)
    found: dict[int, Callable[..., Any]] = {}
    for number, node in enumerate(graph.nodes):
        if node.op == _RELU:
            found |= _rectified(reads, number, node)
        elif node.op in _POOLS:
            relu = reads.alone("self", node)
            if relu is not None and graph.nodes[relu].op == _RELU and found.get(relu) is not _made:
                found |= {relu: _same, number: _then_relu(_POOLS[node.op])}
        elif node.op == _ADD:
            found |= reads.overwriting(number, node)
    return found


@dataclass(slots=True)
class _Reads:
    """Who reads what, and who made it."""

    graph: Graph
    data: dict[int, Spec | None] = field(default_factory=dict)  # values that depend on the batch
    makers: dict[int, int] = field(default_factory=dict)  # of a value, the call
    readers: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, graph: Graph) -> _Reads:
        value = len(graph.parameters) + len(graph.constants)
        batch = [Spec(dtype=row.dtype, shape=row.shape) for row in graph.batch]
        found = cls(graph, dict(enumerate(batch, value)))
        value += len(batch)
        for number, node in enumerate(graph.nodes):
            read = _read(node)
            found.readers.update(read)
            for made, spec in enumerate(node.results, value):
                found.makers[made] = number
                if not found.data.keys().isdisjoint(read):
                    found.data[made] = spec
            value += len(node.results)
        return found

    def alone(self, name: str, node: Node) -> int | None:
        """Who made an argument that is data and that this call alone reads; None where there is no such."""
        value = argument(node.args.get(name))
        if not isinstance(value, Value) or value.number not in self.data or value.number == self.graph.loss:
            return None
        return self.makers.get(value.number) if self.readers[value.number] == 1 else None

    def overwriting(self, number: int, node: Node) -> dict[int, Callable[..., Any]]:
        """The operator that writes over the first operand, if that may be."""
        maker = self.alone("self", node)
        if maker is None or not self.data.keys() >= set(_read(node)):
            return {}
        first = self.graph.nodes[maker]
        fits = first.op in _FRESH and first.results[0] == node.results[0]
        return {number: _OVER[node.op]} if fits else {}


def _read(node: Node) -> list[int]:
    return [each for given in node.args.values() for each in referred(argument(given))]


def _rectified(reads: _Reads, number: int, relu: Node) -> dict[int, Callable[..., Any]]:
    """What a ReLU is made with."""
    graph = reads.graph
    maker = reads.alone("self", relu)
    if maker is None or graph.nodes[maker].results != relu.results or relu.results[0] is None:
        return {}
    if graph.nodes[maker].op == _GROUP_NORM:
        return {maker: _waits, number: _made}
    added = graph.nodes[maker]
    if added.op == _ADD and argument(added.args.get("alpha", 1)) == 1:
        for name, other in (("self", "other"), ("other", "self")):
            norm, summand = reads.alone(name, added), argument(added.args.get(other))
            if norm is None or graph.nodes[norm].op != _GROUP_NORM or graph.nodes[norm].results != relu.results:
                continue
            if isinstance(summand, Value) and reads.data.get(summand.number) == relu.results[0]:
                return {norm: _waits, maker: _joined, number: _made}
    return reads.overwriting(number, relu)


def _waits(*arguments: Any) -> Waiting:
    return Waiting(arguments)


def _joined(one: Any, other: Any, *, alpha: int = 1) -> Waiting:
    norm, summand = (one, other) if isinstance(one, Waiting) else (other, one)
    return dataclasses.replace(norm, summand=summand)


def _made(norm: Waiting) -> Tensor:
    tensor, groups, weight, bias, eps, *_ = norm.arguments
    return rectified_group_norm(tensor, groups, weight, bias, eps, norm.summand)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _then_relu(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: torch.ops.aten.relu_.default(pool(*arguments))
