"""One connection of a channel, never waited for: what is still to be sent on it, and what arrives."""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass, field

from cloister.linear._frames import Inbox

__all__ = ["Link"]

_MOST_FORGOTTEN = 64
_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


@dataclass(slots=True, eq=False)
class Link:
    """One connection: what is still to be sent on it, and what arrives."""

    name: str
    socket: ssl.SSLSocket
    inbox: Inbox
    outbox: list[memoryview] = field(default_factory=list[memoryview])
    begun: bool = False  # part of a frame was sent, or is in OpenSSL's hands
    ended: str | None = None  # why nothing more comes

    def send(self) -> int:
        """Sends what the connection takes; how many bytes that were."""
        total = 0
        with contextlib.suppress(*_AGAIN):
            while self.outbox:
                self.begun = True
                count = self.socket.send(self.outbox[0])
                total += count
                self.outbox[0] = self.outbox[0][count:]
                if not self.outbox[0]:
                    del self.outbox[0]
            self.begun = False
        return total

    def receive(self) -> int:
        """Takes what has arrived and has a place; how many bytes that were."""
        total = 0
        try:
            while self.ended is None and len(space := self.inbox.space()):
                count = self.socket.recv_into(space)
                if not count:
                    self.ended = "end of the stream"
                    break
                total += count
                self.inbox.took(count)
        except _AGAIN:
            pass
        except OSError as error:
            self.ended = error.strerror or type(error).__name__
        return total

    def say_end(self) -> None:
        """TLS's own end, then TCP's; the other side's is not waited for here."""
        with contextlib.suppress(OSError, ValueError):
            self.socket.unwrap()
        self.socket.shutdown(socket.SHUT_WR)

    def drained(self, forgotten: memoryview) -> bool:
        """Whether the other side has ended; what it still says is forgotten, some of it in one call."""
        with contextlib.suppress(*_AGAIN):
            return any(not self.socket.recv_into(forgotten) for _ in range(_MOST_FORGOTTEN))
        return False

    def close(self) -> None:
        """At once."""
        with contextlib.suppress(OSError):
            self.socket.close()
