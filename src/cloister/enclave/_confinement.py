"""How a script is run: in the sandbox, or, for development, in this very process."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cloister.enclave._bytecode import compiled, imported_packages
from cloister.enclave._checkpoint import CHECKPOINT_VARIABLE, SCRIPT_FOLDER
from cloister.enclave._limits import ResourceGroup
from cloister.enclave._measurement import Measured
from cloister.enclave._offloading import Broker
from cloister.enclave._sandbox import Bind, Outcome, require_bubblewrap, run_sandboxed
from cloister.enclave._training import TRAINING, training_environment
from cloister.enclave._trees import tool
from cloister.enclave._workspace import Workspace
from cloister.errors import InputError, IntegrityError, RefusedError
from cloister.ledger import TrainingOrder
from cloister.manifest import Limits, Stage
from cloister.receipt import Sandbox
from cloister.seal import unsquash
from cloister.wire import Secret

__all__ = ["BYTECODE_SHARE", "Confinement", "InProcess", "Sandboxed", "StageScript"]

BYTECODE_SHARE = 4  # compiled code takes at most this part of the stage's private memory


@dataclass(frozen=True, slots=True)
class StageScript:
    """A stage's script and all that it finds; with checkpoint terms their folder, too.

    Attributes:
        stage: Says what is run, and what of its inputs and outputs is there.
        work: Where they are.
        broker: Multiplies for it.
        order: For the engine of a private training.
    """

    stage: Stage
    work: Workspace
    broker: Broker | None = None
    order: TrainingOrder | None = None


class Confinement(Protocol):
    """Contract: ``unpack`` and ``run`` leave nothing alive; ``run`` runs the stage's argv and nothing else."""

    @property
    def sandbox(self) -> Sandbox:
        """What receipts say."""
        ...

    def unpack(self, image: int, target: Path, *, name: str) -> None:
        """Unpacks the squashfs in the descriptor ``image`` into the new folder ``target``.

        Raises:
            IntegrityError: 5505 when it cannot be unpacked.
        """
        ...

    def run(self, script: StageScript, *, halt: threading.Event | None = None) -> Outcome:
        """Runs a script and says how it ended. Setting ``halt`` ends it, where it can be ended."""
        ...


class Sandboxed:
    """Bubblewrap. One control group for the unpackers and the script of an attempt; use as a context manager.

    Args:
        limits: Memory, time and processes of an attempt.
        measured: The code that compiled modules are kept of.
        bytecode_key: Authenticates what is kept; without it, or without ``measured``, a stage compiles for itself.
    """

    sandbox: Sandbox = "bubblewrap"

    def __init__(self, limits: Limits, *, measured: Measured | None = None, bytecode_key: Secret | None = None) -> None:
        require_bubblewrap()
        self._limits, self._measured, self._bytecode_key = limits, measured, bytecode_key
        self._group = ResourceGroup(limits)

    def __enter__(self) -> Sandboxed:
        self._group.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._group.__exit__()

    def unpack(self, image: int, target: Path, *, name: str) -> None:
        """As the contract says; the squashfs parser itself sees nothing but the image."""
        program = tool("unsquashfs")
        if program is None:
            raise RefusedError(3501, "squashfs-tools are not installed, and nothing else unpacks an image")
        argv = [str(program), "-q", "-n", "-no-xattrs", "-d", f"/unpacked/{target.name}", f"/proc/self/fd/{image}"]
        binds = [Bind(target.parent, "/unpacked", writable=True)]
        ended = run_sandboxed(argv, binds=binds, limits=self._limits, group=self._group, pass_fds=[image])
        if ended.ended == "memory":
            raise IntegrityError(5502, f"input {name!r} does not fit into the stage's memory")
        if ended.ended != "exited" or ended.status != 0:
            said = ended.output.decode(errors="replace").strip()[-300:]
            raise IntegrityError(5505, f"input {name!r} cannot be unpacked", got=said or f"status {ended.status}")

    def run(self, script: StageScript, *, halt: threading.Event | None = None) -> Outcome:
        """As the contract says."""
        stage, work, broker, order = script.stage, script.work, script.broker, script.order
        binds = [Bind(work.code, "/code")]
        binds += [Bind(work.input(name), f"/inputs/{name}") for name in stage.inputs]
        binds += [Bind(work.output(name), f"/outputs/{name}", writable=True) for name in stage.outputs]
        env = stage.env if broker is None else {**stage.env, **broker.environment}
        if stage.checkpoint is not None:
            binds.append(Bind(work.checkpoint, SCRIPT_FOLDER, writable=True))
            env = {**env, CHECKPOINT_VARIABLE: SCRIPT_FOLDER}
        if order is not None:
            places = {"program": "/code", "inputs": "/inputs/{}", "outputs": "/outputs/{}"}
            env = {**env, **training_environment(order, stage, **places)}
        return run_sandboxed(
            stage.argv,
            binds=binds,
            limits=self._limits,
            group=self._group,
            env=env,
            cwd="/code",
            pass_fds=() if broker is None else broker.descriptors,
            bytecode=self._bytecode(work, TRAINING if order is not None else ()),
            halt=halt,
        )

    def hold(self, argv: Sequence[str], *, pass_fds: Sequence[int], stop: threading.Event) -> Outcome:
        """Runs a program that sees the measured code and ``pass_fds``, and no file of anybody's, until ``stop``.

        Its memory and processes are limited; its time is the caller's to limit.
        """
        return run_sandboxed(argv, binds=(), limits=self._limits, group=self._group, pass_fds=pass_fds, stop=stop)

    def _bytecode(self, work: Workspace, more: Sequence[str] = ()) -> Path | None:
        if self._measured is None or self._bytecode_key is None:
            return None
        listed = self._measured.listing
        names = {name for name in imported_packages(work.code) if _is_measured(name, listed)}
        return compiled(
            names.union(more),
            state=self._measured.files,
            key=self._bytecode_key,
            private=work.bytecode,
            max_bytes=self._limits.memory_bytes // BYTECODE_SHARE,
        )


