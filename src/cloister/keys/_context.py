"""What a decision sees, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cloister.attest import Verdict
from cloister.errors import CloisterError, RefusedError
from cloister.keys._entries import Action
from cloister.keys._messages import AttemptGrant, LogReceipt, Signed
from cloister.keys._plan import Agreement
from cloister.keys._sessions import Session, Sessions
from cloister.keys._state import State
from cloister.keys._trace import Trace
from cloister.wire import Message, OpeningKey, Secret, SigningKey

__all__ = ["Context", "Outcome", "Prepared", "Settings", "Subject", "require_in_force"]

B = TypeVar("B", bound=Message)


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds on what strangers can make a key manager hold or write.

    Attributes:
        open_sessions: Challenges open at once.
        session_s: How long a challenge is good.
        free_entries: Entries that need no signature of a party (runs, attempts, refusals) in one burst.
        free_entries_per_s: How fast that allowance grows back.
        clock_slack_s: How far the host's clock may lie behind the newest entry; further back is refused, not corrected.
    """

    open_sessions: int = 4096
    session_s: int = 600
    free_entries: int = 20_000
    free_entries_per_s: int = 500
    clock_slack_s: int = 600


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about, for the log entry of its refusal."""

    manifest: str | None = None
    run: str | None = None
    name: str | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared(Generic[B]):
    """A request after the work that needs no lock: signatures of grants, and the appraisal of evidence.

    Attributes:
        action: What is asked.
        body: The request.
        grant: The attempt grant inside, once its signature was verified.
        verdict: Of the evidence inside.
        error: Why preparation ended early; raised again where the decision needs what is missing.
    """

    action: Action
    body: B
    grant: AttemptGrant | None = None
    verdict: Verdict | None = None
    error: CloisterError | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a decision leaves behind: at most one new entry, secrets to store or erase, and the answer.

    Attributes:
        reply: Makes the answer once everything is committed; gets the receipt of ``entry`` or ``old``.
        entry: The new entry, or None when nothing happened that the log must know.
        plain: The answer where there is neither ``entry`` nor ``old``.
        old: Index and entry of an earlier decision that this answer repeats.
        put: Secrets to store with the entry.
        erase: Ids of secrets to erase with it.
        refused: The error, when the answer is a refusal.
    """

    reply: Callable[[LogReceipt], Signed] | None = None
    entry: Any = None
    plain: Signed | None = None
    old: tuple[int, Any] | None = None
    put: Mapping[str, Secret] = field(default_factory=dict[str, Secret])
    erase: tuple[str, ...] = ()
    refused: CloisterError | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a decision may look at.

    Attributes:
        state: The fold of the log; read only here.
        sessions: Open challenges.
        spent: The session that this decision spends.
        secrets: By id.
        sign: The key manager's signing key.
        opening: The key manager's HPKE key.
        at: The decision's time, UTC text.
        trace: Collects the rules.
        entropy: A CSPRNG.
        settings: Bounds.
    """

    state: State
    sessions: Sessions
    spent: list[str]
    secrets: Mapping[str, Secret]
    sign: SigningKey
    opening: OpeningKey
    at: str
    trace: Trace
    entropy: Callable[[int], bytes]
    settings: Settings

    @property
    def me(self) -> str:
        """The key manager's public signing key, as text: how it names itself in every answer."""
        return str(self.sign.public)

    def take(self, session: str, *, subject: str) -> Session:
        """The open session of this name and subject, which is spent by that, whatever becomes of the request.

        Raises:
            RefusedError: 3421 unknown; 3423 already used; 3422 expired; 3424 made for another subject.
        """
        found = self.sessions.find(session, subject=subject, now=self.at)
        self.sessions.take(session)
        self.spent.append(session)
        return found

    def agreement(self, manifest: str) -> Agreement:
        """The manifest of this id, in force; a step of the trace."""
        with self.trace.rule("the manifest is in force"):
            return require_in_force(self.state, manifest, at=self.at)


def require_in_force(state: State, manifest: str, *, at: str) -> Agreement:
    """The installed manifest of this id.

    Raises:
        RefusedError: 3401 when it is not installed; 3404 when a party suspended it; 3403 outside its validity.
    """
    agreement = state.agreements.get(manifest)
    if agreement is None:
        raise RefusedError(3401, "this manifest is not installed here", got=manifest)
    if manifest in state.suspended:
        raise RefusedError(3404, f"party {state.suspended[manifest]!r} suspended this manifest")
    valid = agreement.manifest.valid
    if not valid.not_before <= at <= valid.not_after:
        raise RefusedError(3403, expected=f"{valid.not_before} to {valid.not_after}", got=at)
    return agreement
