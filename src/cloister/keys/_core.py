"""The key manager without any IO: a request, the time and entropy in; an entry, secrets and an answer out.

Order of operations for whoever drives it (``_desk.py`` does)::

    prepared = core.prepare(action, body, now=…)       # any thread, no lock
    with lock:
        outcomes = [core.decide(each, now=…) for each in batch]
        commit = core.commit(since)                      # one tree head over the whole batch
        store.append(since, commit)                      # durable, or the batch is undone: core.undo(…)
    answer = core.answer(outcome)                        # any thread
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cloister.errors import CloisterError, IntegrityError, InternalError, RefusedError
from cloister.keys._agreement import install_key, install_manifest, revoke, suspend
from cloister.keys._attempts import challenge, collect_challenge, grant_attempt, grant_run
from cloister.keys._checkpoints import save_checkpoint
from cloister.keys._context import Context, Outcome, Prepared, Settings, Subject
from cloister.keys._entries import MAX_ENTRY_BYTES, Action, GenesisEntry, RefusalEntry, parse_entry
from cloister.keys._log import MerkleLog
from cloister.keys._messages import (
    AttemptRequest,
    ChallengeRequest,
    CollectChallengeRequest,
    LogReceipt,
    Refusal,
    RegistrationRequest,
    ReleaseRequest,
    RunRequest,
    Signed,
    TreeHead,
    open_signed,
    sign_message,
)
from cloister.keys._outputs import collect, register
from cloister.keys._pages import IndexedEntry, LogPage
from cloister.keys._release import prepare_release, release
from cloister.keys._selection import LogQuery
from cloister.keys._sessions import Sessions
from cloister.keys._state import State, secret_ids
from cloister.keys._subject import subject_of
from cloister.keys._throttle import Throttle
from cloister.keys._time import moment, stamp
from cloister.keys._trace import Trace
from cloister.manifest import SignedManifest
from cloister.wire import Envelope, Message, OpeningKey, Secret, SigningKey

__all__ = ["ACTIONS", "Decision", "KeyManager", "genesis"]

Handler = Callable[[Context, Prepared[Any]], Outcome]

ACTIONS: Final[dict[Action, tuple[type[Message], Handler]]] = {
    "install-manifest": (SignedManifest, install_manifest),
    "install-key": (Envelope, install_key),
    "run": (RunRequest, grant_run),
    "attempt": (AttemptRequest, grant_attempt),
    "challenge": (ChallengeRequest, challenge),
    "release": (ReleaseRequest, release),
    "register": (RegistrationRequest, register),
    "checkpoint": (Envelope, save_checkpoint),
    "collect-challenge": (CollectChallengeRequest, collect_challenge),
    "collect": (Envelope, collect),
    "suspend": (Envelope, suspend),
    "revoke": (Envelope, revoke),
}
"""What can be asked: the request's type, and who decides."""

_log = logging.getLogger("cloister.keys")

_FREE: Final = frozenset({"install-manifest", "run", "attempt"})  # entries that anybody can cause
_SIGNED: Final = frozenset({"install-key", "suspend", "revoke"})  # a party's word: no stranger's noise holds it up


@dataclass(frozen=True, slots=True)
class Decision:
    """An outcome with its place in the log, before it is committed.

    Attributes:
        outcome: What was decided.
        index: Of its entry, or None when it has none.
        leaf: The entry's bytes, when it is a new one.
        session: The session that it spent.
    """

    outcome: Outcome
    index: int | None = None
    leaf: bytes | None = None
    session: str | None = None


def genesis(*, sign: SigningKey, opening: OpeningKey, now: datetime) -> GenesisEntry:
    """The first entry of a new key manager's log."""
    return GenesisEntry(at=stamp(now), key_manager=str(sign.public), hpke=str(opening.public))


