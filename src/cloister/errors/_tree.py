"""The tree of errors."""

from __future__ import annotations

from typing import ClassVar

from cloister.errors._table import all_codes

__all__ = [
    "AttestationError",
    "BudgetError",
    "CloisterError",
    "InputError",
    "IntegrityError",
    "InternalError",
    "PeerError",
    "RefusedError",
    "UnsupportedError",
    "error_for",
]


class CloisterError(Exception):
    """The root: a code, what happened, what was expected, what came, and the next step.

    Args:
        code: A registered code whose first digit is this class's branch.
        what: What happened here, lower case, no final period. Defaults to the code's title.
        expected: What would have been accepted. Never a secret.
        got: What came instead. Never a secret.
        hint: One next step. Defaults to the code's remedy.
    """

    branch: ClassVar[int] = 9

    def __init__(
        self,
        code: int,
        what: str | None = None,
        *,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        page = all_codes().get(code)
        if page is None or code // 1000 != self.branch:
            code, page = 9001, all_codes()[9001]
            what = f"{type(self).__name__} was raised with a code that is not its own: {what}"
        self.code = code
        self.what = what or page.title
        self.expected = expected
        self.got = got
        self.hint = hint or page.remedy
        super().__init__(f"error[CLOISTER-{code}]: {self.what}")

    @property
    def exit_status(self) -> int:
        """The exit status of a command that ends with this error: the code's first digit."""
        return self.code // 1000

    def as_json(self) -> dict[str, object]:
        """The same facts for ``--json`` and for HTTP answers; all values are strings or numbers."""
        facts: dict[str, object] = {"code": self.code, "what": self.what, "hint": self.hint}
        for name, value in (("expected", self.expected), ("got", self.got)):
            if value is not None:
                facts[name] = str(value)
        return facts

    def __reduce__(self) -> tuple[object, ...]:
        return error_for, (self.code, self.what, self.expected, self.got, self.hint)


class InputError(CloisterError):
    """2xxx: what the user gave is not usable."""

    branch = 2


class RefusedError(CloisterError):
    """3xxx: policy or consent says no."""

    branch = 3


class AttestationError(CloisterError):
    """4xxx: evidence does not show what it must."""

    branch = 4


class IntegrityError(CloisterError):
    """5xxx: bytes or arithmetic are not what was agreed."""

    branch = 5


class PeerError(CloisterError):
    """6xxx: a peer or the network does not answer, or answers nonsense."""

    branch = 6


class BudgetError(CloisterError):
    """7xxx: a privacy budget would be exceeded."""

    branch = 7


class UnsupportedError(CloisterError):
    """8xxx: this model cannot run in this mode."""

    branch = 8


class InternalError(CloisterError):
    """9xxx: our bug."""

    branch = 9


_BRANCHES: dict[int, type[CloisterError]] = {
    cls.branch: cls
    for cls in (
        InputError,
        RefusedError,
        AttestationError,
        IntegrityError,
        PeerError,
        BudgetError,
        UnsupportedError,
        InternalError,
    )
}


def error_for(
    code: int,
    what: str | None = None,
    expected: object = None,
    got: object = None,
    hint: str | None = None,
) -> CloisterError:
    """The error of the branch that ``code`` belongs to; an unregistered code becomes 9001.

    For codes that arrive from elsewhere (a peer's answer, a stage's exit).
    """
    branch = _BRANCHES.get(code // 1000, InternalError)
    return branch(code, what, expected=expected, got=got, hint=hint)
