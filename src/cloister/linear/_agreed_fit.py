"""A fit of an estimator's own rows under an agreement: the same parameters, the agreed columns, the agreed labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cloister.errors import InputError
from cloister.linear._agreement import Agreement
from cloister.linear._book import charge_book
from cloister.linear._consent import MAX_BYTES, Signed, load_signed
from cloister.linear._fit import fit_agreed
from cloister.linear._labels import classes_of
from cloister.linear._model import ModelFile, statistics_in
from cloister.linear._plan import exact
from cloister.linear._rows import Part, read_rows, require_columns
from cloister.linear._statistics import Statistics
from cloister.linear._terms import Model, StatisticsTerms
from cloister.party import Identity, home_folder
from cloister.wire import read_bounded

__all__ = ["fit_estimator", "fit_statistics", "own_rows", "require_same"]


def fit_estimator(
    terms: Model,
    agreement: Signed | str | Path,
    features: Any,
    response: Any,
    *,
    identity: Identity,
    home: Path | None,
    consent: bool,
    book: Path | None,
    listen: str | None,
    given: Mapping[str, Any] | None = None,
) -> tuple[Agreement, ModelFile]:
    """The agreement and the model that all parties signed; raises as ``Ridge.fit``."""
    signed = _signed(agreement)
    require_same(terms, signed.agreement, given or {})
    part = own_rows(signed.agreement, features, response)
    folder = home_folder(home)
    charge = None if book is None else partial(charge_book, signed.agreement, book, folder, owner=identity.name)
    fit = fit_agreed(signed, part, identity=identity, home=folder, consent=consent, charge=charge, listen=listen)
    return signed.agreement, fit.file


def fit_statistics(agreement: Signed | str | Path, features: Any, response: Any, **own: Any) -> Statistics:
    """What the parties of an agreement of statistics opened; raises as :func:`cloister.linear.statistics`."""
    signed = _signed(agreement)
    terms = signed.agreement.model
    if not isinstance(terms, StatisticsTerms):
        raise InputError(2915, "the agreement is not of statistics", expected="statistics", got=terms.type)
    return statistics_in(*fit_estimator(terms, signed, features, response, **own))


def require_same(terms: Model, agreement: Agreement, given: Mapping[str, Any]) -> None:
    """Raises 2915 unless an estimator's parameters make the plans of the agreement.

    Args:
        terms: What the estimator fits.
        agreement: Signed by all.
        given: What the estimator has of scaling, curvature, mean square and tolerance of its own.
    """
    own = agreement.model_copy(update={"model": terms})
    if terms.type != agreement.model.type or own.fits != agreement.fits or own.plans() != agreement.plans():
        raise InputError(2915, expected=agreement.model.as_json(), got=terms.as_json())
    agreed: dict[str, set[object]] = {
        "scaling": {agreement.scaling()},
        "curvature": {exact(party.curvature or agreement.curvature) for party in agreement.parties},
        "mean_square": set(agreement.mean_squares()),
        "tolerance": {exact(agreement.tolerance)},
    }
    others = [name for name, value in given.items() if agreed[name] != {value if name == "scaling" else exact(value)}]
    if others:
        what = f"the estimator has another {' and another '.join(others)} than was agreed"
        raise InputError(2915, what, hint=f"leave {' and '.join(others)} out: the agreement has them, or agree anew")


def own_rows(agreement: Agreement, features: Any, response: Any) -> Part:
    """Rows in the agreed columns; raises as :func:`cloister.linear._rows.read_rows`, and 2908 for another label."""
    labels = agreement.response.labels
    if labels is not None:
        response = classes_of(response, labels)
    rows = read_rows(features, response)
    require_columns(rows.names, agreement.columns)
    return rows


def _signed(agreement: Signed | str | Path) -> Signed:
    if isinstance(agreement, Signed):
        return agreement
    return load_signed(
        read_bounded(Path(agreement), max_bytes=MAX_BYTES, what="signed agreement"), what=f"'{agreement}'"
    )
