"""How large the program's values get at most, for any input and any cheater's rounding: proven, not sampled.

A masked opening hides only what is bounded, so a bound must hold for *every* legal input: a Gram matrix
``0 ≼ G ≼ 1 + 2^-12`` of integer records, mean squares within the agreement's, a count within 2^-14. Norms are
Euclidean, in units of the standardised response; ``A = G + θ' + Λ`` with ``θ' = θ/κ``, Λ = λ2/κ on the features;
``c = Bᵀy`` with ``G = BᵀB`` and ``‖y‖² ≤ m/κ``, m the response's mean square.

*Rounding.* A truncation is off by at most ``(n+1)/2`` ulp by its coins, and by ``(n-1)·2^s`` more by cheaters'
masks that are proven in range only up to that. An error e at one step is U(A)e at a later one, U the recursion's own
answer to an impulse; its sum over all steps is bounded like everything else, so nothing here is assumed to be small.

*Ridge.* ``x_k = q_k(A) c`` and ``‖A^(-1/2) Bᵀ‖ ≤ 1``, since ``BᵀB ≼ A``; so ``‖x_k‖ ≤ max |q_k(a)| √a · √(m/κ)``.
With a = s², ``s·q_k(s²)`` is a polynomial of degree 2k-1.

*Optimum of LASSO and elastic net.* From ``⟨z*, ∂F(z*)⟩ = 0``: ``‖Bz*‖² + λ2'‖z*‖² + λ1'‖z*‖₁ = yᵀBz* ≤
‖Bz*‖·√(m/κ)``, hence ``‖Bz*‖² ≤ m/κ``, ``λ1‖z*‖₁ ≤ m/4`` and ``λ2‖z*‖² ≤ m/4`` without the intercept; the intercept's
own equation bounds it. The dual u* has entries of at most τ = λ1/θ.

*A round of Newton's method* has ``c = Bᵀ(y + Bw)`` for a public w, so all of the above holds with ``√(m/κ) + ‖w‖``.
Sharper: ``q_k(A)Gw = q_k(A)Aw - q_k(A)Λw`` with ``‖A^(-1/2)Λ^(1/2)‖ ≤ 1``, hence ``‖x_k‖`` grows by at most
``(max |a q_k(a)| + √λ' max |√a q_k(a)|)·‖w‖``. And from ``⟨z* - w, ∂F(z*)⟩ = 0`` with ``V = m/4 + λ1‖w‖₁ + λ2‖w‖²/2``:
``λ1‖z*‖₁ ≤ V``, ``λ2‖z*‖² ≤ 2V`` and ``‖B(z* - w)‖ ≤ (√m/2 + √V)/√κ``, from which the intercept's bound follows.
There the sum of the squared first column is at least 1/256 of the count.

*ADMM, inexact and over-relaxed.* Two runs of the same h steps have the residual polynomial ``P = P_h²``, in [0, ε] on
the spectrum. So a round is exactly a proximal step with ``H = A·P(1-P)^-1 ≽ 0``, and with ψ = z + u

    E = ‖ψ - ψ*‖² + (α/θ')·‖x - x*‖²_H          does not increase, for a relaxation 0 < α ≤ 2

(by monotonicity of both subgradients at the new x and the old z, and by expanding ``‖ψ + α(x - z) - ψ*‖²``). H ≼ b·A
with b = ε/(1-ε), so ``E_0 ≤ ‖ψ*‖² + αb(m/θ + ‖z*‖²)``. √E is a norm in which a round does not expand: a perturbed
round adds its perturbation, and all rounds at most their sum. A wrong side of a threshold counts as a perturbation,
too.

>>> from cloister.linear._plan import Plan
>>> from fractions import Fraction
>>> squares = (Fraction(2),) * 91
>>> plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=squares, l2=Fraction(1, 9))
>>> bound(plan).level
5
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cloister.linear._chebyshev import STEP_BITS, nodes
from cloister.linear._demand import slack_bits
from cloister.linear._plan import (
    COUNT_SLACK_BITS,
    CURVATURE_SLACK_BITS,
    GRAM_BITS,
    ITERATE_BITS,
    LEAST_WEIGHT,
    RELAXATION,
    RESOLUTION_BITS,
    Plan,
    constants,
)

__all__ = ["Bound", "bound", "wrong_side"]

_TIMES = 16  # as many points as the degree; 2 for impulses, where 1.42 times a small number does no harm
_ULP = 2.0**-ITERATE_BITS
_MARGIN = 1 + 2.0**-30  # of the few operations on floats below
_SPECTRUM = 1 + 2.0**-CURVATURE_SLACK_BITS


@dataclass(frozen=True, slots=True)
class Bound:
    """Norms that no value of a fit exceeds.

    Attributes:
        iterate: x, after each step.
        split: z, u and their sum.
        residual: What the certificate computes.
        contraction: The greatest factor by which the solver's own steps leave an error standing: 1 or more never ends.
    """

    iterate: float
    split: float
    residual: float
    contraction: float

    @property
    def level(self) -> int:
        """ℓ: every value is below 2^ℓ in magnitude."""
        most = max(self.iterate, self.split, self.residual)
        return max(1, math.ceil(math.log2(most))) if math.isfinite(most) else 1 << 10


def wrong_side(parties: int, bits: int) -> float:
    """How far a value may lie beyond a threshold that was decided to 2^-bits the other way."""
    return (parties + 3) / 2 * 2.0**-bits


@lru_cache(maxsize=64)
def bound(plan: Plan, *, fits: int = 1) -> Bound:
    """Bounds of every intermediate value of ``plan``; infinite where the steps do not contract.

    Args:
        plan: What was agreed.
        fits: In one session: the more masks are proven together, the farther a cheater may be beyond their range.
    """
    noise = _noise(plan, fits)
    return _ridge(plan, noise) if plan.method == "ridge" else _lasso(plan, noise)


def _noise(plan: Plan, fits: int) -> float:
    """The norm of one step's rounding."""
    offset = (plan.parties - 1) * 2.0 ** slack_bits(plan, fits=fits) + (plan.parties + 1) / 2
    return math.sqrt(plan.columns) * offset * _ULP


