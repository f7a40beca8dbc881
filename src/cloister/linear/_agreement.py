"""Agreement: what the parties of a linear fit agree on, as one document that all of them sign.

Rules:

* A person writes YAML; what is signed is the RFC 8785 JSON of the whole agreement, every default written out. Its id is
  the SHA-256 of those bytes, and any change is another agreement.
* Numbers are decimals as text: all parties hold the same fractions, and the plan follows from them alone.
* The order of the parties is theirs in the protocol: the first is party 0, and listens for all others.
* ``_sound.require_sound`` holds the parts together and refuses what has no proof of security (2901).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from cloister.linear._plan import MOST_FEATURES, MOST_PARTIES, Plan, exact
from cloister.linear._scaling import Scaling
from cloister.linear._terms import LogisticTerms, LongText, Model, Real, ShortText
from cloister.manifest import Validity
from cloister.wire import Message, Name

__all__ = [
    "AGREEMENT_LABEL",
    "Address",
    "Agreement",
    "Feature",
    "Member",
    "PrivacyTerms",
    "Response",
    "Timeouts",
    "endpoint",
]

AGREEMENT_LABEL = "cloister/linear-agreement/v1"

Address = Annotated[
    str,
    StringConstraints(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z][0-9A-Za-z.-]*):"
        r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$",
        max_length=256,
    ),
]
"""``HOST:PORT``; an IPv6 address stands in brackets."""


def _known_once(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("something stands there twice")
    return values


class Member(Message):
    """One party."""

    name: Name = Field(description="What the others call it; they have pinned its identity under this name.")
    key: str = Field(description="Its ed25519 key, as in its public file.")
    address: Address = Field(description="Where it listens for parties that stand below it: HOST:PORT.")
    rows: int = Field(ge=1, lt=1 << 40, description="How many rows it will use, exactly.")
    curvature: Real | None = Field(
        default=None, description="The greatest eigenvalue of its own mean of [1 X]'[1 X]; else `curvature` below."
    )


class Feature(Message):
    """A column, or a column of 0 and 1 for each of its categories."""

    name: ShortText = Field(description="As in the data.")
    categories: Annotated[tuple[ShortText, ...], AfterValidator(_known_once)] | None = Field(
        default=None, min_length=2, max_length=MOST_FEATURES, description="All values that it may have, as text."
    )
    centre: Real = Field(default="0", description="Taken from every value of the column.")
    scale: Real = Field(default="1", description="What every value is divided by afterwards.")
    mean_square: Real | None = Field(
        default=None, description="That no party's mean of the scaled values' squares exceeds; else as of the whole."
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what it becomes."""
        return (self.name,) if self.categories is None else tuple(f"{self.name}={one}" for one in self.categories)


class Response(Message):
    """What the model shall tell."""

    name: ShortText = Field(description="As in the data.")
    labels: Annotated[tuple[ShortText, ShortText], AfterValidator(_known_once)] | None = Field(
        default=None, description="Of a logistic model: what counts as -1 and what as +1."
    )
    centre: Real = Field(default="0", description="As of a feature.")
    scale: Real = Field(default="1", description="As of a feature; coefficients are given back in the data's units.")
    mean_square: Real | None = Field(default=None, description="As of a feature.")


class PrivacyTerms(Message):
    """Differential privacy: each party adds the whole noise to its own statistics before anything leaves it."""

    epsilon: Real = Field(description="The bound ε for a record, as a decimal in quotes: the noise must keep it.")
    delta: Real = Field(description="The bound δ.")
    noise_multiplier: Real = Field(description="The noise's standard deviation over the square of `clip`.")
    clip: Real = Field(description="The norm of the scaled (1, x, y) that a record keeps.")


class Timeouts(Message):
    """How long a party waits for the others."""

    connect_s: int = Field(default=120, ge=1, le=86400, description="For all to be there.")
    answer_s: int = Field(
        default=600, ge=1, le=86400, description="For a peer's next message to arrive, small as it is."
    )
    bytes_s: int = Field(
        default=100_000, ge=1000, le=1 << 40, description="The slowest link: large messages get longer."
    )


