"""The sandbox: bubblewrap, told in one place what a script sees and what it may do.

The script sees the measured interpreter and packages, the system's ``/usr``, its code, inputs and outputs, and
private memory. It has no network, no other process, no capability, no way to make a namespace, and no file of the host.

A little longer than our cap of 400 lines: one place is the point of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from cloister.enclave._limits import ResourceGroup
from cloister.enclave._logs import MAX_LOG_BYTES
from cloister.enclave._seccomp import seccomp_program
from cloister.enclave._trees import base_packages, code_trees, interpreter_folder, tool, venv_config
from cloister.errors import InputError, RefusedError
from cloister.manifest import Limits
from cloister.wire import digest

__all__ = ["BYTECODE", "Bind", "Outcome", "require_bubblewrap", "run_sandboxed", "sandbox_configuration"]


Ending = Literal["exited", "time", "memory", "processes", "stopped"]
BYTECODE = "/run/cloister/bytecode"
_SETUP_S = 60  # bubblewrap answers in milliseconds; a host under load gets a minute

_FIXED_ENV = {  # of folders inside the sandbox
    "HOME": "/tmp",  # noqa: S108
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "USER": "enclave",
    "PYTHONNOUSERSITE": "1",
    # A .pyc beside its source is code that no measurement covers: the interpreter never looks there.
    "PYTHONPYCACHEPREFIX": BYTECODE,
}
_ACCOUNTS = b"enclave:x:1000:1000::/tmp:/usr/sbin/nologin\n"
_GROUPS = b"enclave:x:1000:\n"
_HIDDEN = ("kcore", "keys", "key-users", "kallsyms", "timer_list", "sched_debug", "kmsg", "config.gz")
_FLAGS = (
    "--unshare-user",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--die-with-parent",
    "--new-session",
    "--clearenv",
    "--cap-drop",
    "ALL",
    "--uid",
    "1000",
    "--gid",
    "1000",
    "--hostname",
    "enclave",
)


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder or file of the launcher's that the script sees at ``target``."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sandboxed program ended.

    Attributes:
        ended: By itself, or killed for going over a limit, or because the caller said so.
        status: Its exit status; 128 and more for a signal.
        output: The end of what it printed, at most ``MAX_LOG_BYTES``.
        dropped_bytes: How much was printed before that.
        seconds: How long it ran.
    """

    ended: Ending
    status: int
    output: bytes
    dropped_bytes: int
    seconds: float


def sandbox_configuration() -> dict[str, Any]:
    """What a launcher's measurement says about its sandbox."""
    return {
        "flags": list(_FLAGS),
        "environment": dict(_FIXED_ENV),
        "hidden": list(_HIDDEN),
        "seccomp": digest(seccomp_program()),
        "log_bytes": MAX_LOG_BYTES,
    }


def require_bubblewrap() -> str:
    """The path of bubblewrap, once it has shown that it can make the namespaces here.

    Raises:
        InputError: 2008 on another system than Linux.
        RefusedError: 3501 when bubblewrap is missing, or may not make namespaces.
    """
    if not sys.platform.startswith("linux"):
        raise InputError(2008, f"a sandboxed stage runs on Linux only, this is {sys.platform}")
    found = tool("bwrap")
    if found is None:
        raise RefusedError(3501, "bubblewrap is not installed, and no stage runs without its sandbox")
    path = str(found)
    said = _trial(path)
    if said:
        raise RefusedError(3501, "bubblewrap cannot make namespaces here", got=said)
    return path


@cache
def _trial(path: str) -> str:
    command = [path, *_FLAGS, "--ro-bind", "/", "/", "--proc", "/proc", "--", "/proc/self/exe", "--version"]
    ended = subprocess.run(command, capture_output=True, timeout=_SETUP_S, check=False, stdin=subprocess.DEVNULL)
    return "" if ended.returncode == 0 else ended.stderr.decode(errors="replace").strip()[:300] or "no message"


