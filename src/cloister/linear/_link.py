"""The links of one party over TLS: one connection to each other party, all of them at work at the same time.

Rules:

* In a step a party sends and receives on all links at once, so messages of any size never wait for each other.
* A step has a deadline, however the bytes trickle. Whatever goes wrong on one link ends all of them: the others are
  told a code and a phase, and nothing else.
* Traffic is counted by phase: bytes of frames, without what TLS adds.
"""

from __future__ import annotations

import selectors
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cloister.errors import CloisterError, InternalError, PeerError
from cloister.linear._agreement import Timeouts
from cloister.linear._frames import PHASES, Inbox, abort_frame, header
from cloister.linear._one_link import Link

__all__ = ["TlsChannel", "Traffic"]

_LINGER_S, _LINGER_IN_ORDER_S = 2.0, 30.0
_WAIT_S = 0.25  # a selector that misses an event is looked after so often
_FORGOTTEN = 1 << 16
_UNPHASED = 8  # steps before a phase is begun: a failure in a phase that nobody named would pass for a harmless one


@dataclass(slots=True)
class Traffic:
    """Of one phase: bytes of frames sent and received, and messages sent."""

    up_bytes: int = 0
    down_bytes: int = 0
    messages: int = 0


class TlsChannel:
    """A :class:`cloister.linear._channel.Channel` over TLS.

    Used as a context, it closes its links in order when the block ends, and aborts with the error's code when it fails.

    Args:
        party: Its own place.
        names: Of all parties.
        links: A connection to each other party, its handshake done, by place.
        timeouts: How long a step may take.
        told: Is told the phase and its traffic so far, after every step.

    Attributes:
        party: Its own place, from 0.
        parties: How many there are.
        traffic: By phase.
    """

    def __init__(
        self,
        party: int,
        names: Sequence[str],
        links: Mapping[int, ssl.SSLSocket],
        timeouts: Timeouts,
        told: Callable[[str, Traffic], None] | None = None,
    ) -> None:
        self.party, self.parties = party, len(names)
        self.traffic: dict[str, Traffic] = {}
        self._timeouts, self._told = timeouts, told
        self._phase = self._furthest = PHASES[0]
        self._step, self._ended = 0, False
        self._counted = Traffic()
        self._links = {place: Link(names[place], link, Inbox(names[place])) for place, link in sorted(links.items())}
        for link in links.values():
            link.settimeout(0)

    @property
    def phase(self) -> str:
        """That is running, one of :data:`cloister.linear._frames.PHASES`."""
        return self._phase

    @property
    def furthest(self) -> str:
        """The last in order of the phases that were begun: a round of Newton's method goes back to inputs."""
        return self._furthest

    def begin(self, phase: str) -> None:
        """Says which phase the next steps belong to; raises 9001 for one that there is not."""
        if phase not in PHASES:
            raise InternalError(9001, f"no such phase: {phase}")
        self._phase = phase
        self._furthest = max(self._furthest, phase, key=PHASES.index)

    def swap(self, kind: str, bodies: Sequence[bytes], size_bytes: int) -> list[bytes]:
        """One step, as :class:`cloister.linear._channel.Channel`; links that fail it are closed, all of them."""
        if self._ended:
            raise PeerError(6902, "the links are closed")
        if len(bodies) != self.parties or any(len(bodies[place]) != size_bytes for place in self._links):
            raise InternalError(9001, f"messages of '{kind}' have not the size that was announced")
        try:
            return self._swap(kind, bodies, size_bytes)
        except CloisterError as error:
            self.abort(error.code)
            raise

    def abort(self, code: int) -> None:
        """Tells all peers that this party stops, by its code, and closes the links; more than once is once.

        A peer that is in the middle of receiving a message is not told: no bytes of ours may pass for that message.
        """
        if not self._ended:
            for link in self._links.values():
                unfinished = link.begun or link.ended is not None
                link.outbox = [] if unfinished else [memoryview(abort_frame(self._step, code, self._phase))]
            self._finish(_LINGER_S)

    def close(self) -> None:
        """Ends the links in order."""
        if not self._ended:
            self._finish(_LINGER_IN_ORDER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(error.code if isinstance(error, CloisterError) else 9001)

    def __repr__(self) -> str:
        return f"<TlsChannel of party {self.party} in {self._phase}>"

    # ---- one step --------------------------------------------------------------------------------------------

    def _swap(self, kind: str, bodies: Sequence[bytes], size_bytes: int) -> list[bytes]:
        self._step += 1
        if self._phase == PHASES[0] and self._step > _UNPHASED:
            raise InternalError(9001, "no phase of the session was begun")
        counted = self._counted = self.traffic.setdefault(self._phase, Traffic())
        allowed_s = self._timeouts.answer_s + size_bytes * len(self._links) / self._timeouts.bytes_s
        deadline = time.monotonic() + allowed_s
        for place, link in self._links.items():
            head = header(kind, self._step, size_bytes)
            link.outbox = [memoryview(piece) for piece in (head, bodies[place]) if len(piece)]
            link.inbox.expect(kind, self._step, size_bytes)
            counted.messages += 1
        with selectors.DefaultSelector() as selector:
            for link in self._links.values():
                selector.register(link.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, link)
            waiting = list(self._links.values())
            while waiting:
                for link in waiting:
                    self._advance(link)
                waiting = [link for link in waiting if link.outbox or link.inbox.message is None]
                if waiting and time.monotonic() > deadline:
                    late = ", ".join(link.name for link in waiting)
                    raise PeerError(6901, f"{late} did not answer in {allowed_s:.0f} s, in {self._phase}")
                if waiting:
                    self._wait(selector)
        received = {place: link.inbox.message or b"" for place, link in self._links.items()}
        if self._told is not None:
            self._told(self._phase, counted)
        return [bytes(bodies[j]) if j == self.party else received.get(j, b"") for j in range(self.parties)]

    def _advance(self, link: Link) -> None:
        """As far as the connection goes. What a peer said last is heard before its link counts as broken."""
        broken: str | None = None
        try:
            self._counted.up_bytes += link.send()
        except OSError as error:
            broken = error.strerror or type(error).__name__
        self._counted.down_bytes += link.receive()
        broken = broken or (link.ended if link.inbox.message is None else None)
        if broken is not None:
            raise PeerError(6902, f"the link to {link.name} broke, in {self._phase}", got=broken)

    def _wait(self, selector: selectors.BaseSelector) -> None:
        """Until a link can go on; those that are done still listen, for an abort."""
        for key in list(selector.get_map().values()):
            link: Link = key.data
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.outbox else 0)
            if link.ended is not None or not len(link.inbox.space()):
                wanted &= ~selectors.EVENT_READ
            if wanted:
                selector.modify(link.socket, wanted, link)
            else:
                selector.unregister(link.socket)
        for key, _ in selector.select(_WAIT_S):
            link = key.data
            if not link.outbox and link.inbox.message is not None:
                self._counted.down_bytes += link.receive()

    # ---- the end ---------------------------------------------------------------------------------------------

    def _finish(self, linger_s: float) -> None:
        """Sends what is left, says that nothing follows, and waits a moment for the others to end.

        A socket that is closed over bytes that nobody read sends a reset, which overtakes what was said last.
        """
        self._ended = True
        deadline = time.monotonic() + linger_s
        open_ = list(self._links.values())
        forgotten = memoryview(bytearray(_FORGOTTEN))
        shut: set[Link] = set()
        while open_ and time.monotonic() < deadline:
            for link in list(open_):
                try:
                    link.send()
                    if not link.outbox and link not in shut:
                        shut.add(link)
                        link.say_end()
                    if link.drained(forgotten):
                        open_.remove(link)
                except OSError:
                    open_.remove(link)
            time.sleep(0.001 if open_ else 0)
        for link in self._links.values():
            link.close()
