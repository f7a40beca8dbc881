"""A worker's link on sockets: somebody between the two, in place of one, slow, silent or dead. Each move has its code.

Whatever happens, the session is over, every command that is open says so, and nothing is taken up again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from tests.workers import (
    IDENTITY,
    PREFIX,
    STRANGER,
    Limits,
    WorkerProcess,
    code_of,
    compute,
    dialled,
    drop,
    expand_to,
    matmul,
    put,
    refused,
    serving,
    waits_for,
    words,
    worker_at,
)

from cloister.errors import CloisterError
from cloister.offload import Put, _server
from cloister.offload._connection import Connection
from cloister.offload._messages import Answer, Order, Ready, begin
from cloister.offload._session import Proposal, answer
from cloister.party import WorkerIdentity
from cloister.ring import MaskKey
from cloister.wire import parse_message

# ---- somebody between the two -------------------------------------------------------------------------------------


class Between:
    """Somebody on the way. ``changes[direction]`` sees each piece of a stream with its offset; None ends the link."""

    def __init__(self, address: str, **changes) -> None:
        self.changes = changes
        self.seen = {"to_worker": bytearray(), "to_enclave": bytearray()}
        self._target = address
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listening]
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._take)]
        self._threads[0].start()

    def _take(self) -> None:
        with suppress(OSError):
            enclave, _ = self._listening.accept()
            host, _, port = self._target.rpartition(":")
            worker = socket.create_connection((host, int(port)))
            self._sockets += [enclave, worker]
            for name, source, sink in (("to_worker", enclave, worker), ("to_enclave", worker, enclave)):
                thread = threading.Thread(target=self._relay, args=(name, source, sink))
                self._threads.append(thread)
                thread.start()

    def _relay(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        change = self.changes.get(name, lambda offset, data: data)
        with suppress(OSError):
            while data := source.recv(1 << 16):
                offset = len(self.seen[name])
                self.seen[name] += data
                passed = change(offset, data)
                if passed is None:
                    break
                sink.sendall(passed)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for taken in self._sockets:
            with suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for taken in self._sockets:
            taken.close()


@contextmanager
def between(address, **changes):
    one = Between(address, **changes)
    try:
        yield one
    finally:
        one.close()


@contextmanager
def started(address, keys=None, **options):
    worker = worker_at(address, **options)
    try:
        worker.start(keys or {})
        yield worker
    finally:
        worker.close()


@pytest.fixture
def server():
    with serving() as serving_now:
        yield serving_now


@pytest.fixture
def log():
    """What the worker logged."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("cloister.offload"), Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


def said_in(log, code):
    """Returns once the worker logged a code, and nothing else than its title with it."""
    waits_for(lambda: any(f" {code} " in line for line in log))


def flipping(at: int):
    """Changes one bit of the stream's byte `at`."""

    def change(offset: int, data: bytes) -> bytes:
        if not offset <= at < offset + len(data):
            return data
        changed = bytearray(data)
        changed[at - offset] ^= 0x40
        return bytes(changed)

    return change


def test_a_bit_that_is_flipped_on_the_way_to_the_worker(server, log):
    """The worker uses nothing of it, says why, and both sides are done with the session."""
    with between(server.address, to_worker=flipping(1 << 20)) as way, started(way.address) as worker:
        futures = [worker.submit(*put(handle, words(512, 1024))) for handle in range(3)]
        assert {code_of(future) for future in futures} == {5711}
        assert code_of(worker.submit(drop(0))) == 5711
        said_in(log, 5711)


def test_a_bit_that_is_flipped_on_the_way_back(server):
    """The answer's tensor is given to nobody."""
    with between(server.address, to_enclave=flipping(1 << 20)) as way, started(way.address) as worker:
        worker.submit(*put(1, words(1024, 4)))
        answered = worker.submit(compute(matmul(1024, 4, 1024), (1, 1, 1)))
        assert code_of(answered) == 5711
        assert code_of(worker.submit(drop(1))) == 5711


