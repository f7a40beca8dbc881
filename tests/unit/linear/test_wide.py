"""Three hundred columns: a matrix that no single ciphertext holds."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from tests.linear_data import conditioned, split
from tests.linear_mesh import together

from cloister.linear._budget import budget_of
from cloister.linear._compute import Job, compute
from cloister.linear._local import bounds_of, reduced
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._rows import read_rows
from cloister.linear._scaling import Scaling
from cloister.linear._summary import summarise

FEATURES = 300


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_session_of_three_hundred_columns() -> None:
    features, response = conditioned(6000, FEATURES, 30.0)
    parts = [read_rows(*part) for part in split(features, response, "even", 2)]
    scaling = Scaling.of(parts)
    factors = [reduced(scaling.chunks(part), FEATURES + 2, None) for part in parts]
    bounds = bounds_of(factors, mean_square=None, curvature=None)
    plan = Plan(
        method="ridge",
        rows=bounds.rows,
        curvature=bounds.curvature,
        curvatures=bounds.curvatures,
        mean_squares=bounds.mean_squares,
        l2=Fraction(1, 20),
    )
    assert budget_of(plan).tiles.tiles > 1
    summaries = [summarise(plan, place, factor, scaling.names) for place, factor in enumerate(factors)]

    def act(party: Party) -> Any:
        return compute(party, Job(plan), lambda point: summaries[party.number])

    (model,), other = together(2, act)
    assert other == [model]
    scaled = np.vstack([chunk[:, 1:] for part in parts for chunk in scaling.chunks(part)])
    expected = Ridge(alpha=len(scaled) / 20).fit(scaled[:, :-1], scaled[:, -1])
    found = np.array(model[1:]) / 2**36
    assert np.linalg.norm(found - expected.coef_) < 1e-3 * np.linalg.norm(expected.coef_)
