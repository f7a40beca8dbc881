"""Links between parties on this machine's sockets: all messages arrive, and whatever is not due ends all links."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.linear_people import NAMES, PEOPLE, agreed, linked, together

from cloister.errors import CloisterError, InputError, IntegrityError, PeerError
from cloister.linear._agreement import Agreement
from cloister.linear._frames import HEADER_BYTES, PHASES, Inbox, abort_frame, frame, header, kind_of
from cloister.linear._link import TlsChannel
from cloister.linear._meeting import connect, meet
from cloister.linear._one_link import Link
from cloister.linear._session_hello import greet

TWO = NAMES[:2]


def pair(cheat: Callable[[ssl.SSLSocket], Any], work: Callable[[TlsChannel], Any], **changes: Any) -> Any:
    """What party 0's work gives (or its error) when party 1 does as it likes with its end of the link."""
    agreement = agreed(TWO, **({"timeouts": {"connect_s": 20, "answer_s": 5}} | changes))

    def honest() -> Any:
        key = PEOPLE["bank-a"].signing_key
        with connect(agreement, 0, key, listen=agreement.parties[0].address) as channel:
            channel.begin("online")
            return work(channel)

    def other() -> None:
        met = meet(agreement, 1, PEOPLE["bank-b"].signing_key, timeout_s=20)
        link = met.links[0]
        link.settimeout(20)
        try:
            cheat(link)
        finally:
            met.close()

    return together(honest, other)[0]


def one_step(channel: TlsChannel, size_bytes: int = 4) -> list[bytes]:
    return channel.swap("open", [b"a" * size_bytes] * 2, size_bytes)


def code_of(found: Any) -> int:
    assert isinstance(found, CloisterError), found
    return found.code


def drain(link: ssl.SSLSocket) -> bytes:
    data = b""
    while part := link.recv(1 << 16):
        data += part
    return data


# ---- what parties do -----------------------------------------------------------------------------------------


def test_everybody_receives_what_was_sent_to_it() -> None:
    def work(channel: TlsChannel) -> list[bytes]:
        found = []
        for kind, size in (("open", 3), ("coin", 0), ("open", 70_000)):
            bodies = [(b"%d%d" % (channel.party, j)).ljust(size, b".")[:size] for j in range(3)]
            found += channel.swap(kind, bodies, size)
        return found

    for place, found in enumerate(linked(agreed(), work)):
        for size, said in zip((3, 0, 70_000), (found[:3], found[3:6], found[6:]), strict=True):
            assert said == [(b"%d%d" % (j, place)).ljust(size, b".")[:size] for j in range(3)]


