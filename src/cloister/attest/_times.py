"""Moments: UTC, aware, to the second."""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.errors import InputError

__all__ = ["as_utc", "parse_time", "stamp"]


def parse_time(stamp: str) -> datetime:
    """The moment of an RFC 3339 text.

    Raises:
        InputError: 2106 when it is not one, or has no offset.
    """
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        raise InputError(2106, expected="2026-11-20T00:00:00Z", got=stamp[:40]) from None
    return as_utc(moment)


def as_utc(moment: datetime) -> datetime:
    """``moment`` in UTC.

    Raises:
        InputError: 2106 when it has no time zone: a verdict is a function of time, so no zone is guessed.
    """
    if moment.tzinfo is None:
        raise InputError(2106, "a time without a time zone", expected="2026-11-20T00:00:00Z", got=moment.isoformat())
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError):
        raise InputError(2106, "a time out of range", got=str(moment)) from None


def stamp(moment: datetime) -> str:
    """``moment`` as RFC 3339 text with ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
