"""What is fitted: penalties as scikit-learn names them, and the numbers of steps that all parties take.

Each kind turns its penalties into λ1 and λ2 of the scaled columns, and names the fields of the plan that are its own.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from cloister.errors import InputError
from cloister.linear._newton import PENALTY, QUADRATIC, newton_plan
from cloister.linear._plan import Plan, exact
from cloister.linear._statistics import OPENED, Opened
from cloister.manifest._text import fault_of_text
from cloister.wire import Message

__all__ = [
    "ElasticNetTerms",
    "LassoTerms",
    "LogisticTerms",
    "Model",
    "Real",
    "RidgeTerms",
    "ShortText",
    "StatisticsTerms",
    "decimal",
]

_REAL = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,30})?(e-?[0-9]{1,2})?")
Real = Annotated[str, StringConstraints(pattern=f"^{_REAL.pattern}$")]
"""A decimal number as text: signed JSON holds no floats."""


def _readable(text: str) -> str:
    fault = fault_of_text(text)
    if fault is not None or text != text.strip() or "\n" in text:
        raise ValueError(fault or "text begins or ends with a space, or has several lines")
    return text


def _visible(text: str) -> str:
    if fault := fault_of_text(text):
        raise ValueError(fault)
    return text


LongText = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_visible)]
"""Prose, without what a reader cannot see."""

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_readable)]
"""A name as it stands in somebody's data."""


def decimal(number: object, name: str) -> str:
    """The parameter of this name, as it is written.

    Raises:
        InputError: 2901 when it is none, or not a decimal of at most 12 and 30 digits.
    """
    text = format(number, "f") if isinstance(number, float) and abs(number) >= 1e16 else str(number)
    if _REAL.fullmatch(text) is None:
        expected = "a finite number of at most 12 digits before and 30 after the point"
        raise InputError(
            2901, f"an agreement cannot hold this {name}", expected=expected, got=number, hint=f"give {name} a number"
        )
    return text


class RidgeTerms(Message):
    """``‖y - Xw - b‖² + alpha·‖w‖²``."""

    type: Literal["ridge"]
    alpha: Real = Field(description="At least 0; as in scikit-learn's Ridge, on scaled columns.")
    steps: int = Field(default=200, description="Of Chebyshev's iteration.")
    floor: Real = Field(default="0.03", description="Curvature that the steps take for the least.")

    def penalties(self, count: int, unit: Fraction) -> tuple[Fraction, Fraction]:
        """λ1 and λ2 of ``count`` rows, where the scaled response has this unit.

        Raises:
            InputError: 2901 when a parameter is out of its range.
        """
        return Fraction(0), _alpha(self.alpha) / count

    def solver(self) -> dict[str, Any]:
        """Of the plan."""
        return {"method": "ridge", "steps": self.steps, "floor": exact(self.floor)}


class _Admm(Message):
    theta: Real = Field(default="0.4", description="ADMM's penalty, in standardised units.")
    rounds: int = Field(default=20, description="Of ADMM.")
    half: int = Field(default=8, description="Half the steps of a round.")

    def solver(self) -> dict[str, Any]:
        """Of the plan."""
        return {"method": "lasso", "theta": exact(self.theta), "rounds": self.rounds, "half": self.half}


class LassoTerms(_Admm):
    """``‖y - Xw - b‖²/2N + alpha·‖w‖₁``."""

    type: Literal["lasso"]
    alpha: Real = Field(description="Above 0; as in scikit-learn's Lasso, on scaled columns.")

    def penalties(self, count: int, unit: Fraction) -> tuple[Fraction, Fraction]:
        """As of ridge."""
        return _alpha(self.alpha) / unit, Fraction(0)


