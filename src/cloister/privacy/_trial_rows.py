"""Rows for a forward's trials (:mod:`cloister.privacy._plan`): of a batch's shapes and element types, not its data.

Whole numbers are few and small, since they may be words of a table, classes, or places: nearly every table has two
rows. Fractions are of a range in which nearly every function is defined. An exchanged row differs from the one before
wherever it can, and its fractions lie beyond all others', so that a largest or a least over the batch changes too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cloister.privacy._within import WITHIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["EXCHANGED", "FEW", "MADE_UP", "MORE", "Batch", "Exchange", "Places"]

FEW, MORE = 3, 5
EXCHANGED = 1  # neither the first nor the last of FEW

_LEFT_OUT = (-100, 0, 1)  # of losses: torch's own ignore_index, and words that stand for padding


class Exchange(NamedTuple):
    """What becomes of the exchanged example: all of it another, or one tensor's row a single number.

    Attributes:
        place: Of that tensor in the batch; None for all of it.
        number: The number.
    """

    place: int | None = None
    number: int = 0


class _Kind(Protocol):
    def rows(self, like: Tensor, number: int, draws: torch.Generator) -> Tensor:
        """So many rows for a tensor of the batch."""
        ...

    def other(self, like: Tensor, row: Tensor, draws: torch.Generator) -> Tensor:
        """One to take the place of one of them."""
        ...


@dataclass(frozen=True, slots=True)
class _MadeUp:
    """Nobody's rows.

    Attributes:
        numbers: The least and the largest, of whole numbers and of fractions.
        flags: The same of truth values.
    """

    numbers: tuple[int, int]
    flags: tuple[int, int]

    def rows(self, like: Tensor, number: int, draws: torch.Generator) -> Tensor:
        """Fractions from the middle half of the range."""
        shape = (number, *like.shape[1:])
        if _is_fraction(like):
            return self._between(torch.rand(shape, generator=draws) / 2 + 0.25, like)
        least, most = self._whole(like)
        return torch.randint(least, most + 1, shape, generator=draws).to(like.device, like.dtype)

    def other(self, like: Tensor, row: Tensor, draws: torch.Generator) -> Tensor:
        """Fractions from its outer quarters."""
        if _is_fraction(like):
            low = torch.rand(row.shape, generator=draws) / 5 + 0.04
            high = torch.randint(0, 2, row.shape, generator=draws).bool()
            return self._between(torch.where(high, 1 - low, low), like)
        return (sum(self._whole(like)) - row.long()).to(like.dtype)

    def _between(self, share: Tensor, like: Tensor) -> Tensor:
        least, most = self.numbers
        return (least + (most - least) * share).to(like.device, like.dtype)

    def _whole(self, like: Tensor) -> tuple[int, int]:
        if like.dtype == torch.bool:
            return self.flags
        return max(self.numbers[0], torch.iinfo(like.dtype).min), self.numbers[1]


@dataclass(frozen=True, slots=True)
class _First:
    """The batch's own first rows; where there are fewer, some come twice.

    Attributes:
        unlike: The row of the batch that takes the place of one of them.
    """

    unlike: int

    def rows(self, like: Tensor, number: int, draws: torch.Generator) -> Tensor:
        """As they are."""
        return like.detach()[[row % len(like) for row in range(number)]]

    def other(self, like: Tensor, row: Tensor, draws: torch.Generator) -> Tensor:
        """The other row; fractions that are the same there are made up."""
        other = like.detach()[self.unlike]
        return MADE_UP[0].other(like, row, draws) if _is_fraction(like) and torch.equal(other, row) else other


MADE_UP = (_MadeUp((0, 1), (0, 1)), _MadeUp((1, 2), (1, 1)), _MadeUp((-100, 101), (0, 0)))
"""In the order in which they are tried: some functions are defined from 1 only, some count from 1, a random mask can
hide all of a row, and pixels can be rounded. The ends' sums are odd: no whole number is its own other."""


class Batch:
    """A forward's arguments, with other rows.

    Args:
        arguments: A tree; tensors whose first axis has ``examples`` rows are the batch.
        examples: How many there are.
        kind: Of the rows; the batch's own first ones when left out.
    """

    def __init__(self, arguments: Any, examples: int, kind: _Kind | None = None) -> None:
        self._arguments, self._examples = arguments, examples
        self._kind = kind or _First(self._unlike())
        self._made_up = kind is not None

    def watched(self) -> AbstractContextManager[object]:
        """What a forward on these rows runs in."""
        return Places() if self._made_up and torch.cuda.is_initialized() else nullcontext()

    def of(self, number: int, exchange: Exchange | None = None) -> Any:
        """The arguments with so many examples, always the same; with one exchanged where that is said."""
        draws, others = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        places = count()

        def leaf(value: Any) -> Any:
            if not self._has_examples(value):
                return value
            rows, place = self._kind.rows(value, number, draws), next(places)
            if exchange is not None and exchange.place is None:
                rows[EXCHANGED] = self._kind.other(value, rows[EXCHANGED], others)
            elif exchange is not None and exchange.place == place:
                rows[EXCHANGED] = exchange.number
            return rows

        return pytree.tree_map(leaf, self._arguments)

    def left_out(self) -> Iterator[Exchange]:
        """Of each tensor of whole numbers, rows that a loss may leave out."""
        for place, leaf in enumerate(self._leaves()):
            if not _is_fraction(leaf) and leaf.dtype != torch.bool:
                least = torch.iinfo(leaf.dtype).min
                yield from (Exchange(place, number) for number in _LEFT_OUT if number >= least)

    def _unlike(self) -> int:
        """The row that differs in most from the one that is exchanged."""
        differs = torch.zeros(self._examples, dtype=torch.int64)
        for leaf in self._leaves():
            differs += (leaf != leaf[EXCHANGED % len(leaf)]).reshape(self._examples, -1).sum(1).cpu()
        return int(differs.argmax())

    def _leaves(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(self._arguments) if self._has_examples(leaf)]

    def _has_examples(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self._examples


def _is_fraction(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class Places(TorchDispatchMode):
    """Refuses a place that there is not, before a kernel is asked for it: on an accelerator that ends the process.

    Raises:
        IndexError: For a call of :data:`~cloister.privacy._within.WITHIN` that is not within.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        within = WITHIN.get(str(func).replace(".", "::", 1).replace("_.", "."))  # what writes in place is called so
        if within is not None:
            for given, found in zip(pytree.tree_leaves(args), pytree.tree_leaves(within(*args)), strict=True):
                if given is not found and not torch.equal(given, found):
                    raise IndexError("a made-up row names a place that there is not")
        return func(*args, **(kwargs or {}))
