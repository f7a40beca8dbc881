"""What is known of a tensor: which of its elements belong to which example.

* :class:`Public`: no element depends on an example, and no size on how many there are.
* :class:`PerExample`: along one axis, each example owns its own positions, and what stands there is one function of
  that example (and of parameters, constants and randomness of its own), the same for every example.
* :class:`Position`: the numbers ``0 … B-1`` of the rows. They may say which row is meant, never enter a value: where
  an example stands in a batch depends on who else was sampled.

* :class:`Unread`: whatever an operator leaves beside its result. Nobody may read it.

Everything else is refused, so there is no fifth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from cloister.privacy._graph import Size, Times

__all__ = [
    "PUBLIC",
    "Kind",
    "PerExample",
    "Position",
    "Public",
    "Refusal",
    "Tensor",
    "Unread",
    "consistent",
    "reshaped",
]


@dataclass(frozen=True, slots=True)
class Public:
    """Nothing of an example."""

    def __str__(self) -> str:
        return "public"


@dataclass(frozen=True, slots=True)
class PerExample:
    """Each example owns its positions along one axis.

    Example ``b`` of ``B`` owns the positions ``(o·B + b)·inner + i`` with ``o < outer`` and ``i < inner``.

    Attributes:
        axis: Counted from the front.
        outer: How often the batch stands on the axis one behind the other: 2 after ``cat([x, x])``.
        inner: How many neighbours belong to one example: ``T`` after ``x.view(B * T, C)``.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def __str__(self) -> str:
        folded = f" folded {self.outer}xBx{self.inner}" if (self.outer, self.inner) != (1, 1) else ""
        return f"example at {self.axis}{folded}"

    def at(self, axis: int) -> PerExample:
        """The same with the axis elsewhere."""
        return PerExample(axis, self.outer, self.inner)


@dataclass(frozen=True, slots=True)
class Position:
    """The rows' numbers along ``axis``; every other axis has size 1."""

    axis: int

    def __str__(self) -> str:
        return f"row number at {self.axis}"


@dataclass(frozen=True, slots=True)
class Unread:
    """What an operator leaves beside its result: perhaps a sum over the batch, perhaps memory that nobody wrote."""

    def __str__(self) -> str:
        return "unread"


Kind: TypeAlias = Public | PerExample | Position | Unread
PUBLIC = Public()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the rules see it: what is known of it, its shape, its element type."""

    kind: Kind
    shape: tuple[Size, ...]
    dtype: str

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)


class Refusal(Exception):
    """A rule says no.

    Args:
        code: 8830 to 8841.
        why: What the operator would do.
        hint: What to do instead; the code's remedy otherwise.
    """

    def __init__(self, code: int, why: str, hint: str | None = None) -> None:
        super().__init__(why)
        self.code, self.why, self.hint = code, why, hint


def consistent(kind: Kind, shape: Sequence[Size]) -> bool:
    """Whether a shape has exactly the multiples of the batch that what is known of a tensor says."""
    where = [axis for axis, size in enumerate(shape) if isinstance(size, Times)]
    if isinstance(kind, Unread):
        return True
    if isinstance(kind, Public):
        return not where
    if where != [kind.axis]:
        return False
    if isinstance(kind, PerExample):
        return kind.outer >= 1 and kind.inner >= 1 and shape[kind.axis] == Times(kind.outer * kind.inner)
    return shape[kind.axis] == Times(1) and all(size == 1 for axis, size in enumerate(shape) if axis != kind.axis)


def reshaped(kind: PerExample, before: Sequence[Size], after: Sequence[Size]) -> PerExample:
    """What is known after a reshape, which keeps the row-major order of elements.

    With ``L`` positions before the batch (sizes of the axes before, times ``outer``) and ``R`` behind it, an element's
    place is ``(l·B + b)·R + r``. On an output axis with ``P`` positions before it and ``Q`` behind, its position is
    that place divided by ``Q``, modulo the axis' size. Where ``Q`` divides ``R`` and ``P`` divides ``L`` this is
    ``((l mod L/P)·B + b)·(R/Q) + r/Q``: the example's own positions again. Otherwise positions of different examples
    would fall together.

    Raises:
        Refusal: 8830 when they would.
    """
    where = [axis for axis, size in enumerate(after) if isinstance(size, Times)]
    if len(where) != 1:
        raise Refusal(8830, "the batch would be spread over several axes, or over none")
    left = prod(_static(before[: kind.axis])) * kind.outer
    right = prod(_static(before[kind.axis + 1 :])) * kind.inner
    outer, rest = divmod(left, prod(_static(after[: where[0]])) or 1)
    inner, more = divmod(right, prod(_static(after[where[0] + 1 :])) or 1)
    if rest or more or after[where[0]] != Times(outer * inner):
        raise Refusal(8830, "the batch would be cut across examples", "keep the batch outermost: x.view(B, ...)")
    return PerExample(where[0], outer, inner)


def _static(shape: Sequence[Size]) -> list[int]:
    return [size for size in shape if not isinstance(size, Times)]
