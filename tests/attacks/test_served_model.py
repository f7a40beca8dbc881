"""A served model that took over its own process: what it can say, and what it finds there."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.serve.models import running

from cloister.errors import CloisterError
from cloister.manifest import Limits
from cloister.serve import _model as served
from cloister.serve import from_tensor, to_tensor
from cloister.serve._model import SandboxedModel, sealed_file

X = to_tensor("x", np.ones((1, 3), np.float32))
HONEST = 0

# What the process is instead of the runner: it does as the first number of a question says.
HOSTILE = """
import json, os, struct, sys, time
asked, said, model = map(int, sys.argv[1:])

def take(size):
    data = b""
    while len(data) < size:
        data += os.read(asked, size - len(data)) or os._exit(0)
    return data

def say(header, data=b"", sizes=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    left = struct.pack(">IQ", *(sizes or (len(text), len(data)))) + text + data
    while left:
        left = left[os.write(said, left):]

def tensors(*shape, name="y", datatype="UINT8"):
    return {"tensors": [{"name": name, "datatype": datatype, "shape": list(shape)}]}

def probe():
    import ctypes, errno, socket
    libc = ctypes.CDLL(None, use_errno=True)
    def call(*arguments):
        return errno.errorcode[ctypes.get_errno()] if libc.syscall(*arguments) < 0 else "worked"
    def attempt(function, *arguments):
        try:
            function(*arguments)
            return "worked"
        except OSError as error:
            return errno.errorcode[error.errno]
    launcher = PID
    return {
        "variables": sorted(os.environ),
        "arguments": len(sys.argv),
        "isolated": bool(sys.flags.isolated),
        "bytecode": [sys.pycache_prefix, sys.dont_write_bytecode],
        "descriptors": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
        "passed": sorted([asked, said, model]),
        "signal": attempt(os.kill, launcher, 0),
        "launcher": os.path.exists(f"/proc/{launcher}"),
        "ptrace": call(101, 16, launcher, 0, 0),
        "memory": call(310, launcher, 0, 0, 0, 0, 0),
        "internet": attempt(socket.socket, socket.AF_INET),
        "files": [path for path in FILES if os.path.exists(path)],
        "model": attempt(os.pwrite, model, b"x", 0),
        "model again": attempt(lambda: os.write(os.open(f"/proc/self/fd/{model}", os.O_RDWR), b"x")),
        "shorter": attempt(os.ftruncate, model, 0),
    }

say(tensors(-1, 3, name="x", datatype="FP32"))
while True:
    sizes = struct.unpack(">IQ", take(12))
    header = json.loads(take(sizes[0]))
    wish, data = int(struct.unpack("<f", take(4))[0]), None
    if wish == 11:
        time.sleep(9)  # while the rest of the question waits
    take(sizes[1] - 4)
    if wish == 0: say(tensors(2), b"ok")
    if wish == 1: os._exit(7)
    if wish == 2: time.sleep(9); say(tensors(2), b"ok")
    if wish == 3: say(b"", sizes=(2, 1 << 40))
    if wish == 4: say(b"", sizes=(1 << 31, 0))
    if wish == 5: say(tensors(3), b"ok")
    if wish == 6: say(tensors(-1), b"")
    if wish == 7: say({"tensors": tensors(2)["tensors"] + tensors(-2, name="z")["tensors"]}, b"")
    if wish == 8: say({"tensors": tensors(1)["tensors"] * 2}, b"ok")
    if wish == 9: say({"code": 3401})
    if wish == 10: say(b"not JSON")
    if wish == 12: say(tensors(1, datatype="STRING"), b"x")
    if wish == 13: data = bytearray(1 << 30); say(tensors(2), b"ok")
    if wish == 14: text = json.dumps(probe()).encode(); say(tensors(len(text)), text)
    if wish == 15: say(tensors(1, name="y" * 300), b"x")
    if wish == 16: say({"tensors": [], "more": 1})
"""


def wish(number: int, rows: int = 1) -> tuple[Any, ...]:
    return (to_tensor("x", np.full((rows, 3), number, np.float32)),)


def code_of(action: Callable[[], object]) -> int:
    with pytest.raises(CloisterError) as caught:
        action()
    return caught.value.code


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SandboxedModel]:
    (tmp_path / "key").write_text("s")
    files = ["/etc/shadow", "/etc/hostname", str(tmp_path / "key"), os.path.abspath(__file__)]
    source = HOSTILE.replace("PID", str(os.getpid())).replace("FILES", repr(files))
    monkeypatch.setattr(served, "_PROGRAM", ("-c", source))
    monkeypatch.setenv("SECRET_TOKEN", "s")
    with running(b"a model", time_s=2.0) as model:
        yield model


def answers(model: SandboxedModel) -> bool:
    return from_tensor(model.predict(wish(HONEST))[0]).tobytes() == b"ok"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(1, 6603, id="dies"),
        pytest.param(2, 6604, id="hangs"),
        pytest.param(3, 6605, id="overlong-data"),
        pytest.param(4, 6605, id="overlong-header"),
        pytest.param(5, 6605, id="shape-larger"),
        pytest.param(6, 6605, id="shape-negative"),
        pytest.param(7, 6605, id="shapes-that-cancel"),
        pytest.param(8, 6605, id="doubled-name"),
        pytest.param(9, 6605, id="code-of-another-room"),
        pytest.param(10, 6605, id="no-json"),
        pytest.param(12, 6605, id="unknown-datatype"),
        pytest.param(15, 6605, id="overlong-name"),
        pytest.param(16, 6605, id="unknown-field"),
    ],
)
def test_it_costs_its_own_request_and_the_next_is_answered(hostile: SandboxedModel, number: int, code: int) -> None:
    assert answers(hostile)
    assert code_of(lambda: hostile.predict(wish(number))) == code
    assert answers(hostile)


def test_a_process_that_does_not_read_is_not_waited_for(hostile: SandboxedModel) -> None:
    assert code_of(lambda: hostile.predict(wish(11, rows=60_000))) == 6604
    assert answers(hostile)


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_PROGRAM", ("-c", HOSTILE))
    limits = Limits(memory_bytes=1 << 28, processes=64)
    with running(b"a model", limits=limits) as model:
        assert code_of(lambda: model.predict(wish(13))) == 6603
        assert answers(model)


def test_a_process_that_fails_again_and_again_is_down_for_a_while(
    hostile: SandboxedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_PAUSES_S", (0, 3600))
    assert code_of(lambda: hostile.predict(wish(1))) == 6603
    assert hostile.ready
    assert code_of(lambda: hostile.predict(wish(1))) == 6603
    assert not hostile.ready
    assert code_of(lambda: hostile.predict(wish(HONEST))) == 6606
    hostile._again_at = 0.0  # the pause is over
    assert hostile.ready
    assert answers(hostile)
    assert code_of(lambda: hostile.predict(wish(1))) == 6603  # the first in a row again
    assert answers(hostile)


def test_requests_that_wait_behind_a_long_one_are_told(hostile: SandboxedModel) -> None:
    with hostile._lock:
        assert code_of(lambda: hostile.predict(wish(HONEST))) == 6604
    assert answers(hostile)


def test_a_process_that_died_unasked_is_replaced_before_a_request_meets_it(hostile: SandboxedModel) -> None:
    first = hostile._process
    assert first is not None
    first.stop()
    first._thread.join()
    assert answers(hostile)
    assert hostile._process is not first


@pytest.mark.parametrize(
    ("source", "code"),
    [
        pytest.param("import sys; sys.exit(1)", 6603, id="dies"),
        pytest.param("import os, sys; os.write(int(sys.argv[2]), bytes(12))", 6605, id="nothing"),
        pytest.param("import os, sys; os.write(int(sys.argv[2]), b'\\xff' * 12)", 6605, id="overlong"),
        pytest.param("import time; time.sleep(5)", 6604, id="hangs"),
    ],
)
def test_what_never_loads_is_not_served(monkeypatch: pytest.MonkeyPatch, source: str, code: int) -> None:
    monkeypatch.setattr(served, "_PROGRAM", ("-c", source))
    monkeypatch.setattr(served, "LOAD_S", 1 if code == 6604 else 60)
    before = set(os.listdir("/proc/self/fd"))

    def start() -> None:
        with running(b"a model"):
            pass

    assert code_of(start) == code
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are those of x86-64")
def test_it_finds_no_key_no_network_and_no_file(hostile: SandboxedModel) -> None:
    found = json.loads(from_tensor(hostile.predict(wish(14))[0]).tobytes())
    fixed = {
        "HOME",
        "LANG",
        "LC_CTYPE",
        "PATH",
        "PWD",
        "PYTHONNOUSERSITE",
        "PYTHONPYCACHEPREFIX",
        "TMPDIR",
        "TZ",
        "USER",
    }
    assert set(found.pop("variables")) <= fixed
    assert found.pop("descriptors") == [0, 1, 2, *found.pop("passed")]
    assert found == {
        "arguments": 4,
        "isolated": True,
        "bytecode": ["/dev/null/bytecode", True],
        "signal": "ESRCH",
        "launcher": False,
        "ptrace": "EPERM",
        "memory": "EPERM",
        "internet": "EAFNOSUPPORT",
        "files": [],
        "model": "EPERM",
        "model again": "EPERM",
        "shorter": "EPERM",
    }


def test_each_start_reads_the_model_that_was_registered() -> None:
    handle = sealed_file(b"a model")
    try:
        with pytest.raises(PermissionError):
            os.pwrite(handle, b"x", 0)
        assert os.pread(handle, 100, 0) == b"a model"
    finally:
        os.close(handle)