@pytest.mark.parametrize("direction", ["to_worker", "to_enclave"])
@pytest.mark.parametrize("after", [1 << 19, (1 << 20) + 77])
def test_a_link_that_is_cut(server, direction, after):
    def cut(offset, data):
        return data if offset + len(data) < after else None

    with between(server.address, **{direction: cut}) as way, started(way.address) as worker:
        worker.submit(*put(1, words(1024, 4)))
        futures = [worker.submit(compute(matmul(1024, 4, 1024), (1, 1, 1)))]
        futures += [worker.submit(*put(handle, words(512, 1024))) for handle in range(2, 5)]
        assert {code_of(future) for future in futures[1:]} == {6706}
        assert code_of(worker.submit(drop(1))) == 6706


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda offset, data: data[1:] if offset <= 1 << 20 < offset + len(data) else data, 5711),
        (lambda offset, data: b"x" + data if offset <= 1 << 20 < offset + len(data) else data, 5711),
        (lambda offset, data: data[: max(0, (4 << 20) - offset)], 6705),
    ],
    ids=["swallowed", "inserted", "end withheld"],
)
def test_bytes_that_are_inserted_or_swallowed(server, change, code):
    with between(server.address, to_enclave=change) as way, started(way.address, answer_s=2.0) as worker:
        worker.submit(*put(1, words(1024, 4)))
        assert code_of(worker.submit(compute(matmul(1024, 4, 1024), (1, 1, 1)))) == code


def test_a_session_that_is_played_again_to_the_worker(server, log):
    """Byte for byte what an enclave once sent: the worker expands no keystream and keeps nothing of it."""
    with between(server.address) as way:
        with started(way.address, {"x": MaskKey("x")}) as worker:
            assert worker.submit(expand_to(1, "x", 0, 8, 8)).result(20) is None
        recorded = bytes(way.seen["to_worker"])
    played = dialled(server.address)
    played.send(recorded, deadline=time.monotonic() + 5)
    said_in(log, 5711)
    played.close()


def test_another_worker_at_the_address():
    with serving(STRANGER) as stranger:
        worker = worker_at(stranger.address)
        refused(6703, worker.start, {})
        worker.close()


def test_an_impostor_who_answers(server):
    """It relays nothing: it has an answer of its own, made as the protocol wants it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def impostor():
            taken, _ = listening.accept()
            with taken:
                taken.recv(1 << 16)
                taken.sendall(PREFIX.pack(b"CLWORKER", 1, 0, 1200) + os.urandom(1200))
                taken.recv(1)

        thread = threading.Thread(target=impostor)
        thread.start()
        worker = worker_at(f"127.0.0.1:{listening.getsockname()[1]}")
        refused(5712, worker.start, {})
        worker.close()
        thread.join(10)


def test_an_enclave_that_looks_for_another_worker(server, log):
    """It is told so, and the worker's log names the code."""
    wanted = WorkerIdentity("gpu-2", IDENTITY.opening_key)
    for identity in (wanted, STRANGER):
        worker = worker_at(server.address, identity)
        assert "cannot open" in str(refused(6703, worker.start, {}).got)
        worker.close()
    said_in(log, 5713)


@pytest.mark.parametrize(("direction", "code"), [("to_worker", 6703), ("to_enclave", 6702)])
def test_another_version_at_either_end(server, log, direction, code):
    """The worker's refusal carries its own version; what it says beyond that is advice."""
    with between(server.address, **{direction: flipping(9)}) as way:
        worker = worker_at(way.address)
        refused(code, worker.start, {})
        worker.close()
    if direction == "to_worker":
        said_in(log, 6702)


# ---- who is slow, hangs or dies ---------------------------------------------------------------------------------

HASTY = Limits(sessions=1, memory_bytes=64 << 20, handshake_s=0.3, step_s=0.3, idle_s=0.6)


def ended(connection) -> bool:
    """Whether the worker closed it; what it said before is passed over."""
    taken = connection._receiving
    taken.settimeout(10)
    with suppress(ConnectionError):
        while taken.recv(1 << 16):
            pass
    return True


def drip(connection, data: bytes) -> None:
    """A byte now and then, for as long as the other side takes them."""
    with suppress(CloisterError):
        for at in range(len(data)):
            connection.send(data[at : at + 1], deadline=time.monotonic() + 1)
            time.sleep(0.02)


def test_a_caller_who_says_nothing_or_drips(log):
    """Each step has its deadline, however many bytes keep coming; meanwhile others are served."""
    opening = Proposal(IDENTITY.name, IDENTITY.opening_key.public).opening
    with serving(limits=HASTY) as server:
        silent, slow = dialled(server.address), dialled(server.address)
        dripping = threading.Thread(target=drip, args=(slow, opening))
        dripping.start()
        with started(server.address) as worker:
            assert worker.submit(*put(1, words(2, 2))).result(20) is None
        assert ended(silent)
        assert ended(slow)
        dripping.join(20)
        assert len([line for line in log if " 6705 " in line]) == 2
        silent.close()
        slow.close()


