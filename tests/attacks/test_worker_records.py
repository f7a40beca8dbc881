"""A worker's link as bytes: what is done to a record or to a session's beginning has its code, and nothing is used."""

from __future__ import annotations

import io
import os
import struct

import pytest
from tests.workers import IDENTITY, PREFIX, STRANGER, changed_prefix, refused

from cloister.offload import _frames, _session
from cloister.offload._frames import KEY_BYTES, MAX_BODY_BYTES, PART_BYTES, Inbound, Outbound, complete
from cloister.offload._messages import begin
from cloister.offload._session import BUSY, UNOPENED, Proposal, answer, refusal
from cloister.ring import MaskKey
from cloister.wire import Secret

TENSOR = os.urandom(2 * PART_BYTES + 1000)
BODIES = [b'{"first":1}', b'{"other":2}', b'{"third":3}']
TAG = 16


# ---- records ----------------------------------------------------------------------------------------------------


def records_of(way: Outbound, body: bytes, tensor: bytes = TENSOR) -> list[bytes]:
    """One message, record by record: header, body, three parts of the tensor."""
    stream = io.BytesIO(b"".join(bytes(piece) for piece in way.message(body, memoryview(tensor))))
    sizes = [12, len(body), *(min(PART_BYTES, len(tensor) - at) for at in range(0, len(tensor), PART_BYTES))]
    records = [stream.read(size + TAG) for size in sizes]
    assert not stream.read()
    return records


class Reader:
    """The other side: `accepted` are the bodies it was shown, `bodies` those whose message was whole."""

    def __init__(self, key: Secret) -> None:
        self.way = Inbound(key)
        self.bodies: list[bytes] = []
        self.accepted: list[bytes] = []
        self.tensor = bytearray()

    def read(self, records: list[bytes], messages: int = 1, **bounds) -> None:
        source = io.BytesIO(b"".join(records))

        def fill(into: memoryview) -> None:
            if source.readinto(into) != len(into):
                raise EOFError

        for _ in range(messages):
            self.bodies.append(complete(self.way.message(self._accept, **bounds), fill))

    def _accept(self, body: bytes, size: int) -> memoryview:
        self.accepted.append(body)
        self.tensor = bytearray(size)
        return memoryview(self.tensor)


@pytest.fixture
def key():
    return Secret.random(KEY_BYTES)


@pytest.fixture
def messages(key):
    """Three messages of one direction."""
    way = Outbound(key)
    return [records_of(way, body) for body in BODIES]


def test_what_was_sent_is_read(key, messages):
    reader = Reader(key)
    reader.read([record for message in messages for record in message], 3)
    assert reader.bodies == BODIES
    assert reader.tensor == TENSOR


@pytest.mark.parametrize("which", range(5), ids=["header", "body", "part", "next part", "last part"])
@pytest.mark.parametrize("where", [0, 7, -TAG - 1, -1], ids=["first byte", "middle", "last byte", "tag"])
def test_a_flipped_bit_of_any_record(key, messages, which, where):
    record = bytearray(messages[0][which])
    record[where] ^= 0x10
    messages[0][which] = bytes(record)
    reader = Reader(key)
    refused(5711, reader.read, messages[0])
    assert reader.bodies == []
    assert len(reader.accepted) == (which > 1)  # a body that was not verified is shown to nobody


def test_a_flipped_bit_of_a_tensor_that_has_no_place(key, messages):
    """A worker without memory for it reads it to its end; changed, it ends the session like any other."""
    changed = bytearray(messages[0][3])
    changed[9] ^= 1
    sent = b"".join([*messages[0][:3], changed, messages[0][4]])
    refused(5711, run, Inbound(key).message(lambda body, size: None), sent)


@pytest.mark.parametrize(
    "altered",
    [
        lambda m: [m[0][0], m[0][1], m[0][3], m[0][2], m[0][4]],
        lambda m: [m[0][0], m[0][1], m[0][2], m[0][2], m[0][4]],
        lambda m: [m[0][0], m[0][1], m[0][3], m[0][4], m[1][0]],
        lambda m: m[1],
        lambda m: [m[0][0], m[1][1], *m[0][2:]],
        lambda m: [m[1][0], *m[0][1:]],
        lambda m: [*m[0][:4], m[1][4]],
        lambda m: [m[0][0], m[0][1], m[1][2], *m[0][3:]],
    ],
    ids=[
        "reordered",
        "repeated",
        "dropped",
        "message dropped",
        "body moved",
        "header moved",
        "end moved",
        "part moved",
    ],
)
def test_records_in_other_places(key, messages, altered):
    reader = Reader(key)
    refused(5711, reader.read, altered(messages))
    assert reader.bodies == []


def test_a_message_that_is_played_again(key, messages):
    reader = Reader(key)
    reader.read(messages[0])
    refused(5711, reader.read, messages[0])
    assert reader.bodies == BODIES[:1]


