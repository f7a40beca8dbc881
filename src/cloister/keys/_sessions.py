"""Open challenges: a nonce each, good once and for a while. They live in memory only: a restart ends them all."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from cloister.errors import RefusedError

__all__ = ["Session", "Sessions"]


@dataclass(frozen=True, slots=True)
class Session:
    """One challenge.

    Attributes:
        id: Its name, 32 hexadecimal digits.
        nonce: 32 bytes.
        subject: What it is for: the digest of an attempt grant, or of a collect request.
        expires_at: UTC text.
        manifest: Whose places it takes.
    """

    id: str
    nonce: bytes
    subject: str
    expires_at: str
    manifest: str = ""


class Sessions:
    """The sessions of one start of a key manager."""

    __slots__ = ("_limit", "_open", "_order", "_spent")

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, Session] = {}
        self._spent: dict[str, Session] = {}
        self._order: deque[Session] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, session: Session, *, now: str) -> None:
        """Remembers a session. When all places are taken, the manifest that holds most of them gives one up.

        Raises:
            RefusedError: 3425 when that is the session's own manifest.
        """
        self._forget_old(now)
        if len(self._open) >= self._limit:
            greedy, _ = Counter(each.manifest for each in self._open.values()).most_common(1)[0]
            if greedy == session.manifest:
                raise RefusedError(3425, f"{self._limit} sessions are open", hint="wait for some of them to expire")
            del self._open[next(id for id, each in self._open.items() if each.manifest == greedy)]
        self._open[session.id] = session
        self._order.append(session)

    def find(self, session: str, *, subject: str, now: str) -> Session:
        """The open session of this name, for this subject.

        Raises:
            RefusedError: 3421 unknown; 3423 already used; 3422 expired; 3424 made for another subject.
        """
        if session in self._spent:
            raise RefusedError(3423, "the session's nonce was used already", got=session)
        found = self._open.get(session)
        if found is None:
            raise RefusedError(3421, "no such session", got=session)
        if found.expires_at < now:
            raise RefusedError(3422, f"the session expired at {found.expires_at}", got=now)
        if found.subject != subject:
            raise RefusedError(3424, "the session was made for another attempt", expected=found.subject, got=subject)
        return found

    def take(self, session: str) -> None:
        """Spends the session, whatever becomes of the request."""
        found = self._open.pop(session, None)
        if found is not None:
            self._spent[session] = found

    def give_back(self, session: str) -> None:
        """Undoes :meth:`take`, for a batch that was not committed and will be decided again."""
        found = self._spent.pop(session, None)
        if found is not None:
            self._open[session] = found

    def _forget_old(self, now: str) -> None:
        while self._order and self._order[0].expires_at < now:
            old = self._order.popleft()
            self._open.pop(old.id, None)
            self._spent.pop(old.id, None)
