"""What a run has done, part by part: steps under terms that did not change, told as they were when they were made.

* A part is added to while it is the last one, and never changed after. A run that is gone on from under other terms
  has another part; no step is told in terms that it was not made under.
* Each part has a number of its own, drawn when it begins. So two accounts of one run are put together without a step
  that is left out, or counted twice: of a part that both have, the longer one counts.
* :class:`Saved` is what a checkpoint keeps: all parts, and where the randomness stands. Under a key that the caller
  keeps it is proven by HMAC-SHA-256 over the whole of it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints

from cloister.errors import InputError, IntegrityError
from cloister.ledger import (
    Amount,
    Event,
    Ratio,
    Relation,
    SampledGaussian,
    Unaccounted,
    exact,
    noise_slack,
    ratio,
    significant_up,
)
from cloister.privacy._grid import GRID_SIGMA
from cloister.wire import Digest, Message, Name, parse_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from fractions import Fraction

    from cloister.privacy._run_key import RunKey

__all__ = ["Part", "Saved", "Target", "Terms", "all_parts", "events_of"]

_MOST_PARTS = 1 << 16  # one more each time that a run is gone on from
_DIGITS = 16  # of a distance, rounded up: what that adds is nothing beside the four that a slack keeps
_PROOF = "private run"

Count = Annotated[int, Field(ge=1, lt=2**53)]
Position = Annotated[int, Field(ge=0, lt=2**53)]


class Terms(Message):
    """What decides what a step costs.

    Attributes:
        unit: Whose presence is hidden.
        relation: When two data sets are neighbours.
        units: How many are drawn from.
        most_rows: How many rows of one unit count, at most.
        sampling_probability: Of each unit in each step, exactly.
        noise_multiplier: Of all that a step releases, together.
        draws: Of noise, a step.
        distance: Total variation distance of a draw of noise from the ideal, rounded up; None where nothing is known.
        overflow: Probability that a step draws more than have room, rounded up.
    """

    unit: Name
    relation: Relation
    units: Count
    most_rows: Count
    sampling_probability: Ratio
    noise_multiplier: Amount
    draws: Count
    distance: Amount | None = None
    overflow: Amount

    @classmethod
    def of(
        cls,
        *,
        unit: str,
        relation: Relation,
        units: int,
        most_rows: int,
        probability: Fraction,
        noise_multiplier: str,
        draws: int,
        distance: Fraction | None,
        overflow: Fraction,
    ) -> Terms:
        """In the one form that equal terms have.

        Raises:
            InputError: 2005 for a unit that is no name.
        """
        fields = {
            "unit": unit,
            "relation": relation.value,
            "units": units,
            "most_rows": most_rows,
            "sampling_probability": ratio(probability),
            "noise_multiplier": noise_multiplier,
            "draws": draws,
            "overflow": significant_up(overflow, _DIGITS),
        }
        if distance is not None:
            fields["distance"] = significant_up(distance, _DIGITS)
        return parse_message(cls, fields, what="terms")

    def slack(self, steps: int) -> str:
        """What so many steps lack to ideal ones: their noise, and batches that had too little room."""
        noise = noise_slack(sigma=GRID_SIGMA, draws=steps * self.draws, sampler_distance=exact(self.distance or "0"))
        return significant_up(min(exact("1"), exact(noise) + steps * exact(self.overflow)))

    def event(self, steps: int) -> Event:
        """So many steps."""
        if self.distance is None:
            reason = "noise in floating point, from a generator that is not secure"
            return Unaccounted(unit=self.unit, relation=self.relation, reason=reason)
        return SampledGaussian(
            unit=self.unit,
            relation=self.relation,
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            count=steps,
            slack=self.slack(steps),
        )


class Part(Message):
    """Steps in a row.

    Attributes:
        id: Of this part alone, 32 hexadecimal digits.
        terms: Theirs.
        steps: How many sums were released.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    terms: Terms
    steps: Count

    @classmethod
    def begun(cls, terms: Terms) -> Part:
        """With its first step."""
        return cls(id=secrets.token_hex(16), terms=terms, steps=1)

    def longer(self) -> Part:
        """By a step."""
        return self.model_copy(update={"steps": self.steps + 1})


def events_of(parts: Iterable[Part]) -> tuple[Event, ...]:
    """One event for steps in a row whose terms are the same."""
    rows = groupby(parts, key=lambda part: part.terms)
    return tuple(terms.event(sum(part.steps for part in row)) for terms, row in rows)


def all_parts(saved: Sequence[Part], made: Sequence[Part]) -> list[Part]:
    """Those that were saved and those that were made: each once, with as many steps as either knows of."""
    steps = {part.id: part.steps for part in made}
    known = {part.id for part in saved}
    longest = [part.model_copy(update={"steps": max(part.steps, steps.get(part.id, 0))}) for part in saved]
    return longest + [part for part in made if part.id not in known]


class Target(Message):
    """What noise was chosen for.

    Attributes:
        epsilon: That all steps together may cost.
        delta: At this δ.
        steps: Of the whole run.
    """

    epsilon: Amount
    delta: Amount
    steps: Count


class Saved(Message):
    """A run as a checkpoint keeps it. No secret, and nothing that a key follows from.

    Attributes:
        parts: What was done.
        target: What its noise was chosen for, if for an ε.
        norm: The clipping norm, which may follow the gradients, as :meth:`float.hex` writes it.
        loader: The loader's :class:`cloister.privacy._run_key.StreamState`; as the next three, with a key only.
        noise: The number of the next release.
        rounding: The number of the next draw for rounding.
        proof: HMAC-SHA-256 over all of the above, in hexadecimal.
    """

    format: Literal["cloister/private-run/v1"] = "cloister/private-run/v1"
    parts: Annotated[tuple[Part, ...], Field(max_length=_MOST_PARTS)]
    target: Target | None = None
    norm: Annotated[str, StringConstraints(pattern=r"^0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}$")]
    loader: tuple[Position, Digest] | None = None
    noise: Position | None = None
    rounding: Position | None = None
    proof: Digest | None = None

    @classmethod
    def read(cls, value: Any) -> Saved:
        """What :meth:`as_json` gave.

        Raises:
            InputError: 2812 when it is something else.
        """
        if not isinstance(value, Mapping):
            raise InputError(2812, got=type(value).__name__)
        try:
            return parse_message(cls, dict(value), what="state")
        except InputError as error:
            raise InputError(2812, got=error.what) from None

    def proven(self, key: RunKey) -> Saved:
        """With its proof."""
        return self.model_copy(update={"proof": self._proof(key)})

    def require(self, key: RunKey) -> None:
        """Returns when it was proven with this key, and not changed since.

        Raises:
            InputError: 2812 when it was saved without a key.
            IntegrityError: 5810 when it was not.
        """
        if self.proof is None:
            raise InputError(2812, "a state that was saved without a key", expected="one of this key's run")
        if not hmac.compare_digest(self.proof, self._proof(key)):
            raise IntegrityError(5810)

    def _proof(self, key: RunKey) -> str:
        return key.derive(_PROOF, self.model_copy(update={"proof": None}).canonical()).reveal().hex()