def opened(server, keys=None):
    """A session whose enclave does as it likes: the connection and the link."""
    connection = dialled(server.address)
    deadline = time.monotonic() + 5
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    connection.send(proposal.opening, deadline=deadline)
    link = connection.receive(proposal.answered(), deadline=lambda: deadline)
    tell(connection, link, begin(keys or {}).canonical())
    connection.receive(link.inbound.message(lambda body, size: None), deadline=lambda: deadline)
    return connection, link


def tell(connection, link, body: bytes, tensor: bytes | None = None) -> None:
    for piece in link.outbound.message(body, None if tensor is None else memoryview(tensor)):
        connection.send(piece, deadline=time.monotonic() + 5)


def told(connection, link) -> int | None:
    """The code of the worker's next answer."""
    reading = link.inbound.message(lambda body, size: None)
    body = connection.receive(reading, deadline=lambda: time.monotonic() + 10)
    return parse_message(Answer, body, what="answer").refused


def test_an_enclave_that_drips_in_the_middle_of_a_message(log):
    """It holds the only session no longer than a step."""
    with serving(limits=HASTY) as server:
        connection, link = opened(server)
        message = b"".join(bytes(piece) for piece in link.outbound.message(Order(command=drop(1)).canonical()))
        connection.send(message[:40], deadline=time.monotonic() + 1)
        drip(connection, message[40:-1])
        assert told(connection, link) == 6711
        assert ended(connection)
        connection.close()
        said_in(log, 6711)
        waits_for(lambda: starts(server.address))


def test_an_enclave_that_asks_nothing(log):
    with serving(limits=HASTY) as server, started(server.address) as worker:
        said_in(log, 6711)
        assert code_of(worker.submit(drop(1))) == 6711
        assert code_of(worker.submit(drop(1))) == 6711


def test_an_enclave_that_takes_no_answers(log):
    """Neither its commands nor what they make fill the worker's memory; then the session ends."""
    limits = Limits(sessions=1, memory_bytes=64 << 20, handshake_s=5, step_s=2, idle_s=20)
    with serving(limits=limits) as server, holding_sessions() as sessions:
        connection, link = opened(server)
        tell(connection, link, Order(command=put(1, words(1024, 1))[0]).canonical(), bytes(4096))
        many = Order(command=compute(matmul(1024, 1, 1024), (1, 1, 1))).canonical()
        with suppress(CloisterError):
            for _ in range(1000):
                tell(connection, link, many)
        waits_for(lambda: _server._WAITING in sessions)
        said_in(log, 6705)
        assert max(sessions) == _server._WAITING
        connection.close()


@contextmanager
def holding_sessions():
    """How long the line of commands was after each one that came."""
    lengths: list[int] = []
    add = _server._Session._add

    def adding(session, step):
        add(session, step)
        lengths.append(len(session._steps))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_server._Session, "_add", adding)
        yield lengths


def starts(address) -> bool:
    worker = worker_at(address)
    try:
        worker.start({})
    except CloisterError as error:
        if error.code not in (6703, 6706):  # no session is left, or no connection
            raise
        return False
    finally:
        worker.close()
    return True


def test_sessions_that_are_used_up(log):
    """Whoever comes next is told so, and may come when one ends."""
    limits = Limits(sessions=2, memory_bytes=1 << 20, handshake_s=5, step_s=5, idle_s=20)
    with serving(limits=limits) as server, started(server.address):
        with started(server.address):
            worker = worker_at(server.address)
            assert "as many sessions" in str(refused(6703, worker.start, {}).got)
            worker.close()
            said_in(log, 6703)
        waits_for(lambda: starts(server.address))


def test_connections_that_are_used_up(log, monkeypatch):
    monkeypatch.setattr(_server, "_HANDSHAKES", 2)
    limits = Limits(sessions=1, memory_bytes=1 << 20, handshake_s=5, step_s=5, idle_s=20)
    with serving(limits=limits) as server:
        callers = [dialled(server.address) for _ in range(4)]
        assert ended(callers[3])
        waits_for(lambda: any("too many connections" in line for line in log))
        for caller in callers:
            caller.close()
        waits_for(lambda: starts(server.address))