def test_thirty_megabytes_cross_in_both_directions() -> None:
    size = 30_000_000
    parts = [secrets.token_bytes(1000) * (size // 1000) for _ in NAMES]

    def work(channel: TlsChannel) -> Any:
        channel.begin("groups")
        found = channel.swap("group", [parts[channel.party]] * 3, size)
        return [one == part for one, part in zip(found, parts, strict=True)], channel.traffic["groups"]

    for same, counted in linked(agreed(), work):
        assert same == [True] * 3
        assert counted.up_bytes == counted.down_bytes == 2 * (size + HEADER_BYTES)
        assert counted.messages == 2


def test_traffic_is_counted_by_phase_and_adds_up() -> None:
    def work(channel: TlsChannel) -> Any:
        for phase in ("groups", "online", "groups"):
            channel.begin(phase)
            for _ in range(3):
                channel.swap("open", [bytes(10)] * 3, 10)
        return channel.traffic

    for counted in linked(agreed(), work):
        assert {phase: (one.up_bytes, one.messages) for phase, one in counted.items()} == {
            "groups": (240, 12),
            "online": (120, 6),
        }
        # a header may be read ahead, in the phase before: the sum is exact
        assert sum(one.down_bytes for one in counted.values()) == 360


def test_a_phase_must_be_named_before_a_session_goes_on() -> None:
    def work(channel: TlsChannel) -> None:
        for _ in range(9):
            one_step(channel)

    codes = {code_of(found) for found in linked(agreed(TWO), work)}
    assert 9001 in codes
    assert codes <= {9001, 6905}

    def unknown(channel: TlsChannel) -> None:
        channel.begin("lunch")

    assert code_of(linked(agreed(TWO), unknown)[0]) == 9001


def test_messages_have_the_announced_size() -> None:
    def work(channel: TlsChannel) -> None:
        channel.swap("open", [b"abc"] * 2, 3 + (channel.party == 0))

    first, second = linked(agreed(TWO), work)
    assert code_of(first) == 9001
    assert code_of(second) == 6905
    assert "9001" in second.got


def test_all_are_told_when_one_stops() -> None:
    agreement = agreed()

    def work(channel: TlsChannel) -> None:
        channel.begin("checks")
        channel.swap("open", [b"x"] * 3, 1)
        if channel.party == 1:
            raise IntegrityError(5903)
        channel.swap("open", [b"x"] * 3, 1)

    first, own, third = linked(agreement, work)
    assert code_of(own) == 5903
    assert {code_of(first), code_of(third)} == {6905}
    told = [one for one in (first, third) if "bank-b" in one.what]
    assert told
    assert all("in checks" in one.what and "5903" in one.got for one in told)


def test_when_one_says_again_all_begin_again() -> None:
    def work(channel: TlsChannel) -> None:
        channel.begin("groups")
        channel.swap("again", [b"x"] * 3, 1)
        if channel.party == 1:
            raise PeerError(6906)
        channel.swap("open", [b"x"] * 3, 1)

    assert [code_of(found) for found in linked(agreed(), work)] == [6906] * 3


def test_an_abort_is_heard_while_another_party_is_waited_for() -> None:
    """bank-c never speaks; bank-b stops after its message: nobody waits for the deadline."""
    agreement = agreed(timeouts={"connect_s": 20, "answer_s": 15})

    def work(channel: TlsChannel) -> float:
        channel.begin("online")
        began = time.monotonic()
        if channel.party == 2:
            time.sleep(3)
            return 0.0
        if channel.party == 1:
            for link in channel._links.values():
                link.socket.setblocking(True)
                link.socket.sendall(frame("open", 1, b"x"))
            channel.abort(5908)
            return 0.0
        with pytest.raises(PeerError) as caught:
            channel.swap("open", [b"x"] * 3, 1)
        assert caught.value.code == 6905
        assert "5908" in caught.value.got  # pyright: ignore[reportOperatorIssue]
        return time.monotonic() - began

    waited = linked(agreement, work)[0]
    assert isinstance(waited, float), waited
    assert waited < 2.5


def test_after_an_abort_nothing_is_sent_and_once_is_enough() -> None:
    def cheat(link: ssl.SSLSocket) -> None:
        said.append(drain(link))

    def work(channel: TlsChannel) -> None:
        channel.abort(5901)
        channel.abort(5902)
        channel.close()
        one_step(channel)

    said: list[bytes] = []
    assert code_of(pair(cheat, work)) == 6902
    assert said == [abort_frame(0, 5901, "online")]
    assert len(said[0]) == 16


def test_a_peer_that_ends_after_its_last_message_is_no_failure() -> None:
    """bank-b is done and gone while bank-c's last message is still on its way."""

    def work(channel: TlsChannel) -> list[bytes]:
        channel.begin("release")
        if channel.party == 2:
            time.sleep(0.5)
        return channel.swap("signature", [b"s%d" % channel.party] * 3, 2)

    assert linked(agreed(), work) == [[b"s0", b"s1", b"s2"]] * 3


# ---- what a peer may get wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        frame("open", 1, b"abc"),
        frame("open", 1, b"abcde"),
        header("open", 1, 0xFFFFFFFF),
        frame("coin", 1, b"abcd"),
        frame("open", 2, b"abcd"),
        frame("open", 0, b"abcd"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x05\0\0\0\0\0\1" + bytes(5),
    ],
    ids=["short", "long", "huge", "kind", "ahead", "behind", "http", "abort of another size"],
)
def test_a_frame_that_is_not_due_is_refused_and_the_sender_is_told(sent: bytes) -> None:
    told: list[bytes] = []

    def cheat(link: ssl.SSLSocket) -> None:
        link.sendall(sent)
        told.append(drain(link))

    found = pair(cheat, one_step)
    assert code_of(found) == 6903
    assert "bank-b" in found.what
    assert told[0] == frame("open", 1, b"aaaa") + abort_frame(1, 6903, "online")


def test_the_size_is_compared_before_memory_is_taken() -> None:
    inbox = Inbox("bank-b")
    inbox.expect("open", 1, 4)
    sent = header("open", 1, 0xFFFFFFFF)
    space = inbox.space()
    assert len(space) == HEADER_BYTES
    space[:] = sent
    with pytest.raises(PeerError) as caught:
        inbox.took(HEADER_BYTES)
    assert caught.value.code == 6903
    assert len(inbox.space()) == 0


def test_half_a_frame_and_the_end() -> None:
    def cheat(link: ssl.SSLSocket) -> None:
        link.sendall(frame("open", 1, b"abcd")[:-1])

    found = pair(cheat, one_step)
    assert code_of(found) == 6902
    assert "bank-b" in found.what


def test_silence_is_not_waited_for() -> None:
    def cheat(link: ssl.SSLSocket) -> None:
        time.sleep(1.5)

    began = time.monotonic()
    found = pair(cheat, one_step, timeouts={"connect_s": 20, "answer_s": 1})
    assert code_of(found) == 6901
    assert "bank-b" in found.what
    assert time.monotonic() - began < 10


def test_a_trickle_is_not_waited_for() -> None:
    def cheat(link: ssl.SSLSocket) -> None:
        for byte in frame("open", 1, bytes(1000)):
            try:
                link.sendall(bytes([byte]))
            except OSError:
                return
            time.sleep(0.05)

    began = time.monotonic()
    found = pair(
        cheat, lambda channel: one_step(channel, 1000), timeouts={"connect_s": 20, "answer_s": 1, "bytes_s": 1000}
    )
    assert code_of(found) == 6901
    assert time.monotonic() - began < 10


def test_a_peer_that_does_not_read_is_not_waited_for() -> None:
    def cheat(link: ssl.SSLSocket) -> None:
        link.sendall(header("open", 1, 8_000_000))
        time.sleep(1.5)

    timeouts = {"connect_s": 20, "answer_s": 1, "bytes_s": 1 << 30}
    assert code_of(pair(cheat, lambda channel: one_step(channel, 8_000_000), timeouts=timeouts)) == 6901


def test_a_peer_that_aborts_in_the_middle_of_our_message_is_heard() -> None:
    def cheat(link: ssl.SSLSocket) -> None:
        link.sendall(abort_frame(1, 5908, "online"))
        time.sleep(1)

    found = pair(cheat, lambda channel: one_step(channel, 30_000_000))
    assert code_of(found) == 6905
    assert "5908" in found.got


def test_no_bytes_of_an_abort_pass_for_a_message() -> None:
    """Our message is half sent when the peer's nonsense ends the session: what follows is the end, no abort."""
    got: list[bytes] = []

    def cheat(link: ssl.SSLSocket) -> None:
        link.sendall(frame("coin", 1, b"abcd"))
        time.sleep(0.5)
        got.append(drain(link))

    assert code_of(pair(cheat, lambda channel: one_step(channel, 30_000_000))) == 6903
    whole = frame("open", 1, b"a" * 30_000_000)
    assert 0 < len(got[0]) < len(whole)
    assert whole.startswith(got[0])


def test_an_abort_with_a_code_that_there_is_not_is_an_abort() -> None:
    def cheat(link: ssl.SSLSocket) -> None:
        link.sendall(abort_frame(1, 1234, "online")[:-4] + (99).to_bytes(4, "big"))

    found = pair(cheat, one_step)
    assert code_of(found) == 6905
    assert "an unknown phase" in found.what
    assert "1234" in found.got


# ---- meeting -------------------------------------------------------------------------------------------------


def test_who_does_not_come_is_named() -> None:
    agreement = agreed(timeouts={"connect_s": 1})

    def come(place: int) -> TlsChannel:
        key = PEOPLE[NAMES[place]].signing_key
        return connect(agreement, place, key, listen=agreement.parties[place].address)

    first, second = together(lambda: come(0), lambda: come(1))
    assert (code_of(first), code_of(second)) == (6901, 6901)
    assert "'bank-c' did not call" in first.what
    third = together(lambda: come(2))[0]
    assert code_of(third) == 6901
    assert agreement.parties[0].address in third.what


def test_who_calls_first_waits_for_who_listens() -> None:
    agreement = agreed(TWO)

    def late() -> bytes:
        time.sleep(1)
        return found(0)

    def found(place: int) -> bytes:
        key = PEOPLE[NAMES[place]].signing_key
        with connect(agreement, place, key, listen=agreement.parties[place].address) as channel:
            return one_step(channel)[1 - place]

    assert together(late, lambda: found(1)) == [b"aaaa", b"aaaa"]


def test_strangers_at_the_door_do_not_keep_anybody_out() -> None:
    agreement = agreed(TWO)
    host, port = agreement.parties[0].address.split(":")
    over = threading.Event()

    def knock() -> None:
        held: list[socket.socket] = []
        while not over.is_set():
            try:
                called = socket.create_connection((host, int(port)), timeout=1)
                called.sendall(b"GET / HTTP/1.1\r\n\r\n")
                held.append(called)
            except OSError:
                time.sleep(0.01)
            if len(held) >= 8:
                break
        over.wait(20)
        for called in held:
            called.close()

    def come(place: int) -> bytes:
        time.sleep(0.3 * place)
        key = PEOPLE[NAMES[place]].signing_key
        with connect(agreement, place, key, listen=agreement.parties[place].address) as channel:
            found = one_step(channel)[1 - place]
        over.set()
        return found

    assert together(lambda: come(0), lambda: come(1), knock)[:2] == [b"aaaa", b"aaaa"]


def test_a_call_that_breaks_off_ends_no_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    real, broken = socket.socket.accept, [ConnectionAbortedError(103, "aborted"), OSError(24, "too many open files")]

    def accept(self: socket.socket) -> Any:
        if broken:
            raise broken.pop()
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    assert linked(agreed(TWO), lambda channel: one_step(channel)[0]) == [b"aaaa", b"aaaa"]
    assert not broken


def test_a_port_that_is_taken_is_said() -> None:
    agreement = agreed(TWO)
    host, port = agreement.parties[0].address.split(":")
    with socket.create_server((host, int(port))), pytest.raises(InputError) as caught:
        connect(agreement, 0, PEOPLE["bank-a"].signing_key, listen=agreement.parties[0].address)
    assert caught.value.code == 2001


# ---- hello ---------------------------------------------------------------------------------------------------


def test_hello_gives_all_the_same_fresh_name() -> None:
    agreement = agreed()

    def work(channel: TlsChannel) -> bytes:
        return greet(channel, agreement, PEOPLE[NAMES[channel.party]])

    once, again = linked(agreement, work), linked(agreement, work)
    assert all(isinstance(name, bytes) and len(name) == 32 for name in (*once, *again))
    assert len({*once}) == len({*again}) == 1
    assert once[0] != again[0]


def test_another_agreement_or_version_is_said_by_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = agreed(TWO)
    other = Agreement.model_validate_json(agreement.canonical().replace(b'"name":"aml"', b'"name":"amk"'))

    def work(channel: TlsChannel) -> bytes:
        held = other if channel.party else agreement
        return greet(channel, held, PEOPLE[NAMES[channel.party]])

    codes = {code_of(found) for found in linked(agreement, work)}
    assert 6907 in codes
    assert codes <= {6907, 6905}

    from cloister.linear import _session_hello

    def older(channel: TlsChannel) -> bytes:
        if channel.party:
            body = _session_hello._HELLO.pack(2, bytes(32), bytes(32), bytes(32))
            return channel.swap("hello", [body] * 2, len(body))[0]
        return greet(channel, agreement, PEOPLE["bank-a"])

    assert code_of(linked(agreement, older)[0]) == 6904

    real = _session_hello.plan_digest
    local = threading.local()

    def differing(*plans: Any, fits: int) -> bytes:
        return bytes(32) if getattr(local, "odd", False) else real(*plans, fits=fits)

    monkeypatch.setattr(_session_hello, "plan_digest", differing)

    def odd(channel: TlsChannel) -> bytes:
        local.odd = channel.party == 1
        return greet(channel, agreement, PEOPLE[NAMES[channel.party]])

    assert 6904 in {code_of(found) for found in linked(agreement, odd)}


# ---- frames --------------------------------------------------------------------------------------------------


@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=60),
)
def test_frames_arrive_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frame("open", step, body) for step, body in enumerate(bodies))
    inbox, at, turn = Inbox("p"), 0, 0
    for step, body in enumerate(bodies):
        inbox.expect("open", step, len(body))
        while inbox.message is None:
            space = inbox.space()
            part = data[at : at + min(len(space), cuts[turn % len(cuts)])]
            turn, at = turn + 1, at + len(part)
            space[: len(part)] = part
            inbox.took(len(part))
        assert inbox.message == body
    assert at == len(data)


