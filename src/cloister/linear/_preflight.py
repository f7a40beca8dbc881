"""Whether the parties could begin: each tells the others its versions, its agreement and its clock, and nothing else.

Nothing of anybody's data is sent, not even whether they keep the bounds: that is for their owner to see.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from cloister._version import __version__
from cloister.errors import CloisterError, PeerError
from cloister.linear._agreement import Agreement
from cloister.linear._link import TlsChannel
from cloister.linear._meeting import meet
from cloister.linear._session_hello import PROTOCOL_VERSION, plan_digest
from cloister.wire import SigningKey

__all__ = ["Peer", "preflight"]

_TOLD = struct.Struct(">I32s32sd24s")
_PINGS = 3
_MOST_DRIFT_S = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """What was found out about one party.

    Attributes:
        name: Its name.
        problem: Why no session would begin with it; None when one would.
        round_trip_s: The shortest of three exchanges.
        clock_s: How far its clock is ahead of ours, give or take a round trip.
        release: Its version of this program.
    """

    name: str
    problem: CloisterError | None
    round_trip_s: float | None = None
    clock_s: float | None = None
    release: str | None = None


def preflight(
    agreement: Agreement, party: int, key: SigningKey, *, wait_s: float, listen: str | None = None
) -> list[Peer]:
    """What is found out about every other party that runs this at the same time, in the order of the parties.

    Args:
        agreement: Whose parties meet.
        party: One's own place.
        key: One's own key.
        wait_s: How long to wait for the others.
        listen: As of :func:`cloister.linear._meeting.connect`.

    Raises:
        InputError: 2001 when the address cannot be listened at.
    """
    met = meet(agreement, party, key, timeout_s=wait_s, listen=listen)
    found: dict[int, Peer] = {
        place: Peer(agreement.parties[place].name, problem) for place, problem in met.missing.items()
    }
    timeouts = agreement.timeouts.model_copy(update={"answer_s": max(1, round(wait_s))})
    # each link by itself: one that breaks says nothing about the others
    for place, link in met.links.items():
        names = [one.name for one in agreement.parties]
        with TlsChannel(party, names, {place: link}, timeouts) as channel:
            try:
                found[place] = _asked(agreement, channel, place)
            except CloisterError as problem:
                found[place] = Peer(names[place], problem)
    return [found[place] for place in sorted(found)]


def _asked(agreement: Agreement, channel: TlsChannel, place: int) -> Peer:
    name, shortest = agreement.parties[place].name, float("inf")
    own = bytes.fromhex(agreement.id), plan_digest(*agreement.plans())
    told = (PROTOCOL_VERSION, *own, 0.0, b"")
    clock = 0.0
    for _ in range(_PINGS):
        began = time.monotonic()
        body = _TOLD.pack(PROTOCOL_VERSION, *own, time.time(), __version__.encode()[:24])
        told = _TOLD.unpack(channel.swap("check", [body] * channel.parties, _TOLD.size)[place])
        took = time.monotonic() - began
        if took < shortest:
            shortest, clock = took, told[3] - time.time() + took / 2
    release = "".join(letter for letter in told[4].decode("ascii", "replace") if letter.isprintable())
    return Peer(name, _problem(name, told, own, clock), shortest, clock, release)


def _problem(
    name: str, told: tuple[int, bytes, bytes, float, bytes], own: tuple[bytes, bytes], clock: float
) -> CloisterError | None:
    version, agreement, plan, _, _ = told
    if version != PROTOCOL_VERSION:
        return PeerError(6904, f"'{name}' speaks another version", expected=PROTOCOL_VERSION, got=version)
    if agreement != own[0]:
        return PeerError(6907, f"'{name}' holds another agreement", expected=own[0].hex(), got=agreement.hex())
    if plan != own[1]:
        return PeerError(6904, f"'{name}' follows another plan", expected=own[1].hex(), got=plan.hex())
    if not abs(clock) <= _MOST_DRIFT_S:
        hint = "set both clocks by the same time server: certificates and agreements have a time"
        return PeerError(6904, f"the clock of '{name}' is {clock:+.0f} s from ours", hint=hint)
    return None
