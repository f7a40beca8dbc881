"""A bound on what strangers can make the log grow: an allowance that refills with time."""

from __future__ import annotations

from datetime import datetime

from cloister.errors import RefusedError

__all__ = ["Throttle"]


class Throttle:
    """A token bucket. What is throttled is not decided, and so not logged."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, *, burst: int, per_s: int) -> None:
        self._burst, self._per_s = burst, per_s
        self._left = float(burst)
        self._at: datetime | None = None

    def require(self, now: datetime) -> None:
        """Returns while some allowance is left.

        Raises:
            RefusedError: 3425 when it is used up.
        """
        if self._at is not None:
            grown = max(0.0, (now - self._at).total_seconds()) * self._per_s
            self._left = min(float(self._burst), self._left + grown)
        self._at = now
        if self._left < 1:
            raise RefusedError(3425, expected=f"{self._per_s} refused or unsigned requests a second")

    def spend(self) -> None:
        """Takes one from the allowance."""
        self._left -= 1
