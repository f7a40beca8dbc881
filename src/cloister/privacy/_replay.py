"""Runs a certified graph: no line of the model's code is executed, so nothing can differ from what was checked.

Every result's shape and element type is held to the graph's, each time. The calls are ATen's own, so whoever watches
torch's functions (:mod:`cloister.privacy._watch`) sees them as it sees a model's.

Some calls are made in another way that gives the same numbers in less time (:mod:`cloister.privacy._shortcuts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from cloister.errors import InputError, IntegrityError, UnsupportedError
from cloister.privacy._graph import Dtype, Format, Graph, Node, Spec, Times, Value, argument, referred
from cloister.privacy._rules import rules
from cloister.privacy._shortcuts import Waiting, shortcuts
from cloister.privacy._within import WITHIN

__all__ = ["Calls", "rehearse", "require_spec"]


class Calls:
    """A graph, ready to be run.

    Args:
        graph: Already checked.

    Attributes:
        within: Whether places that records name are brought within what there is; see :mod:`cloister.privacy._within`.

    Raises:
        InputError: 2832 for a call that cannot be.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph, self.within = graph, False
        self._steps = [_Step.of(node) for node in graph.nodes]
        self._last = _last_uses(graph, self._steps)
        self._shortcuts = shortcuts(graph)

    def run(self, values: list[Any], device: torch.device, *, wide: bool = False) -> Tensor:
        """One loss a row.

        Args:
            values: Parameters, constants and the batch's tensors, in order; used up.
            device: Where tensors are made.
            wide: In float64: floating element types are not held to the graph's, and places are brought within, since
                rows may hold what no record does.

        Raises:
            IntegrityError: 5832 when a result has another shape or element type than the graph says.
            UnsupportedError: What a watch says of a call, with its number: 8855 when it has no private form.
        """
        graph = self._graph
        rows = len(values[len(graph.parameters) + len(graph.constants)])
        for number, step in enumerate(self._steps):
            given = [_argument(value, values, rows, wide) for _, value in step.positional]
            named = {name: _argument(value, values, rows, wide) for name, value in step.named}
            if step.makes:
                named["device"] = device
            if (self.within or wide) and step.node.op in WITHIN:
                given = WITHIN[step.node.op](*given)
            try:
                made = (step.operator if wide else self._shortcuts.get(number, step.operator))(*given, **named)
            except UnsupportedError as error:
                got = f"call {number} of the certificate, {step.node.op}: {error.got}"
                raise UnsupportedError(error.code, expected=error.expected, got=got, hint=error.hint) from error
            several = len(step.node.results) > 1 or isinstance(made, list | tuple)
            results = list(made) if several else [made]
            if len(results) != len(step.node.results):
                raise IntegrityError(5832, f"call {number} of {step.node.op} has another number of results")
            for result, spec in zip(results, step.node.results, strict=True):
                if not isinstance(result, Waiting):
                    require_spec(result, spec, rows, f"call {number} of {step.node.op}", wide=wide)
            values.extend(results)
            for gone in self._last.get(number, ()):
                values[gone] = None  # autograd keeps what it needs
        return values[graph.loss]


@dataclass(frozen=True, slots=True)
class _Step:
    """A call, ready to be made."""

    node: Node
    operator: Any
    positional: tuple[tuple[str, Any], ...]
    named: tuple[tuple[str, Any], ...]
    makes: bool  # something from nothing: it must be told where

    @classmethod
    def of(cls, node: Node) -> _Step:
        if node.op not in rules():  # a name out of a certificate is looked up only when a rule knows it
            raise InputError(2832, f"no such operator: {node.op}")
        namespace, _, rest = node.op.partition("::")
        name, _, overload = rest.partition(".")
        name = "reshape" if name in ("view", "_unsafe_view") else name  # strides may differ on another device
        operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        schema = operator._schema.arguments
        if node.op == "aten::copy.default":
            operator = _copy
        decoded = {key: argument(value) for key, value in node.args.items()}
        if name == "reshape" and "size" in decoded:
            decoded["shape"] = decoded.pop("size")
        known = {argument.name for argument in schema}
        if not set(decoded) <= known:
            raise InputError(2832, f"{node.op} takes no such argument")
        positional = tuple((each.name, decoded.get(each.name)) for each in schema if not each.kwarg_only)
        named = tuple((each.name, decoded[each.name]) for each in schema if each.kwarg_only and each.name in decoded)
        makes = "device" in known and not any(_has_value(value) for value in decoded.values())
        return cls(node, operator, positional, named, makes)


