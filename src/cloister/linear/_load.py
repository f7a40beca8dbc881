"""A model that parties released, read from its file: an estimator that predicts."""

from __future__ import annotations

from pathlib import Path

from cloister.linear._agreed_rows import estimator_of
from cloister.linear._consent import MAX_BYTES, Signed, load_signed, require_signed
from cloister.linear._estimators import ElasticNet, Ridge
from cloister.linear._logistic import LogisticRegression
from cloister.linear._model import MAX_MODEL_BYTES, read_model
from cloister.wire import read_bounded

__all__ = ["load_model"]


def load_model(path: str | Path, agreement: Signed | str | Path) -> Ridge | ElasticNet | LogisticRegression:
    """The estimator of a session, fitted: with ``coef_``, ``intercept_``, ``transcript`` and ``predict``.

    Args:
        path: The model's file.
        agreement: That it is of, signed by all, or its file. Whether its keys are the parties' own is for the caller
            to know; they are not compared with pinned ones.

    Raises:
        InputError: 2001 when a file cannot be read, 2002 to 2005 when it is none, 2331 when the model is of another
            agreement.
        RefusedError: 3301 when a party has not signed the agreement.
        IntegrityError: 5301, 5302, 5912 when a signature is false or missing, or a number is not the signed one.
        UnsupportedError: 8901 of statistics.
    """
    if not isinstance(agreement, Signed):
        data = read_bounded(agreement, max_bytes=MAX_BYTES, what="signed agreement")
        agreement = load_signed(data, what=f"'{agreement}'")
    require_signed(agreement)
    data = read_bounded(path, max_bytes=MAX_MODEL_BYTES, what="model")
    file = read_model(data, agreement.agreement, what=f"'{path}'")
    estimator = estimator_of(agreement.agreement)
    estimator._keep_agreed(agreement.agreement, file)
    return estimator
