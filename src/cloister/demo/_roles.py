"""One role of the demo: a folder of its own, and every act a ``cloister`` command in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.errors import PeerError, error_for

__all__ = ["Role", "Script", "Server", "free_port"]

_START_S = 60


@dataclass(slots=True)
class Script:
    """The commands as they were run, for whoever wants to do the same by hand."""

    path: Path
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, role: str, arguments: list[str], *, program: str = "cloister") -> None:
        """Appends one command."""
        shown = " ".join(repr(part) if " " in part else part for part in (program, *arguments))
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(f"{role}$ {shown}\n")


@dataclass(frozen=True, slots=True)
class Role:
    """A person or machine of the demo.

    Attributes:
        name: As the manifest calls it.
        folder: Its own folder: nothing in it is read by another role.
        root: The demo's folder, where all paths in commands are relative to.
        script: Where its commands are written down.
    """

    name: str
    folder: Path
    root: Path
    script: Script
    passphrase: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)

    def run(self, *arguments: str, needs_json: bool = True) -> dict[str, Any]:
        """One command; its JSON.

        Raises:
            CloisterError: the command's own error, under its own code.
        """
        said = self._finish(self._start([*arguments, "--json"], stdout=subprocess.PIPE))
        return said if needs_json else {}

    def python(self, script: str, *arguments: str) -> str:
        """What a script prints that the role runs at home, on its own files.

        Raises:
            PeerError: 6552 when it fails.
        """
        self.script.add(self.name, [script, *arguments], program="python")
        command = [sys.executable, script, *arguments]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            done = subprocess.run(command, cwd=self.root, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if done.returncode:
            where = f"status {done.returncode}, see '{self.folder / 'log.txt'}'"
            raise PeerError(6552, f"the script '{script}' of '{self.name}' ended with {where}")
        return done.stdout

    def serve(self, *arguments: str) -> Server:
        """A command that keeps running; returns once it has printed that it listens.

        Raises:
            PeerError: 6501's kin when it ends instead.
        """
        return Server(self._start([*arguments, "--json"], stdout=subprocess.PIPE), self.name)

    def serve_program(self, module: str, *arguments: str) -> Server:
        """The same with a module of ours in place of a command, for what no command does."""
        return Server(self._start([*arguments], stdout=subprocess.PIPE, module=module), self.name)

    def _start(self, arguments: list[str], *, stdout: int, module: str = "cloister") -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if module == "cloister":
            self.script.add(self.name, arguments[:-1])
        environment = {
            **os.environ,
            "CLOISTER_HOME": str(self.folder / "home"),
            "CLOISTER_PASSPHRASE": self.passphrase,
            "NO_COLOR": "1",
        }
        log = (self.folder / "log.txt").open("a", encoding="utf-8")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.root,
                env=environment,
                stdout=stdout,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )

    def _finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        try:
            output, _ = process.communicate()
        except BaseException:
            _stop(process)
            raise
        return _facts(output, process.returncode, self.name, self.folder / "log.txt")


class Server:
    """A role's process that listens until :meth:`close`."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name
        self.facts = self._wait()

    def _wait(self) -> dict[str, Any]:
        """Reads the JSON object that a server prints when it listens."""
        lines: list[str] = []
        deadline = time.monotonic() + _START_S
        timer = threading.Timer(_START_S, lambda: _stop(self._process))
        timer.start()
        try:
            for line in self._process.stdout or ():
                lines.append(line)
                if line.rstrip() == "}":
                    return _facts("".join(lines), 0, self._name, None)
                if time.monotonic() > deadline:
                    break
        finally:
            timer.cancel()
        return _facts("".join(lines), self._process.wait() or 6, self._name, None)

    def close(self) -> None:
        """Stops the process."""
        _stop(self._process)
        if self._process.stdout:
            self._process.stdout.close()


def _stop(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _facts(output: str, status: int, name: str, log: Path | None) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(output)
    except json.JSONDecodeError:
        where = f", see '{log}'" if log else ""
        raise PeerError(6552, f"the command of '{name}' ended with status {status} and said nothing{where}") from None
    if "error" in facts:
        said = facts["error"]
        raise error_for(
            said["code"], f"{name}: {said['what']}", said.get("expected"), said.get("got"), said.get("hint")
        )
    return facts


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
