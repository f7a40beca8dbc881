"""An agreement tried on rows that lie in one place, before anybody signs: which bounds they need, whether it converges.

The arithmetic is a session's own, on the emulator. With one file its rows are dealt to the parties in turn, so what is
found holds for parties that are alike; those that differ need wider bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cloister.errors import CloisterError, InputError
from cloister.linear._agreed_rows import CLASSES, estimator_of, rows_of
from cloister.linear._agreement import Agreement
from cloister.linear._compare import score
from cloister.linear._local import bounds_of, reduced
from cloister.linear._logistic import LogisticRegression
from cloister.linear._plan import exact
from cloister.linear._rows import Part, Rows
from cloister.linear._terms import LogisticTerms

__all__ = ["Explored", "Trial", "explored"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One penalty: what came of it. The score is R², of a logistic model the AUC, on the same rows."""

    penalty: str
    problem: str | None
    nonzero: int = 0
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Explored:
    """What was found.

    Attributes:
        curvature: The greatest that a part needs, as agreements write it.
        mean_square: The greatest that a column of a part needs.
        agreed_curvature: What the agreement has.
        agreed_mean_square: What the agreement has, where no column has its own.
        beyond: Columns that need more than was agreed for them, and what.
        trials: One a penalty.
    """

    curvature: str
    mean_square: str
    agreed_curvature: str
    agreed_mean_square: str
    beyond: dict[str, str]
    trials: tuple[Trial, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        trials = [
            {"penalty": one.penalty, "problem": one.problem, "nonzero": one.nonzero, "score": one.score}
            for one in self.trials
        ]
        return {
            "curvature": self.curvature,
            "mean_square": self.mean_square,
            "beyond": self.beyond,
            "trials": trials,
        }


def explored(agreement: Agreement, paths: Sequence[Path], *, penalties: Sequence[str]) -> Explored:
    """What these rows need and give.

    Args:
        agreement: To be tried; only its columns, scales and model count.
        paths: One file, or one a party.
        penalties: ``alpha`` (of a logistic model ``C``) to try; none tries the agreed one.

    Raises:
        InputError: when the rows cannot be read; 2907 when files are neither one nor one a party.
        UnsupportedError: 8901 of statistics.
    """
    estimator_of(agreement)  # which statistics have not
    parts = _parts(agreement, paths)
    scaling = agreement.scaling()
    signed = LogisticRegression(classes=CLASSES)._read(parts) if agreement.response.labels else parts
    factors = [reduced(scaling.chunks(part), len(agreement.columns) + 2, None) for part in signed]
    needed = bounds_of(factors, mean_square=None, curvature=None)
    columns = (*agreement.columns, agreement.response.name)
    beyond = {
        name: _text(need)
        for name, need, agreed in zip(columns, needed.mean_squares, agreement.mean_squares(), strict=True)
        if need > agreed
    }
    field = "C" if isinstance(agreement.model, LogisticTerms) else "alpha"
    tried = penalties or [getattr(agreement.model, field)]
    return Explored(
        curvature=_text(max(needed.curvatures)),
        mean_square=_text(max(needed.mean_squares)),
        agreed_curvature=_text(exact(agreement.curvature)),
        agreed_mean_square=_text(exact(agreement.mean_square)),
        beyond=beyond,
        trials=tuple(_tried(agreement, field, penalty, parts) for penalty in tried),
    )


def _tried(agreement: Agreement, field: str, penalty: str, parts: Sequence[Part]) -> Trial:
    try:
        model = type(agreement.model).model_validate_json(
            (agreement.model.model_copy(update={field: penalty})).model_dump_json()
        )
    except ValueError:
        raise InputError(2019, f"not a penalty: {penalty[:40]!r}", expected="a decimal number") from None
    estimator = estimator_of(agreement.model_copy(update={"model": model}))
    try:
        fitted = estimator.fit_local(parts)
    except CloisterError as error:
        return Trial(penalty, str(error))
    tables = [rows for part in parts for rows in part.chunks()]
    response = np.concatenate([rows.response for rows in tables])
    scores = (
        np.concatenate([rows.features @ np.ravel(fitted.coef_) for rows in tables]) + np.ravel(fitted.intercept_)[0]
    )
    found = score(scores, response, logistic=field == "C")
    return Trial(penalty, None, int((np.ravel(fitted.coef_) != 0).sum()), found)


def _parts(agreement: Agreement, paths: Sequence[Path]) -> list[Part]:
    if len(paths) == len(agreement.parties):
        return [rows_of(agreement, path) for path in paths]
    if len(paths) != 1:
        raise InputError(2907, "neither one file nor one a party", expected=len(agreement.parties), got=len(paths))
    tables = list(rows_of(agreement, paths[0]).chunks())
    features, response = (np.concatenate([getattr(rows, name) for rows in tables]) for name in ("features", "response"))
    many = len(agreement.parties)
    if len(response) < many:
        raise InputError(2907, "fewer rows than parties", expected=many, got=len(response))
    return [Rows(agreement.columns, features[k::many], response[k::many]) for k in range(many)]


def _text(value: Fraction) -> str:
    return f"{float(value):g}"