def test_a_second_session_does_not_see_the_first_one_s_tensors(server):
    with started(server.address, {"x": MaskKey("x")}) as first, started(server.address) as second:
        first.submit(*put(1, words(2, 2)))
        assert first.submit(expand_to(2, "x", 0, 2, 2)).result(20) is None
        for handle in (1, 2):
            assert code_of(second.submit(compute(matmul(2, 2, 2), (1, handle, handle)))) == 2710
            assert code_of(second.submit(drop(handle))) == 2710
        assert code_of(second.submit(expand_to(3, "x", 0, 2, 2))) == 2712
        assert second.submit(*put(1, words(2, 2, seed=1))).result(20) is None
        answered = first.submit(compute(matmul(2, 2, 2), (1, 1, 1))).result(20).to(torch.int64)
        left = words(2, 2).to(torch.int64)
        assert torch.equal(answered.to(torch.int32), (left @ left.T).to(torch.int32))


def test_a_session_that_never_resumes(server):
    """Another session has other keys, and the worker kept nothing."""
    with between(server.address) as way, started(way.address) as worker:
        assert worker.submit(*put(1, words(2, 2))).result(20) is None
        way.close()
        assert code_of(worker.submit(drop(1))) == 6706
        with pytest.raises(RuntimeError):
            worker.start({})
        assert code_of(worker.submit(drop(1))) == 6706
    with started(server.address) as again:
        assert code_of(again.submit(drop(1))) == 2710


def test_a_worker_that_accepts_and_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        worker = worker_at(f"127.0.0.1:{listening.getsockname()[1]}", connect_s=0.3)
        refused(6705, worker.start, {})
        worker.close()


def test_a_worker_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    for absent in (address, "worker.invalid:1"):
        worker = worker_at(absent)
        refused(6704, worker.start, {})
        worker.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """`cloister worker serve`, in a process that may be stopped and killed."""
    one = WorkerProcess(tmp_path_factory.mktemp("worker"), "--memory", "1 GiB", "--sessions", "8")
    yield one
    one.end()


posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@posix
@pytest.mark.parametrize("busy", ["answering", "taking"])
def test_a_worker_that_hangs(process, busy):
    """Stopped while it should answer, or while it should take more than the system's buffers hold."""
    with started(process.address, answer_s=0.7) as worker:
        assert worker.submit(*put(0, words(4, 4))).result(20) is None
        process.send(signal.SIGSTOP)
        try:
            size = 4 if busy == "answering" else 4096
            futures = [worker.submit(*put(handle, words(size, 4096))) for handle in (1, 2)]
            assert {code_of(future) for future in futures} == {6705}
            assert code_of(worker.submit(drop(0))) == 6705
        finally:
            process.send(signal.SIGCONT)


@posix
def test_a_worker_that_is_killed(process):
    """Every command that is open fails, and every later one; none waits."""
    with started(process.address) as worker:
        assert worker.submit(*put(0, words(2048, 512))).result(20) is None
        futures = [worker.submit(compute(matmul(2048, 512, 2048), (1, 0, 0))) for _ in range(12)]
        process.end()
        codes = {error.code for error in (future.exception(20) for future in futures) if error is not None}
        assert codes == {6706}
        assert code_of(worker.submit(drop(0))) == 6706
        refused(6704, worker_at(process.address).start, {})


# ---- a worker that lies -----------------------------------------------------------------------------------------


def within(seconds):
    return lambda: time.monotonic() + seconds


def greeted(listening, ready: bytes | None = None):
    """The worker's end of one session with the right key: its connection and link."""
    taken, _ = listening.accept()
    connection = Connection(taken)
    said, link = connection.receive(answer(IDENTITY.name, IDENTITY.opening_key), deadline=within(10))
    connection.send(said, deadline=time.monotonic() + 10)
    connection.receive(link.inbound.message(lambda body, size: None), deadline=within(10))
    tell(connection, link, Ready(kernels="cpu", device="cpu", memory_bytes=0).canonical() if ready is None else ready)
    return connection, link


@contextmanager
def liar(*answers: tuple[bytes, bytes | None], ready: bytes | None = None):
    """A worker with the right key that says what it likes, once a session."""
    listening = socket.create_server(("127.0.0.1", 0))

    def lie():
        with suppress(CloisterError):
            connection, link = greeted(listening, ready)
            for body, tensor in answers:
                connection.receive(link.inbound.message(lambda body, size: None), deadline=within(10))
                tell(connection, link, body, tensor)
        connection.finish()
        connection.close()

    thread = threading.Thread(target=lie)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        thread.join(20)
        listening.close()


FINE = Answer().canonical()


