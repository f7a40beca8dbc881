"""A session's model beside others of rows that lie in one place: the emulator's, and how each predicts.

For who holds pooled rows, of the past or for a test. Nothing of it is sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.errors import CloisterError
from cloister.linear._agreed_rows import estimator_of
from cloister.linear._agreement import Agreement
from cloister.linear._model import ModelFile
from cloister.linear._rows import Part
from cloister.linear._terms import LogisticTerms

__all__ = ["Comparison", "Row", "compared", "score"]

_NEAR = 1e-9  # a coefficient below this is none


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Attributes:
        name: Whose.
        score: R² on the rows; of a logistic model the area under the ROC curve. None where it has none.
        nonzero: Coefficients that are not 0.
        distance: Of its coefficients from the session's, relative to theirs, in scaled units; None where unknown.
        note: Why there is no model, if so.
    """

    name: str
    score: float | None
    nonzero: int | None
    distance: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models of one agreement, the session's first, and on how many rows they were compared."""

    rows: int
    measure: str
    models: tuple[Row, ...]


def compared(agreement: Agreement, file: ModelFile, parts: Sequence[Part]) -> Comparison:
    """The session's model, and a local fit of these rows with the same parameters and the session's arithmetic.

    Args:
        agreement: What was fitted.
        file: The session's model, verified.
        parts: The rows; where there is one part, its rows are split in two, since the arithmetic is that of parties.

    Raises:
        InputError: when the rows cannot be read.
        UnsupportedError: 8901 of statistics, which are no model.
    """
    estimator = estimator_of(agreement)
    tables = [(rows.features, rows.response) for part in parts for rows in part.chunks()]
    features, response = (np.concatenate([table[k] for table in tables]) for k in (0, 1))
    logistic = isinstance(agreement.model, LogisticTerms)
    own = np.array([float(value) for value in file.coefficients])
    unit = np.array(agreement.scaling().scales[:-1])
    found = [_row("session", own, float(file.intercept or 0), own, unit, features, response, logistic)]
    halves = np.array_split(np.arange(len(response)), 2)
    shares = [(features[half], response[half]) for half in halves]
    split = list(parts) if len(parts) > 1 else shares
    try:
        fitted = estimator.fit_local(split)
        local = np.ravel(fitted.coef_), float(np.ravel(fitted.intercept_)[0])
        found.append(_row("local, same arithmetic", *local, own, unit, features, response, logistic))
    except CloisterError as error:
        found.append(Row("local, same arithmetic", None, None, None, str(error)))
    return Comparison(len(response), "AUC" if logistic else "R²", tuple(found))


def _row(
    name: str,
    coefficients: NDArray[np.float64],
    intercept: float,
    own: NDArray[np.float64],
    unit: NDArray[np.float64],
    features: NDArray[np.float64],
    response: NDArray[np.float64],
    logistic: bool,
) -> Row:
    scores = features @ coefficients + intercept
    length = float(np.linalg.norm(own * unit))
    distance = float(np.linalg.norm((coefficients - own) * unit))
    relative = distance / length if length else (0.0 if not distance else math.inf)
    return Row(
        name, score(scores, response, logistic=logistic), int((np.abs(coefficients * unit) > _NEAR).sum()), relative
    )


def score(scores: NDArray[np.float64], response: NDArray[np.float64], *, logistic: bool) -> float | None:
    """R², or of a logistic model, whose labels are 0 and 1, the AUC; None where it is not defined."""
    return _auc(scores, response) if logistic else _r2(scores, response)


def _r2(scores: NDArray[np.float64], response: NDArray[np.float64]) -> float | None:
    total = float(((response - response.mean()) ** 2).sum())
    return 1 - float(((response - scores) ** 2).sum()) / total if total else None


def _auc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    """The chance that a positive has a greater score than a negative, half of it where they tie."""
    positive = labels > 0.5
    many, others = int(positive.sum()), int((~positive).sum())
    if not many or not others:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[places][positive].sum() - many * (many + 1) / 2) / (many * others))
