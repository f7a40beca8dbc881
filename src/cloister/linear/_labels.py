"""Agreed labels and categories are text; in arrays and files numbers and truth values may stand for it: one rule.

* A value is the agreed text that it is written as; a whole number in floats as an integer: 1.0 is "1".
* A truth value is also "true" or "FALSE", where no other agreed text is written like it but for its case.
* What is not agreed has no place, and no message quotes it.

>>> places([2.0, "2", 3], ("1", "2"))
[1, 1, -1]
>>> places([True, False], ("false", "true"))
[1, 0]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear._rows import Part, column_of, is_missing

__all__ = ["classes_of", "numbered", "places", "text_of"]


def text_of(value: object) -> str:
    """As an agreement has it: the number 1.0 is "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def places(values: Iterable[object], agreed: Sequence[object]) -> list[int]:
    """The place of each value in the agreed list, -1 for one that is not there."""
    known = {text: place for place, one in enumerate(agreed) for text in (str(one), text_of(one))}
    return [_place(value, known) for value in values]


def classes_of(response: Any, labels: Sequence[str]) -> NDArray[Any]:
    """The two labels as 0 and 1. Numbers 0 and 1 are the classes themselves, unless a label reads as a number, too.

    Raises:
        InputError: 2904 when one is missing, 2906 when there is more than one column, 2908 when a value is neither.
    """
    response = column_of(response)
    each = (response, np.arange(len(response)))  # objects need not be in an order
    distinct, inverse = np.unique(response, return_inverse=True) if response.dtype.kind != "O" else each
    values = _present(distinct)
    found = np.array(places(values, labels))
    if (found >= 0).all():
        return found[inverse].astype(np.float64)
    if not any(map(_reads_as_number, labels)) and set(map(text_of, values)) <= {"0", "1", "False", "True"}:
        return response
    raise InputError(2908, "a label is not one of the agreed", expected=", ".join(labels))


def numbered(
    parts: Sequence[tuple[Any, Any] | Part], classes: Sequence[object] | None
) -> tuple[Sequence[tuple[Any, Any] | Part], tuple[str, str] | None]:
    """Parts whose labels are 0 and 1, and the two texts that they were; without any text the parts as they are.

    Args:
        parts: Of each party.
        classes: The agreed labels; None: the texts that there are.

    Raises:
        InputError: As :func:`classes_of`; 2908 when there are not two labels.
    """
    if classes is None:
        columns = [column_of(part[1]) for part in parts if isinstance(part, tuple | list)]
        classes = [value for column in columns if _has_text(column) for value in _present(column)]
    if not any(isinstance(one, str) for one in classes):
        return parts, None
    labels = sorted(set(map(text_of, classes)))
    if len(labels) != 2:
        raise InputError(2908, "the response has not two classes", expected="2 labels", got=len(labels))
    pair = (labels[0], labels[1])
    made = [(part[0], classes_of(part[1], pair)) if isinstance(part, tuple | list) else part for part in parts]
    return made, pair


def _has_text(column: NDArray[Any]) -> bool:
    return column.dtype.kind == "U" or (column.dtype.kind == "O" and any(isinstance(one, str) for one in column))


def _present(column: NDArray[Any]) -> list[object]:
    values = [one.item() if isinstance(one, np.generic) else one for one in column.tolist()]
    if any(map(is_missing, values)):
        raise InputError(2904, "the response has missing values", expected="labels")
    return values


def _place(value: object, known: Mapping[str, int]) -> int:
    text = text_of(value)
    if text in known or not isinstance(value, bool):
        return known.get(text, -1)
    alike = {place for other, place in known.items() if other.casefold() == text.casefold()}
    return alike.pop() if len(alike) == 1 else -1


def _reads_as_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return label.lower() in ("true", "false")
    return True