def _is_measured(name: str, listing: Any) -> bool:
    """Only names of measured modules leave the enclave's memory as names of files."""
    path = name.replace(".", "/")
    return any(f"{tree}/{path}{ending}" in listing for tree in ("site", "linked") for ending in ("/__init__.py", ".py"))


class InProcess:
    """No sandbox: breakpoints work, and the script can read whatever the developer can. Never outside SIMULATED.

    ``/code``, ``/inputs`` and ``/outputs`` do not exist here, so where an argument or variable starts with one of
    them it is replaced by the real folder.
    """

    sandbox: Sandbox = "UNSANDBOXED"

    def unpack(self, image: int, target: Path, *, name: str) -> None:
        """As the contract says, with the data owner's own unpacker."""
        try:
            unsquash(f"/proc/{os.getpid()}/fd/{image}", target)
        except IntegrityError as error:
            raise IntegrityError(5505, f"input {name!r} cannot be unpacked", got=error.what) from None

    def run(self, script: StageScript, *, halt: threading.Event | None = None) -> Outcome:
        """Runs a Python script by :mod:`runpy`; what it prints goes to this terminal."""
        stage, work, broker, order = script.stage, script.work, script.broker, script.order
        program, *arguments = [_relocated(text, stage, work) for text in stage.argv]
        if Path(program).name not in ("python", "python3") or not arguments:
            raise InputError(2504, "inline runs Python scripts only", expected="python SCRIPT …", got=program)
        env = {name: _relocated(value, stage, work) for name, value in stage.env.items()}
        env |= {} if broker is None else broker.environment
        env |= {} if stage.checkpoint is None else {CHECKPOINT_VARIABLE: str(work.checkpoint)}
        if order is not None:
            folders = {"inputs": str(work.input("{}")), "outputs": str(work.output("{}"))}
            env |= training_environment(order, stage, program=str(work.code), **folders)
            arguments.remove("-I")  # the folder of the program is no place for modules, here as little as there
        del halt  # what runs in this thread cannot be ended
        started = time.monotonic()
        with _as_script(work.code, env, arguments):
            status = _run_python(arguments)
        return Outcome("exited", status, b"", 0, time.monotonic() - started)


def _run_python(arguments: Sequence[str]) -> int:
    try:
        if arguments[0] == "-m":
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_script(code: Path, env: dict[str, str], arguments: Sequence[str]) -> Iterator[None]:
    """Working folder, arguments, variables and module path as a script has them, put back afterwards."""
    folder, argv, path, environ = os.getcwd(), sys.argv, sys.path[:], dict(os.environ)
    modules = set(sys.modules)
    script = code if arguments[0] == "-m" else (code / arguments[0]).parent
    try:
        os.chdir(code)
        os.environ.update(env)
        sys.argv = [*arguments[1:]] if arguments[0] == "-m" else [*arguments]
        sys.path.insert(0, str(script))
        yield
    finally:
        os.chdir(folder)
        sys.argv, sys.path[:] = argv, path
        os.environ.clear()
        os.environ.update(environ)
        for name in set(sys.modules) - modules:  # the next stage's modules of the same name are other files
            origin = getattr(sys.modules[name], "__file__", None) or ""
            if origin.startswith(str(code)):
                del sys.modules[name]


def _relocated(text: str, stage: Stage, work: Workspace) -> str:
    places = {"/code": work.code}
    places |= {f"/inputs/{name}": work.input(name) for name in stage.inputs}
    places |= {f"/outputs/{name}": work.output(name) for name in stage.outputs}
    places |= {} if stage.checkpoint is None else {SCRIPT_FOLDER: work.checkpoint}
    for place, folder in places.items():
        if text == place or text.startswith(place + "/"):
            return str(folder) + text[len(place) :]
    return text
