"""The ledger of one appraisal: every step leaves a claim, also those that could not be taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar, overload

from cloister.attest._claims import Claim, ClaimValue
from cloister.errors import AttestationError

__all__ = ["Ledger"]

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
Shown: TypeAlias = Callable[[T], ClaimValue] | None
_CANNOT_SAY = frozenset({4106, 4107, 4134})  # not shown false: nothing there to examine it with


class Ledger:
    """Collects claims in the order of the steps."""

    def __init__(self) -> None:
        self.claims: list[Claim] = []

    @overload
    def step(
        self, name: str, source: str, action: Callable[[A], T], a: A | None, /, *, value: Shown[T] = None
    ) -> T | None: ...

    @overload
    def step(
        self,
        name: str,
        source: str,
        action: Callable[[A, B], T],
        a: A | None,
        b: B | None,
        /,
        *,
        value: Shown[T] = None,
    ) -> T | None: ...

    @overload
    def step(
        self,
        name: str,
        source: str,
        action: Callable[[A, B, C], T],
        a: A | None,
        b: B | None,
        c: C | None,
        /,
        *,
        value: Shown[T] = None,
    ) -> T | None: ...

    @overload
    def step(
        self,
        name: str,
        source: str,
        action: Callable[[A, B, C, D], T],
        a: A | None,
        b: B | None,
        c: C | None,
        d: D | None,
        /,
        *,
        value: Shown[T] = None,
    ) -> T | None: ...

    @overload
    def step(
        self,
        name: str,
        source: str,
        action: Callable[[A, B, C, D, E], T],
        a: A | None,
        b: B | None,
        c: C | None,
        d: D | None,
        e: E | None,
        /,
        *,
        value: Shown[T] = None,
    ) -> T | None: ...

    def step(
        self, name: str, source: str, action: Callable[..., T], /, *inputs: object, value: Shown[T] = None
    ) -> T | None:
        """Takes one required step: ``action(*inputs)``, whose AttestationError becomes the claim's reason.

        A step whose input is None, because an earlier step gave none, is not taken and its claim is unknown.

        Args:
            name: The claim.
            source: What is examined.
            action: Returns something other than None.
            inputs: What earlier steps returned.
            value: The claim's value, of what ``action`` returned.
        """
        if any(given is None for given in inputs):
            self.claims.append(Claim(name, "unknown", None, source, self._blocked(), self._code(), required=True))
            return None
        try:
            result = action(*inputs)
        except AttestationError as error:
            status = "unknown" if error.code in _CANNOT_SAY else "refuted"
            self.claims.append(Claim(name, status, None, source, _reason(error), error.code, required=True))
            return None
        shown = True if value is None else value(result)
        self.claims.append(Claim(name, "asserted", shown, source, required=True))
        return result

    def fact(
        self, name: str, value: ClaimValue, source: str, *, proven: bool, because: str = "", code: int = 4147
    ) -> None:
        """Records what the evidence says: asserted only when ``proven``; a None value is not said at all."""
        if value is None:
            return
        if proven:
            self.claims.append(Claim(name, "asserted", value, source))
        else:
            self.claims.append(Claim(name, "unknown", value, source, because or self._blocked(), self._code(code)))

    def asserted(self, *names: str) -> bool:
        """Whether all of these claims were made and are asserted."""
        good = {claim.name for claim in self.claims if claim.status == "asserted"}
        return good.issuperset(names)

    def complete(self) -> bool:
        """Whether every required claim so far is asserted."""
        return all(claim.status == "asserted" for claim in self.claims if claim.required)

    def _first(self) -> Claim | None:
        failed = [claim for claim in self.claims if claim.required and claim.status != "asserted"]
        return next((claim for claim in failed if claim.status == "refuted"), failed[0] if failed else None)

    def _blocked(self) -> str:
        first = self._first()
        return "not examined" if first is None else f"not examined, because {first.name} is {first.status}"

    def _code(self, default: int = 4147) -> int:
        first = self._first()
        return default if first is None else first.code or default


def _reason(error: AttestationError) -> str:
    parts = [error.what]
    if error.expected is not None:
        parts.append(f"expected {error.expected}")
    if error.got is not None:
        parts.append(f"got {error.got}")
    return "; ".join(parts)
