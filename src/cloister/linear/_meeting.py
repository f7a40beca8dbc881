"""How parties find each other: of each pair the one with the lower number listens, the other calls until it is heard.

Strangers may call, too. Each call is heard by itself and for a short time, only so many at once, and nothing that comes
before the handshake's end is looked at; whoever is no party of the agreement is let go.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cloister.errors import CloisterError, InputError, PeerError
from cloister.linear._agreement import Agreement, endpoint
from cloister.linear._link import TlsChannel, Traffic
from cloister.linear._peers import context, whose
from cloister.wire import SigningKey, VerifyKey

__all__ = ["Met", "connect", "meet"]

_log = logging.getLogger("cloister.linear")

_HANDSHAKE_S = 10.0
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
_STRANGERS = 16  # calls that are heard at the same time
_READY = b"cloister/linear/1"  # said first by who listened: from then on both sides hold the link for theirs


@dataclass(frozen=True, slots=True)
class Met:
    """Whom a party has reached.

    Attributes:
        links: By place, handshakes done.
        missing: Why the others were not, by place.
    """

    links: dict[int, ssl.SSLSocket]
    missing: dict[int, PeerError]

    def close(self) -> None:
        """Closes all links."""
        for link in self.links.values():
            with contextlib.suppress(OSError):
                link.close()


def connect(
    agreement: Agreement,
    party: int,
    key: SigningKey,
    *,
    listen: str | None = None,
    told: Callable[[str, Traffic], None] | None = None,
) -> TlsChannel:
    """Links to all other parties.

    Args:
        agreement: Whose parties meet.
        party: One's own place.
        key: One's own key, which the others have pinned.
        listen: ``HOST:PORT`` instead of the agreed port on all of the machine's addresses.
        told: As of :class:`cloister.linear._link.TlsChannel`.

    Raises:
        InputError: 2001 when the address cannot be listened at.
        PeerError: 6901 when somebody did not come in time; 6908 when somebody else answered in its place.
    """
    met = meet(agreement, party, key, timeout_s=agreement.timeouts.connect_s, listen=listen)
    if met.missing:
        met.close()
        raise next(iter(met.missing.values()))
    return TlsChannel(party, [one.name for one in agreement.parties], met.links, agreement.timeouts, told)


def meet(agreement: Agreement, party: int, key: SigningKey, *, timeout_s: float, listen: str | None = None) -> Met:
    """As :func:`connect`, with whoever comes in time."""
    keys = {place: VerifyKey.parse(one.key) for place, one in enumerate(agreement.parties) if place != party}
    meeting = _Meeting(keys, deadline=time.monotonic() + timeout_s)
    above = {place: other for place, other in keys.items() if place > party}
    threads: list[threading.Thread] = []
    if above:
        where = endpoint(listen or agreement.parties[party].address)
        where = where if listen else ("::" if ":" in where[0] else "", where[1])
        hearing = context(key, above.values(), listening=True)
        threads.append(threading.Thread(target=_listen, args=(meeting, _bound(where), hearing, above), daemon=True))
    for place in keys.keys() - above.keys():
        calling = context(key, [keys[place]], listening=False)
        where = endpoint(agreement.parties[place].address)
        threads.append(threading.Thread(target=_call, args=(meeting, place, where, calling), daemon=True))
    for thread in threads:
        thread.start()
    links = meeting.wait()
    for thread in threads[: bool(above)]:
        thread.join()  # the port is free again
    missing = {
        place: _absent(one.name, one.address if place < party else None, timeout_s, meeting.reasons.get(place))
        for place, one in enumerate(agreement.parties)
        if place in keys and place not in links
    }
    return Met(links, missing)


class _Meeting:
    """Who is there. Links that come after its end, or twice, are closed."""

    def __init__(self, keys: Mapping[int, VerifyKey], *, deadline: float) -> None:
        self.keys, self.deadline = keys, deadline
        self.reasons: dict[int, CloisterError] = {}
        self._links: dict[int, ssl.SSLSocket] = {}
        self._over = False
        self._changed = threading.Condition()

    @property
    def open(self) -> bool:
        return not self._over and time.monotonic() < self.deadline

    def add(self, place: int, link: ssl.SSLSocket, said: bytes = b"") -> None:
        """Takes the link, if it is still wanted, and only then says so to the other side."""
        with self._changed:
            if not self._over and place not in self._links:
                link.sendall(said)
                self._links[place] = link
                self._changed.notify_all()

    def has(self, link: ssl.SSLSocket) -> bool:
        with self._changed:
            return any(link is taken for taken in self._links.values())

    def wait(self) -> dict[int, ssl.SSLSocket]:
        with self._changed:
            while len(self._links) < len(self.keys) and self.open:
                self._changed.wait(min(0.25, max(0.0, self.deadline - time.monotonic())))
            self._over = True
            return dict(sorted(self._links.items()))


def _bound(where: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_STRANGERS)
    except OSError as error:
        listener.close()
        raise InputError(2001, f"cannot listen at port {where[1]}: {error.strerror}") from None
    return listener


def _listen(meeting: _Meeting, listener: socket.socket, hearing: ssl.SSLContext, keys: Mapping[int, VerifyKey]) -> None:
    turns = threading.BoundedSemaphore(_STRANGERS)
    listener.settimeout(0.05)
    with listener:
        while meeting.open:
            try:
                called, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # of that call alone: a stranger who hangs up early ends no listening
                _log.info("a call came to nothing: %s", error)
                time.sleep(_PAUSES_S[0])
                continue
            if turns.acquire(blocking=False):
                arguments = (meeting, called, hearing, keys, turns)
                threading.Thread(target=_hear, args=arguments, daemon=True).start()
            else:
                called.close()


def _hear(
    meeting: _Meeting,
    called: socket.socket,
    hearing: ssl.SSLContext,
    keys: Mapping[int, VerifyKey],
    turns: threading.BoundedSemaphore,
) -> None:
    try:
        link = _handshake(called, hearing, listening=True)
        with _closed_unless_wanted(meeting, link):
            meeting.add(whose(link, keys), link, _READY)
    except (OSError, ValueError, CloisterError) as error:
        _log.info("a call came to nothing: %s", error)
    finally:
        turns.release()


def _call(meeting: _Meeting, place: int, where: tuple[str, int], calling: ssl.SSLContext) -> None:
    keys, tries = {place: meeting.keys[place]}, 0
    while meeting.open:
        try:
            left_s = max(0.1, min(_HANDSHAKE_S, meeting.deadline - time.monotonic()))
            link = _handshake(socket.create_connection(where, timeout=left_s), calling, listening=False)
            with _closed_unless_wanted(meeting, link):
                whose(link, keys)
                if _received(link, len(_READY)) != _READY:
                    raise PeerError(6902, got="it ended without a word")
                meeting.add(place, link)
            return
        except ssl.SSLCertVerificationError:
            meeting.reasons[place] = PeerError(6908)
        except CloisterError as error:
            meeting.reasons[place] = error
        except OSError as error:
            meeting.reasons[place] = PeerError(6902, got=_reason(error))
        time.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
        tries += 1


@contextlib.contextmanager
def _closed_unless_wanted(meeting: _Meeting, link: ssl.SSLSocket) -> Iterator[None]:
    try:
        yield
    finally:
        if not meeting.has(link):
            link.close()


def _handshake(plain: socket.socket, made: ssl.SSLContext, *, listening: bool) -> ssl.SSLSocket:
    try:
        plain.settimeout(_HANDSHAKE_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # online rounds are small and many
        return made.wrap_socket(plain, server_side=listening)
    except OSError:
        plain.close()
        raise


def _received(link: ssl.SSLSocket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes and (part := link.recv(size_bytes - len(data))):
        data += part
    return data


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason and "ALERT" in error.reason:
        return f"it refused us: {error.reason.lower().replace('_', ' ')}"
    return error.strerror or type(error).__name__


def _absent(name: str, address: str | None, timeout_s: float, reason: CloisterError | None) -> PeerError:
    if reason is not None and reason.code == 6908:
        return PeerError(6908, f"who answers at {address} is not '{name}': another key than the pinned one")
    where = f"'{name}' did not answer at {address}" if address else f"'{name}' did not call"
    return PeerError(6901, f"{where} in {timeout_s:g} s", got=reason.got if reason else None)
