"""A party's own side of an agreement: its file's rows in the agreed columns, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cloister.errors import UnsupportedError
from cloister.linear._agreement import Agreement
from cloister.linear._estimators import ElasticNet, Lasso, Ridge
from cloister.linear._local import reduced
from cloister.linear._logistic import LogisticRegression
from cloister.linear._newton import weighted, within
from cloister.linear._plan import exact
from cloister.linear._rows import Part
from cloister.linear._sound import privacy_of
from cloister.linear._sources import read_source
from cloister.linear._summary import Summary, summarise
from cloister.linear._terms import ElasticNetTerms, LassoTerms, LogisticTerms, RidgeTerms

__all__ = ["CLASSES", "estimator_of", "newton_summary_of", "rows_of", "summary_of"]

CLASSES = (0.0, 1.0)
"""What a reader of files makes of the two agreed labels."""


def rows_of(agreement: Agreement, path: Path, *, progress: Callable[[int], object] | None = None) -> Part:
    """The rows of a file in the agreed columns, categories spread out; labels are 0 and 1. Nothing is read yet.

    Raises:
        InputError: as :func:`cloister.linear.read_source`.
    """
    categories = {feature.name: feature.categories for feature in agreement.features if feature.categories}
    if agreement.response.labels is not None:
        categories[agreement.response.name] = agreement.response.labels
    features = [feature.name for feature in agreement.features]
    return read_source(
        path, features=features, response=agreement.response.name, categories=categories, progress=progress
    )


def summary_of(agreement: Agreement, party: int, part: Part) -> Summary:
    """What a party puts into the first fit, once its rows keep every bound; with the agreed noise in it.

    Raises:
        InputError: 2902, 2903, 2907 when rows break what was agreed; 2904, 2906, 2908, 2913 when they cannot be read.
    """
    privacy = privacy_of(agreement) if agreement.privacy is not None else None
    if agreement.response.labels is not None:
        (part,) = LogisticRegression(classes=CLASSES)._read([part])  # as ±1
    factor = reduced(agreement.scaling().chunks(part), len(agreement.columns) + 2, privacy)
    return summarise(agreement.plan(), party, factor, agreement.columns)


def newton_summary_of(agreement: Agreement, party: int, part: Part, point: Sequence[int]) -> Summary:
    """What a party puts into a round of Newton's method that begins at ``point``, in ulp: shortened to what it keeps.

    Raises:
        InputError: As :func:`summary_of`.
    """
    privacy = privacy_of(agreement) if agreement.privacy is not None else None
    plan, scaling = agreement.plans()[-1], agreement.scaling()
    (signed,) = LogisticRegression(classes=CLASSES)._read([part])
    chunks = weighted(scaling.chunks(signed), scaling, point)
    factor = reduced(chunks, plan.columns + 1, privacy, counted=False)
    return summarise(plan, party, within(plan, party, factor), agreement.columns)


def estimator_of(agreement: Agreement) -> Ridge | ElasticNet | LogisticRegression:
    """The estimator with the agreed parameters, for fits of rows that lie in one place; raises 8901 for statistics."""
    model = agreement.model
    common = {"scaling": agreement.scaling(), "tolerance": float(exact(agreement.tolerance))}
    if isinstance(model, RidgeTerms):
        return Ridge(_float(model.alpha), steps=model.steps, floor=_float(model.floor), **common)
    if isinstance(model, LassoTerms | ElasticNetTerms):
        steps = {"theta": _float(model.theta), "rounds": model.rounds, "half": model.half}
        if isinstance(model, LassoTerms):
            return Lasso(_float(model.alpha), **steps, **common)
        return ElasticNet(_float(model.alpha), l1_ratio=_float(model.l1_ratio), **steps, **common)
    if isinstance(model, LogisticTerms):
        return LogisticRegression(
            C=_float(model.C),
            l1_ratio=_float(model.l1_ratio),
            method=model.method,
            rounds=model.newton_rounds,
            reach=_float(model.reach),
            classes=CLASSES,
            steps=model.steps,
            floor=_float(model.floor),
            **common,
        )
    raise UnsupportedError(8901, "statistics are no model")


def _float(number: str) -> float:
    return float(exact(number))