def test_messages_in_another_order(key, messages):
    reader = Reader(key)
    reader.read(messages[0])
    refused(5711, reader.read, messages[2])


def test_a_message_that_ends_early(key, messages):
    """At a record's border: what follows is the next message, not what is missing."""
    refused(5711, Reader(key).read, [*messages[0][:4], *messages[1]])
    with pytest.raises(EOFError):
        Reader(key).read(messages[0][:4])


def test_a_record_of_another_kind_in_its_place(key):
    """Were a part of a tensor of 12 bytes taken for a header, its owner would choose the next sizes."""
    way = Outbound(key)
    way._seal(b"part", struct.pack(">IQ", 2, 0), 0)
    way.records = 0
    forged = bytes(way._buffer[: 12 + TAG])
    refused(5711, Reader(key).read, [forged])


def test_a_record_that_does_not_end_its_message_where_one_does(key):
    way = Outbound(key)
    header = bytes(way._buffer[: way._seal(b"header", struct.pack(">IQ", 2, 0), 0)])
    body = bytes(way._buffer[: way._seal(b"body", b"{}", 0, last=False)])
    refused(5711, Reader(key).read, [header, body])


def test_a_record_of_another_session_or_direction(messages):
    refused(5711, Reader(Secret.random(KEY_BYTES)).read, messages[0])
    (to_worker, from_worker), (enclave, worker) = both_ends(), both_ends()
    assert to_worker.outbound is not enclave.outbound
    spliced = records_of(to_worker.outbound, BODIES[0])
    for way in (worker.inbound, to_worker.inbound, enclave.inbound):
        reader = Reader.__new__(Reader)
        reader.way, reader.bodies, reader.accepted = way, [], []
        refused(5711, reader.read, spliced)
    assert complete(from_worker.inbound.message(lambda body, size: None), io.BytesIO(b"".join(spliced)).readinto)


@pytest.mark.parametrize(
    ("body_size", "size"), [(MAX_BODY_BYTES + 1, 0), (0, 0), (0xFFFFFFFF, 0), (2, (1 << 40) + 1), (2, (1 << 64) - 1)]
)
def test_sizes_beyond_the_bounds_ask_for_no_memory(key, body_size, size):
    """Authentic, even: nothing after the header is asked for."""
    way = Outbound(key)
    header = bytes(way._buffer[: way._seal(b"header", struct.pack(">IQ", body_size, size), 0)])
    reading = Inbound(key).message(lambda body, size: pytest.fail("memory was asked for"))
    assert next(reading) == len(header)
    refused(6707, reading.send, memoryview(header))


def test_a_tensor_that_is_not_expected_is_not_read(key):
    refused(6707, lambda: Reader(key).read(records_of(Outbound(key), b"{}", b"12345"), most_bytes=4))


@pytest.mark.parametrize("side", [Outbound, Inbound])
def test_a_key_is_used_for_so_many_records(key, monkeypatch, side):
    monkeypatch.setattr(_frames, "MAX_RECORDS", 7)
    way = Outbound(key)
    sent = records_of(way, BODIES[0])
    if side is Outbound:
        refused(6710, lambda: records_of(way, BODIES[1]))
        refused(6710, lambda: records_of(way, BODIES[1]))
    else:
        reader = Reader(key)
        reader.read(sent)
        reader.way.records = 7
        refused(6710, reader.read, sent)


# ---- a session's beginning --------------------------------------------------------------------------------------


def run(reading, data: bytes):
    """A reading's result on bytes that end."""
    source = io.BytesIO(data)

    def fill(into: memoryview) -> None:
        if source.readinto(into) != len(into):
            raise EOFError

    return complete(reading, fill)


def both_ends(worker=IDENTITY):
    """The enclave's link and the worker's."""
    proposal = Proposal(worker.name, worker.opening_key.public)
    said, link = run(answer(worker.name, worker.opening_key), proposal.opening)
    return run(proposal.answered(), said), link


def test_both_ends_have_the_same_keys_and_each_direction_its_own():
    enclave, worker = both_ends()
    for out, back in ((enclave.outbound, worker.inbound), (worker.outbound, enclave.inbound)):
        data = b"".join(bytes(piece) for piece in out.message(b"{}"))
        assert run(back.message(lambda body, size: None), data) == b"{}"


def test_another_worker_that_answers():
    """It cannot read the session's secret, and whatever it makes up is not from the worker."""
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    refused(5713, run, answer(STRANGER.name, STRANGER.opening_key), proposal.opening)
    for made_up in (b"", os.urandom(100), os.urandom(1200)):
        said = PREFIX.pack(b"CLWORKER", 1, 0, len(made_up)) + made_up
        refused(5712 if made_up else 6703, run, Proposal(IDENTITY.name, IDENTITY.opening_key.public).answered(), said)


