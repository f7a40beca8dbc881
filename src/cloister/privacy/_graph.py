"""A model's forward pass and its loss as data: what is checked, hashed, certified and run.

A :class:`Graph` is a list of calls of ATen operators in order. It holds no name, no line and no device of the machine
that made it, so that two exports of one model have one digest. Values are numbered: parameters first, then constants,
the batch's tensors, and each call's results. A size is an integer or a multiple of the batch's, ``"4B"``; a number with
a fraction is written by :meth:`float.hex`, since signed JSON has no floats.

No torch here: who rechecks a certificate needs none.

>>> argument(float_argument(0.5)), argument({"value": 3}), argument([1, {"size": 4}])
(0.5, Value(number=3), [1, Times(count=4)])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, JsonValue

from cloister import wire
from cloister.errors import InputError

__all__ = [
    "Constant",
    "Dtype",
    "Format",
    "Graph",
    "Node",
    "Parameter",
    "Row",
    "Size",
    "Spec",
    "Times",
    "Value",
    "argument",
    "float_argument",
    "referred",
    "size_argument",
    "sizes",
]

GRAPH_LABEL = "cloister/privacy-graph/v1"
MAX_NODES = 50_000  # a forward pass of the largest models exported has some thousands
MAX_EMBEDDED_BYTES = 64 * 1024  # of a constant that no module names; a table of numbers in a script is smaller


@dataclass(frozen=True, slots=True)
class Times:
    """A size that is ``count`` times the batch's."""

    count: int


Size: TypeAlias = int | Times


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor by its number in the graph."""

    number: int


@dataclass(frozen=True, slots=True)
class Dtype:
    """An element's type by its name in torch: ``float32``."""

    name: str


@dataclass(frozen=True, slots=True)
class Format:
    """A memory format by its name in torch: ``channels_last``. It says nothing about values."""

    name: str


_Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}B$")] | Annotated[int, Field(ge=0, lt=2**40)]
_Op = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*::[A-Za-z0-9_]+\.[A-Za-z0-9_]+$", max_length=120)]
_DtypeName = Annotated[str, Field(pattern=r"^[a-z]+[a-z0-9_]*$", max_length=24)]
_Path = Annotated[str, Field(max_length=512)]


class Spec(wire.Message):
    """A tensor's element type and shape."""

    dtype: _DtypeName
    shape: tuple[_Size, ...]


class Parameter(Spec):
    """A parameter by its path; whether it is trained; other paths of the same tensor (a tied weight)."""

    name: _Path
    trained: bool
    also: tuple[_Path, ...] = ()


class Constant(Spec):
    """A buffer, or a tensor that the code holds: its bytes' SHA-256 and, where no module names it, the bytes."""

    name: _Path
    sha256: wire.Digest
    data: wire.B64 | None = None


class Row(Spec):
    """A tensor of the batch, by its place in it: ``"0"``, ``"labels"``. Its first axis is the batch."""

    name: _Path


class Node(wire.Message):
    """One call of an operator: arguments by the schema's names, every default written out; results, None unread."""

    op: _Op
    args: dict[str, JsonValue]
    results: tuple[Spec | None, ...]


class Graph(wire.Message):
    """Forward and loss.

    Attributes:
        format: The format's name and version.
        parameters: What is trained, and what is frozen.
        constants: What never changes.
        batch: The batch's tensors.
        nodes: The calls, in order.
        loss: Number of the value that is returned.
    """

    format: Literal["cloister/privacy-graph/v1"] = GRAPH_LABEL
    parameters: tuple[Parameter, ...]
    constants: tuple[Constant, ...]
    batch: tuple[Row, ...]
    nodes: Annotated[tuple[Node, ...], Field(max_length=MAX_NODES)]
    loss: int

    def graph_digest(self) -> str:
        """The id of this computation: a labelled SHA-256 of its canonical JSON, in hexadecimal."""
        return wire.labelled_digest(GRAPH_LABEL, self.as_json())


def sizes(spec: Spec) -> tuple[Size, ...]:
    """A shape with its multiples of the batch as :class:`Times`."""
    return tuple(Times(int(size[:-1])) if isinstance(size, str) else size for size in spec.shape)


def size_argument(size: Size) -> JsonValue:
    """A size as an argument's JSON."""
    return {"size": size.count} if isinstance(size, Times) else size


def float_argument(value: float) -> JsonValue:
    """A float as an argument's JSON."""
    return {"float": value.hex()}


def argument(value: JsonValue) -> Any:
    """What an argument's JSON stands for: :class:`Value`, :class:`Times`, :class:`Dtype`, numbers, text, lists.

    Raises:
        InputError: 2832 when it stands for nothing.
    """
    if isinstance(value, list):
        return [argument(item) for item in value]
    if not isinstance(value, dict):
        if isinstance(value, float):
            raise _malformed(f"a float as a number: {value}")
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        if kind in ("value", "size") and type(content) is int:
            return Value(content) if kind == "value" else Times(content)
        if kind in _TEXTUAL and isinstance(content, str) and len(content) <= 64:
            try:
                return _TEXTUAL[kind](content)
            except (ValueError, OverflowError):
                pass
    raise _malformed(f"no such argument: {str(value)[:60]}")


def referred(value: Any) -> list[int]:
    """Numbers of the values in an argument."""
    if isinstance(value, Value):
        return [value.number]
    return [number for item in value for number in referred(item)] if isinstance(value, list) else []


_TEXTUAL = {"float": float.fromhex, "int": int, "dtype": Dtype, "memory_format": Format}


def _malformed(what: str) -> InputError:
    return InputError(2832, what)
