"""Rows for linear models: synthetic ones of a known condition, and the shared real ones, as (features, response)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def conditioned(rows: int, features: int, condition: float, seed: int = 0) -> tuple[Floats, Floats]:
    """Normal rows whose covariance has eigenvalues from 1 to 1/condition; a third of the coefficients is not zero."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(features, features)))[0]
    roots = np.sqrt(np.geomspace(1, 1 / condition, features))
    table = generator.normal(size=(rows, features)) @ (basis * roots) @ basis.T
    weights = np.zeros(features)
    chosen = generator.choice(features, max(1, features // 3), replace=False)
    weights[chosen] = generator.normal(size=len(chosen))
    table = table / table.std(axis=0) * generator.uniform(0.5, 2, features) + generator.normal(size=features)
    signal = table / table.std(axis=0) @ weights
    return table, 3 + signal + 1.3 * signal.std() * generator.normal(size=rows)


def real(folder: Path, name: str) -> tuple[Floats, Floats]:
    """All rows of credit_default, creditcard_fraud or kegg_undirected; constant columns and keys left out."""
    with gzip.open(folder / name / "train.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", skiprows=int(name != "kegg_undirected"))
    features = table[:, int(name == "credit_default") : -1]
    return features[:, features.std(axis=0) > 0], table[:, -1]


def split(features: Floats, response: Floats, how: str, parties: int = 4) -> list[tuple[Floats, Floats]]:
    """The rows in parts: ``even``; ``sorted`` by the first column, so that parties differ; ``uneven`` and sorted."""
    order = np.arange(len(response)) if how == "even" else np.argsort(features[:, 0], kind="stable")
    if how == "uneven":
        cuts = [len(order) // 10, len(order) // 10 + len(order) // 20, 3 * len(order) // 4][: parties - 1]
        parts = np.split(order, cuts)
    else:
        parts = np.array_split(order, parties)
    return [(features[part], response[part]) for part in parts]


def pooled(model: Any, features: Floats, response: Floats) -> tuple[Floats, float]:
    """Coefficients and intercept of a scikit-learn model of the standardised columns, for the columns as they are."""
    centre, scale = features.mean(axis=0), features.std(axis=0)
    model.fit((features - centre) / scale, response)
    coefficients = model.coef_ / scale
    return coefficients, float(model.intercept_ - coefficients @ centre)


def r2(features: Floats, response: Floats, coefficients: Floats, intercept: float) -> float:
    rest = response - features @ coefficients - intercept
    return 1 - float(rest @ rest) / float(((response - response.mean()) ** 2).sum())
