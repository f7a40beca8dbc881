"""Rows of linear fits that are made as they are read, the agreement about them, and a plaintext fit of all of them.

As many columns as YearPredictionMSD has, with centres and units as far apart as there, correlated (a covariance of
condition 300), and a response that a linear model explains to a quarter. The numbers are drawn.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from cloister.linear._agreement import Agreement
from cloister.linear._consent import load_agreement
from cloister.linear._rows import CHUNK, Rows, read_rows
from cloister.wire import canonical

__all__ = ["LAMBDA", "Plain", "World", "agreement"]

Floats = NDArray[np.float64]

LAMBDA = 0.01
"""Penalty of every fit here, in standardised units."""
CONDITION, EXPLAINED = 300, 0.25


@dataclass(frozen=True)
class World:
    """What the rows of all parties are drawn from.

    Attributes:
        features: d.
        seed: Of the world and of every party's rows.
    """

    features: int
    seed: int = 0

    @property
    def names(self) -> list[str]:
        return [f"t{j}" for j in range(self.features)]

    def parameters(self) -> tuple[Floats, Floats, Floats, Floats, float]:
        """A root of the correlation, centres and units of features and response, weights, the noise's deviation."""
        generator = np.random.default_rng(self.seed)
        d = self.features
        basis = np.linalg.qr(generator.normal(size=(d, d)))[0]
        covariance = basis * np.geomspace(1, 1 / CONDITION, d) @ basis.T
        units = 1 / np.sqrt(np.diag(covariance))
        correlation = covariance * np.outer(units, units)
        weights = np.where(np.arange(d) % 3 == 0, generator.normal(size=d), 0.0)
        weights *= np.sqrt(EXPLAINED / (weights @ correlation @ weights))
        scales = np.append(np.geomspace(5, 2000, d), 10.9).round(3)
        centres = np.append(generator.normal(size=d) * scales[:-1], 1998.4).round(3)
        return np.linalg.cholesky(correlation).T, centres, scales, weights, float(np.sqrt(1 - EXPLAINED))

    def curvature(self) -> float:
        """That parties would agree on: half as much again as the greatest eigenvalue."""
        root = self.parameters()[0]
        return float(1.5 * max(1.0, np.linalg.eigvalsh(root.T @ root)[-1]))

    def blocks(self, party: int, count: int, *, single: bool = False) -> Iterator[tuple[Floats, Floats]]:
        """Features and response of a party's rows, a few thousand at a time; ``single``: as float32 holds them."""
        root, centres, scales, weights, noise = self.parameters()
        generator = np.random.default_rng([self.seed, 1 + party])
        for start in range(0, count, CHUNK):
            rows = min(CHUNK, count - start)
            table = generator.standard_normal((rows, self.features)) @ root
            response = table @ weights + noise * generator.standard_normal(rows)
            table *= scales[:-1]
            table += centres[:-1]
            response = response * scales[-1] + centres[-1]
            kind = np.float32 if single else np.float64
            yield table.astype(kind, copy=False), response.astype(kind, copy=False)


class Plain:
    """The fit that needs no secrecy: moments of all rows in one place, by numpy alone, and a solver on them."""

    def __init__(self, world: World) -> None:
        _, self.centres, self.scales, _, _ = world.parameters()
        self.gram: Floats = np.zeros((world.features + 2, world.features + 2))
        self.count = 0

    def add(self, features: Floats, response: Floats) -> None:
        table = np.empty((len(response), features.shape[1] + 2))
        table[:, 0] = 1
        table[:, 1:-1] = features
        table[:, -1] = response
        table[:, 1:] -= self.centres
        table[:, 1:] /= self.scales
        self.gram += table.T @ table
        self.count += len(table)

    def take(self, gram: Floats, count: int) -> None:
        """Rows that were added elsewhere."""
        self.gram += gram
        self.count += count

    def fit(self, kind: str) -> tuple[Floats, float]:
        """The model of scaled columns, the intercept first, and the seconds that the solver took."""
        start = time.perf_counter()
        means = self.gram[0] / self.gram[0, 0]
        centred = self.gram / self.count - np.outer(means, means)
        inner, cross = centred[1:-1, 1:-1], centred[1:-1, -1]
        if kind == "ridge":
            weights = np.linalg.solve(inner + LAMBDA * np.eye(len(inner)), cross)
        else:
            root = np.linalg.cholesky(inner).T  # d rows whose moments are those of all
            size = np.sqrt(len(inner))
            model = Lasso(alpha=LAMBDA, fit_intercept=False, tol=1e-12, max_iter=100_000)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                weights = model.fit(size * root, size * np.linalg.solve(root.T, cross)).coef_
        model = np.concatenate([[means[-1] - weights @ means[1:-1]], weights])
        return model, time.perf_counter() - start


def agreement(
    world: World,
    rows: Sequence[int],
    model: str,
    *,
    malicious: bool,
    keys: Sequence[str],
    addresses: Sequence[str],
) -> Agreement:
    """What the parties of a fit would have signed: ``ridge`` or ``lasso`` with the benchmarks' penalty."""
    _, centres, scales, _, _ = world.parameters()
    penalty = LAMBDA * (float(scales[-1]) if model == "lasso" else sum(rows))
    columns = [{"centre": f"{c:.3f}", "scale": f"{s:.3f}"} for c, s in zip(centres, scales, strict=True)]
    document: dict[str, Any] = {
        "format": "cloister/linear-agreement/v1",
        "name": "benchmark",
        "valid": {"not_before": "2020-01-01T00:00:00Z", "not_after": "2099-01-01T00:00:00Z"},
        "parties": [
            {"name": f"party-{place}", "key": key, "address": address, "rows": count}
            for place, (key, address, count) in enumerate(zip(keys, addresses, rows, strict=True))
        ],
        "features": [{"name": name, **column} for name, column in zip(world.names, columns[:-1], strict=True)],
        "response": {"name": "year", **columns[-1]},
        "model": {"type": model, "alpha": f"{penalty:.6f}"},
        "curvature": f"{world.curvature():.3f}",
        "adversary": "malicious" if malicious else "semi-honest",
        "timeouts": {"connect_s": 120, "answer_s": 600},
    }
    return load_agreement(canonical(document))


@dataclass(frozen=True)
class Drawn:
    """One party's rows as they are drawn: a part that can be read like a file's, checked like a caller's arrays.

    Attributes:
        world: They are drawn from.
        party: Whose they are.
        count: How many.
        plain: Takes the same rows, a chunk at a time, so that both contenders meet the same neighbours.
        taken: Seconds of drawing and of the plain contender, which are nobody's reading.
    """

    world: World
    party: int
    count: int
    plain: Plain
    taken: dict[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.world.names)

    def chunks(self) -> Iterator[Rows]:
        blocks = self.world.blocks(self.party, self.count)
        while True:
            start = time.perf_counter()
            block = next(blocks, None)
            drawn = time.perf_counter()
            self.taken["draw"] += drawn - start
            if block is None:
                return
            self.plain.add(*block)
            self.taken["plain"] += time.perf_counter() - drawn
            rows = read_rows(*block)
            yield Rows(self.names, rows.features, rows.response)
