"""Proves that each row's loss depends on its own example: a graph is run on what is known instead of on numbers.

Rules:

* Every value of the graph gets one :data:`~cloister.privacy._domain.Kind`; nothing else is passed on. What the rules
  cannot say is refused, with the operator, its module and its line.
* What is returned is one loss a row: shape ``(B,)``, example at axis 0, a floating type.
* Every trained parameter reaches that loss by operators that have a gradient. One that does not would be outside what
  is clipped, or waste noise.
* Without torch, without reading the model, in time linear in the graph: a provider and an enclave repeat it.

The proof is about exact arithmetic. In floating point a product's rounding may depend on the place of a row and on how
many rows there are, never on what stands in them; the engine's batches have one static size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.errors import InputError, UnsupportedError
from cloister.privacy._domain import PUBLIC, Kind, PerExample, Position, Public, Refusal, Tensor, Unread, consistent
from cloister.privacy._graph import Graph, Node, Spec, Times, Value, argument, referred, sizes
from cloister.privacy._rules import Call, Rule, rules

__all__ = ["Place", "kinds"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the user's code a call was made.

    Attributes:
        module: Path of the module; empty for the loss.
        file: Of the innermost line that is not torch's.
        line: Its number.
        code: Its text.
    """

    module: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else "an unknown line"
        return f"{self.module or 'the loss'} ({where})"


_NOWHERE = Place()
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
_WITHOUT_GRADIENT = frozenset(
    f"aten::{name}.default"
    for name in [
        "detach",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "sign",
        "sgn",
        "floor",
        "ceil",
        "trunc",
        "round",
    ]
)


def kinds(graph: Graph, places: Mapping[int, Place] | None = None) -> tuple[Kind, ...]:
    """What is known of every value, in order.

    Args:
        graph: Forward and loss.
        places: Where each node was written, by its number; for messages.

    Raises:
        UnsupportedError: 8830 where examples are mixed; 8831 for an unknown operator; 8832 where the batch's size or a
            row's number becomes a value; 8833 for state; 8834 when the result is not one loss a row; 8835 for a
            trained parameter that the loss does not reach; 8841 where examples share random numbers.
        InputError: 2832 for a graph that is none.
    """
    values = _given(graph)
    table = rules()
    for number, node in enumerate(graph.nodes):
        place = (places or {}).get(number, _NOWHERE)
        try:
            values.extend(_called(node, values, table))
        except Refusal as no:
            raise _refused(no, node, place) from None
        except _MALFORMED as error:
            raise InputError(2832, f"call {number} of {node.op} is malformed", got=f"{type(error).__name__}") from None
    _require_loss(graph, values)
    _require_coverage(graph)
    return tuple(value.kind for value in values)


def _given(graph: Graph) -> list[Tensor]:
    """The values that a graph begins with."""
    values: list[Tensor] = []
    for spec in (*graph.parameters, *graph.constants):
        values.append(_tensor(PUBLIC, spec))
    for row in graph.batch:
        values.append(_tensor(PerExample(0), row))
    if not graph.batch:
        raise InputError(2832, "the graph has no batch")
    return values


def _tensor(kind: Kind, spec: Spec) -> Tensor:
    tensor = Tensor(kind, sizes(spec), spec.dtype)
    if not consistent(kind, tensor.shape):
        raise InputError(2832, f"an input's shape does not fit its kind: {kind}", got=str(spec.shape)[:80])
    return tensor


def _called(node: Node, values: Sequence[Tensor], table: Mapping[str, Rule]) -> list[Tensor]:
    """What is known of a call's results."""
    rule = table.get(node.op)
    if rule is None:
        raise Refusal(8831, "no rule says what it does with the batch")
    args = {name: _known(argument(value), values) for name, value in node.args.items()}
    shapes = [sizes(result) if result is not None else () for result in node.results]
    call = Call(node.op, args, shapes, ["" if result is None else result.dtype for result in node.results])
    found = _judged(rule, call)
    tensors = [Tensor(*each) for each in zip(found, shapes, call.dtypes, strict=True)]
    for number, (result, tensor) in enumerate(zip(node.results, tensors, strict=True)):
        if result is None:
            tensors[number] = Tensor(Unread(), (), "")
        elif not consistent(tensor.kind, tensor.shape):
            raise Refusal(8830, f"its result is no {tensor.kind}: {_written(result)}")
    return tensors


def _judged(rule: Rule, call: Call) -> Sequence[Kind]:
    for name, value in call.args.items():
        if name not in rule.sizes and _holds(value, Times):
            raise Refusal(8832, f"the batch's size would enter a value, as its {name}")
    given = list(call.tensors())
    written = call["self"] if rule.fresh else None
    if any(isinstance(tensor.kind, Unread) and tensor is not written for tensor in given):
        raise Refusal(8830, "it reads what an operator leaves beside its result")
    if any(isinstance(tensor.kind, Position) for tensor in given) and not rule.positions:
        raise Refusal(8832, "a row's number would enter a value")
    plain = all(isinstance(tensor.kind, Public) for tensor in given)
    sized = any(_holds(value, Times) for value in (*call.args.values(), *call.shapes))
    if plain and not sized and not rule.random:
        return [PUBLIC] * len(call.shapes)
    found = rule.apply(call)
    return list(found) if isinstance(found, Sequence) else [found] * len(call.shapes)


def _known(value: Any, values: Sequence[Tensor]) -> Any:
    if isinstance(value, Value):
        if not 0 <= value.number < len(values):
            raise IndexError("a value that is not made yet")
        return values[value.number]
    return [_known(item, values) for item in value] if isinstance(value, list) else value


def _holds(value: Any, kind: type) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds(item, kind) for item in value)
    return isinstance(value, kind)


def _written(spec: Spec) -> str:
    return "(" + ", ".join(str(size) for size in spec.shape) + ")"


def _refused(no: Refusal, node: Node, place: Place) -> UnsupportedError:
    name = node.op.removeprefix("aten::")
    return UnsupportedError(no.code, f"{place}: {name}: {no.why}", got=place.code or None, hint=no.hint)


def _require_loss(graph: Graph, values: Sequence[Tensor]) -> None:
    if not 0 <= graph.loss < len(values):
        raise InputError(2832, "the graph returns a value that it does not have")
    loss = values[graph.loss]
    if loss.kind == PerExample(0) and loss.shape == (Times(1),) and "float" in loss.dtype:
        return
    shape = "(" + ", ".join(f"{size.count}B" if isinstance(size, Times) else str(size) for size in loss.shape) + ")"
    raise UnsupportedError(
        8834, "the loss is not one number for each example", expected="(B,), floating", got=f"{shape}, {loss.dtype}"
    )


def _require_coverage(graph: Graph) -> None:
    """Goes backwards from the loss by what has a gradient."""
    first = len(graph.parameters) + len(graph.constants) + len(graph.batch)
    ends: list[int] = []
    for node in graph.nodes:
        ends.append(first)
        first += len(node.results)
    reached = {graph.loss}
    for node, begin in zip(reversed(graph.nodes), reversed(ends), strict=True):
        live = any(
            begin + number in reached and result is not None and "float" in result.dtype
            for number, result in enumerate(node.results)
        )
        if live and node.op not in _WITHOUT_GRADIENT:
            for value in node.args.values():
                reached.update(referred(argument(value)))
    for number, parameter in enumerate(graph.parameters):
        if parameter.trained and number not in reached:
            raise UnsupportedError(
                8835, f"{parameter.name.removeprefix('model.')} is trained, and no gradient reaches it"
            )
