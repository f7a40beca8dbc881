"""A fit of an estimator's own rows under an agreement: the same parameters, the agreed columns, the agreed labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cloister.errors import InputError
from cloister.linear._agreement import Agreement
from cloister.linear._book import charge_book
from cloister.linear._consent import MAX_BYTES, Signed, load_signed
from cloister.linear._fit import fit_agreed
from cloister.linear._model import ModelFile
from cloister.linear._rows import Part, read_rows, require_columns
from cloister.linear._terms import Model
from cloister.party import Identity, home_folder
from cloister.wire import read_bounded

__all__ = ["fit_estimator", "own_rows", "require_same"]


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
) -> tuple[Agreement, ModelFile]:
    """The agreement and the model that all parties signed; raises as ``Ridge.fit``."""
    signed = agreement if isinstance(agreement, Signed) else _read(Path(agreement))
    require_same(terms, signed.agreement)
    part = own_rows(signed.agreement, features, response)
    folder = home_folder(home)
    charge = None if book is None else partial(charge_book, signed.agreement, book, folder, owner=identity.name)
    fit = fit_agreed(signed, part, identity=identity, home=folder, consent=consent, charge=charge, listen=listen)
    return signed.agreement, fit.file


def require_same(terms: Model, agreement: Agreement) -> None:
    """Raises 2915 unless an estimator's parameters make the plans of the agreement."""
    if terms.type == agreement.model.type:
        own = agreement.model_copy(update={"model": terms})
        if own.fits == agreement.fits and own.plans() == agreement.plans():
            return
    raise InputError(2915, expected=agreement.model.as_json(), got=terms.as_json())


def own_rows(agreement: Agreement, features: Any, response: Any) -> Part:
    """Rows in the agreed columns; raises as :func:`cloister.linear._rows.read_rows`, and 2908 for another label."""
    labels = agreement.response.labels
    if labels is not None:
        response = _classes(np.asarray(response), labels)
    rows = read_rows(features, response)
    require_columns(rows.names, agreement.columns)
    return rows


def _classes(response: Any, labels: tuple[str, str]) -> Any:
    """The two labels as 0 and 1. Numbers 0 and 1 are the classes themselves, unless a label reads as a number, too."""
    texts = np.array([_text(value) for value in response.tolist()], dtype=object)
    if np.isin(texts, labels).all():
        return (texts == labels[1]).astype(np.float64)
    if not any(map(_reads_as_number, labels)) and set(texts) <= {"0", "1", "False", "True"}:
        return response
    raise InputError(2908, "a label is not one of the agreed", expected=", ".join(labels))


def _text(value: Any) -> str:
    """As a file has it: the number 1.0 is the label "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _reads_as_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return label.lower() in ("true", "false")
    return True


def _read(path: Path) -> Signed:
    return load_signed(read_bounded(path, max_bytes=MAX_BYTES, what="signed agreement"), what=f"'{path}'")
