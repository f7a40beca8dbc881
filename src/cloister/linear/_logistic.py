"""Logistic regression by quadratic statistics: one linear fit, which leaks no more than one.

On [-4, 4] the log-likelihood of a label y = ±1 at the score s is near ``b_0 + ys/2 - b_2 s²``, its Chebyshev expansion to
degree two. So the optimum is that of least squares on ``y/(4b_2)`` with scaled penalties (Huggins, Adams, Broderick,
"PASS-GLM", NeurIPS 2017, section 4). It ranks as logistic regression does; its coefficients may be off by a third.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.linear._estimator import Estimator
from cloister.linear._local import Fitted, exact
from cloister.linear._rows import Rows
from cloister.linear._scaling import Scaling

__all__ = ["QUADRATIC", "LogisticRegression"]

QUADRATIC = Fraction(85635, 1 << 20)
"""b_2, to 2^-20."""


class LogisticRegression(Estimator):
    """``Σ log(1 + exp(-ys))`` with ``‖w‖²(1 - l1_ratio)/2C + ‖w‖₁·l1_ratio/C``, in quadratic statistics.

    Args:
        C: Positive: the inverse of the penalty, as in scikit-learn.
        l1_ratio: 0 to 1.
        scaling: As for ``Ridge``, with a response of ±1.
        curvature: As for ``Ridge``.
        mean_square: As for ``Ridge``.
        tolerance: Of the certificate, in units where labels are ±1.

    Attributes:
        classes_: (2,), in ascending order.
        coef_: (1, d), in units of the data.
        intercept_: (1,).
    """

    def __init__(
        self,
        *,
        C: float = 1.0,  # scikit-learn's name
        l1_ratio: float = 0.0,
        scaling: Scaling | None = None,
        curvature: float | None = None,
        mean_square: float | None = None,
        tolerance: float = 2**-9,
    ) -> None:
        super().__init__(scaling=scaling, curvature=curvature, mean_square=mean_square, tolerance=tolerance)
        self.C = C
        self.l1_ratio = l1_ratio

    def _read(self, parts: list[Rows]) -> list[Rows]:
        labels = np.unique(np.concatenate([rows.response for rows in parts]))
        if len(labels) != 2:
            raise InputError(2908, "the response has not two classes", expected="2 labels", got=len(labels))
        self._labels = labels
        return [Rows(rows.names, rows.features, np.where(rows.response == labels[1], 1.0, -1.0)) for rows in parts]

    def _penalties(self, count: int, unit: Fraction) -> tuple[Fraction, Fraction]:
        inverse, ratio = exact(self.C), exact(self.l1_ratio)
        if inverse <= 0 or not 0 <= ratio <= 1:
            raise InputError(2901, "C or l1_ratio is out of its range", expected="C above 0, l1_ratio from 0 to 1")
        # the loss is 1/8b_2 times that of least squares on ±1, and coefficients are 1/4b_2 times its own
        return 2 * ratio / (inverse * count) / unit, (1 - ratio) / (inverse * count) / (2 * QUADRATIC)

    def _solver(self) -> dict[str, Any]:
        return {"method": "lasso" if exact(self.l1_ratio) else "ridge"}

    def _keep(self, fitted: Fitted) -> None:
        super()._keep(fitted)
        self.classes_ = self._labels
        unit = float(1 / (4 * QUADRATIC))
        self.coef_ = self.coef_[None, :] * unit
        self.intercept_ = np.array([self.intercept_ * unit])

    def decision_function(self, features: Any) -> NDArray[np.float64]:
        """The score of each row, (rows,); raises as ``Ridge.predict``."""
        return self._scores(features)

    def predict_proba(self, features: Any) -> NDArray[np.float64]:
        """The probability of each class, (rows, 2); raises as ``Ridge.predict``."""
        odds = 0.5 + 0.5 * np.tanh(self._scores(features) / 2)
        return np.column_stack([1 - odds, odds])

    def predict(self, features: Any) -> NDArray[np.float64]:
        """The class of each row, (rows,); raises as ``Ridge.predict``."""
        return self.classes_[(self._scores(features) > 0).astype(int)]
