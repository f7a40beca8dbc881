"""How a decision was reached: one step a rule, in order, the failed one last."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from cloister.errors import CloisterError
from cloister.keys._entries import MAX_TRACE, TraceStep
from cloister.wire import canonical, digest

__all__ = ["Trace"]

_MAX_REASON = 2000
_MAX_POLICY_BYTES = 64 << 10  # of all policy traces of one decision together


class Trace:
    """Collects the steps of one decision.

    >>> trace = Trace()
    >>> with trace.rule("the manifest is in force"):
    ...     pass
    >>> trace.steps[0].outcome
    'passed'
    """

    __slots__ = ("_policy_bytes", "_steps")

    def __init__(self) -> None:
        self._steps: list[TraceStep] = []
        self._policy_bytes = 0

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
        """Adds a step; of a policy's trace that would swell the log, only its digest."""
        outcome = "passed" if passed else "failed"
        if policy is not None:
            size_bytes = len(canonical(policy))
            self._policy_bytes += size_bytes
            if self._policy_bytes > _MAX_POLICY_BYTES:
                policy = {"holds": passed, "bytes": size_bytes, "sha256": digest(canonical(policy))}
        self._steps.append(TraceStep(rule=name[:100], outcome=outcome, reason=reason[:_MAX_REASON], policy=policy))

    @property
    def steps(self) -> tuple[TraceStep, ...]:
        """The steps so far; of very many the first and the last, where the decision fell, with the count between."""
        if len(self._steps) <= MAX_TRACE:
            return tuple(self._steps)
        half = MAX_TRACE // 2
        between = f"{len(self._steps) - 2 * half + 1} steps that passed are left out"
        gap = TraceStep(rule="and so on", outcome="passed", reason=between)
        return (*self._steps[:half], gap, *self._steps[-(half - 1) :])
