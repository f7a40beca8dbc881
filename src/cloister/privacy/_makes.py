"""Ways of making rows that several forms share; see :data:`cloister.privacy._contributions.Make`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.privacy._contributions import Make
    from cloister.privacy._uses import Use

__all__ = ["bias_rows", "of_pictures", "values"]


def bias_rows(use: Use, dy: Tensor) -> Make:
    """Sums of ``(examples, channels, …)`` over positions."""
    return lambda rows, squares, add, some: use.kernels.bias_rows(dy[some], rows, squares, add=add)


def of_pictures(use: Use, make: Make) -> Make:
    """Rows of examples, from what makes a row of each entry along the first axis: an example may have several.

    They have to lie behind each other; see :meth:`~cloister.privacy._uses.Use.by_example`.
    """
    each = use.each
    if each == 1:
        return make

    def summed(rows: Tensor, squares: Tensor | None, add: bool, some: slice) -> None:
        parts = rows.new_empty(len(rows) * each, rows.shape[1])
        make(parts, None, False, slice(some.start * each, some.stop * each))
        _put(use, parts.view(-1, each, rows.shape[1]).sum(1), rows, squares, add)

    return summed


def values(use: Use, found: Tensor) -> Make:
    """Rows that are there already, ``(examples, …)``."""

    def make(rows: Tensor, squares: Tensor | None, add: bool, some: slice) -> None:
        _put(use, found[some].reshape(len(rows), -1), rows, squares, add)

    return make


def _put(use: Use, found: Tensor, rows: Tensor, squares: Tensor | None, add: bool) -> None:
    if add:
        rows += found
    else:
        rows.copy_(found)
    if squares is not None:
        use.kernels.square_rows(rows, squares)
