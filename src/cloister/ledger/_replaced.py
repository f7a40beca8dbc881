"""The Rényi divergence of a sampled Gaussian when one unit is replaced: the one that has no closed form.

With P, Q = (1-q) N(0, σ²) + q N(±1, σ²) and t = log P/Q, the divergence of order a is log(1 + J)/(a-1) for
J = ∫ Q (e^(at) - 1 - a (e^t - 1)), whose integrand is never negative. J is summed on a grid, which for an analytic
integrand errs by less than any power of the step. Precisely, continued to x + is with |s| ≤ σ and |s| ≤ σ²:
|N(x+is)| ≤ N(x) e^(s²/2σ²), |P/N| grows by no modulus, and |Q/N| shrinks at most by cos(s/2σ²), so the grid of step h
is off by at most 2 e^(s²/2σ² + (1-a) log cos(s/2σ²) - 2πs/h), relative to the integral of P^a Q^(1-a) ≥ 1. The step
makes that 2^-40 of J ≥ χ² ≥ 4q²/(σ² + 1/4). The ends that are cut lie c standard deviations outside all that matters,
with c such that they hold less than that too.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["replaced_divergence"]

_SERIES_BELOW = 0.25
_MOST_POINTS = 2**16  # an order that would cost more says nothing: infinity bounds it too, and no event costs seconds
_MARGIN = 1 + 2.0**-30


def replaced_divergence(q: float, noise: float, order: int) -> float:
    """An upper bound of the divergence of one step, in nats; ``q`` in (0, 1), ``order`` at least 2."""
    import numpy

    digits = 40 * math.log(2) + max(0.0, math.log((noise * noise + 0.25) / (4 * q * q)))
    height = min(noise, noise * noise)
    lost = height**2 / (2 * noise * noise) - (order - 1) * math.log(math.cos(height / (2 * noise * noise)))
    step = 2 * math.pi * height / (digits + lost + 1)
    beyond = math.sqrt(2 * (digits - (order - 1) * math.log1p(-q) + 3)) * noise
    count = math.ceil((order + 2 * beyond + 2) / step)
    if count > _MOST_POINTS:
        return math.inf
    x = -beyond - 1 + step * numpy.arange(count + 1)
    up, down = (2 * x - 1) / (2 * noise * noise), (-2 * x - 1) / (2 * noise * noise)
    log_p, log_q = _mixed(q, up), _mixed(q, down)
    logs = log_q + _log_excess(order, log_p - log_q) - (x / noise) ** 2 / 2
    largest = float(logs.max())
    weight = step / (noise * math.sqrt(2 * math.pi))
    total = largest + math.log(float(numpy.exp(logs - largest).sum()) * weight)
    summed = math.log1p(math.exp(total)) if total < 30 else total + math.exp(-total)
    return summed / (order - 1) * _MARGIN


def _mixed(q: float, exponent: Any) -> Any:
    """log(1 - q + q e^exponent), without losing a small q."""
    import numpy

    small: Any = numpy.log1p(q * numpy.expm1(numpy.minimum(exponent, 30.0)))
    large: Any = math.log(q) + exponent + numpy.log1p((1 - q) / q * numpy.exp(-numpy.maximum(exponent, 30.0)))
    return numpy.where(exponent < 30.0, small, large)  # pyright: ignore[reportUnknownVariableType]


def _log_excess(order: int, t: Any) -> Any:
    """log(e^(order·t) - 1 - order (e^t - 1)): by its series near 0, where the terms would cancel."""
    import numpy

    y = order * t
    inside = numpy.where(numpy.abs(y) < _SERIES_BELOW, t, _SERIES_BELOW / (2 * order))
    term = inside * 0 + 1.0
    series = term * 0
    for k in range(2, 18):  # Σ (order^k - order) t^k / k!, written with (order·t)^k so that no power overflows
        term = term * (order * inside / k) if k > 2 else (order * inside) ** 2 / 2
        series = series + term * (1 - float(order) ** (1 - k))
    middle = numpy.clip(y, -700.0, 30.0)
    direct = numpy.expm1(middle) - order * numpy.expm1(numpy.clip(t, -700.0, 30.0))
    direct = numpy.where(numpy.abs(y) < _SERIES_BELOW, 1.0, direct)
    high = numpy.maximum(y, 30.0)
    far = high + numpy.log1p(-order * numpy.exp(high / order - high) + (order - 1) * numpy.exp(-high))
    logs = numpy.where(y > 30.0, far, numpy.log(numpy.maximum(direct, 1e-300)))
    with numpy.errstate(divide="ignore"):
        near = numpy.log(numpy.maximum(series, 0.0))
    return numpy.where(numpy.abs(y) < _SERIES_BELOW, near, logs)
