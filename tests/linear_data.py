"""Rows for linear models: synthetic ones of a known condition, and the shared real ones, as (features, response)."""

from __future__ import annotations

import csv
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
    """All rows of a shared data set; constant columns and keys left out, categories as columns of 0 and 1.

    Of gene_expression the first 200 genes of the lung study whose number is a multiple of 50.
    """
    if name == "gene_expression":
        study = np.load(folder / name / "gordon_train.npz")
        return study["X"][:, ::50][:, :200].astype(np.float64), study["y"].astype(np.float64)
    if name == "bank_marketing":
        return _bank(folder)
    headless = name in ("kegg_undirected", "blogfeedback")
    with gzip.open(folder / name / "train.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", skiprows=int(not headless))
    features = table[:, int(name == "credit_default") : -1]
    return features[:, features.std(axis=0) > 0], table[:, -1]


def bank_source(folder: Path) -> Any:
    """bank_marketing as a file with agreed categories."""
    from cloister.linear import read_source

    path = folder / "bank_marketing" / "train.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = list(csv.reader(file, delimiter=";"))
    columns = {name: sorted(set(values)) for name, *values in zip(*rows, strict=True)}
    lists = {name: values for name, values in columns.items() if not values[0].lstrip("-")[0].isdigit()}
    *features, response = rows[0]
    return read_source(path, features=features, response=response, categories=lists, separator=";")


def _bank(folder: Path) -> tuple[Floats, Floats]:
    chunks = list(bank_source(folder).chunks())
    return np.vstack([rows.features for rows in chunks]), np.concatenate([rows.response for rows in chunks])


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