def run_sandboxed(
    argv: Sequence[str],
    *,
    binds: Sequence[Bind],
    limits: Limits,
    group: ResourceGroup,
    env: Mapping[str, str] | None = None,
    cwd: str = "/tmp",  # noqa: S108
    pass_fds: Sequence[int] = (),
    bytecode: Path | None = None,
    stop: threading.Event | None = None,
    halt: threading.Event | None = None,
) -> Outcome:
    """Runs ``argv`` in a fresh sandbox and waits for it; when this returns nothing of it is alive.

    Args:
        argv: The program and its arguments, exactly as given; ``python`` is the launcher's own interpreter.
        binds: What it sees beside the system and the measured code.
        limits: Memory, time and processes.
        group: What the limits are held by; shared by the sandboxes of one attempt.
        env: Added to the fixed environment. The caller has refused names that change how programs load.
        cwd: Its working folder.
        pass_fds: Descriptors that it inherits.
        bytecode: Compiled modules of the measured code; read-only. None compiles into private memory.
        stop: Where given, it is ended when this is set, and by no limit on time.
        halt: Where given, it is ended when this is set too.

    Raises:
        RefusedError: 3501 when bubblewrap cannot set the sandbox up.
        InputError: 2504 when the program is not there.
    """
    bubblewrap = require_bubblewrap()
    with contextlib.ExitStack() as cleanup:
        status_read, status_write = _pipe(cleanup)
        block_read, block_write = _pipe(cleanup)
        output_read, output_write = _pipe(cleanup)
        seccomp = _sealed_memory(cleanup, "seccomp", seccomp_program())
        accounts = _sealed_memory(cleanup, "passwd", _ACCOUNTS)
        groups = _sealed_memory(cleanup, "group", _GROUPS)
        command = [
            bubblewrap,
            *_FLAGS,
            *(
                "--json-status-fd",
                str(status_write.number),
                "--block-fd",
                str(block_read.number),
                "--seccomp",
                str(seccomp),
            ),
            *_environment(env or {}),
            *_system(accounts, groups, limits),
            *_measured_code(bytecode, limits),
            *(part for bind in binds for part in _bind(bind)),
            *("--remount-ro", "/", "--chdir", cwd, "--"),
            *argv,
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output_write.number,
            stderr=output_write.number,
            pass_fds=(status_write.number, block_read.number, seccomp, accounts, groups, *pass_fds),
            env={},
            cwd="/",
        )
        for end in (status_write, block_read, output_write):
            end.close()
        tail = _Tail(output_read.number)
        status = os.fdopen(os.dup(status_read.number), "rb", buffering=0)
        cleanup.callback(status.close)
        child = _child_pid(status)
        ended: Ending = "exited"
        started = time.monotonic()
        try:
            if child is not None:
                with contextlib.suppress(ProcessLookupError, BrokenPipeError):  # it gave up meanwhile, and says why
                    group.add(child)
                    resource.prlimit(child, resource.RLIMIT_CORE, (0, 0))
                    started = time.monotonic()
                    os.write(block_write.number, b"!")
                ended = _wait(process, child, limits, group, started, stop, halt)
        finally:
            _end(child)
            process.kill()
            process.wait()
        seconds = time.monotonic() - started
        output, dropped = tail.end()
        exit_status = _exit_status(status)
        if ended == "exited" and exit_status != 0 and group.by_kernel and child and group.exceeded(child):
            ended = "memory"  # the kernel killed for it before we looked
        if ended == "exited" and exit_status is None:
            _setup_failed(output, argv[0])
        return Outcome(ended, 137 if exit_status is None else exit_status, output, dropped, seconds)


def _environment(env: Mapping[str, str]) -> Iterator[str]:
    path = f"{interpreter_folder()}:/usr/local/bin:/usr/bin:/bin"
    for name, value in {**env, **_FIXED_ENV, "PATH": path}.items():
        yield from ("--setenv", name, value)


def _system(accounts: int, groups: int, limits: Limits) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/") / name
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for path in ("/etc/ld.so.cache", "/etc/alternatives"):
        yield from ("--ro-bind-try", path, path)
    yield from ("--ro-bind-data", str(accounts), "/etc/passwd", "--ro-bind-data", str(groups), "/etc/group")
    yield from ("--proc", "/proc")
    for name in _HIDDEN:
        if Path("/proc", name).is_file():
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")
    # Run by root, the sandbox's user owns /proc/sys on the host: a writable core_pattern is a way out.
    yield from ("--remount-ro", "/proc")
    yield from ("--dev", "/dev", "--remount-ro", "/dev")
    size = str(limits.memory_bytes)
    for path in ("/dev/shm", "/tmp"):  # noqa: S108
        yield from ("--size", size, "--perms", "1777", "--tmpfs", path)