class Agreement(Message):
    """One linear model of the joined rows of parties who trust nobody."""

    format: Literal["cloister/linear-agreement/v1"] = AGREEMENT_LABEL
    name: Name = Field(description="What the parties call it.")
    purpose: LongText = Field(default="", description="What it is for, in a sentence that everybody signs.")
    valid: Validity = Field(description="When it may be run.")
    parties: tuple[Member, ...] = Field(
        min_length=1, max_length=64, description=f"Who takes part: 2 to {MOST_PARTIES}."
    )
    features: tuple[Feature, ...] = Field(min_length=1, max_length=4096, description="The columns, in this order.")
    response: Response = Field(description="What is regressed on them.")
    model: Model = Field(description="What is fitted, with penalties in scikit-learn's terms.")
    curvature: Real = Field(description="As of a party, for those that have none of their own.")
    mean_square: Real = Field(default="2", description="As of a feature, for columns that have none of their own.")
    tolerance: Real = Field(default="0.000244140625", description="The certificate's: of the proximal gradient.")
    adversary: Literal["malicious", "semi-honest"] = Field(
        default="malicious", description="What cheaters may do: anything, or only look at what they get."
    )
    release: Literal["coefficients"] = Field(
        default="coefficients", description="What all learn in the end; of statistics, what their terms name."
    )
    privacy: PrivacyTerms | None = Field(
        default=None, description="Noise, if the model shall be differentially private."
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long a party waits.")

    @property
    def id(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return self.digest()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all features' columns, categories spread out."""
        return tuple(name for feature in self.features for name in feature.columns)

    @property
    def malicious(self) -> bool:
        """Whether cheaters are defended against."""
        return self.adversary == "malicious"

    @property
    def fits(self) -> int:
        """Linear fits in one session: more than one for Newton's rounds."""
        model = self.model
        return 1 + model.newton_rounds if isinstance(model, LogisticTerms) and model.method == "newton" else 1

    def number_of(self, name: str) -> int | None:
        """A party's place, from 0; None when it is no party."""
        return next((number for number, party in enumerate(self.parties) if party.name == name), None)

    def scaling(self) -> Scaling:
        """The affine map of every column, categories spread out.

        Raises:
            InputError: 2905 when a scale is not positive.
        """
        spread = [feature for feature in self.features for _ in feature.columns]
        wanted = [*spread, self.response]
        centres, scales = ([float(exact(value)) for value in column] for column in _affine(wanted))
        return Scaling(self.columns, tuple(centres), tuple(scales))

    def mean_squares(self) -> tuple[Fraction, ...]:
        """Of each column, then of the response."""
        spread = [feature for feature in self.features for _ in feature.columns]
        return tuple(exact(column.mean_square or self.mean_square) for column in (*spread, self.response))

    def plans(self) -> tuple[Plan, ...]:
        """The plan, and that of each of Newton's rounds where there are any; raises as :meth:`plan`."""
        plan = self.plan()
        return (
            (plan, self.model.newton_plan(plan)) if isinstance(self.model, LogisticTerms) and self.fits > 1 else (plan,)
        )

    def plan(self) -> Plan:
        """The numbers that a session follows; with Newton's rounds those of the fit before, of statistics their shapes.

        Raises:
            InputError: 2901 and 2909 as :class:`cloister.linear._plan.Plan`; 2905 when a scale is not positive.
        """
        rows, unit = tuple(party.rows for party in self.parties), Fraction(self.scaling().scales[-1])
        each = tuple(exact(party.curvature or self.curvature) for party in self.parties)
        owned = any(party.curvature is not None for party in self.parties)
        weighted = sum((count * own for count, own in zip(rows, each, strict=True)), Fraction(0))
        l1, l2 = self.model.penalties(sum(rows), unit)
        return Plan(
            rows=rows,
            curvature=weighted / sum(rows) if owned else each[0],
            curvatures=each if owned else (),
            mean_squares=self.mean_squares(),
            l1=l1,
            l2=l2,
            tolerance=exact(self.tolerance),
            **self.model.solver(),
        )


def endpoint(address: str) -> tuple[str, int]:
    """Host and port of an address.

    >>> endpoint("[::1]:7443")
    ('::1', 7443)
    """
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _affine(wanted: list[Feature | Response]) -> tuple[list[str], list[str]]:
    return [column.centre for column in wanted], [column.scale for column in wanted]
