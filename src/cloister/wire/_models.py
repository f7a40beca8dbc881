"""The base of every wire object: frozen, strict, nothing unknown, and small named types."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)

from cloister.errors import InputError
from cloister.wire._canonical import MAX_JSON_BYTES, canonical, digest, parse_json

__all__ = ["B64", "Digest", "Message", "Name", "Timestamp", "parse_message", "require_format"]

M = TypeVar("M", bound="Message")


def _decode_b64(value: object) -> object:
    if isinstance(value, str):
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("not base64") from error
        if base64.b64encode(raw).decode() != value:
            raise ValueError("not canonical base64")
        return raw
    return value


def _check_time(value: str) -> str:
    datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return value


B64 = Annotated[
    bytes,
    BeforeValidator(_decode_b64),
    PlainSerializer(lambda raw: base64.b64encode(raw).decode(), return_type=str),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes that travel as canonical, padded base64."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 as 64 lower-case hexadecimal digits."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*([-.][a-z0-9]+)*$", max_length=64)]
"""A short name: lower-case letters and digits, joined by ``-`` or ``.``."""

Timestamp = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"),
    AfterValidator(_check_time),
]
"""A UTC time to the second, RFC 3339 with ``Z``; compares as text in order of time."""


class Message(BaseModel):
    """A frozen wire object. Unknown fields are refused: an ignored field could be an ignored rule."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=False)

    def as_json(self) -> Any:
        """The JSON value; absent optional fields are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def canonical(self) -> bytes:
        """The RFC 8785 bytes: what is hashed and signed."""
        return canonical(self.as_json())

    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return digest(self.canonical())


def parse_message(
    cls: type[M],
    data: bytes | dict[str, Any],
    *,
    what: str,
    max_bytes: int = MAX_JSON_BYTES,
    secret: bool = False,
) -> M:
    """A message of type ``cls`` from JSON bytes, or from a value that :func:`parse_json` returned.

    Args:
        cls: The message's class.
        data: The bytes or the parsed value.
        what: What this is, for messages.
        max_bytes: Checked before parsing.
        secret: The message holds secrets, so an error never quotes it.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2005 a field is missing, unknown or of the wrong type.
    """
    value = parse_json(data, what=what, max_bytes=max_bytes) if isinstance(data, bytes) else data
    try:
        return cls.model_validate_json(canonical(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        got = None if secret else re.sub(r"\s+", " ", repr(first.get("input")))[:80]
        raise InputError(2005, f"{what}: {where}: {first['msg'].lower()}", got=got) from None


def require_format(value: object, expected: str, *, what: str) -> None:
    """Returns unless ``value`` is an object whose ``format`` names another format or version than ``expected``.

    Called before :func:`parse_message`, so that a file of a later version is told apart from a broken one.

    Raises:
        InputError: 2004 when it does.
    """
    found: object = cast("dict[str, object]", value).get("format") if isinstance(value, dict) else None
    if isinstance(found, str) and found != expected:
        raise InputError(2004, f"{what} has an unknown format", expected=expected, got=repr(found[:80]))