@pytest.mark.parametrize(
    ("body", "tensor"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"refused":1234}', None),
        (b'{"refused":5701}', None),
        (b'{"run this":"run this"}', None),
        (FINE, None),
        (FINE, bytes(15)),
        (FINE, bytes(20)),
        (FINE, bytes(1 << 20)),
        (b'{"refused":6709}', bytes(16)),
    ],
)
def test_an_answer_that_is_none(body, tensor):
    """A product of two by two has 16 bytes; nothing else is given to anybody, and nothing of it is quoted."""
    with liar((FINE, None), (body, tensor)) as address, started(address) as worker:
        assert worker.submit(*put(1, words(2, 2))).result(20) is None
        answered = worker.submit(compute(matmul(2, 2, 2), (1, 1, 1)))
        assert code_of(answered) == 6707
        assert "run this" not in str(answered.exception().as_json())
        assert code_of(worker.submit(drop(1))) == 6707


def test_an_answer_to_what_was_not_sent():
    """Said before the tensor came, and gone: nobody waits for the rest."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answers_and_goes():
            connection, link = greeted(listening)
            tell(connection, link, FINE)
            connection.close()  # over bytes that nobody read

        thread = threading.Thread(target=answers_and_goes)
        thread.start()
        with started(f"127.0.0.1:{listening.getsockname()[1]}") as worker:
            futures = [worker.submit(*put(handle, words(4096, 4096))) for handle in range(3)]
            assert code_of(futures[1]) == 6706
            assert code_of(futures[2]) == 6706
            assert code_of(worker.submit(drop(1))) == 6706
        thread.join(10)


def test_a_tensor_where_none_is_due():
    with liar((FINE, bytes(4))) as address, started(address) as worker:
        assert code_of(worker.submit(*put(1, words(2, 2)))) == 6707


@pytest.mark.parametrize(
    "ready", [b"{}", b'{"run this":1}', b'{"kernels":"cpu\\u001b[2J","device":"cpu","memory_bytes":1}']
)
def test_a_worker_that_says_nonsense_about_itself(ready):
    with liar(ready=ready) as address:
        worker = worker_at(address)
        assert "run this" not in str(refused(6707, worker.start, {}).as_json())
        worker.close()


# ---- an enclave that lies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "tensor"),
    [
        (b"{", None),
        (b'{"command":{"verb":"run","argv":["sh"]}}', None),
        (b'{"command":{"verb":"drop","handles":[]}}', None),
        (b'{"command":{"verb":"drop","handles":[-1]}}', None),
        (Order(command=drop(1)).canonical(), bytes(8)),
        (Order(command=put(1, words(2, 2))[0]).canonical(), None),
        (Order(command=put(1, words(2, 2))[0]).canonical(), bytes(12)),
    ],
)
def test_a_command_that_is_none(server, log, body, tensor):
    connection, link = opened(server)
    tell(connection, link, body, tensor)
    assert told(connection, link) == 6707
    assert ended(connection)
    connection.close()
    said_in(log, 6707)


def test_a_tensor_that_is_announced_larger_than_the_worker_s_memory(server):
    """It is refused in its turn, without memory: what was announced would take 8 TiB."""
    connection, link = opened(server)
    command = Put(handle=1, dtype="int32", shape=(1 << 20, 1 << 21))
    header = link.outbound
    connection.send(
        header._buffer[: header._seal(b"header", struct.pack(">IQ", 2, 1 << 43), 0)], deadline=time.monotonic() + 5
    )
    assert told(connection, link) == 6707
    connection.close()
    connection, link = opened(server)
    shape = (1 << 10, 1 << 17)
    tell(connection, link, Order(command=command.model_copy(update={"shape": shape})).canonical(), bytes(512 << 20))
    assert told(connection, link) == 6701
    tell(connection, link, Order(command=drop(1)).canonical())
    assert told(connection, link) == 2710
    connection.close()


def test_keys_that_are_none(server, log):
    connection = dialled(server.address)
    deadline = time.monotonic() + 5
    proposal = Proposal(IDENTITY.name, IDENTITY.opening_key.public)
    connection.send(proposal.opening, deadline=deadline)
    link = connection.receive(proposal.answered(), deadline=lambda: deadline)
    tell(connection, link, b'{"keys":{"x":{"cipher":"rot13","key":"' + b"A" * 43 + b'="}}}')
    assert ended(connection)
    connection.close()
    said_in(log, 6707)
    assert not any("rot13" in line or "AAAA" in line for line in log)
