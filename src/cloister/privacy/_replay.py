"""Runs a certified graph: no line of the model's code is executed, so nothing can differ from what was checked.

Parameters are the model's own, so an optimizer, a checkpoint and an engine see the model as ever. Constants are held to
the certificate's digests. Every result's shape and element type is held to the graph's, each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from cloister.errors import InputError, IntegrityError
from cloister.privacy._forward_loss import ForwardLoss, Loss, leaves
from cloister.privacy._graph import Constant, Dtype, Format, Graph, Node, Spec, Times, Value, argument, referred
from cloister.privacy._reader import bytes_of
from cloister.privacy._rules import rules

__all__ = ["CertifiedLoss", "rehearse", "replay"]


class CertifiedLoss(nn.Module):
    """The computation of a graph on a model's parameters: from a batch to one loss a row.

    Args:
        graph: Already checked: :func:`~cloister.privacy.bind` does.
        model: Holds the parameters and buffers by the graph's names.
        loss: Likewise, when it is a module.

    Raises:
        IntegrityError: 5832 when a parameter or constant is not as the graph says.
    """

    def __init__(self, graph: Graph, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.graph = graph
        self.model = model
        if isinstance(loss, nn.Module):
            self.loss = loss
        whole = ForwardLoss(model, loss)
        given = dict(whole.named_parameters(remove_duplicate=False))
        trained = {id(tensor) for tensor in given.values() if tensor.requires_grad}
        for parameter in graph.parameters:
            found = given.get(parameter.name)
            if found is None or _spec_of(found) != _plain(parameter) or found.requires_grad != parameter.trained:
                raise IntegrityError(5832, f"{parameter.name} is not as certified", got=str(found is not None))
            trained.discard(id(found))
        if trained:
            names = [name for name, tensor in given.items() if id(tensor) in trained]
            raise IntegrityError(5832, f"{names[0]} is trained and not in the certificate")
        buffers = dict(whole.named_buffers(remove_duplicate=False))
        self._names = [parameter.name for parameter in graph.parameters]
        self._constants = [_constant(each, buffers) for each in graph.constants]
        self._steps = [_Step.of(node) for node in graph.nodes]

    def forward(self, batch: Any) -> Tensor:
        """One loss a row.

        Args:
            batch: Structured like the one that was certified, ``B`` rows.

        Raises:
            InputError: 2831 when it is structured otherwise.
            IntegrityError: 5832 when a result has another shape than the graph says.
        """
        rows = leaves(batch)
        if list(rows) != [row.name for row in self.graph.batch]:
            raise InputError(2831, "the batch is not structured as certified", got=str(list(rows))[:200])
        for row in self.graph.batch:
            _require(rows[row.name], row, len(rows[row.name]), row.name)
        whole = {f"model.{name}": tensor for name, tensor in self.model.named_parameters(remove_duplicate=False)}
        if isinstance(held := getattr(self, "loss", None), nn.Module):
            whole |= {f"loss.{name}": tensor for name, tensor in held.named_parameters(remove_duplicate=False)}
        device = next(iter(rows.values())).device
        constants = [constant.to(device) for constant in self._constants]
        values = [*(whole[name] for name in self._names), *constants, *rows.values()]
        return replay(self.graph, self._steps, values, device)


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


def replay(
    graph: Graph, steps: Sequence[_Step], values: list[Any], device: torch.device, *, wide: bool = False
) -> Tensor:
    """Runs a graph.

    Args:
        graph: What is run.
        steps: Its calls.
        values: Parameters, constants and the batch's tensors, in order; used up.
        device: Where tensors are made.
        wide: In float64: floating element types are not held to the graph's.

    Raises:
        IntegrityError: 5832 when a result has another shape or element type than the graph says.
    """
    rows = len(values[len(graph.parameters) + len(graph.constants)])
    last = _last_uses(graph, steps)
    for number, step in enumerate(steps):
        given = [_argument(value, values, rows, wide) for _, value in step.positional]
        named = {name: _argument(value, values, rows, wide) for name, value in step.named}
        if step.makes:
            named["device"] = device
        made = step.operator(*given, **named)
        several = len(step.node.results) > 1 or isinstance(made, list | tuple)
        results = list(made) if several else [made]
        if len(results) != len(step.node.results):
            raise IntegrityError(5832, f"call {number} of {step.node.op} has another number of results")
        for result, spec in zip(results, step.node.results, strict=True):
            _require(result, spec, rows, f"call {number} of {step.node.op}", wide=wide)
        values.extend(results)
        for gone in last.get(number, ()):
            values[gone] = None  # autograd keeps what it needs
    return values[graph.loss]


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


def _require(result: Any, spec: Spec | None, rows: int, what: str, *, wide: bool = False) -> None:
    """Returns when a tensor is as the graph says, for a batch of ``rows`` rows."""
    if spec is None:
        return
    shape = tuple(int(size[:-1]) * rows if isinstance(size, str) else size for size in spec.shape)
    if not isinstance(result, Tensor) or tuple(result.shape) != shape:
        raise IntegrityError(5832, f"{what} has another shape", expected=shape, got=tuple(getattr(result, "shape", ())))
    dtype = getattr(torch, spec.dtype, None)
    if dtype != result.dtype and not (wide and result.is_floating_point()):
        raise IntegrityError(5832, f"{what} has another element type", expected=spec.dtype, got=str(result.dtype))


def _plain(spec: Spec) -> Spec:
    return Spec(dtype=spec.dtype, shape=spec.shape)


def _spec_of(tensor: Tensor) -> Spec:
    return Spec(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


def _constant(constant: Constant, buffers: Mapping[str, Tensor]) -> Tensor:
    """A constant, by its bytes or by its name, held to its digest."""
    if constant.data is None:
        found = buffers.get(constant.name)
        data = b"" if found is None else bytes_of(found)
    else:
        found, data = None, constant.data
    if hashlib.sha256(data).hexdigest() != constant.sha256:
        raise IntegrityError(5832, f"{constant.name} is not as certified")
    if found is None:
        dtype = getattr(torch, constant.dtype, None)
        shape = [size for size in constant.shape if isinstance(size, int)]
        if not isinstance(dtype, torch.dtype) or torch.Size(shape).numel() * dtype.itemsize != len(data):
            raise InputError(2832, f"{constant.name}: its bytes are not its shape")
        found = (
            torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
        )
    if _spec_of(found) != _plain(constant):
        raise IntegrityError(5832, f"{constant.name} is not as certified")
    return found


def rehearse(graph: Graph) -> None:
    """Runs a graph without numbers, for two sizes of the batch, so that a stranger's shapes are held to what they are.

    The rules go by the shapes that the graph states. Were ``(B, 4)`` called ``(4, B)`` somewhere, they would be misled.
    The sizes are primes larger than any other size of the graph, so a shape that is right for both is right for all.

    Raises:
        IntegrityError: 5832 when a call gives another shape or element type than the graph says.
    """
    stated = [size for node in graph.nodes for spec in node.results if spec is not None for size in spec.shape]
    stated += [size for spec in (*graph.parameters, *graph.constants, *graph.batch) for size in spec.shape]
    largest = max(size if isinstance(size, int) else int(size[:-1]) for size in stated)
    steps = [_Step.of(node) for node in graph.nodes]
    for rows in _primes_above(largest):
        given = [_meta(spec, rows) for spec in (*graph.parameters, *graph.constants, *graph.batch)]
        try:
            with torch.no_grad():
                replay(graph, steps, given, torch.device("meta"))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
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
