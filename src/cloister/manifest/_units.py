"""Sizes and durations as people write them: "64 MiB", "10 min"."""

from __future__ import annotations

import re

__all__ = ["DURATIONS", "SIZES", "duration_s", "size_bytes"]

SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DURATIONS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_AMOUNT = re.compile(r"([1-9][0-9]{0,11}) ?([A-Za-z]{1,3})")


def size_bytes(text: str) -> int | None:
    """The size in bytes, or None when ``text`` is not a whole number of one of :data:`SIZES`.

    >>> size_bytes("64 MiB")
    67108864
    """
    return _amount(text, SIZES)


def duration_s(text: str) -> int | None:
    """The duration in seconds, or None when ``text`` is not a whole number of one of :data:`DURATIONS`.

    >>> duration_s("10 min")
    600
    """
    return _amount(text, DURATIONS)


def _amount(text: str, units: dict[str, int]) -> int | None:
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2] not in units:
        return None
    return int(found[1]) * units[found[2]]
