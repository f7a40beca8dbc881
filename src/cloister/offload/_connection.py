"""A TCP connection under deadlines: nothing on the other side can hold a thread for longer."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from cloister.errors import InputError, PeerError
from cloister.offload._frames import PIECE_BYTES, Reading, complete

__all__ = ["Connection", "endpoint", "tune"]

T = TypeVar("T")

_LINGER_S = 2.0
_ENDPOINT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s/@:\[\]]+)):([0-9]{1,5})")


def endpoint(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``tcp://HOST:PORT``; an IPv6 address stands in brackets.

    Raises:
        InputError: 2005 when that is none.
    """
    found = _ENDPOINT.fullmatch(text.removeprefix("tcp://"))
    if found is None or int(found[3]) > 65535 or not _is_host(found[1] or found[2]):
        raise InputError(2005, "not an address", expected="HOST:PORT", got=text[:80])
    return found[1] or found[2], int(found[3])


def _is_host(name: str) -> bool:
    """Whether sockets can ask for a name: they encode it, and fail in their own way."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


class Connection:
    """Both directions of one socket; one thread may send while another receives."""

    def __init__(self, taken: socket.socket) -> None:
        tune(taken)
        self._receiving = taken
        self._sending = taken.dup()  # a socket has one timeout: two threads need two
        self._buffer = memoryview(bytearray(PIECE_BYTES))

    @classmethod
    def open(cls, host: str, port: int, *, deadline: float) -> Connection:
        """A connection to a worker.

        Raises:
            PeerError: 6704 when there is none by the deadline, on the clock of ``time.monotonic``.
        """
        try:
            return cls(socket.create_connection((host, port), timeout=max(0.001, deadline - time.monotonic())))
        except OSError as error:
            raise PeerError(6704, got=error.strerror or type(error).__name__) from None

    def send(self, data: bytes | memoryview, *, deadline: float) -> None:
        """Sends all of ``data``.

        Raises:
            PeerError: 6705 when the other side did not take it by the deadline; 6706 when the link broke.
        """
        try:
            self._sending.settimeout(_left(deadline))
            self._sending.sendall(data)
        except TimeoutError:
            raise PeerError(6705) from None
        except OSError as error:
            raise PeerError(6706, got=error.strerror or "closed") from None

    def receive(self, reading: Reading[T], *, deadline: Callable[[], float]) -> T:
        """Runs a reading on what arrives.

        Args:
            reading: What to run.
            deadline: Asked at the start of each piece: when it must be there.

        Raises:
            PeerError: 6705 when a piece is not there by its deadline; 6706 when the link broke.
            CloisterError: whatever the reading raises.
        """
        return complete(reading, lambda into: self._fill(into, deadline()), buffer=self._buffer)

    def _fill(self, into: memoryview, deadline: float) -> None:
        got = 0
        try:
            while got < len(into):
                self._receiving.settimeout(_left(deadline))
                count = self._receiving.recv_into(into[got:])
                if not count:
                    raise PeerError(6706, got="end of the stream")
                got += count
        except TimeoutError:
            raise PeerError(6705) from None
        except OSError as error:
            raise PeerError(6706, got=error.strerror or "closed") from None

    def shut(self) -> None:
        """Ends the connection at once; whoever sends or receives on it is woken by 6706."""
        with suppress(OSError):
            self._receiving.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Says that nothing follows, and waits a moment for the other side to end.

        A socket that is closed over bytes that nobody read sends a reset, which can overtake what was said last.
        """
        deadline = time.monotonic() + _LINGER_S
        forgotten = memoryview(bytearray(1 << 16))
        with suppress(OSError, PeerError):
            self._receiving.shutdown(socket.SHUT_WR)
            while True:
                self._receiving.settimeout(_left(deadline))
                if not self._receiving.recv_into(forgotten):
                    return

    def close(self) -> None:
        """Gives the sockets back; nobody may use them any more."""
        self._receiving.close()
        self._sending.close()

    @property
    def peer(self) -> str:
        """Who is on the other side."""
        with suppress(OSError):
            host, port = self._receiving.getpeername()[:2]
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return "nobody"


def tune(taken: socket.socket) -> None:
    """Small messages leave at once, and a machine that vanished is noticed within two minutes."""
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            taken.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _left(deadline: float) -> float:
    """Seconds to the deadline; a timeout of zero would mean none at all."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