def _last_uses(graph: Graph, steps: Sequence[_Step]) -> Mapping[int, list[int]]:
    """Which of the values are used for the last time by which call."""
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        for _, value in (*step.positional, *step.named):
            for each in referred(value):
                last[each] = number
    last.pop(graph.loss, None)
    freed: dict[int, list[int]] = {}
    for value, number in last.items():
        freed.setdefault(number, []).append(value)
    return freed


def _copy(old: Tensor, new: Tensor, wait: bool = False) -> Tensor:
    """What stands in a tensor after another was copied into it; torch has no derivative of it as a function."""
    return new.to(old.dtype).expand(old.shape).clone()


def _has_value(value: Any) -> bool:
    return bool(referred(value))


def _argument(value: Any, values: Sequence[Any], rows: int, wide: bool) -> Any:
    if isinstance(value, Value):
        return values[value.number]
    if isinstance(value, Times):
        return value.count * rows
    if isinstance(value, list):
        return [_argument(item, values, rows, wide) for item in value]
    if isinstance(value, Dtype):
        dtype = getattr(torch, value.name)
        return torch.float64 if wide and dtype.is_floating_point else dtype
    return getattr(torch, value.name) if isinstance(value, Format) else value


def require_spec(result: Any, spec: Spec | None, rows: int, what: str, *, wide: bool = False) -> None:
    """Returns when a tensor is as the graph says, for a batch of ``rows`` rows."""
    if spec is None:
        return
    shape = tuple(int(size[:-1]) * rows if isinstance(size, str) else size for size in spec.shape)
    if not isinstance(result, Tensor) or tuple(result.shape) != shape:
        raise IntegrityError(5832, f"{what} has another shape", expected=shape, got=tuple(getattr(result, "shape", ())))
    dtype = getattr(torch, spec.dtype, None)
    if dtype != result.dtype and not (wide and result.is_floating_point()):
        raise IntegrityError(5832, f"{what} has another element type", expected=spec.dtype, got=str(result.dtype))


def rehearse(graph: Graph) -> None:
    """Runs a graph without numbers, for two sizes of the batch, so that a stranger's shapes are held to what they are.

    The rules go by the shapes that the graph states. Were ``(B, 4)`` called ``(4, B)`` somewhere, they would be misled.
    The sizes are primes larger than any other size of the graph, so a shape that is right for both is right for all.

    Raises:
        IntegrityError: 5832 when a call gives another shape or element type than the graph says.
    """
    stated = [size for node in graph.nodes for spec in node.results if spec is not None for size in spec.shape]
    stated += [size for spec in (*graph.parameters, *graph.constants, *graph.batch) for size in spec.shape]
    largest = max((size if isinstance(size, int) else int(size[:-1]) for size in stated), default=0)
    calls = Calls(graph)
    for rows in _primes_above(largest):
        try:
            given = [_meta(spec, rows) for spec in (*graph.parameters, *graph.constants, *graph.batch)]
            with torch.no_grad():
                calls.run(given, torch.device("meta"))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
            raise IntegrityError(5832, "a call of the graph cannot be made", got=type(error).__name__) from error


def _primes_above(least: int) -> Iterator[int]:
    found = 0
    for number in count(max(least, 10) + 1):
        if all(number % divisor for divisor in range(2, isqrt(number) + 1)):
            yield number
            found += 1
        if found == 2:
            return


def _meta(spec: Spec, rows: int) -> Tensor:
    shape = [int(size[:-1]) * rows if isinstance(size, str) else size for size in spec.shape]
    return torch.empty(shape, dtype=getattr(torch, spec.dtype), device="meta")