def _ridge(plan: Plan, noise: float) -> Bound:
    steps, top = _steps(plan), _SPECTRUM + _penalty(plan)
    root = math.sqrt(top)
    points, factor = nodes(-root, root, degree=2 * plan.steps, times=_TIMES)
    points = points[points > 0]  # the polynomials are odd, or even
    now = before = np.zeros_like(points)
    most = moved = 0.0
    for beta, gamma in steps:
        now, before = now + beta * (now - before) + gamma * (points - points**2 * now), now
        most = max(most, float(np.abs(now).max()))
        moved = max(moved, float(np.abs(points * now).max()))
    response = math.sqrt(plan.mean_squares[-1] / plan.curvature)
    begun = (moved + math.sqrt(_penalty(plan)) * most) * _begins(plan)[0]
    iterate = _MARGIN * (factor * (most * response + begun) + _echo(steps, 0.0, top, runs=1) * noise)
    low = float((plan.l2 + plan.floor) / plan.curvature)
    contraction, _ = _decay(steps, low, max(low, top))
    return Bound(iterate, iterate, _residual(plan, iterate, noise), contraction)


def _lasso(plan: Plan, noise: float) -> Bound:
    steps, integers = _steps(plan), constants(plan)
    theta = integers.split / 2**GRAM_BITS
    low, top = theta, theta + _SPECTRUM + _penalty(plan)
    left, way = _decay(steps, low, top)
    epsilon = left**2
    if epsilon >= 1:
        return Bound(math.inf, math.inf, math.inf, epsilon)
    alpha, weight = float(RELAXATION), epsilon / (1 - epsilon)
    optimum, dual = _optimum(plan), integers.threshold * _ULP * math.sqrt(plan.features)
    start = (optimum + dual) ** 2 + alpha * weight * (_response(plan) ** 2 / theta + optimum**2)
    # what rounding adds in a round: to x, to z, and to both in the norm √E
    wrong = math.sqrt(plan.features) * wrong_side(plan.parties, RESOLUTION_BITS)
    drift = _echo(steps, low, top, runs=2) * noise + 2 * wrong
    relaxed = math.sqrt(plan.columns) * (plan.parties + 1) / 2 * _ULP
    added = alpha * (drift + wrong) + relaxed + math.sqrt(alpha * weight * top / theta) * drift
    radius = math.sqrt(start) + plan.rounds * added
    away = (radius + drift) / (1 - epsilon)  # of x from its optimum, at the end of a round
    target = radius + 2 * wrong  # of the round's own minimiser
    iterate = _MARGIN * (optimum + target + way * (away + target) + drift)
    split = _MARGIN * (optimum + dual + radius + wrong)
    return Bound(iterate, split, _residual(plan, split, noise), epsilon)


