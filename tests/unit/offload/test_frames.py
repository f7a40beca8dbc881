"""Messages of any size arrive as they were sent, in as many records as they need."""

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.offload._frames import KEY_BYTES, MAX_BODY_BYTES, PART_BYTES, PIECE_BYTES, Inbound, Outbound, complete
from cloister.wire import Secret

TAG = 16


class Ways:
    """Both ends of one direction."""

    def __init__(self):
        key = Secret.random(KEY_BYTES)
        self.out, self.into = Outbound(key), Inbound(key)

    def send(self, body, tensor=None):
        """What the other end reads: the body, the tensor, and how long each piece on the way was."""
        pieces = [bytes(piece) for piece in self.out.message(body, None if tensor is None else memoryview(tensor))]
        source, asked, room = io.BytesIO(b"".join(pieces)), [], bytearray()

        def accept(body, size):
            nonlocal room
            room = bytearray(size)
            return memoryview(room) if size else None

        def fill(into):
            asked.append(len(into))
            assert source.readinto(into) == len(into)

        said = complete(self.into.message(accept), fill)
        assert not source.read()
        return said, bytes(room), asked


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 3 * PART_BYTES + 5])
def test_a_tensor_of_any_size_arrives(size):
    ways, tensor = Ways(), os.urandom(size)
    for body in (b"{}", b"x" * MAX_BODY_BYTES):
        said, arrived, asked = ways.send(body, tensor)
        assert (said, arrived) == (body, tensor)
        assert len(asked) == 2 + -(-size // PART_BYTES)
        assert max(asked) <= PIECE_BYTES


@settings(max_examples=50)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.none() | st.binary(max_size=300)), max_size=8))
def test_messages_follow_one_another(messages):
    ways = Ways()
    for body, tensor in messages:
        said, arrived, _ = ways.send(body, tensor)
        assert (said, arrived) == (body, tensor or b"")


def test_a_tensor_that_nobody_wants_is_verified_and_forgotten():
    ways = Ways()
    data = b"".join(bytes(piece) for piece in ways.out.message(b"{}", memoryview(bytes(3 * PART_BYTES))))
    assert complete(ways.into.message(lambda body, size: None), io.BytesIO(data).readinto) == b"{}"
    assert ways.send(b"{}", b"next")[:2] == (b"{}", b"next")


def test_the_same_message_never_looks_the_same():
    ways = Ways()
    first, second = (b"".join(bytes(piece) for piece in ways.out.message(b"{}", memoryview(b"0" * 64))) for _ in "ab")
    assert len(first) == len(second) == 12 + 2 + 64 + 3 * TAG
    assert not any(first[at : at + 8] == second[at : at + 8] for at in range(len(first) - 8))


def test_neither_end_shows_its_key():
    ways = Ways()
    ways.send(b"{}")
    assert (repr(ways.out), repr(ways.into)) == ("<Outbound after 2 records>", "<Inbound after 2 records>")


def test_a_reading_that_fails_leaves_no_generator_open():
    def fill(into):
        raise OSError("the link broke")

    reading = Ways().into.message(lambda body, size: None)
    with pytest.raises(OSError, match="broke"):
        complete(reading, fill)
    with pytest.raises(StopIteration):
        next(reading)
