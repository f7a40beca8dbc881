"""A party's journal of one agreement: every session that began, how it ended, and what its owner consented to.

Whether a fit converged is one bit about everybody's data, and a cheater who puts other data in learns another bit, or
another model, each time. So the owner's consent, first given by signing, is for *one* session that may have said
something. The journal refuses the next one (3901) after

* a session that failed when a certificate may have been opened, or whose end nobody saw;
* a session that gave a model;
* more than two sessions that ended because a proof left its box (6906): a cheater could ask for challenges so.

What fails before inputs are used says nothing about them, and is only counted. The file is read and replaced as a
whole, and only one process of a party runs an agreement at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.errors import InputError, RefusedError
from cloister.linear._frames import PHASES
from cloister.linear._lock import locked
from cloister.wire import (
    Digest,
    Message,
    Name,
    Timestamp,
    parse_json,
    parse_message,
    read_bounded,
    require_format,
    write_private,
)

__all__ = ["MOST_AGAIN", "Counts", "Journal"]

MOST_AGAIN = 2
_AGAIN = 6906
_FORMAT = "cloister/linear-journal/v1"
_MAX_BYTES = 4 << 20
_QUIET = frozenset(PHASES[: PHASES.index("online")])  # nothing that depends on inputs is opened in these

Serial = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class _Event(Message):
    kind: Literal["begun", "released", "failed", "consent"]
    at: Timestamp
    session: Serial | None = None
    code: int | None = Field(default=None, ge=0, le=9999)
    phase: str | None = None


class _File(Message):
    format: Literal["cloister/linear-journal/v1"] = _FORMAT
    agreement: Digest
    party: Name
    events: tuple[_Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """Of an agreement's sessions, over all time.

    Attributes:
        begun: Sessions.
        released: That gave a model.
        failed: That ended with an error.
        telling: That may have said something about the inputs, since the last consent.
        again: That ended with 6906, since the last consent.
    """

    begun: int
    released: int
    failed: int
    telling: int
    again: int

    @property
    def needs_consent(self) -> bool:
        """Whether the next session needs it."""
        return bool(self.telling) or self.again > MOST_AGAIN


class Journal:
    """The journal of one party's sessions of one agreement.

    Args:
        home: The party's home folder.
        agreement: The agreement's id.
        party: Its name.
    """

    def __init__(self, home: Path, agreement: str, party: str) -> None:
        self.path = home / "linear" / f"{agreement}.{party}.json"
        self._empty = _File(agreement=agreement, party=party)

    def counts(self) -> Counts:
        """What has happened so far.

        Raises:
            InputError: 2001 to 2005 when the file is not one: nothing is then forgotten silently.
        """
        return _counts(self._read().events)

    @contextmanager
    def session(self, *, at: str) -> Iterator[str]:
        """A session's serial number, recorded as begun; what is inside is to record its end.

        Raises:
            RefusedError: 3901 when the owner's consent is needed first.
            InputError: 2555 when another process runs this agreement; 2001 when the journal cannot be written.
        """
        # on Windows, without a lock: an open session in the journal refuses the next one all the same
        with locked(self.path.with_suffix(".lock"), wait=False):
            self.require_consent()
            held = self._read()
            serial = secrets.token_hex(8)
            self._write(held, _Event(kind="begun", at=at, session=serial))
            yield serial

    def released(self, session: str, *, at: str) -> None:
        """Records that a model was released."""
        self._write(self._read(), _Event(kind="released", at=at, session=session))

    def failed(self, session: str, *, code: int | None, phase: str, at: str) -> None:
        """Records that a session ended without a model, and how far it came.

        Args:
            session: Its serial number.
            code: Of the error; None when its owner stopped it.
            phase: The furthest that was begun, not the one in which it ended: Newton's rounds go back to inputs after
                a model was opened.
            at: When.
        """
        self._write(self._read(), _Event(kind="failed", at=at, session=session, code=code, phase=phase))

    def consent(self, *, at: str) -> None:
        """Records that the owner has read what happened and lets one more session run."""
        self._write(self._read(), _Event(kind="consent", at=at))

    def require_consent(self) -> None:
        """Returns when one more session may run; raises 3901 when its owner has to consent first."""
        counts = self.counts()
        if counts.telling:
            raise RefusedError(3901, got=f"{counts.begun} begun, {counts.released} released, {counts.failed} failed")
        if counts.again > MOST_AGAIN:
            raise RefusedError(3901, "proofs left their boxes too often to be chance", got=f"{counts.again} times")

    def _read(self) -> _File:
        if not self.path.exists():
            return self._empty
        what = f"journal '{self.path}'"
        value = parse_json(read_bounded(self.path, max_bytes=_MAX_BYTES, what="journal"), what=what)
        require_format(value, _FORMAT, what=what)
        held = parse_message(_File, value, what=what, max_bytes=_MAX_BYTES)
        if (held.agreement, held.party) != (self._empty.agreement, self._empty.party):
            raise InputError(2005, f"{what} is of another agreement or party", got=f"{held.agreement} {held.party}")
        return held

    def _write(self, held: _File, event: _Event) -> None:
        data = held.model_copy(update={"events": (*held.events, event)}).canonical() + b"\n"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self.path, data)
        except OSError as error:
            raise InputError(2001, f"cannot write the journal: {error.strerror}: '{self.path}'") from error


def _counts(events: tuple[_Event, ...]) -> Counts:
    """A fold: consent settles what is behind it, and a session without an end may have said everything."""
    open_: set[str | None] = set()
    telling = again = 0
    for event in events:
        if event.kind == "consent":
            telling = again = 0
            open_.clear()
        elif event.kind == "begun":
            open_.add(event.session)
        else:
            open_.discard(event.session)
            again += event.code == _AGAIN
            telling += event.kind == "released" or event.phase not in _QUIET
    kinds = [event.kind for event in events]
    return Counts(kinds.count("begun"), kinds.count("released"), kinds.count("failed"), telling + len(open_), again)
