"""Addresses, and the time that each piece may take."""

import socket
import threading
import time

import pytest
from tests.workers import refused

from cloister.offload._connection import Connection, endpoint


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8430", "127.0.0.1", 8430),
        ("tcp://gpu.example:0", "gpu.example", 0),
        ("tcp://[2001:db8::1]:65535", "2001:db8::1", 65535),
        ("[::1]:1", "::1", 1),
    ],
)
def test_an_address_is_a_host_and_a_port(text, host, port):
    assert endpoint(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "gpu:", ":1", "gpu:65536", "gpu:-1", "gpu:1/x", "user@gpu:1", "2001:db8::1:1", "http://gpu:1", "a b:1",
     "gpu:1 ", "[gpu]:1", "gpu:١", f"{'a' * 64}.example:1"],
)  # fmt: skip
def test_whatever_else_is_none(text):
    refused(2005, endpoint, text)


@pytest.fixture
def pair():
    ends = [Connection(end) for end in _tcp_pair()]
    yield ends
    for end in ends:
        end.close()


def _tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    return near, far


def reading(size):
    return bytes((yield size))


def within(seconds):
    return lambda: time.monotonic() + seconds


def test_what_one_side_sends_the_other_reads(pair):
    pair[0].send(b"ring", deadline=time.monotonic() + 5)
    assert pair[1].receive(reading(4), deadline=within(5)) == b"ring"


def test_a_piece_that_is_late(pair):
    """However many of its bytes came."""
    pair[0].send(b"rin", deadline=time.monotonic() + 5)
    refused(6705, lambda: pair[1].receive(reading(4), deadline=within(0.1)))
    refused(6705, lambda: pair[1].receive(reading(4), deadline=within(-1)))


def test_a_reader_that_does_not_read(pair):
    refused(6705, lambda: pair[0].send(bytes(64 << 20), deadline=time.monotonic() + 0.2))


def test_an_end_in_the_middle(pair):
    pair[0].send(b"rin", deadline=time.monotonic() + 5)
    pair[0].shut()
    refused(6706, lambda: pair[1].receive(reading(4), deadline=within(5)))
    refused(6706, lambda: [pair[1].send(bytes(1 << 20), deadline=time.monotonic() + 5) for _ in range(20)])


def test_shutting_wakes_who_waits(pair):
    codes = []

    def wait():
        codes.append(refused(6706, lambda: pair[0].receive(reading(4), deadline=within(20))).code)

    thread = threading.Thread(target=wait)
    thread.start()
    pair[0].shut()
    thread.join(10)
    assert codes == [6706]


def test_finishing_gives_the_last_word_time_to_arrive(pair):
    """The other side still sends; closed at once, its bytes would turn into a reset that overtakes the word."""
    near, far = pair
    far.send(bytes(1 << 16), deadline=time.monotonic() + 5)
    near.send(b"last", deadline=time.monotonic() + 5)
    finishing = threading.Thread(target=near.finish)
    finishing.start()
    assert far.receive(reading(4), deadline=within(5)) == b"last"
    far.shut()
    finishing.join(10)
    assert not finishing.is_alive()


def test_the_peer_is_named_for_the_log(pair):
    assert pair[0].peer.startswith("127.0.0.1:")
    pair[0].close()
    assert pair[0].peer == "nobody"
