"""Rényi divergences of the events at whole orders, each rounded up: no accountant library, no series that stops.

Rules:

* Every number is an upper bound of the true divergence, by a margin that covers floating point.
* No cancellation: what is summed is positive, so a sampling probability of 1e-9 loses no digit.
* Inputs are rounded so that the divergence grows: the probability up, the noise down.

The pairs of neighbours that dominate all others, with the noise's scale σ over the bound on one contribution:

* added, removed, or replaced by a special unit: (1-q) N(0, σ²) + q N(1, σ²) against N(0, σ²). This direction is the
  larger one at every order.
* replaced: (1-q) N(0, σ²) + q N(1, σ²) against (1-q) N(0, σ²) + q N(-1, σ²), which mirrors itself. It dominates: with
  contributions x, y and γ ≥ 0 the hockey-stick divergence is E[(q a - γ q b - (γ - 1)(1 - q))₊] over
  a = dN_x/dN_0, b = dN_y/dN_0. Contributions shorter than 1 are projections of ones of norm 1. The integrand is
  submodular in (a, b), which grow with two Gaussians of correlation ⟨x, y⟩, so it is largest at correlation -1:
  y = -x. Other units' contributions shift all three distributions alike, and the divergence is jointly convex.

Sources: Mironov, Talwar and Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism" (2019), §3.3 and
Theorem 5; Mironov (2017), Proposition 6 (Laplace); Papernot and Steinke (2022), Theorems 2 and 6 (selection); Canonne,
Kamath and Steinke (2020), Proposition 12 (conversion).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from cloister.ledger._events import Event, Gaussian, Laplace, SampledGaussian, Selection, Unaccounted
from cloister.ledger._numbers import exact, float_down, float_up
from cloister.ledger._relation import Relation
from cloister.ledger._replaced import replaced_divergence

__all__ = ["ALL_ORDERS", "delta_at", "divergence", "divergences", "epsilon_at"]

ALL_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
_MARGIN = 1 + 2.0**-30  # a term whose logarithm is below 2^16 is right within a part in 2^34; a larger one needs less


def divergence(event: Event, order: int) -> float:
    """An upper bound of the event's Rényi divergence, in nats, over all of its steps; infinity where there is none.

    Args:
        event: Anything; the ideal mechanism's divergence, without its slack.
        order: A whole number of at least 2.
    """
    return divergences([event], (order,))[order]


def divergences(events: Iterable[Event], orders: Sequence[int] = ALL_ORDERS) -> dict[int, float]:
    """The divergences of all events together, by order."""
    total = dict.fromkeys(orders, 0.0)
    for event in events:
        of_event = _selection(event, orders) if isinstance(event, Selection) else {a: _of(event, a) for a in orders}
        for order in orders:
            total[order] = (total[order] + of_event[order]) * (1 + 2.0**-50)
    return total


def epsilon_at(total: Mapping[int, float], delta: float) -> float:
    """The smallest ε that the divergences show at ``delta``; infinity when none."""
    return min((_epsilon(order, rho, delta) for order, rho in total.items()), default=math.inf)


def delta_at(total: Mapping[int, float], epsilon: float) -> float:
    """The smallest δ that the divergences show at ``epsilon``; at most 1."""
    least = 0.0 if all(rho == 0 for rho in total.values()) else 1.0
    for order, rho in total.items():
        exponent = (order - 1) * (rho - epsilon + math.log1p(-1 / order)) - math.log(order)
        if exponent < 0:
            least = min(least, math.exp(exponent) * _MARGIN)
    return least


def _epsilon(order: int, rho: float, delta: float) -> float:
    if delta <= 0:
        return 0.0 if rho == 0 else math.inf
    return max(0.0, rho + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)) * _MARGIN


def _of(event: SampledGaussian | Gaussian | Laplace | Unaccounted, order: int) -> float:
    if isinstance(event, Unaccounted):
        return math.inf
    noise, count = float_down(exact(event.noise_multiplier)), event.count
    contributions = event.relation.contributions
    if isinstance(event, Gaussian):
        one = _gaussian(noise / contributions, order)
    elif isinstance(event, Laplace):
        one = _laplace(contributions / noise, order)
    elif isinstance(event, SampledGaussian):  # pyright: ignore[reportUnnecessaryIsInstance]
        q = float_up(exact(event.sampling_probability))
        if q >= 1:
            one = _gaussian(noise / contributions, order)
        elif event.relation is Relation.REPLACE_ONE:
            one = replaced_divergence(q, noise, order)
        else:
            one = _sampled(q, noise, order)
    else:
        assert_never(event)
    return one * count * _MARGIN


def _gaussian(noise: float, order: int) -> float:
    return order / (2 * noise * noise)


def _laplace(epsilon: float, order: int) -> float:
    """With a the order: log(a/(2a-1) e^((a-1)ε) + (a-1)/(2a-1) e^(-aε)) / (a-1), as ε less what it lacks."""
    lacks = (order - 1) * -math.expm1(-(2 * order - 1) * epsilon) / (2 * order - 1)
    if (order - 1) * epsilon > 2**-6:
        return epsilon + math.log1p(-lacks) / (order - 1)
    # the same logarithm of 1 + a sum that does not cancel: both terms of second order in ε
    above, below = order / (2 * order - 1), (order - 1) / (2 * order - 1)
    second = above * _tail((order - 1) * epsilon) + below * _tail(-order * epsilon)
    return math.log1p(second) / (order - 1)


def _tail(x: float) -> float:
    """e^x - 1 - x for small x, by its series."""
    term, total = x, 0.0
    for k in range(2, 16):
        term *= x / k
        total += term
    return total


def _sampled(q: float, noise: float, order: int) -> float:
    """With a the order: log Σ_k C(a, k) (1-q)^(a-k) q^k e^((k²-k)/2σ²) / (a-1).

    Without the exponential the sum is 1; what it adds starts at k = 2, and every term of that is positive.
    """
    terms: list[float] = []
    combinations, log_q, log_rest = order, math.log(q), math.log1p(-q)
    for k in range(2, order + 1):
        combinations = combinations * (order - k + 1) // k
        growth = (k * k - k) / (2 * noise * noise)
        terms.append(math.log(combinations) + k * log_q + (order - k) * log_rest + _log_expm1(growth))
    return _log1p_exp(_log_sum(terms)) / (order - 1)


def _log_expm1(x: float) -> float:
    return math.log(math.expm1(x)) if x < 30 else x + math.log1p(-math.exp(-x))


def _log_sum(terms: Sequence[float]) -> float:
    largest = max(terms)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


def _log1p_exp(x: float) -> float:
    return math.log1p(math.exp(x)) if x < 30 else x + math.exp(-x)


def _selection(event: Selection, orders: Sequence[int]) -> dict[int, float]:
    """The search's divergences from one trial's: its best result is as private as a few trials, not as all of them."""
    mean = float_up(exact(event.mean))
    trial = divergences(event.trial)
    if event.distribution == "geometric":
        least = min((1 - 1 / a) * trial[a] + math.log(mean) / a for a in trial)
        extra = dict.fromkeys(orders, 2 * least)
    else:
        extra = {a: mean * delta_at(trial, math.log1p(1 / (a - 1)) * (1 - 2.0**-40)) for a in orders}
    return {a: (trial[a] + math.log(mean) / (a - 1) + extra[a]) * _MARGIN for a in orders}
