"""What a session gives: integers that all have opened, signed by every party, and the file that a person keeps.

A signature covers the agreement, the session, its transcript and every opened integer, so all parties hold the same
model of the same session; without all signatures there is no model (5912).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from cloister.errors import InputError, IntegrityError
from cloister.linear._agreement import Agreement
from cloister.linear._logistic import first_point
from cloister.linear._plan import ITERATE_BITS
from cloister.linear._review import review
from cloister.linear._scaling import Scaling
from cloister.linear._sound import privacy_of
from cloister.linear._statistics import OPENED, Floats, Statistics, statistics_of
from cloister.linear._terms import LogisticTerms, StatisticsTerms
from cloister.linear._transcript import labelled
from cloister.wire import B64, Digest, Message, Name, VerifyKey, canonical, parse_json, parse_message, require_format

__all__ = [
    "MAX_MODEL_BYTES",
    "MODEL_LABEL",
    "ModelFile",
    "Released",
    "read_model",
    "require_all_signed",
    "signed_payload",
    "statistics_in",
    "write_model",
]

MODEL_LABEL = "cloister/linear-model/v1"
MAX_MODEL_BYTES = 8 << 20

Number = Annotated[str, StringConstraints(max_length=32)]
Numbers = tuple[Number | None, ...]
Integer = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,80}$")]


@dataclass(frozen=True, slots=True)
class Released:
    """What was opened at the end of a session.

    Attributes:
        session: What all call it, 32 bytes.
        transcript: The digest of what all have seen, 32 bytes.
        values: Of a model D integers in ulp of 2^-36, the intercept first, for scaled columns; of statistics the agreed
            entries.
        signatures: Of every party, over :func:`signed_payload`.
    """

    session: bytes
    transcript: bytes
    values: tuple[int, ...]
    signatures: Mapping[str, bytes]


class OpenedStatistics(Message):
    """What was opened, as :class:`cloister.linear.Statistics` has it; a number that is none is null."""

    sums: Numbers | None = None
    means: Numbers | None = None
    variances: Numbers | None = None
    covariance: tuple[Numbers, ...] | None = None
    correlation: tuple[Numbers, ...] | None = None


class ModelFile(Message):
    """A model or statistics as they are kept: signed integers, and what they mean in the units of the data."""

    format: Literal["cloister/linear-model/v1"] = MODEL_LABEL
    agreement: Digest
    session: Digest
    transcript: Digest
    values: tuple[Integer, ...] = Field(min_length=1, max_length=100_000)
    signatures: dict[Name, B64]
    columns: tuple[str, ...]
    coefficients: tuple[str, ...] = ()
    intercept: str | None = None
    statistics: OpenedStatistics | None = None
    card: str


def signed_payload(agreement: str, session: bytes, transcript: bytes, values: tuple[int, ...]) -> bytes:
    """What each party signs under :data:`MODEL_LABEL`, 32 bytes."""
    opened = canonical([str(value) for value in values])
    return labelled("model", bytes.fromhex(agreement), session, transcript, opened)


def require_all_signed(agreement: Agreement, released: Released) -> None:
    """Returns when every party has signed exactly this; raises 5912 otherwise."""
    payload = signed_payload(agreement.id, released.session, released.transcript, released.values)
    for party in agreement.parties:
        try:
            VerifyKey.parse(party.key).verify(MODEL_LABEL, payload, released.signatures.get(party.name, b""))
        except IntegrityError:
            raise IntegrityError(5912, f"'{party.name}' has not signed this model") from None


def write_model(agreement: Agreement, released: Released) -> ModelFile:
    """The file of what was released; raises 5912 unless all have signed it."""
    require_all_signed(agreement, released)
    coefficients, intercept = _in_units(agreement, released.values)
    said: dict[str, Any] = {
        "agreement": agreement.id,
        "session": released.session.hex(),
        "transcript": released.transcript.hex(),
        "values": tuple(str(value) for value in released.values),
        "signatures": dict(sorted(released.signatures.items())),
        "columns": agreement.columns,
        "coefficients": tuple(repr(value) for value in coefficients),
        "intercept": None if intercept is None else repr(intercept),
        "statistics": _opened(agreement, released.values),
        "card": _card(agreement, released),
    }
    return ModelFile(**said)


def read_model(data: bytes, agreement: Agreement, *, what: str = "model") -> ModelFile:
    """A model from its file, every signature and every number checked; its card is prose that nobody signed.

    Raises:
        InputError: 2002, 2003, 2004, 2005 when it is none, 2331 when it is another agreement's.
        IntegrityError: 5912 when a signature is missing or the numbers are not the signed ones.
    """
    value = parse_json(data, what=what, max_bytes=MAX_MODEL_BYTES)
    require_format(value, MODEL_LABEL, what=what)
    file = parse_message(ModelFile, value, what=what, max_bytes=MAX_MODEL_BYTES)
    if file.agreement != agreement.id:
        raise InputError(2331, f"{what} is of another agreement", expected=agreement.id, got=file.agreement)
    values = tuple(int(number) for number in file.values)
    released = Released(bytes.fromhex(file.session), bytes.fromhex(file.transcript), values, file.signatures)
    if write_model(agreement, released).model_copy(update={"card": file.card}) != file:  # the card is prose
        raise IntegrityError(5912, f"{what} says something else than what was signed")
    return file


def statistics_in(agreement: Agreement, file: ModelFile) -> Statistics:
    """What the file of a statistics session says; raises 2914 when the agreement is of a model."""
    return _statistics(agreement, tuple(map(int, file.values)))


def _statistics(agreement: Agreement, values: tuple[int, ...]) -> Statistics:
    model = agreement.model
    if not isinstance(model, StatisticsTerms):
        raise InputError(2914, "the agreement is of a model", got=model.type)
    privacy = privacy_of(agreement) if agreement.privacy is not None else None
    return statistics_of(agreement.plan(), agreement.scaling(), model.open, values, privacy=privacy)


def _opened(agreement: Agreement, values: tuple[int, ...]) -> OpenedStatistics | None:
    """Statistics for the units of the data; of a model none."""
    if not isinstance(agreement.model, StatisticsTerms):
        return None
    found = _statistics(agreement, values)
    given = {name: getattr(found, name) for name in OPENED}
    return OpenedStatistics(**{name: _texts(value) for name, value in given.items() if value is not None})


def _texts(values: Floats) -> tuple[Any, ...]:
    if values.ndim > 1:
        return tuple(map(_texts, values))
    return tuple(repr(float(value)) if math.isfinite(value) else None for value in values)


def _in_units(agreement: Agreement, values: tuple[int, ...]) -> tuple[list[float], float | None]:
    """Coefficients and intercept for the units of the data; of statistics none."""
    if isinstance(agreement.model, StatisticsTerms):
        return [], None
    if len(values) != len(agreement.columns) + 1:
        raise InputError(2005, "a model of another number of columns", expected=len(agreement.columns) + 1)
    scaling = agreement.scaling()
    if isinstance(agreement.model, LogisticTerms):
        # the quadratic fit is of ±1 in its own unit; Newton's iterates are scores already
        values = values if agreement.fits > 1 else first_point(values, scaling)
        scaling = Scaling(scaling.names, (*scaling.centres[:-1], 0.0), (*scaling.scales[:-1], 1.0))
    coefficients, intercept = scaling.unscale([value / 2**ITERATE_BITS for value in values])
    return [float(value) for value in coefficients], float(intercept)


def _card(agreement: Agreement, released: Released) -> str:
    """What the model is and what it does not protect: the review, and where it came from."""
    signers = ", ".join(party.name for party in agreement.parties)
    origin = f"session {released.session.hex()}, transcript {released.transcript.hex()}, signed by {signers}"
    return f"{review(agreement).text()}\n\nRELEASED      {origin}"
