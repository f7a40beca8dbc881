"""Parties of a session as threads of one process, and a cheat that alters what one of them sends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cloister.errors import CloisterError, PeerError
from cloister.linear._party import Party

__all__ = ["Cheat", "MeshChannel", "Message", "codes", "run_parties", "together"]

_TIMEOUT_S, _CHEATED_TIMEOUT_S = 60.0, 5.0


class Message(NamedTuple):
    """What one party is about to send to another."""

    sender: int
    receiver: int
    kind: str
    step: int
    body: bytes


Cheat = Callable[[Message], "bytes | None"]
"""Gives what is sent instead; None sends nothing."""


class _Aborted(NamedTuple):
    code: int


class _Mesh:
    def __init__(self, parties: int, cheat: Cheat | None) -> None:
        self.parties, self.cheat = parties, cheat
        self.boxes = {(i, j): queue.Queue[Any]() for i in range(parties) for j in range(parties)}
        self.sent_bytes = [0] * parties
        self.heard: list[Message] = []
        self.barriers: set[threading.Barrier] = set()
        self.stopped = False
        self.phases: list[list[tuple[str, int]]] = [[] for _ in range(parties)]


class MeshChannel:
    """One party's links."""

    def __init__(self, mesh: _Mesh, party: int) -> None:
        self.party, self.parties = party, mesh.parties
        self._mesh, self._step = mesh, 0

    def swap(self, kind: str, bodies: Sequence[bytes], size_bytes: int) -> list[bytes]:
        mesh, step = self._mesh, self._step
        self._step += 1
        assert len(bodies) == self.parties
        for peer in self._peers():
            assert len(bodies[peer]) == size_bytes, (kind, len(bodies[peer]), size_bytes)
            message = Message(self.party, peer, kind, step, bodies[peer])
            body = message.body if mesh.cheat is None else mesh.cheat(message)
            mesh.sent_bytes[self.party] += size_bytes
            if body is not None:
                mesh.heard.append(message._replace(body=body))
                mesh.boxes[self.party, peer].put((kind, step, body))
        out = list(bodies)
        for peer in self._peers():
            out[peer] = self._received(peer, kind, step, size_bytes)
        return out

    def _peers(self) -> list[int]:
        return [j for j in range(self.parties) if j != self.party]

    def _received(self, peer: int, kind: str, step: int, size_bytes: int) -> bytes:
        try:
            got = self._mesh.boxes[peer, self.party].get(
                timeout=_TIMEOUT_S if self._mesh.cheat is None else _CHEATED_TIMEOUT_S
            )
        except queue.Empty:
            raise PeerError(6901) from None
        if isinstance(got, _Aborted):
            raise PeerError(6905, f"party {peer} stopped with {got.code}")
        if got[:2] != (kind, step) or len(got[2]) != size_bytes:
            raise PeerError(6903)
        return got[2]

    def begin(self, phase: str) -> None:
        self._mesh.phases[self.party].append((phase, self._step))

    def abort(self, code: int) -> None:
        for peer in self._peers():
            self._mesh.boxes[self.party, peer].put(_Aborted(code))
        self._mesh.stopped = True
        for barrier in list(self._mesh.barriers):
            barrier.abort()

    def meet(self, barrier: threading.Barrier) -> None:
        """Waits for all parties at once, unless one of them stopped."""
        self._mesh.barriers.add(barrier)
        if self._mesh.stopped:
            barrier.abort()
        try:
            barrier.wait(_TIMEOUT_S)
        except threading.BrokenBarrierError:
            raise PeerError(6905) from None


def run_parties(
    parties: int,
    act: Callable[[Party], Any],
    *,
    cheat: Cheat | None = None,
    malicious: bool = True,
    mesh_out: list[Any] | None = None,
) -> list[Any]:
    """What ``act`` gives at each party, or the error that it ended with."""
    mesh = _Mesh(parties, cheat)
    if mesh_out is not None:
        mesh_out.append(mesh)
    outcomes: list[Any] = [None] * parties

    def live(number: int) -> None:
        channel = MeshChannel(mesh, number)
        try:
            outcomes[number] = act(Party(channel, bytes(32), malicious=malicious))
        except CloisterError as error:
            channel.abort(error.code)
            outcomes[number] = error
        except BaseException as error:  # a test must see what a thread died of
            channel.abort(9001)
            outcomes[number] = error

    threads = [threading.Thread(target=live, args=(number,), daemon=True) for number in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def together(parties: int, act: Callable[[Party], Any], **kwargs: Any) -> list[Any]:
    """As :func:`run_parties`, for runs in which nobody fails."""
    outcomes = run_parties(parties, act, **kwargs)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def codes(outcomes: Sequence[Any]) -> list[int | None]:
    """The code that each party stopped with; None where it did not, -1 for what is no Cloister error."""
    return [
        outcome.code if isinstance(outcome, CloisterError) else -1 if isinstance(outcome, BaseException) else None
        for outcome in outcomes
    ]