def test_an_answer_of_another_session():
    first, second = (Proposal(IDENTITY.name, IDENTITY.opening_key.public) for _ in range(2))
    said, _ = run(answer(IDENTITY.name, IDENTITY.opening_key), first.opening)
    refused(5712, run, second.answered(), said)


@pytest.mark.parametrize("where", [16, 40, -1])
def test_a_changed_answer(where):
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    said = bytearray(run(answer(IDENTITY.name, IDENTITY.opening_key), proposal.opening)[0])
    said[where] ^= 1
    refused(5712, run, proposal.answered(), bytes(said))


@pytest.mark.parametrize("where", [16, 16 + 31, 16 + 32, -1], ids=["session", "session's end", "sealed", "tag"])
def test_a_changed_opening(where):
    opening = bytearray(Proposal(IDENTITY.name, IDENTITY.opening_key.public).opening)
    opening[where] ^= 1
    refused(5713, run, answer(IDENTITY.name, IDENTITY.opening_key), bytes(opening))


def test_a_session_for_another_worker():
    """By its key, and by its name alone: two entries of a manifest do not share a session."""
    for name, key in ((IDENTITY.name, STRANGER.opening_key.public), ("gpu-2", IDENTITY.opening_key.public)):
        refused(5713, run, answer(IDENTITY.name, IDENTITY.opening_key), Proposal(name, key).opening)


def test_a_recorded_session_that_is_played_again_to_the_worker():
    """It is answered, under other keys: what was recorded opens nothing, and no nonce is used twice."""
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    said, _ = run(answer(IDENTITY.name, IDENTITY.opening_key), proposal.opening)
    enclave = run(proposal.answered(), said)
    recorded = b"".join(bytes(piece) for piece in enclave.outbound.message(b"{}"))
    again, worker = run(answer(IDENTITY.name, IDENTITY.opening_key), proposal.opening)
    assert again != said
    refused(5711, run, worker.inbound.message(lambda body, size: None), recorded)


def test_the_worker_s_stolen_key_opens_no_session_of_the_past():
    """Who has it and the recording still lacks the enclave's answer key, which was forgotten."""
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    said, _ = run(answer(IDENTITY.name, IDENTITY.opening_key), proposal.opening)
    session = proposal.opening[16 : 16 + 32]
    offer = IDENTITY.opening_key.open(proposal.opening[48:], info=context("offer", session))
    assert b'"answer_to":"mlkem768-x25519:' in offer  # a quantum computer does not help either
    refused(5002, lambda: IDENTITY.opening_key.open(said[16:], info=context("answer", session)))
    enclave = run(proposal.answered(), said)
    recorded = b"".join(bytes(piece) for piece in enclave.outbound.message(b"{}"))
    for guess in (Secret(b""), Secret(bytes(KEY_BYTES)), proposal._secret):
        to_worker, _ = _session._keys(proposal._secret, guess, proposal.opening + said)
        refused(5711, run, Inbound(to_worker).message(lambda body, size: None), recorded)


def context(what: str, session: bytes) -> bytes:
    return _session._context(what, session, IDENTITY.name)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"magic": b"HTTP/1.1"}, 6707),
        ({"version": 2}, 6702),
        ({"version": 0}, 6702),
        ({"size": 8193}, 6707),
        ({"size": 0xFFFFFFFF}, 6707),
    ],
)
def test_what_comes_before_anything_is_authentic(fields, code):
    """No byte after the prefix is asked for."""
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    said, _ = run(answer(IDENTITY.name, IDENTITY.opening_key), proposal.opening)
    refused(code, run, answer(IDENTITY.name, IDENTITY.opening_key), changed_prefix(proposal.opening, **fields)[:16])
    refused(code, run, proposal.answered(), changed_prefix(said, **fields)[:16])


def test_an_opening_without_content():
    opening = Proposal(IDENTITY.name, IDENTITY.opening_key.public).opening
    for size in (0, 32):
        refused(6707, run, answer(IDENTITY.name, IDENTITY.opening_key), changed_prefix(opening, size=size))


@pytest.mark.parametrize("status", [BUSY, UNOPENED, 3, 0xFFFF])
def test_a_refusal_of_anybody_ends_the_session_only(status):
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    error = refused(6703, run, proposal.answered(), refusal(status))
    assert (error.got is None) == (status > 2)
    said, _ = run(answer(IDENTITY.name, IDENTITY.opening_key), proposal.opening)
    refused(6703, run, proposal.answered(), changed_prefix(said, status=status))


def test_no_secret_is_shown():
    key = MaskKey("x")
    hidden = key.reveal().reveal()
    message = begin({"x": key})
    enclave, _ = both_ends()
    for shown in (repr(message), str(message), repr(enclave), repr(IDENTITY), repr(key)):
        assert repr(hidden)[2:20] not in shown
        assert hidden.hex() not in shown
    assert hidden == begin({"x": key}).keys["x"].key