class ElasticNetTerms(_Admm):
    """``‖y - Xw - b‖²/2N + alpha·l1_ratio·‖w‖₁ + alpha·(1 - l1_ratio)/2·‖w‖²``."""

    type: Literal["elastic-net"]
    alpha: Real = Field(description="Above 0; as in scikit-learn's ElasticNet, on scaled columns.")
    l1_ratio: Real = Field(description="Above 0, at most 1.")

    def penalties(self, count: int, unit: Fraction) -> tuple[Fraction, Fraction]:
        """As of ridge."""
        alpha, ratio = _alpha(self.alpha), _ratio(self.l1_ratio)
        return alpha * ratio / unit, alpha * (1 - ratio)


class LogisticTerms(_Admm):
    """``Σ log(1 + exp(-ys))`` with ``‖w‖²(1 - l1_ratio)/2C + ‖w‖₁·l1_ratio/C``, y = ±1."""

    type: Literal["logistic"]
    C: Real = Field(description="Above 0: the inverse of the penalty, as in scikit-learn's LogisticRegression.")
    l1_ratio: Real = Field(default="0", description="0 to 1.")
    method: Literal["quadratic", "newton"] = Field(
        default="quadratic", description="One fit in quadratic statistics, or Newton's rounds, each iterate released."
    )
    newton_rounds: int = Field(default=3, ge=1, le=10, description="Of `newton`, after the quadratic fit.")
    reach: Real = Field(default="8", description="Of `newton`: the greatest norm of an iterate, for scaled columns.")
    steps: int = Field(default=200, description="As of ridge, without an l1 part.")
    floor: Real = Field(default="0.03", description="As of ridge.")

    def penalties(self, count: int, unit: Fraction) -> tuple[Fraction, Fraction]:
        """As of ridge; the loss is that of least squares on ±1, times 1/8b, in coefficients times 1/4b."""
        l1, l2 = self._strengths(count)
        return 2 * l1 / unit, l2 / (2 * QUADRATIC)

    def newton_plan(self, plan: Plan) -> Plan:
        """Of each of Newton's rounds, from that of the fit before them; raises as :meth:`penalties`."""
        l1, l2 = self._strengths(plan.count)
        return newton_plan(plan, l1=PENALTY * l1, l2=PENALTY * l2, reach=exact(self.reach))

    def _strengths(self, count: int) -> tuple[Fraction, Fraction]:
        ratio, weight = _ratio(self.l1_ratio), exact(self.C) * count
        if weight <= 0:
            hint = "give a positive C: the smaller, the greater the penalty"
            raise InputError(2901, "C is out of its range", expected="above 0", got=self.C, hint=hint)
        return ratio / weight, (1 - ratio) / weight

    def solver(self) -> dict[str, Any]:
        """Of the plan."""
        if exact(self.l1_ratio):
            return super().solver()
        return {"method": "ridge", "steps": self.steps, "floor": exact(self.floor)}


class StatisticsTerms(Message):
    """Sums over all rows, and no model."""

    type: Literal["statistics"]
    open: tuple[Opened, ...] = Field(min_length=1, max_length=len(OPENED), description="What all learn.")

    def penalties(self, count: int, unit: Fraction) -> tuple[Fraction, Fraction]:
        """None: there is no model."""
        return Fraction(0), Fraction(0)

    def solver(self) -> dict[str, Any]:
        """Of the plan, which is here for its shapes."""
        return {"method": "ridge"}


def _ratio(text: str) -> Fraction:
    ratio = exact(text)
    if not 0 <= ratio <= 1:
        hint = "give an l1_ratio from 0 to 1: the share of the penalty on magnitudes"
        raise InputError(2901, "l1_ratio is out of its range", expected="0 to 1", got=text, hint=hint)
    return ratio


def _alpha(text: str) -> Fraction:
    alpha = exact(text)
    if alpha < 0:
        hint = "give an alpha that is not negative"
        raise InputError(2901, "alpha is out of its range", expected="0 or more", got=text, hint=hint)
    return alpha


Model = Annotated[
    RidgeTerms | LassoTerms | ElasticNetTerms | LogisticTerms | StatisticsTerms, Field(discriminator="type")
]
"""One of them, by its ``type``."""
