"""ε by privacy loss distributions: the tightest answer there is, from Google's ``dp-accounting``.

Every event becomes the distribution of its privacy loss, rounded pessimistically (connect the dots), and composition
is convolution. Both directions of adding and removing are composed apart and compared at the end: the worse of the two
for one step need not be the worse for many.

What we hand to the library is what its conventions need, not what its accountants would make of it:

* Its PLD accountant doubles the sensitivity under ``REPLACE_ONE``, its RDP accountant does not, and it takes no
  Laplace event there. We halve the noise where nothing is sampled, which is the same pair of distributions, and give
  it the relation only where the pair is one of its own (a sampled Gaussian).
* Its convolution by FFT errs in *both* directions, by about steps · 1e-17 in δ. That is charged: see
  :data:`PER_STEP`. A δ that is not well above it gets no answer here.

Sources: Koskela, Jälkö and Honkela (2020) for the FFT; Doroshenko et al., "Connect the Dots" (2022) for the rounding;
Lebeda, Regehr, Kamath and Steinke (2024) for both directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, TypeGuard

from cloister.errors import InputError
from cloister.ledger._events import Event, Gaussian, Laplace, SampledGaussian
from cloister.ledger._numbers import exact, float_down, float_up
from cloister.ledger._relation import Relation
from cloister.ledger._renyi import divergence, divergences, epsilon_at

__all__ = ["PER_STEP", "PER_SUM", "LossDistribution", "supports"]

PER_STEP, PER_SUM = 2.0**-54, 2.0**-40
"""The δ charged for floating point: so much a step, and once. Measured against closed forms with up to 10^6 steps the
error is below a fifth of it."""

_INTERVAL = 1e-4
_PARTS = 8  # of the standard deviation of one step's loss: rounding then adds less than a hundredth to its variance
_MOST_POINTS = 2**19
_LONG = 64
_LEAST_PROBABILITY = 1e-12  # below it the library subtracts what floats hold as equal; more is on the safe side
_FINEST = 2.0**-30  # no round decimal: a grid that meets log(1 - q) is more than the library's logarithm bears
_WIDEST = 1500  # e^loss must stay a float; at an ε of 500 nothing is private


def supports(event: Event) -> TypeGuard[SampledGaussian | Gaussian | Laplace]:
    """Whether there is a privacy loss distribution of the event."""
    return isinstance(event, SampledGaussian | Gaussian | Laplace)


class LossDistribution:
    """The privacy loss of some events together; it is found when it is first asked for.

    Args:
        events: All :func:`supports`-ed, of one unit and relation; their slack is not looked at.

    Attributes:
        numeric: The δ that floating point may lose.

    Raises:
        InputError: 2006 without the extra ``privacy``.
    """

    def __init__(self, events: Sequence[SampledGaussian | Gaussian | Laplace]) -> None:
        self._library = _library()
        self._events = events
        self._width, self._interval, self._excess, self._variance = _grid(events)
        self.numeric = PER_SUM + sum(_convolved(event) for event in events) * PER_STEP

    def silent(self, delta: float | None = None) -> str:
        """Why there is no answer at ``delta``, or at any; empty when there is."""
        if self._width > _WIDEST:
            return "a loss beyond what a distribution can hold"
        if delta is not None and not delta >= 16 * self.numeric:
            return "delta is below what floating point resolves over so many steps"
        return ""

    def tolerance(self, delta: float) -> float:
        """By how much ε may exceed the true one because losses are rounded to a grid.

        Rounding adds to the variance of the loss, and ε grows with the variance and with its root.
        """
        tail = math.sqrt(2 * math.log(1 / delta))
        return (
            self._interval
            + self._excess
            + tail * (math.sqrt(self._variance + self._excess) - math.sqrt(self._variance))
        )

    def delta(self, epsilon: float) -> float:
        """δ of the ideal mechanisms at ``epsilon``: an upper bound, at most 1."""
        return min(1.0, max(0.0, float(self._whole.get_delta_for_epsilon(epsilon))) + self.numeric)

    def epsilon(self, delta: float) -> float:
        """About the ε at ``delta``: where to look, no bound."""
        return float(self._whole.get_epsilon_for_delta(max(0.0, delta - self.numeric)))

    @cached_property
    def _whole(self) -> Any:
        whole = self._library.identity(value_discretization_interval=self._interval)
        for event in self._events:
            whole = whole.compose(_distribution(self._library, event, self._interval))
        return whole


def _library() -> Any:
    try:
        return import_module("dp_accounting.pld.privacy_loss_distribution")
    except ModuleNotFoundError as error:
        raise InputError(
            2006,
            "ε by privacy loss distributions needs the extra 'privacy'",
            got=f"no module {error.name}",
            hint='pip install "cloister[privacy]", or ask for the looser ε by Rényi divergence',
        ) from None


def _convolved(event: SampledGaussian | Gaussian | Laplace) -> int:
    """How often a distribution is composed: so many releases of one sum are one release with less noise."""
    return 1 if isinstance(event, Gaussian) or _is_certain(event) else event.count


def _is_certain(event: SampledGaussian | Gaussian | Laplace) -> bool:
    return isinstance(event, SampledGaussian) and _probability(event) >= 1


def _probability(event: SampledGaussian) -> float:
    return max(_LEAST_PROBABILITY, float_up(exact(event.sampling_probability)))


def _grid(events: Sequence[SampledGaussian | Gaussian | Laplace]) -> tuple[float, float, float, float]:
    """The losses' width, the grid's step, the variance that it adds, and the variance that is there.

    The step is fine against every single loss, but makes no more points than memory and time allow; any is sound.
    """
    rdp = divergences(events, range(2, 65))
    width, longest, finest = 0.0, 0.0, _INTERVAL
    for event in events:
        step = 2 * event.relation.contributions * _largest_loss(event)
        width, longest = width + step, longest + step * _convolved(event)
        finest = min(finest, math.sqrt(divergence(event, 2) / _convolved(event)) / _PARTS)
    width += min(longest, 2 * epsilon_at(rdp, 1e-15))
    interval = max(_FINEST, finest, width / _MOST_POINTS)
    steps = sum(_convolved(event) for event in events)
    return width, interval, steps * interval**2 / 4, min(1e6, rdp[2])


def _largest_loss(event: SampledGaussian | Gaussian | Laplace) -> float:
    """About the largest loss of one step whose noise is within ten standard deviations."""
    noise = float_down(exact(event.noise_multiplier)) / event.relation.contributions
    if isinstance(event, Laplace):
        return 1 / noise
    noise /= math.sqrt(event.count / _convolved(event))
    loss = 1 / (2 * noise * noise) + 10 / noise
    if isinstance(event, SampledGaussian) and loss < 30:
        return math.log1p(_probability(event) * math.expm1(loss))
    return loss


def _distribution(library: Any, event: SampledGaussian | Gaussian | Laplace, interval: float) -> Any:
    noise = float_down(exact(event.noise_multiplier))
    halved = noise / event.relation.contributions
    if isinstance(event, Laplace):
        one = library.from_laplace_mechanism(parameter=halved, value_discretization_interval=interval)
        return _repeated(one, event.count)
    if isinstance(event, Gaussian) or _is_certain(event):
        return library.from_gaussian_mechanism(
            standard_deviation=halved / math.sqrt(event.count) * (1 - 2.0**-50), value_discretization_interval=interval
        )
    relations: Any = import_module("dp_accounting").NeighboringRelation
    replaced = event.relation is Relation.REPLACE_ONE
    one = library.from_gaussian_mechanism(
        standard_deviation=noise,
        sampling_prob=_probability(event),
        value_discretization_interval=interval,
        neighboring_relation=relations.REPLACE_ONE if replaced else relations.ADD_OR_REMOVE_ONE,
    )
    return _repeated(one, event.count)


def _repeated(one: Any, count: int) -> Any:
    """Composes ``one`` with itself, in two stages when often.

    The library bounds the length of a long sum badly when one step's loss has few points.
    """
    inner = math.isqrt(count)
    if inner < _LONG:
        return one.self_compose(count)
    outer, rest = divmod(count, inner)
    whole = one.self_compose(inner).self_compose(outer)
    return whole.compose(one.self_compose(rest)) if rest else whole
