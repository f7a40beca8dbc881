"""The table of transfer rules: what each ATen operator does with the batch's axis.

A rule gets one :class:`Call`, in which every tensor is what is known of it, and returns what is known of each result.
It says no by :class:`Refusal`. The interpreter keeps to five rules of its own, so that no rule has to:

* an operator that is not in the table is refused (8831);
* where all tensors are public and no size is a multiple of the batch, the result is public, unless the operator draws
  random numbers;
* a multiple of the batch's size may stand only in arguments that the rule names as ``sizes``: anywhere else it would
  enter a value (8832);
* what an operator leaves beside its result is given to no rule, and memory that nobody wrote only to rules that write
  all of it (``fresh``);
* rows' numbers (:class:`~cloister.privacy._domain.Position`) are given only to rules that say they take them (8832).

The families are modules beside this one; :func:`rules` loads them. A change of what is accepted is a new
:data:`RULES_VERSION`: a certificate of another version is refused, never reinterpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from cloister.privacy._domain import PUBLIC, Kind, PerExample, Position, Public, Refusal, Tensor
from cloister.privacy._graph import Size, Times

__all__ = ["RULES_VERSION", "Call", "Rule", "alike", "axes", "axis", "pointwise", "rule", "rules", "unfolded"]

RULES_VERSION = 1


@dataclass(frozen=True, slots=True)
class Call:
    """One call as a rule sees it.

    Attributes:
        op: ``aten::add.Tensor``.
        args: By the schema's names; tensors as :class:`Tensor`, absent ones as None.
        shapes: Of each result.
        dtypes: Of each result.
    """

    op: str
    args: Mapping[str, Any]
    shapes: Sequence[tuple[Size, ...]]
    dtypes: Sequence[str]

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor that an argument is.

        Raises:
            TypeError: When it is none: the graph is malformed.
        """
        found = self.args.get(name)
        if not isinstance(found, Tensor):
            raise TypeError(f"{self.op}: {name} is no tensor")
        return found

    def tensors(self) -> Iterator[Tensor]:
        """All tensors among the arguments."""
        for value in self.args.values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list):
                yield from (item for item in value if isinstance(item, Tensor))

    def require_public(self, *names: str) -> None:
        """Returns when the named arguments are absent or public.

        Raises:
            Refusal: 8830 when one depends on examples.
        """
        for name in names:
            value = self.args.get(name)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Tensor) and not isinstance(item.kind, Public):
                    raise Refusal(8830, f"its {name} would depend on examples, and all rows share it")


Outcome: TypeAlias = "Kind | Sequence[Kind]"


@dataclass(frozen=True, slots=True)
class Rule:
    """A transfer rule and what it may be given."""

    apply: Callable[[Call], Outcome]
    sizes: frozenset[str] = frozenset()
    random: bool = False
    positions: bool = False
    fresh: bool = False


_TABLE: dict[str, Rule] = {}


def rule(
    operators: str, *, sizes: str = "", random: bool = False, positions: bool = False, fresh: bool = False
) -> Callable[[Callable[[Call], Outcome]], Callable[[Call], Outcome]]:
    """Registers a rule for operators, named ``name.overload`` and separated by blanks; ``name`` alone is the default.

    Args:
        operators: Of ATen.
        sizes: Names of arguments that only give shapes.
        random: The operator draws random numbers, so its rule is asked even where everything is public.
        positions: The rule takes rows' numbers.
        fresh: The operator writes all of ``self`` and reads nothing of it.
    """

    def register(apply: Callable[[Call], Outcome]) -> Callable[[Call], Outcome]:
        made = Rule(apply, frozenset(sizes.split()), random, positions, fresh)
        for name in operators.split():
            full = f"aten::{name}" if "." in name else f"aten::{name}.default"
            if full in _TABLE:
                raise ValueError(f"{full} has two rules")
            _TABLE[full] = made
        return apply

    return register


@cache
def rules() -> Mapping[str, Rule]:
    """The whole table, by full name."""
    from cloister.privacy import (  # noqa: F401
        _rules_indexing,
        _rules_layers,
        _rules_linear,
        _rules_pointwise,
        _rules_random,
        _rules_reduction,
        _rules_shape,
    )

    return _TABLE


def axis(dim: int, rank: int) -> int:
    """A dimension counted from the front.

    Raises:
        IndexError: When there is none such: the graph is malformed.
    """
    if not -max(rank, 1) <= dim < max(rank, 1):
        raise IndexError(f"no axis {dim} of {rank}")
    return dim % max(rank, 1)


def axes(dims: int | Sequence[int] | None, rank: int) -> frozenset[int]:
    """Dimensions counted from the front; None and an empty list are all of them."""
    if isinstance(dims, int):
        return frozenset({axis(dims, rank)})
    return frozenset(axis(dim, rank) for dim in dims) if dims else frozenset(range(rank))


def pointwise(tensors: Sequence[Tensor], rank: int) -> Kind:
    """What is known of a result whose every element comes of the elements at its own place, broadcast from the right.

    Raises:
        Refusal: 8830 when elements of different examples would meet; 8832 for a row's number.
    """
    found: PerExample | None = None
    for tensor in tensors:
        if isinstance(tensor.kind, Position):
            raise Refusal(8832, "a row's number would enter a value")
        if isinstance(tensor.kind, PerExample):
            kind = tensor.kind.at(tensor.kind.axis + rank - tensor.rank)
            if found not in (None, kind):
                raise Refusal(8830, f"it would combine one example with another ({found}, {kind})")
            found = kind
    if found is None:
        return PUBLIC
    for tensor in tensors:
        place = found.axis - rank + tensor.rank
        if isinstance(tensor.kind, Public) and place >= 0 and tensor.shape[place] != 1:
            raise Refusal(8830, "a tensor without a batch would be laid along the batch")
    return found


def alike(shape: Sequence[Size]) -> PerExample:
    """What is known of a tensor that is the same for every example, or drawn alike: any of them may own a position.

    Raises:
        Refusal: 8830 when its shape has the batch on no axis, or on several.
    """
    where = [at for at, size in enumerate(shape) if isinstance(size, Times)]
    if len(where) != 1:
        raise Refusal(8830, "the batch would be spread over several axes, or over none")
    size = shape[where[0]]
    return PerExample(where[0], 1, size.count if isinstance(size, Times) else 0)


def unfolded(tensor: Tensor) -> PerExample:
    """What is known of a tensor that must have one position an example.

    Raises:
        Refusal: 8830 when it is folded or has no batch.
    """
    if not isinstance(tensor.kind, PerExample) or tensor.shape[tensor.kind.axis] != Times(1):
        raise Refusal(8830, "the batch is folded with another axis here")
    return tensor.kind
