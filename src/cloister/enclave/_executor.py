"""Where a launcher is started: in a process of its own, or, for development, in this one."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Protocol

from cloister.enclave._boundary import boundary_command
from cloister.enclave._entry import LAUNCHER, closed_environment, start_command
from cloister.enclave._job import MAX_OUTCOME_BYTES, Job, StageFailure, StageOutcome
from cloister.enclave._offloading import Offloader
from cloister.errors import CloisterError, InputError, PeerError
from cloister.wire import parse_message

__all__ = ["EXECUTORS", "Executor", "InlineExecutor", "ProcessExecutor", "StageTask", "executor_named"]


class StageTask(Protocol):
    """An attempt that was started."""

    def done(self) -> bool:
        """Whether it ended."""
        ...

    def outcome(self, timeout_s: float | None = None) -> StageOutcome:
        """How it ended; waits for that.

        Raises:
            TimeoutError: it has not ended within ``timeout_s``; it goes on.
        """
        ...

    def cancel(self) -> None:
        """Ends it at once, with everything that it started; its outcome is then 6503 unless it had one already."""
        ...


class Executor(Protocol):
    """Starts launchers.

    Contract: ``submit`` returns at once; the outcome is a value, never an exception; after ``cancel`` nothing of the
    attempt is alive and no plaintext is left.
    """

    @property
    def name(self) -> str:
        """Its name in the registry."""
        ...

    def submit(self, job: Job) -> StageTask:
        """Starts one attempt."""
        ...


class ProcessExecutor:
    """A launcher in a process of its own: what the manifest's measurement means."""

    name = "process"

    def __init__(self, *, stderr: int | None = subprocess.DEVNULL) -> None:
        self._stderr = stderr

    def submit(self, job: Job) -> StageTask:
        """Starts the launcher, isolated from this process's variables, paths and folder."""
        stage = job.manifest.manifest.stages.get(job.stage)
        try:
            if stage is None:
                raise InputError(2501, f"the manifest has no stage {job.stage!r}")
            command = boundary_command(start_command(LAUNCHER), memory_bytes=stage.limits.memory_bytes)
            return _ProcessTask(job, command, self._stderr)
        except CloisterError as error:
            return _DoneTask(StageOutcome(failure=StageFailure.of(error)))


class _ProcessTask:
    """One launcher. The thread that starts it waits for it too: bubblewrap dies with the thread that started it."""

    def __init__(self, job: Job, command: list[str], stderr: int | None) -> None:
        self._command, self._stderr = command, stderr
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        self._cancelled = False
        self._outcome: StageOutcome | None = None
        self._thread = threading.Thread(target=self._follow, args=(job.canonical(),), daemon=True)
        self._thread.start()

    def done(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self, timeout_s: float | None = None) -> StageOutcome:
        self._thread.join(timeout_s)
        if self._thread.is_alive() or self._outcome is None:
            raise TimeoutError("the attempt has not ended")
        return self._outcome

    def cancel(self) -> None:
        self._started.wait()
        if not self.done() and self._process is not None:
            self._cancelled = True
            self._process.kill()  # the launcher and its sandboxes die with their parent, and private memory with them
            self._thread.join()

    def _follow(self, job: bytes) -> None:
        try:
            said, status = self._run(job)
            self._outcome = _read_outcome(said, status, cancelled=self._cancelled)
        except Exception as error:
            self._outcome = StageOutcome(failure=StageFailure.of(error))
        finally:
            self._started.set()

    def _run(self, job: bytes) -> tuple[bytes, int]:
        env = closed_environment(os.environ)
        pipe = subprocess.PIPE
        with (
            _readable(job) as given,
            subprocess.Popen(
                self._command, stdin=given, stdout=pipe, stderr=self._stderr, env=env, start_new_session=True
            ) as process,
        ):
            self._process = process
            self._started.set()
            said = process.stdout.read(MAX_OUTCOME_BYTES + 1) if process.stdout else b""
            if len(said) > MAX_OUTCOME_BYTES:
                process.kill()
            return said, process.wait()


def _readable(data: bytes) -> IO[bytes]:
    """A file that holds ``data``: unlike a pipe it never makes the writer wait for a reader that died."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


def _read_outcome(said: bytes, status: int, *, cancelled: bool) -> StageOutcome:
    if not said:
        error = PeerError(6503) if cancelled else PeerError(6501, got=f"exit status {status}")
        return StageOutcome(failure=StageFailure.of(error))
    try:
        outcome = parse_message(StageOutcome, said, what="stage outcome", max_bytes=MAX_OUTCOME_BYTES)
        if (outcome.result is None) == (outcome.failure is None):
            raise InputError(2005, "stage outcome: neither or both of result and failure")
    except CloisterError as error:
        return StageOutcome(failure=StageFailure.of(PeerError(6503 if cancelled else 6502, got=error.what)))
    return outcome


class InlineExecutor:
    """The launcher and the script in this very process, without a sandbox: for development, under SIMULATED only."""

    name = "inline"

    def __init__(self, *, offloader: Offloader | None = None) -> None:
        self._offloader = offloader

    def submit(self, job: Job) -> StageTask:
        """Runs the attempt before it returns, so that a debugger sees it."""
        from cloister.enclave._launcher import launch_inline

        return _DoneTask(launch_inline(job, offloader=self._offloader))


class _DoneTask:
    def __init__(self, outcome: StageOutcome) -> None:
        self._outcome = outcome

    def done(self) -> bool:
        return True

    def outcome(self, timeout_s: float | None = None) -> StageOutcome:
        del timeout_s
        return self._outcome

    def cancel(self) -> None:
        return


EXECUTORS: Mapping[str, Callable[[Offloader | None], Executor]] = {
    "process": lambda _: ProcessExecutor(),
    "inline": lambda offloader: InlineExecutor(offloader=offloader),
}


def executor_named(name: str, *, offloader: Offloader | None = None) -> Executor:
    """The executor of this name.

    Args:
        name: One of ``EXECUTORS``.
        offloader: For launchers in this process; one in a process of its own has its program's.

    Raises:
        InputError: 2503 when there is none.
    """
    if name not in EXECUTORS:
        raise InputError(2503, f"no such executor: {name!r}", expected=", ".join(sorted(EXECUTORS)))
    return EXECUTORS[name](offloader)
