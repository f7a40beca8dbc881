"""The enclave's side of a link, and a server's sessions: what waits for what, and what is held in memory how often."""

import os
import sys
import threading
from concurrent.futures import CancelledError

import pytest
import torch
from tests.workers import (
    LIMITS,
    Limits,
    WorkerProcess,
    code_of,
    compute,
    dialled,
    drop,
    matmul,
    put,
    serving,
    waits_for,
    words,
    worker_at,
)

from cloister.errors import CloisterError
from cloister.offload import _server
from cloister.ring import kernels_for

KIB, MIB = 1 << 10, 1 << 20
SLACK = 24 * MIB


class Gate:
    """Kernels that multiply only while they may."""

    name = "gate"

    def __init__(self):
        self.open = threading.Event()
        self._kernels = kernels_for(torch.device("cpu"))

    def product(self, product, left, right):
        assert self.open.wait(30)
        return self._kernels.product(product, left, right)


@pytest.fixture
def gate():
    kernels = Gate()
    with serving(kernels=kernels) as server:
        kernels.server = server
        yield kernels
        kernels.open.set()


@pytest.fixture
def worker(gate):
    """One that waits beyond 100 KiB; a product of `large()` has 64."""
    worker = worker_at(gate.server.address, in_flight_bytes=100 * KIB, answer_s=30.0)
    worker.start({})
    assert worker.submit(*put(1, words(128, 4))).result(20) is None
    yield worker
    gate.open.set()
    worker.close()


def large():
    return compute(matmul(128, 4, 128), (1, 1, 1))


class Asking(threading.Thread):
    """Submits one command, and keeps its future or what was raised."""

    def __init__(self, worker, command):
        super().__init__(daemon=True)
        self.worker, self.command, self.future, self.error = worker, command, None, None
        self.start()

    def run(self):
        try:
            self.future = self.worker.submit(self.command)
        except RuntimeError as error:
            self.error = error


def waiting(asking):
    """Whether it still waits after a moment in which it could have gone on."""
    asking.join(0.2)
    return asking.is_alive()


def test_submit_waits_while_too_much_is_in_flight(gate, worker):
    first = worker.submit(large())
    second = Asking(worker, large())
    assert waiting(second)
    gate.open.set()
    assert first.result(20).shape == (128, 128)
    second.join(20)
    assert second.future.result(20).shape == (128, 128)


def test_what_has_no_tensor_does_not_fill_the_link(gate, worker):
    worker.submit(large())
    dropping = Asking(worker, drop(1))
    assert not waiting(dropping)
    gate.open.set()
    assert dropping.future.result(20) is None


def test_a_command_larger_than_the_bound_goes_alone(gate, worker):
    gate.open.set()
    for _ in range(2):
        assert worker.submit(*put(2, words(200, KIB))).result(20) is None
        assert worker.submit(drop(2)).result(20) is None


def test_what_was_submitted_is_not_taken_back(gate, worker):
    """An answer whose future was cancelled would have no place to go."""
    asked = worker.submit(large())
    assert not asked.cancel()
    gate.open.set()
    assert asked.result(20).shape == (128, 128)
    assert worker.submit(drop(1)).result(20) is None


def test_closing_wakes_who_waits(gate, worker):
    first = worker.submit(large())
    second = Asking(worker, large())
    assert waiting(second)
    worker.close()
    second.join(20)
    assert isinstance(second.error, RuntimeError)
    assert isinstance(first.exception(20), CancelledError)


def test_a_failure_wakes_who_waits(gate, worker):
    first = worker.submit(large())
    second = Asking(worker, large())
    assert waiting(second)
    worker._connection.shut()
    second.join(20)
    assert {code_of(first), code_of(second.future)} == {6706}


def test_a_future_s_callback_may_close(gate, worker):
    """It runs on the link's own thread, which does not wait for itself."""
    closed = threading.Event()
    gate.open.set()
    answered = worker.submit(large())
    answered.add_done_callback(lambda _: (worker.close(), closed.set()))
    assert closed.wait(20)
    with pytest.raises(RuntimeError):
        worker.submit(drop(1))


def test_each_future_has_an_error_of_its_own(gate, worker):
    """Raised in several threads, one error would gather all their tracebacks."""
    futures = [worker.submit(large()), worker.submit(drop(1))]
    worker._connection.shut()
    first, second = (future.exception(20) for future in futures)
    assert (first.code, second.code) == (6706, 6706)
    assert first is not second


