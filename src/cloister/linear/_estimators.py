"""Ridge, LASSO and elastic net, with scikit-learn's names, objectives and ``alpha``.

Penalties act on publicly scaled columns and the response counts in its own units, as in
``make_pipeline(StandardScaler(), Lasso(alpha))``; coefficients come in the units of the data. The intercept is never
penalised.

>>> import numpy as np
>>> columns = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 3.0], [4.0, 2.0], [6.0, 2.0]])
>>> response = 3 * columns[:, 0] - 2 * columns[:, 1] + 1
>>> model = Ridge(alpha=1e-3).fit_local([(columns[:3], response[:3]), (columns[3:], response[3:])])
>>> model.coef_.round(2), round(model.intercept_, 2), model.certificate_
(array([ 3., -2.]), 1.0, True)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.linear._estimator import Estimator
from cloister.linear._parameters import terms_of
from cloister.linear._rows import read_rows
from cloister.linear._scaling import Scaling
from cloister.linear._terms import ElasticNetTerms, LassoTerms, RidgeTerms, decimal

__all__ = ["ElasticNet", "Lasso", "Ridge"]


class _Regressor(Estimator):
    def predict(self, features: Any) -> NDArray[np.float64]:
        """The response of each row, (rows,).

        Raises:
            InputError: 2904, 2906 and 2908 as for a fit, 2916 before it.
        """
        return self._scores(features)

    def score(self, features: Any, response: Any) -> float:
        """R² of these rows: 1 less the residuals' share of the response's variance; raises as :meth:`predict`."""
        predicted, truth = self._scores(features), read_rows(features, response).response
        residual, total = float(((truth - predicted) ** 2).sum()), float(((truth - truth.mean()) ** 2).sum())
        return 1 - residual / total if total else float(not residual)


class Ridge(_Regressor):
    """``‖y - Xw - b‖² + alpha·‖w‖²``.

    Args:
        alpha: At least 0.
        scaling: Public scaling; by default mean and standard deviation of all rows.
        curvature: κ that was agreed for all parties; by default what each party's rows need.
        mean_square: Of every scaled column, agreed; by default what the rows need, 2 or more.
        steps: Of Chebyshev's iteration.
        floor: Curvature that the steps take for the least: smaller needs more steps.
        tolerance: Of the certificate, in standardised units.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        scaling: Scaling | None = None,
        curvature: float | None = None,
        mean_square: float | None = None,
        steps: int = 200,
        floor: float = 0.03,
        tolerance: float = 2**-12,
    ) -> None:
        super().__init__(scaling=scaling, curvature=curvature, mean_square=mean_square, tolerance=tolerance)
        self.alpha = alpha
        self.steps = steps
        self.floor = floor

    def _terms(self) -> RidgeTerms:
        return terms_of(
            RidgeTerms,
            type="ridge",
            alpha=decimal(self.alpha, "alpha"),
            steps=self.steps,
            floor=decimal(self.floor, "floor"),
        )


class ElasticNet(_Regressor):
    """``‖y - Xw - b‖²/2N + alpha·l1_ratio·‖w‖₁ + alpha·(1 - l1_ratio)/2·‖w‖²``.

    Args:
        alpha: Positive.
        l1_ratio: Above 0, at most 1.
        scaling: As for :class:`Ridge`.
        curvature: As for :class:`Ridge`.
        mean_square: As for :class:`Ridge`.
        theta: ADMM's penalty, in standardised units.
        rounds: Of ADMM.
        half: Half the steps of a round.
        tolerance: Of the certificate, in standardised units.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
        scaling: Scaling | None = None,
        curvature: float | None = None,
        mean_square: float | None = None,
        theta: float = 0.4,
        rounds: int = 20,
        half: int = 8,
        tolerance: float = 2**-12,
    ) -> None:
        super().__init__(scaling=scaling, curvature=curvature, mean_square=mean_square, tolerance=tolerance)
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.theta = theta
        self.rounds = rounds
        self.half = half

    def _terms(self) -> LassoTerms | ElasticNetTerms:
        return terms_of(
            ElasticNetTerms,
            type="elastic-net",
            alpha=decimal(self.alpha, "alpha"),
            l1_ratio=decimal(self.l1_ratio, "l1_ratio"),
            theta=decimal(self.theta, "theta"),
            rounds=self.rounds,
            half=self.half,
        )


class Lasso(ElasticNet):
    """``‖y - Xw - b‖²/2N + alpha·‖w‖₁``.

    Args:
        alpha: Positive.
        scaling: As for :class:`Ridge`.
        curvature: As for :class:`Ridge`.
        mean_square: As for :class:`Ridge`.
        theta: As for :class:`ElasticNet`.
        rounds: As for :class:`ElasticNet`.
        half: As for :class:`ElasticNet`.
        tolerance: As for :class:`ElasticNet`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        scaling: Scaling | None = None,
        curvature: float | None = None,
        mean_square: float | None = None,
        theta: float = 0.4,
        rounds: int = 20,
        half: int = 8,
        tolerance: float = 2**-12,
    ) -> None:
        super().__init__(
            alpha,
            l1_ratio=1.0,
            scaling=scaling,
            curvature=curvature,
            mean_square=mean_square,
            theta=theta,
            rounds=rounds,
            half=half,
            tolerance=tolerance,
        )

    def _terms(self) -> LassoTerms:
        return terms_of(
            LassoTerms,
            type="lasso",
            alpha=decimal(self.alpha, "alpha"),
            theta=decimal(self.theta, "theta"),
            rounds=self.rounds,
            half=self.half,
        )