class KeyManager:
    """The rules, the state and the log of one key manager.

    Not safe for several threads, except :meth:`prepare` and :meth:`answer`.

    Args:
        sign: The signing key, which manifests name.
        opening: The HPKE key, which owners and launchers seal to.
        entropy: A CSPRNG.
        settings: Bounds.
    """

    def __init__(
        self,
        *,
        sign: SigningKey,
        opening: OpeningKey,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        settings: Settings | None = None,
    ) -> None:
        self._sign, self._opening, self._entropy = sign, opening, entropy
        self._settings = settings or Settings()
        self._state, self._log = State(), MerkleLog()
        self._secrets: dict[str, Secret] = {}
        self._sessions = Sessions(limit=self._settings.open_sessions)
        self._throttle = Throttle(burst=self._settings.free_entries, per_s=self._settings.free_entries_per_s)

    # ---- loading ---------------------------------------------------------------------------------------------

    def load(self, leaves: Iterable[bytes]) -> None:
        """Folds stored entries, from the store's first or after those that were folded already.

        Raises:
            IntegrityError: 5405 when they are not the log of a key manager; 5404 when it is another's.
        """
        for leaf in leaves:
            self._state.apply(parse_entry(leaf))
            self._log.append(leaf)
        first = self._state.genesis
        if first is None or first.key_manager != self.name or first.hpke != str(self._opening.public):
            raise IntegrityError(5404, "the log is another key manager's", expected=self.name)

    def missing(self) -> frozenset[str]:
        """Ids of secrets that the log acknowledges and that were not given to :meth:`remember`."""
        return secret_ids(self._state) - self._secrets.keys()

    def remember(self, found: Mapping[str, Secret]) -> None:
        """Takes secrets from the vault.

        Raises:
            IntegrityError: 5403 when one that the log acknowledges is still missing: it must not be given out as lost.
        """
        self._secrets.update(found)
        missing = self.missing()
        if missing:
            raise IntegrityError(5403, f"{len(missing)} acknowledged secrets are missing", got=sorted(missing)[0])

    def require_head(self, head: Envelope) -> None:
        """Returns when the folded entries are the tree under the last signed head.

        Raises:
            IntegrityError: 5404 otherwise.
        """
        try:
            last = open_signed(TreeHead, head, self._sign.public)
        except IntegrityError as error:
            raise IntegrityError(5404, "the stored head is not this key manager's", got=error.what) from None
        if (last.size, last.root) != (self._log.size, self._log.root().hex()):
            raise IntegrityError(5404, expected=f"{last.size} entries, {last.root}", got=f"{self._log.size} entries")

    # ---- deciding --------------------------------------------------------------------------------------------

    def prepare(self, action: Action, body: Message, *, now: datetime) -> Prepared[Any]:
        """The part of a decision that needs no lock: for a release, the appraisal of its evidence."""
        if isinstance(body, ReleaseRequest):
            return prepare_release(body, state=self._state, sessions=self._sessions, at=self._time(now))
        return Prepared(action, body)

    def decide(self, prepared: Prepared[Any], *, now: datetime) -> Decision:
        """Decides, and applies the decision to the state. It counts only once it is committed."""
        at, trace = self._time(now), Trace()
        spent: list[str] = []
        context = Context(
            state=self._state,
            sessions=self._sessions,
            spent=spent,
            secrets=self._secrets,
            sign=self._sign,
            opening=self._opening,
            at=at,
            trace=trace,
            entropy=self._entropy,
            settings=self._settings,
        )
        busy: RefusedError | None = None
        try:
            self._throttle.require(now)
        except RefusedError as error:
            if prepared.action not in _SIGNED:
                return self._throttled(error)
            busy = error
        try:
            with trace.rule("the clock has not gone back"):
                self._require_clock(now)
            outcome = ACTIONS[prepared.action][1](context, prepared)
        except CloisterError as error:
            outcome = self._refused(prepared, error, at, trace)
        except Exception as error:  # one request must not take a batch of others with it
            _log.error("deciding %s failed: %s", prepared.action, type(error).__name__)  # its words may be secret
            outcome = self._refused(prepared, InternalError(9001, type(error).__name__), at, trace)
        if busy is not None and outcome.refused is not None:
            return self._throttled(busy)
        leaf = None if outcome.entry is None else outcome.entry.canonical()
        if leaf is not None and len(leaf) > MAX_ENTRY_BYTES:  # what cannot be read back must never be written
            too_large = RefusedError(3437, expected=f"at most {MAX_ENTRY_BYTES} bytes", got=f"{len(leaf)} bytes")
            outcome = self._refused(prepared, too_large, at, Trace())
            leaf = None if outcome.entry is None else outcome.entry.canonical()
        if outcome.refused is not None or prepared.action in _FREE:
            self._throttle.spend()
        return self._applied(outcome, leaf, spent[0] if spent else None)

    def _throttled(self, error: RefusedError) -> Decision:
        return Decision(Outcome(plain=_refusal(self.name, error, None), refused=error))

    def commit(self, since: int, decisions: Sequence[Decision]) -> tuple[tuple[bytes, ...], TreeHead]:
        """The new leaves after ``since``, and the head over them."""
        leaves = tuple(each.leaf for each in decisions if each.leaf is not None)
        if since + len(leaves) != self._log.size:
            raise ValueError("a batch is committed whole")
        return leaves, self.tree_head()

    def undo(self, decisions: Sequence[Decision]) -> None:
        """Gives back the sessions of a batch that was not committed, so that it can be decided again."""
        for each in decisions:
            if each.session is not None:
                self._sessions.give_back(each.session)

    def adopt_sessions(self, other: KeyManager) -> None:
        """Takes over the open challenges of the instance that this one replaces."""
        self._sessions, self._throttle = other._sessions, other._throttle

    def answer(self, decision: Decision, *, receipt: LogReceipt | None) -> Envelope:
        """The signed answer, once the decision is committed."""
        outcome = decision.outcome
        if outcome.plain is not None:
            return sign_message(outcome.plain, self._sign)
        if outcome.reply is None or receipt is None:
            raise ValueError("an answer needs its receipt")
        return sign_message(outcome.reply(receipt), self._sign)

    # ---- the log ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The public signing key, as text."""
        return str(self._sign.public)

    @property
    def hpke(self) -> str:
        """The public HPKE key, as text."""
        return str(self._opening.public)

    @property
    def size(self) -> int:
        """How many entries are folded."""
        return self._state.size

    def tree_head(self) -> TreeHead:
        """The head of the tree as it is; as old as its newest entry."""
        return TreeHead(key_manager=self.name, size=self._log.size, root=self._log.root().hex(), at=self._state.at)

    def sign(self, message: Signed) -> Envelope:
        """The message, signed."""
        return sign_message(message, self._sign)

    def refusal(self, error: CloisterError) -> Envelope:
        """An error that was no decision, signed."""
        return sign_message(_refusal(self.name, error, None), self._sign)

    def inclusion(self, index: int, size: int) -> tuple[str, ...]:
        """The audit path of an entry."""
        return tuple(step.hex() for step in self._log.inclusion(index, size))

    def consistency(self, first: int, second: int) -> tuple[str, ...]:
        """The consistency proof between two sizes.

        Raises:
            RefusedError: 3436 when the log never had such a size; a rolled-back log gives itself away here.
        """
        if not 1 <= first <= second <= self._log.size:
            raise RefusedError(3436, expected=f"1 to {self._log.size}", got=f"{first}, {second}")
        return tuple(step.hex() for step in self._log.consistency(first, second))

    def page(self, asked: LogQuery, entries: Sequence[IndexedEntry]) -> LogPage:
        """A page that shows ``entries``, which the caller read where :meth:`places` said."""
        proof = self._log.joint_inclusion([item.index for item in entries], asked.size)
        return LogPage(
            key_manager=self.name,
            asked=asked,
            root=self._log.root(asked.size).hex(),
            total=len(self.places(asked)),
            entries=tuple(entries),
            proof=tuple(step.hex() for step in proof),
        )

    def places(self, asked: LogQuery) -> Sequence[int]:
        """Where the entries are that a question selects, ``start`` and ``count`` aside."""
        return self._state.filing.places(asked)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _time(self, now: datetime) -> str:
        return max(stamp(now), self._state.at)  # never below the newest entry: what has expired stays so

    def _require_clock(self, now: datetime) -> None:
        if not self._state.at:
            return
        lag = (moment(self._state.at) - now).total_seconds()
        if lag > self._settings.clock_slack_s:
            raise RefusedError(3420, expected=f"{self._state.at} or later", got=stamp(now))

    def _refused(self, prepared: Prepared[Any], error: CloisterError, at: str, trace: Trace) -> Outcome:
        subject: Subject = subject_of(prepared)
        entry = RefusalEntry(
            at=at,
            action=prepared.action,
            code=error.code,
            what=error.what[:2000],
            manifest=subject.manifest,
            run=subject.run,
            subject=subject.name,
            attempt=subject.attempt,
            trace=trace.steps,
        )
        return Outcome(lambda receipt: _refusal(self.name, error, receipt), entry=entry, refused=error)

    def _applied(self, outcome: Outcome, leaf: bytes | None, session: str | None) -> Decision:
        if outcome.entry is None or leaf is None:
            return Decision(outcome, None if outcome.old is None else outcome.old[0], session=session)
        self._state.apply(outcome.entry)
        self._secrets.update(outcome.put)
        for secret_id in outcome.erase:
            self._secrets.pop(secret_id, None)
        return Decision(outcome, self._log.append(leaf), leaf, session)


def _refusal(name: str, error: CloisterError, receipt: LogReceipt | None) -> Refusal:
    facts = {key: str(value)[:2000] for key, value in error.as_json().items() if key != "code"}
    return Refusal(key_manager=name, code=error.code, receipt=receipt, **facts)