def test_errors_name_the_worker(gate, worker):
    with pytest.raises(CloisterError, match="worker 'gpu'"):
        worker.submit(drop(9)).result(20)


def test_memory_that_the_machine_does_not_have_refuses_one_put(monkeypatch):
    """The operator promised more than there is: the session goes on."""
    with serving() as server:
        worker = worker_at(server.address)
        worker.start({})
        empty = torch.empty

        def scarce(*arguments, **options):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(_server.torch, "empty", scarce)
        assert code_of(worker.submit(*put(1, words(64, 64)))) == 6701
        monkeypatch.setattr(_server.torch, "empty", empty)
        assert worker.submit(*put(1, words(64, 64))).result(20) is None
        worker.close()


def test_a_thread_that_the_machine_does_not_have_refuses_one_connection(monkeypatch):
    with serving() as server:
        start = threading.Thread.start

        def scarce(thread):
            if thread.name == "cloister-session":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", scarce)
        caller = dialled(server.address)
        assert caller._receiving.recv(1) == b""
        caller.close()
        monkeypatch.setattr(threading.Thread, "start", start)
        worker = worker_at(server.address)
        worker.start({})
        worker.close()


def test_what_is_coming_counts_as_kept(monkeypatch):
    """Three puts of 24 MiB in one breath, where 64 MiB are kept at most; then room is made, and the fourth is taken."""
    limits = Limits(sessions=1, memory_bytes=64 * MIB, handshake_s=5, step_s=10, idle_s=20)
    with serving(limits=limits) as server:
        worker = worker_at(server.address)
        worker.start({})
        block = words(24 * KIB, 256)
        made = []
        empty = torch.empty
        monkeypatch.setattr(_server.torch, "empty", lambda *a, **o: made.append(a) or empty(*a, **o))
        futures = [worker.submit(*put(handle, block)) for handle in range(3)]
        assert [future.exception(20) is None for future in futures] == [True, True, False]
        assert code_of(futures[2]) == 6701
        assert len(made) == 2  # the third has no memory at any time
        worker.submit(drop(0))
        assert worker.submit(*put(3, block)).result(20) is None
        worker.close()


def test_a_server_that_is_stopped_ends_its_sessions():
    with serving(limits=LIMITS) as server:
        worker = worker_at(server.address)
        worker.start({})
        server.server.stop()
        waits_for(lambda: not server.thread.is_alive())
        assert code_of(worker.submit(drop(1))) == 6706
        worker.close()


# ---- memory, on Linux: where the system counts it ---------------------------------------------------------------


linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def status(pid, field):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * KIB for line in file if line.startswith(field))


class Growth:
    """By how much a process's memory was larger, at the most, than when this was made."""

    def __init__(self, pid):
        self.pid = pid
        with open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")
        self.before = status(pid, "VmRSS")

    def peak(self):
        return status(self.pid, "VmHWM") - self.before


@linux
@pytest.mark.slow
def test_a_large_tensor_is_in_memory_once_on_either_side(tmp_path):
    """96 MiB each way: what is sent lies where it lay, what comes is decrypted to where it stays."""
    process = WorkerProcess(tmp_path, "--memory", "1 GiB")
    worker = worker_at(process.address, answer_s=60.0)
    try:
        worker.start({})
        worker.submit(*put(0, words(64, 64)))
        worker.submit(*put(1, words(6 * KIB, 4)))
        worker.submit(*put(2, words(4 * KIB, 4)))
        assert worker.submit(compute(matmul(64, 64, 64), (1, 0, 0))).result(60) is not None
        sent = words(24 * KIB, KIB)
        here, there = Growth(os.getpid()), Growth(process.process.pid)
        assert worker.submit(*put(3, sent)).result(60) is None
        assert here.peak() < SLACK
        assert 96 * MIB - SLACK < there.peak() < 96 * MIB + SLACK
        here = Growth(os.getpid())
        assert worker.submit(compute(matmul(6 * KIB, 4, 4 * KIB), (1, 1, 2))).result(60).numel() == 24 * MIB
        assert here.peak() < 96 * MIB + SLACK
    finally:
        worker.close()
        process.end()
