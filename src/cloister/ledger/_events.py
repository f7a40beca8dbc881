"""What happened to the data, as values: an event says which mechanism saw it, how often, and at what noise.

Rules:

* An event is a fact about a mechanism, never an ε: accountants interpret events, so a better one can come later.
* Each event names its unit and its relation. Nothing is converted between them.
* Once released, no field is removed and none changes its meaning. A new mechanism is a new class.
* What no accountant can count is :class:`Unaccounted`: from then on ε is unknown, and stays so.

Every mechanism here is an *ideal* one. What the real one lacks to it (a sampler's statistical distance, the tail of a
batch that did not fit) is ``slack``: a bound on the total variation distance between the real and the ideal
transcripts, over all of the event's steps, for every dataset. It costs δ: see :func:`cloister.ledger.with_slack`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from cloister.errors import BudgetError, InputError
from cloister.ledger._numbers import Amount, Ratio, amount, exact, ratio
from cloister.ledger._relation import Relation
from cloister.wire import Message, Name, parse_message

__all__ = [
    "Event",
    "Gaussian",
    "Laplace",
    "Mechanism",
    "SampledGaussian",
    "Selection",
    "Unaccounted",
    "merged",
    "require_within",
    "sampled_gaussian",
    "slack_of",
]

_LEAST_NOISE, _MOST_NOISE = Fraction(1, 64), Fraction(2**40)


def _is_noise(text: str) -> str:
    if not _LEAST_NOISE <= exact(text) <= _MOST_NOISE:
        raise InputError(2801, "a noise multiplier is out of range", expected="1/64 to 2^40", got=text)
    return text


def _is_slack(text: str) -> str:
    if exact(text) > 1:
        raise InputError(2801, "a slack is out of range", expected="0 to 1", got=text)
    return text


Noise = Annotated[Amount, AfterValidator(_is_noise)]
Slack = Annotated[Amount, AfterValidator(_is_slack)]
Count = Annotated[int, Field(ge=1, le=2**40)]


class _Event(Message):
    """What all events say.

    Attributes:
        unit: Whose presence is hidden: ``record``, ``user``, ``patient``.
        relation: When two datasets are neighbours.
    """

    unit: Name
    relation: Relation


class SampledGaussian(_Event):
    """``count`` releases of a sum over a Poisson sample of units, plus Gaussian noise: the steps of DP-SGD.

    Each step takes every unit independently with ``sampling_probability``, sums their contributions, each of norm at
    most C, and adds N(0, (noise_multiplier · C)² I).

    Attributes:
        sampling_probability: Exact; the same for every unit and step.
        noise_multiplier: Standard deviation over C, 1/64 to 2^40.
        count: Steps, 1 to 2^40.
        slack: Total variation distance to the ideal mechanism, over all steps.
    """

    kind: Literal["sampled-gaussian"] = "sampled-gaussian"
    sampling_probability: Ratio
    noise_multiplier: Noise
    count: Count
    slack: Slack = "0"


class Gaussian(_Event):
    """``count`` releases of a sum over *all* units, each of norm at most C, plus N(0, (noise_multiplier · C)² I).

    Attributes:
        noise_multiplier: Standard deviation over C, 1/64 to 2^40.
        count: Releases, 1 to 2^40.
        slack: Total variation distance to the ideal mechanism, over all releases.
    """

    kind: Literal["gaussian"] = "gaussian"
    noise_multiplier: Noise
    count: Count
    slack: Slack = "0"


class Laplace(_Event):
    """``count`` releases of a sum over all units, each of ℓ1 norm at most C, plus Laplace noise: a released metric.

    Attributes:
        noise_multiplier: The noise's scale b over C, 1/64 to 2^40: one release is (1/noise_multiplier, 0)-private
            when one unit is added or removed.
        count: Releases, 1 to 2^40.
        slack: Total variation distance to the ideal mechanism, over all releases.
    """

    kind: Literal["laplace"] = "laplace"
    noise_multiplier: Noise
    count: Count
    slack: Slack = "0"


Mechanism: TypeAlias = Annotated[SampledGaussian | Gaussian | Laplace, Field(discriminator="kind")]
"""An event that stands for itself: not a selection among others."""


class Selection(_Event):
    """A search that runs a secret, random number of equal trials and shows only the best trial's result.

    A search that shows every trial, or whose number of trials is fixed, is charged by composing its trials' events
    instead. Here the number of trials is drawn from ``distribution`` independently of the data *before* the search and
    never shown; what is shown is the best trial's result and its score, with ties broken independently of the data.

    Attributes:
        trial: The events of one trial.
        distribution: Of the number of trials. ``poisson`` may draw none, and then a fixed result is shown.
        mean: The distribution's mean: 1 to 2^20.
    """

    kind: Literal["selection"] = "selection"
    trial: Annotated[tuple[Mechanism, ...], Field(min_length=1, max_length=16)]
    distribution: Literal["poisson", "geometric"]
    mean: Amount

    def model_post_init(self, _: object) -> None:
        """Refuses a mean out of range (2801) and a trial of another unit or relation (2802)."""
        if not 1 <= exact(self.mean) <= 2**20:
            raise InputError(2801, "a mean number of trials is out of range", expected="1 to 2^20", got=self.mean)
        for event in self.trial:
            if (event.unit, event.relation) != (self.unit, self.relation):
                raise InputError(2802, "a trial's unit or relation is not its selection's")


class Unaccounted(_Event):
    """Something whose guarantee is void: float noise that an observer can invert, an engine that was not ours.

    Attributes:
        reason: Why, in plain words; it is shown wherever ε would be.
    """

    kind: Literal["unaccounted"] = "unaccounted"
    reason: Annotated[str, Field(min_length=1, max_length=200)]


Event: TypeAlias = Annotated[
    SampledGaussian | Gaussian | Laplace | Selection | Unaccounted, Field(discriminator="kind")
]
"""Anything that a ledger records."""


def sampled_gaussian(
    *,
    unit: str,
    relation: Relation,
    sampling_probability: str,
    noise_multiplier: str,
    steps: int,
    slack: str = "0",
) -> SampledGaussian:
    """A training as people write it: numbers as decimals or fractions in any form, every fault an :class:`InputError`.

    >>> training = sampled_gaussian(
    ...     unit="record",
    ...     relation=Relation.REPLACE_ONE,
    ...     sampling_probability="0.01",
    ...     noise_multiplier="1.10",
    ...     steps=100,
    ... )
    >>> training.sampling_probability, training.noise_multiplier
    ('1/100', '1.1')

    Raises:
        InputError: 2801 for a number that is none, or out of range; 2005 for a count or unit that is none.
    """
    fields = {
        "unit": unit,
        "relation": relation.value,
        "sampling_probability": ratio(sampling_probability),
        "noise_multiplier": amount(noise_multiplier, what="a noise multiplier"),
        "count": steps,
        "slack": amount(slack, what="a slack"),
    }
    return parse_message(SampledGaussian, fields, what="training")


def merged(events: Iterable[Event]) -> list[Event]:
    """Equal mechanisms as one event with the sum of their counts, without slack: faster to compose, and more exact."""
    counts: dict[SampledGaussian | Gaussian | Laplace, int] = {}
    others: list[Event] = []
    for event in events:
        if isinstance(event, Selection | Unaccounted):
            others.append(event)
        else:
            one = event.model_copy(update={"count": 1, "slack": "0"})
            counts[one] = counts.get(one, 0) + event.count
    return [*(one.model_copy(update={"count": count}) for one, count in counts.items()), *others]


def require_within(done: Iterable[Event], agreed: Iterable[Event]) -> None:
    """Returns when all that was done was agreed: the same mechanisms, no more often, with no more slack.

    It compares what happened, not what it costs: less noise in fewer steps is another training. A unit that is drawn
    less often is covered, since who is drawn with q' < q is one who is drawn with q and then left out at times.

    Raises:
        BudgetError: 7804 when it was not.
    """
    done, agreed = list(done), list(agreed)
    left = [(_once(event), getattr(event, "count", 1)) for event in merged(agreed)]
    for event in merged(done):
        place = next((i for i, (one, _) in enumerate(left) if _covers(one, _once(event))), None)
        if place is None or left[place][1] < getattr(event, "count", 1):
            most = "nothing of the kind" if place is None else f"at most {left[place][1]} times"
            raise BudgetError(7804, expected=most, got=event.canonical().decode()[:400])
        del left[place]
    slack, allowed = (sum(map(slack_of, events), Fraction(0)) for events in (done, agreed))
    if slack > allowed:
        raise BudgetError(7804, expected=f"a slack of at most {float(allowed)}", got=float(slack))


def _covers(agreed: Event, done: Event) -> bool:
    if isinstance(agreed, SampledGaussian) and isinstance(done, SampledGaussian):
        drawn = agreed.sampling_probability
        rarer = exact(done.sampling_probability) <= exact(drawn)
        return rarer and done.model_copy(update={"sampling_probability": drawn}) == agreed
    return agreed == done


def _once(event: Event) -> Event:
    return event if isinstance(event, Selection | Unaccounted) else event.model_copy(update={"count": 1, "slack": "0"})


def slack_of(event: Event) -> Fraction:
    """The event's slack, exactly.

    A selection's trials are real with slack s each; n of them are n·s from ideal ones, so their random number costs
    its mean times s.
    """
    if isinstance(event, Unaccounted):
        return Fraction(0)  # it has no guarantee that slack could weaken
    if isinstance(event, Selection):
        return exact(event.mean) * sum((exact(mechanism.slack) for mechanism in event.trial), Fraction(0))
    return exact(event.slack)
