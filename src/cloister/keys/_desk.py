"""The desk: drives a key manager's core over a store, many requests to a transaction.

One writer thread decides. While one batch is being made durable the next gathers, so the disk's pace is shared by all
who wait. What needs no lock (evidence before, HPKE and signatures after) is done in the caller's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from cloister.errors import CloisterError, InternalError, PeerError, RefusedError
from cloister.keys._context import Outcome, Prepared, Settings
from cloister.keys._core import Decision, KeyManager
from cloister.keys._entries import Action, parse_entry
from cloister.keys._messages import ConsistencyProof, LogReceipt, TreeHead
from cloister.keys._pages import MAX_PAGE_BYTES, IndexedEntry
from cloister.keys._selection import LogQuery
from cloister.keys._store import Commit, KeyStore, StoreMoved
from cloister.keys._vault import Vault
from cloister.wire import Envelope, Message, OpeningKey, SigningKey, parse_message

__all__ = ["Desk", "load_core"]

_log = logging.getLogger("cloister.keys")

MAX_BATCH = 256
MAX_QUEUE = 4096
_READ = 2000  # entries at a time, at start
_READ_PAGED = 50  # entries at a time, for a page: it may end with the first of them


Decided = tuple[Decision, LogReceipt | None]
_CAUGHT_UP: Decided = (Decision(Outcome()), None)


@dataclass(frozen=True, slots=True)
class _Job:
    prepared: Prepared[Any] | None  # None: only catch up with the store
    future: Future[Decided]


def load_core(
    store: KeyStore, vault: Vault, *, sign: SigningKey, opening: OpeningKey, settings: Settings | None = None
) -> KeyManager:
    """The key manager whose log and secrets are in ``store``: everything is folded and opened again.

    Raises:
        IntegrityError: 5403 a secret does not open or is missing; 5404 the log is not the signed one; 5405 an entry is
            not readable.
        PeerError: 6406 when the store does not answer.
    """
    core = KeyManager(sign=sign, opening=opening, settings=settings)
    size, head = store.head()
    _load(core, store, vault, size)
    core.require_head(parse_message(Envelope, head, what="stored tree head"))
    return core


def _load(core: KeyManager, store: KeyStore, vault: Vault, size: int) -> None:
    for start in range(core.size, size, _READ):
        core.load(store.read(start, min(start + _READ, size)))
    boxes = store.boxes(core.missing())
    core.remember({name: vault.open(name, box) for name, box in boxes.items()})


class Desk:
    """A key manager at work: :meth:`submit` a request from any thread, :meth:`finish` it once it is decided.

    Args:
        store: Where the log and the sealed secrets lie.
        vault: Seals the secrets.
        sign: The signing key.
        opening: The HPKE key.
        clock: The host's clock.
        settings: Bounds.
    """

    def __init__(
        self,
        store: KeyStore,
        vault: Vault,
        *,
        sign: SigningKey,
        opening: OpeningKey,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        settings: Settings | None = None,
    ) -> None:
        self._store, self._vault, self._clock = store, vault, clock
        self._reload = lambda: load_core(store, vault, sign=sign, opening=opening, settings=settings)
        self._core = self._reload()
        self._published = self._stored_head()
        self._stale = False
        self._queue: queue.Queue[_Job | None] = queue.Queue(MAX_QUEUE)
        self._writer = threading.Thread(target=self._write, name="cloister-keys-writer", daemon=True)
        self._writer.start()

    # ---- asking ----------------------------------------------------------------------------------------------

    def submit(self, action: Action, body: Message) -> Future[Decided]:
        """Prepares a request and hands it to the writer. Everything up to the queue runs in the caller's thread.

        Raises:
            PeerError: 6405 when the queue is full.
        """
        job = _Job(self._core.prepare(action, body, now=self._clock()), Future())
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise PeerError(6405, expected=f"at most {MAX_QUEUE} waiting requests") from None
        return job.future

    def finish(self, decided: Decided) -> tuple[Envelope, CloisterError | None]:
        """The signed answer to a committed decision."""
        decision, receipt = decided
        return self._core.answer(decision, receipt=receipt), decision.outcome.refused

    def close(self) -> None:
        """Ends the writer once what waits is decided."""
        self._queue.put(None)
        self._writer.join()

    # ---- the log ---------------------------------------------------------------------------------------------

    @property
    def core(self) -> KeyManager:
        """The core; read only."""
        return self._core

    def head(self) -> Envelope:
        """The newest committed head."""
        return self._newest()[1]

    def consistency(self, first: int) -> Envelope:
        """The proof from a head of ``first`` entries to the newest.

        Raises:
            RefusedError: 3436 when the log never had that size.
        """
        tree, head = self._newest()
        proof = self._core.consistency(first, tree.size)
        answer = ConsistencyProof(key_manager=self._core.name, first=first, second=tree.size, proof=proof, head=head)
        return self._core.sign(answer)

    def page(self, asked: LogQuery) -> Envelope:
        """The entries that a question selects, as far as one page goes (:class:`LogPage`).

        Raises:
            RefusedError: 3436 when the log has not that size.
        """
        tree, _ = self._newest()
        core = self._core  # after the head: it knows all that the head covers
        if asked.size > tree.size:
            raise RefusedError(3436, expected=f"1 to {tree.size}", got=asked.size)
        places = core.places(asked)[asked.start : asked.start + asked.count]
        shown, size_bytes = list[IndexedEntry](), 0
        for place, leaf in zip(places, self._leaves(places), strict=True):
            size_bytes += len(leaf)
            if shown and size_bytes > MAX_PAGE_BYTES:
                break
            shown.append(IndexedEntry(index=place, entry=parse_entry(leaf)))
        return core.sign(core.page(asked, shown))

    def _newest(self) -> tuple[TreeHead, Envelope]:
        """The stored head; when another process moved it, only after the writer has caught up."""
        if self._store.size() != self._published[0].size:
            job = _Job(None, Future())
            self._queue.put(job)
            job.future.result()
        return self._published

    def _leaves(self, places: Sequence[int]) -> Iterator[bytes]:
        """The entries at ``places``, one question to the store for each stretch without gaps, and for not too many."""
        for start in range(0, len(places), _READ_PAGED):
            few = places[start : start + _READ_PAGED]
            for _, stretch in groupby(enumerate(few), key=lambda pair: pair[1] - pair[0]):
                run = [place for _, place in stretch]
                yield from self._store.read(run[0], run[-1] + 1)

    # ---- the writer ------------------------------------------------------------------------------------------

    def _write(self) -> None:
        while (job := self._queue.get()) is not None:
            batch, last = [job], False
            while len(batch) < MAX_BATCH:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    last = True
                    break
                batch.append(following)
            self._settle(batch)
            if last:
                return

    def _settle(self, batch: list[_Job]) -> None:
        try:
            answers = self._decide_and_commit(batch)
        except BaseException as error:
            _log.error("a batch of %d requests was not committed: %s", len(batch), type(error).__name__)
            known = error if isinstance(error, CloisterError) else InternalError(9001, type(error).__name__)
            for job in batch:
                job.future.set_exception(known)
        else:
            for job, answer in zip(batch, answers, strict=True):
                job.future.set_result(answer)

    def _decide_and_commit(self, batch: list[_Job]) -> list[Decided]:
        for _ in range(8):
            self._catch_up()
            since, decisions = self._core.size, list[Decision]()
            try:
                self._stale = True  # until the commit: what is decided here has not happened yet
                for job in batch:
                    if job.prepared is not None:
                        decisions.append(self._core.decide(job.prepared, now=self._clock()))
                answers = iter(self._commit(since, decisions))
                self._stale = False
                return [_CAUGHT_UP if job.prepared is None else next(answers) for job in batch]
            except StoreMoved:
                self._core.undo(decisions)
        raise PeerError(6405, "another process keeps writing to the store")

    def _catch_up(self) -> None:
        """To what the store says: undone is what was not committed, done is what another process committed."""
        if self._stale:
            fresh = self._reload()
            fresh.adopt_sessions(self._core)
            self._core, self._published, self._stale = fresh, self._stored_head(), False
        elif self._store.size() != self._core.size:
            tree, head = self._stored_head()
            _load(self._core, self._store, self._vault, tree.size)
            self._core.require_head(head)
            self._published = tree, head

    def _commit(self, since: int, decisions: list[Decision]) -> list[Decided]:
        leaves, tree = self._core.commit(since, decisions)
        if leaves:
            head = self._core.sign(tree)
            put = {name: self._vault.seal(name, each) for d in decisions for name, each in d.outcome.put.items()}
            erase = tuple(name for d in decisions for name in d.outcome.erase)
            self._store.append(since, Commit(leaves, head.canonical(), put, erase))
            self._published = tree, head
        return [(each, self._receipt(each)) for each in decisions]

    def _receipt(self, decision: Decision) -> LogReceipt | None:
        if decision.index is None:
            return None
        tree, head = self._published
        old = decision.outcome.old
        entry = decision.outcome.entry if old is None else old[1]
        proof = self._core.inclusion(decision.index, tree.size)
        return LogReceipt(index=decision.index, entry=entry, head=head, proof=proof)

    def _stored_head(self) -> tuple[TreeHead, Envelope]:
        _, stored = self._store.head()
        head = parse_message(Envelope, stored, what="stored tree head")
        return parse_message(TreeHead, head.payload, what="stored tree head"), head