def _optimum(plan: Plan) -> float:
    """The norm of the optimal z, with its intercept."""
    integers = constants(plan)
    m, widest = float(plan.mean_squares[-1]), float(max(plan.mean_squares[:-1]))
    l1 = integers.threshold * integers.split / 2 ** (ITERATE_BITS + GRAM_BITS) * float(plan.curvature)
    l2 = integers.penalty[-1] / 2**GRAM_BITS * float(plan.curvature)
    length, sum_of = _begins(plan)
    gap = m / 4 + l1 * sum_of + l2 / 2 * length**2
    norm = total = gap / l1 if l1 else math.inf
    if l2:
        norm = min(norm, math.sqrt((2 if plan.reach else 1) * gap / l2))
        total = min(total, math.sqrt(plan.features) * norm)
    if plan.reach is None:
        away, least = math.sqrt(m) + math.sqrt(widest) * total, 1.0
    else:
        away = math.sqrt(gap) + math.sqrt(m) / 2 + math.sqrt(widest) * (total + sum_of)
        least = float(LEAST_WEIGHT)
    return math.hypot(norm, length + away / math.sqrt(least * (1 - 2.0**-COUNT_SLACK_BITS)))


def _begins(plan: Plan) -> tuple[float, float]:
    """The public point's Euclidean norm and sum of magnitudes, at most."""
    length, total = plan.reach or (0, 0)
    return float(length), float(total)


def _response(plan: Plan) -> float:
    """The norm of ``y + Bw``."""
    return math.sqrt(plan.mean_squares[-1] / plan.curvature) + math.sqrt(_SPECTRUM) * _begins(plan)[0]


def _residual(plan: Plan, z: float, noise: float) -> float:
    """The greater of ``v = z - (Gz + λz - c)`` and of its distance from z, both with a threshold between; or that."""
    gradient = math.sqrt(_SPECTRUM) * _response(plan)
    moved = max(1.0, _SPECTRUM + _penalty(plan) - 1) * z + gradient + noise
    return _MARGIN * max(z + moved + 1, constants(plan).fine_threshold * _ULP)


def _penalty(plan: Plan) -> float:
    return constants(plan).penalty[-1] / 2**GRAM_BITS


def _steps(plan: Plan) -> list[tuple[float, float]]:
    unit = 2.0**-STEP_BITS
    return [(beta * unit, gamma * unit) for beta, gamma in constants(plan).steps]


def _decay(steps: list[tuple[float, float]], low: float, top: float) -> tuple[float, float]:
    """Of the residual's polynomials on [low, top]: the greatest magnitude of the last, and of all."""
    points, factor = nodes(low, top, degree=len(steps), times=_TIMES)
    now = before = np.ones_like(points)
    most = 1.0
    for beta, gamma in steps:
        now, before = now + beta * (now - before) - gamma * points * now, now
        most = max(most, float(np.abs(now).max()))
    return float(np.abs(now).max()) * factor, most * factor


def _echo(steps: list[tuple[float, float]], low: float, top: float, *, runs: int) -> float:
    """How much of the rounding of all steps so far is in x, at most: the sum of its impulses' greatest magnitudes.

    Between runs the recursion forgets its last but one iterate.
    """
    points, factor = nodes(low, top, degree=runs * len(steps), times=2)
    now: NDArray[np.float64] = np.zeros((0, len(points)))
    before = now
    most = 0.0
    for _ in range(runs):
        before = now
        for beta, gamma in steps:
            now, before = now + beta * (now - before) - gamma * points * now, now
            now = np.vstack([now, np.ones_like(points)])
            before = np.vstack([before, np.zeros_like(points)])
            most = max(most, float(np.abs(now).max(axis=1).sum()))
    return most * factor
