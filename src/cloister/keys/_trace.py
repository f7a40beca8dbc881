"""How a decision was reached: one step a rule, in order, the failed one last."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from cloister.errors import CloisterError
from cloister.keys._entries import TraceStep

__all__ = ["Trace"]

_MAX_REASON = 2000


class Trace:
    """Collects the steps of one decision.

    >>> trace = Trace()
    >>> with trace.rule("the manifest is in force"):
    ...     pass
    >>> trace.steps[0].outcome
    'passed'
    """

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[TraceStep] = []

    @contextmanager
    def rule(self, name: str, reason: str = "") -> Generator[None]:
        """Runs one rule: passed when the block ends, failed (with the error's words) when it raises."""
        try:
            yield
        except CloisterError as error:
            self.note(name, passed=False, reason=f"{error.code}: {error.what}")
            raise
        self.note(name, passed=True, reason=reason)

    def note(self, name: str, *, passed: bool, reason: str = "", policy: dict[str, Any] | None = None) -> None:
        """Adds a step."""
        outcome = "passed" if passed else "failed"
        self._steps.append(TraceStep(rule=name[:100], outcome=outcome, reason=reason[:_MAX_REASON], policy=policy))

    @property
    def steps(self) -> tuple[TraceStep, ...]:
        """The steps so far."""
        return tuple(self._steps)
