"""The fixed-point program: one ridge, LASSO or elastic-net model from the summed statistics. Written once.

Integers all through; a comment gives the real that an integer stands for. x̂ = 2^36·x for iterates, Ŝ = 2^46·S/(N·κ)
for the statistics, β̂ = 2^6·β for steps. Secret times secret occurs in two places: the matrix times an iterate, and a
threshold.

A round of Newton's method begins at a public point w and adds G·w to c: its rows hold residuals.

Order: the rounds, then the certificate, and only if its bit is 1 is the model opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from cloister.errors import RefusedError
from cloister.linear._arithmetic import Arithmetic, Statistics, Value
from cloister.linear._chebyshev import STEP_BITS
from cloister.linear._plan import (
    COMPARE_BITS,
    FINE_BITS,
    GRAM_BITS,
    ITERATE_BITS,
    RELAXATION,
    RELAXATION_BITS,
    RESOLUTION_BITS,
    SHIFT_BITS,
    Constants,
    Plan,
    constants,
)

__all__ = ["fit"]

_EXTRA = int((RELAXATION - 1) * 2**RELAXATION_BITS)  # 13: over-relaxation beyond the whole step


def fit(
    arithmetic: Arithmetic[Value, Statistics], plan: Plan, statistics: Statistics, offset: Sequence[int] = ()
) -> tuple[int, ...]:
    """The model of ``plan`` for the summed statistics of all parties.

    Args:
        arithmetic: Who computes; it is used for this one fit.
        plan: What was agreed.
        statistics: S over ``[1 X y]``, (D+1, D+1), in the arithmetic's own form.
        offset: w, D integers in ulp, public: the model is then of ``y + X w``. Empty: 0.

    Returns:
        D integers in ulp of 2^-36: the intercept, then the coefficients, for scaled columns.

    Raises:
        RefusedError: 3902 when the certificate says that the model is not near-optimal; nothing is opened then.
    """
    moments = arithmetic.combine((1 << ITERATE_BITS, arithmetic.take(statistics)))
    if offset:
        moments = arithmetic.combine((1, moments), (1, arithmetic.product(offset)))
    solver = _Solver(arithmetic, plan, constants(plan), moments)
    model = solver.ridge() if plan.method == "ridge" else solver.lasso()
    model, near = solver.certificate(model)
    if arithmetic.open(near) != [1]:
        raise RefusedError(3902)
    return _without_ties(plan, arithmetic.open(model))


@dataclass(frozen=True, slots=True)
class _Solver(Generic[Value, Statistics]):
    arithmetic: Arithmetic[Value, Statistics]
    plan: Plan
    constants: Constants
    moments: Value  # 2^82·c

    def ridge(self) -> Value:
        zero = self.arithmetic.zero()
        x, _ = self._steps((zero, zero), self.moments)
        return x

    def lasso(self) -> Value:
        combine, split = self.arithmetic.combine, self.constants.split
        z = u = self.arithmetic.zero()
        x = (z, z)
        for _ in range(self.plan.rounds):
            b = combine((1, self.moments), (split, z), (-split, u))  # c + θ'(z - u)
            x = self._steps(self._steps(x, b), b)
            more = self.arithmetic.truncate(combine((_EXTRA, x[0]), (-_EXTRA, z)), RELAXATION_BITS)
            t = combine((1, x[0]), (1, more), (1, u))  # α x + (1 - α) z + u
            z = self.arithmetic.threshold(t, self.constants.threshold, RESOLUTION_BITS)
            u = combine((1, t), (-1, z))
        return z

    def _steps(self, start: tuple[Value, Value], b: Value) -> tuple[Value, Value]:
        """Chebyshev's steps for ``(G + θ' + λ') x = b`` from ``start``, with G x beside each x."""
        (x, product), x_prev = start, start[0]
        diagonal = [self.constants.split + penalty for penalty in self.constants.penalty]
        for beta, gamma in self.constants.steps:
            # 2^52·x + 2^46·β̂(x - x_prev) + γ̂(b - Gx - θ̂x - λ̂x)
            own = [(1 << SHIFT_BITS) + (beta << GRAM_BITS) - gamma * entry for entry in diagonal]
            terms = ((own, x), (-(beta << GRAM_BITS), x_prev), (gamma, b), (-gamma, product))
            x_prev = x
            x, product = self.arithmetic.mask_multiply(self.arithmetic.combine(*terms), SHIFT_BITS)
        return x, product

    def certificate(self, model: Value) -> tuple[Value, Value]:
        """The model under a fresh mask, and whether its proximal gradient is within the tolerance."""
        combine = self.arithmetic.combine
        z, product = self.arithmetic.mask_multiply(model, 0)
        own = [(1 << SHIFT_BITS) - (penalty << STEP_BITS) for penalty in self.constants.penalty]
        unit = 1 << STEP_BITS
        v = combine((own, z), (-unit, product), (unit, self.moments))
        v = self.arithmetic.truncate(v, SHIFT_BITS)  # z - (Gz + λ'z - c)
        if self.plan.method == "lasso":
            v = self.arithmetic.threshold(v, self.constants.fine_threshold, FINE_BITS)
        squares = self.arithmetic.square_sum(combine((1, z), (-1, v)))
        return z, self.arithmetic.at_most(squares, self.constants.residual, COMPARE_BITS)


def _without_ties(plan: Plan, model: list[int]) -> tuple[int, ...]:
    """Writes 0 where a threshold may have been decided on the wrong side: this is done in public."""
    if plan.method == "ridge":
        return tuple(model)
    most = (plan.parties + 3) << (ITERATE_BITS - RESOLUTION_BITS - 1)  # as `_bounds.wrong_side`, in ulp
    return (model[0], *(0 if abs(entry) <= most else entry for entry in model[1:]))
