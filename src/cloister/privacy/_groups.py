"""Which rows belong together: all of one person's, who is in a batch with all of them or with none.

What one person can change is bounded by how many rows count, and that bound is public: it sets how many places a batch
has for each. How many rows somebody has is private.

Labels that are equal are one group, so a label must be equal to others of its kind: numbers, text, tuples of them.
What is equal to nothing but itself (a tensor, NaN, an object of a class without ``__eq__``) would make each row a
group of its own, and one person would count as several.

>>> groups = Groups.of(["ann", "bob", "ann", "eve"], most_rows=2)
>>> len(groups), [groups.rows(number).tolist() for number in range(3)]
(3, [[0, 2], [1], [3]])
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import InputError, RefusedError

__all__ = ["Groups"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Groups:
    """Rows by group, the groups numbered as they appear. How many there are is public, what is in them private.

    Attributes:
        most_rows: Bound on the rows of a group.
        total_rows: Of the data set.
    """

    most_rows: int
    total_rows: int
    _starts: NDArray[np.int64]
    _order: NDArray[np.int64]

    @classmethod
    def of(
        cls, labels: Iterable[Hashable], *, most_rows: int, beyond: Literal["refuse", "truncate"] = "refuse"
    ) -> Groups:
        """Groups by a label for each row.

        Args:
            labels: In the data set's order: a user, a patient. A tensor, an array or whatever else has ``tolist`` is
                taken by its numbers.
            most_rows: Bound on the rows of a group, public, 1 or more.
            beyond: What becomes of a group that has more: ``truncate`` keeps its first ones, a rule that looks at no
                other group.

        Raises:
            InputError: 2811 without rows, or when ``most_rows`` is below 1; 2814 for labels that cannot be equal.
            RefusedError: 3811 when a group has more and none is to be cut.
        """
        rows: dict[Hashable, list[int]] = {}
        count = 0
        for row, label in enumerate(_listed(labels)):
            _require_comparable(label)
            rows.setdefault(label, []).append(row)
            count += 1
        if most_rows < 1 or not rows:
            raise InputError(2811, "no groups of rows", expected="one row and most_rows=1, or more", got=most_rows)
        if beyond != "truncate" and any(len(own) > most_rows for own in rows.values()):
            raise RefusedError(3811, expected=f"at most {most_rows} rows")  # not how many it has, nor who
        kept = [own[:most_rows] for own in rows.values()]
        starts = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        return cls(most_rows, count, starts, np.array([row for own in kept for row in own], np.int64))

    def rows(self, number: int) -> NDArray[np.int64]:
        """Of one group: at most ``most_rows`` places in the data set."""
        return self._order[self._starts[number] : self._starts[number + 1]]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __repr__(self) -> str:
        return f"<Groups {len(self)} of at most {self.most_rows} rows>"


def _listed(labels: Any) -> Iterable[Hashable]:
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(values, Iterable):
        raise InputError(2814, expected="a label for each row", got=type(labels).__name__)
    return values


def _require_comparable(label: Any) -> None:
    """Returns when labels that say the same are equal, and found by their hash."""
    if label is None:
        return
    kind = type(label)
    try:
        hash(label)
        same = bool(label == label)
    except Exception:
        same = False
    if not same or kind.__hash__ is object.__hash__ or isinstance(label, Tensor):
        raise InputError(2814, got=kind.__name__)
    if isinstance(label, (tuple, frozenset)):
        for part in label:
            _require_comparable(part)
