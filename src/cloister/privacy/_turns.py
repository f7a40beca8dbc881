"""A loop's turns: the batch that the loader gave last is trained with, once, before it gives another.

Whose a row is stands beside the batch that was given *last*. A loop that looks ahead would pair one batch's rows with
another's owners, and one that trains with a batch twice would count its records more often than they are accounted.
The loop is the user's, so this is held where it can be seen: the loader gives nothing while a batch is out, a batch is
summed once, and a model in training is not given a tensor of an earlier one. Of a copy that somebody kept (of an
earlier batch, moved or augmented) nothing can be seen.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from cloister.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Turns"]


class Turns:
    """Of one loader.

    Attributes:
        held: Whether an engine trains with what is given; a loader that is only looked at gives as it is asked.
        anew: Whether an iteration was begun since somebody made this false.
    """

    def __init__(self) -> None:
        self.held, self.anew = False, False
        self._out = False
        self._current: list[weakref.ref[Tensor]] = []
        self._earlier: list[weakref.ref[Tensor]] = []

    def begin(self) -> None:
        """A new iteration: a batch that was out is not waited for, and may not come any more."""
        self._retire()
        self._out, self.anew = False, True

    def give(self, batch: Any) -> None:
        """A batch goes out.

        Raises:
            RefusedError: 3850 while the one before is out.
        """
        if not self.held:
            return
        if self._out:
            raise RefusedError(3850)
        self._retire()
        self._current = [weakref.ref(tensor) for tensor in _tensors(batch)]
        self._out = True

    def take(self) -> None:
        """The batch that is out was trained with.

        Raises:
            RefusedError: 3851 when none is out: it was trained with already.
        """
        if not self._out:
            raise RefusedError(3851, "a step of a batch that was summed already")
        self._out = False

    def require_current(self, given: Any) -> None:
        """Returns unless a tensor shares memory with one of an earlier batch.

        Raises:
            RefusedError: 3851 when it does.
        """
        self._earlier = [each for each in self._earlier if each() is not None]
        if not self._earlier:
            return
        # a data set may give views of one tensor: memory that the current batch has too is nobody's mark
        old = set(_memory(self._earlier)) - set(_memory(self._current))
        if any(tensor.untyped_storage().data_ptr() in old for tensor in _tensors(given)):
            raise RefusedError(3851, "the model was given a tensor of an earlier batch")

    def _retire(self) -> None:
        self._earlier += self._current
        self._current = []


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))


def _memory(references: list[weakref.ref[Tensor]]) -> Iterator[int]:
    for reference in references:
        tensor = reference()
        if tensor is not None:
            yield tensor.untyped_storage().data_ptr()