def test_between_steps_only_a_header_is_read() -> None:
    inbox = Inbox("p")
    inbox.space()[:] = header("open", 0, 1 << 30)
    inbox.took(HEADER_BYTES)
    assert len(inbox.space()) == 0
    with pytest.raises(PeerError):
        inbox.expect("open", 0, 4)


@pytest.mark.parametrize("phase", PHASES)
def test_an_abort_says_code_and_phase_in_sixteen_bytes(phase: str) -> None:
    data = abort_frame(7, 5908, phase)
    assert len(data) == 16
    inbox = Inbox("bank-b")
    inbox.space()[:] = data[:HEADER_BYTES]
    inbox.took(HEADER_BYTES)
    inbox.space()[:] = data[HEADER_BYTES:]
    with pytest.raises(PeerError) as caught:
        inbox.took(len(data) - HEADER_BYTES)
    assert caught.value.code == 6905
    assert caught.value.what == f"bank-b stopped in {phase}"


@given(st.text(max_size=20))
def test_no_kind_is_an_abort(name: str) -> None:
    assert 0 < kind_of(name) <= 0xFFFF


def test_a_channel_shows_no_secret() -> None:
    shown = linked(agreed(TWO), lambda channel: repr(channel))
    assert shown == ["<TlsChannel of party 0 in session>", "<TlsChannel of party 1 in session>"]


def test_a_peer_that_never_stops_talking_does_not_hold_the_end() -> None:
    class Endless:
        calls = 0

        def recv_into(self, forgotten: memoryview) -> int:
            self.calls += 1
            assert self.calls < 1000
            return len(forgotten)

    endless: Any = Endless()
    assert not Link("bank-b", endless, Inbox("bank-b")).drained(memoryview(bytearray(10)))
    assert endless.calls > 1