def _measured_code(bytecode: Path | None, limits: Limits) -> Iterator[str]:
    trees = code_trees()
    for tree in trees:
        if not tree.label.startswith("tool-"):
            yield from ("--ro-bind", str(tree.path), str(tree.path))
    for folder in base_packages(trees):
        yield from ("--size", "4096", "--tmpfs", str(folder), "--remount-ro", str(folder))
    config = venv_config()
    if config is not None:
        yield from ("--ro-bind", str(config), str(config))
    for name in ("python", "python3"):
        yield from ("--symlink", str(Path(sys.executable).resolve()), f"{interpreter_folder()}/{name}")
    if bytecode is not None:
        yield from ("--ro-bind", str(bytecode), BYTECODE)
    else:  # a bind at the same place, if there is one, covers this
        yield from ("--size", str(limits.memory_bytes), "--tmpfs", BYTECODE)


def _bind(bind: Bind) -> tuple[str, str, str]:
    return ("--bind" if bind.writable else "--ro-bind", str(bind.source), bind.target)


def _pipe(cleanup: contextlib.ExitStack) -> tuple[_Handle, _Handle]:
    read, write = os.pipe()
    return cleanup.enter_context(_Handle(read)), cleanup.enter_context(_Handle(write))


class _Handle:
    """A descriptor that is closed once: its number may be another thread's by the second time."""

    def __init__(self, number: int) -> None:
        self.number, self._open = number, True

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self.number)

    def __enter__(self) -> _Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sealed_memory(cleanup: contextlib.ExitStack, name: str, content: bytes) -> int:
    handle = cleanup.enter_context(_Handle(os.memfd_create(name))).number
    os.write(handle, content)
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _child_pid(status: IO[bytes]) -> int | None:
    """The sandbox's first process, as bubblewrap says once it exists; None when bubblewrap gave up before."""
    if not select.select([status], [], [], _SETUP_S)[0]:
        return None
    line = status.readline()
    return int(json.loads(line)["child-pid"]) if line else None


def _exit_status(status: IO[bytes]) -> int | None:
    """The program's exit status; None when it was never started, or killed with its namespace."""
    for line in status.read().splitlines():
        value = json.loads(line)
        if "exit-code" in value:
            return int(value["exit-code"])
    return None


def _wait(
    process: subprocess.Popen[bytes],
    child: int,
    limits: Limits,
    group: ResourceGroup,
    started: float,
    stop: threading.Event | None,
    halt: threading.Event | None,
) -> Ending:
    pause = 0.005
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=pause)
            return "exited"
        if any(event is not None and event.is_set() for event in (stop, halt)):
            return "stopped"
        if stop is None and time.monotonic() - started > limits.time_s:
            return "time"
        over = group.exceeded(child)
        if over is not None:
            return over
        pause = min(pause * 2, 0.25 if group.by_kernel else 0.05)


def _end(child: int | None) -> None:
    """Kills the namespace's first process, and waits for it: it dies last of everything inside."""
    if child is None:
        return
    try:
        handle = os.pidfd_open(child)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], _SETUP_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _setup_failed(output: bytes, program: str) -> None:
    said = output.decode(errors="replace").strip()[-400:]
    if "execvp" in said:
        raise InputError(2504, f"the stage's program is not in its sandbox: {program!r}")
    raise RefusedError(3501, "bubblewrap could not set up the sandbox", got=said or "no message")


class _Tail:
    """Reads a pipe to its end in a thread of its own and keeps the last bytes."""

    def __init__(self, handle: int) -> None:
        self._file = os.fdopen(os.dup(handle), "rb", buffering=0)
        self._kept = bytearray()
        self._dropped = 0
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        while chunk := self._file.read(65536):
            self._kept += chunk
            excess = len(self._kept) - MAX_LOG_BYTES
            if excess > 0:
                del self._kept[:excess]
                self._dropped += excess

    def end(self) -> tuple[bytes, int]:
        """What was kept, and how much was not; only after every writer is dead."""
        self._thread.join(timeout=10)
        self._file.close()
        return bytes(self._kept), self._dropped
