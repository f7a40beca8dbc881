"""A service's process, as the host starts it: what it says first, and that it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import World
from tests.runs import Place

from cloister.enclave import StageFailure
from cloister.errors import CloisterError, RefusedError
from cloister.serve import _starting as starting
from cloister.serve.hosting import ServiceStarted, run_service

Serve = Callable[[bytes], tuple[CloisterError, list[str]]]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A run with a model, and no service yet."""
    world = World.make(tmp_path)
    world.install()
    yield Place.start(world, tmp_path).run()
    world.close()


@pytest.fixture
def serve(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts ``answers`` as a process that reads its job, says a line, and ends with status 7."""
    real, started = subprocess.Popen, list[Any]()

    def start(*command: Any, **how: Any) -> Any:
        started.append(real(*command, **how))
        return started[-1]

    def act(line: bytes) -> tuple[CloisterError, list[str]]:
        (tmp_path / "line").write_bytes(line)
        source = f"import os, sys; sys.stdin.buffer.read(); os.write(1, open({str(tmp_path / 'line')!r}, 'rb').read())"
        command = [sys.executable, "-c", source + "; os._exit(7)"]
        monkeypatch.setattr(starting, "boundary_command", lambda argv, memory_bytes: command)
        monkeypatch.setattr(starting.subprocess, "Popen", start)
        ready: list[str] = []
        how: dict[str, Any] = {"clients": place.world.clients, "listen": "127.0.0.1:0", "ready": ready.append}
        with pytest.raises(CloisterError) as caught:
            run_service(place.folder, place.host, "answers", **how)
        return caught.value, ready

    yield act
    for process in started:
        process.stdout.close()


def test_a_service_that_ends_before_it_says_anything(place: Place, serve: Serve) -> None:
    error, ready = serve(b"")
    assert (error.code, error.got, ready) == (6554, "exit status 7", [])
    assert not any(record.consumer == "answers" for record in place.folder.state().attempts)


def test_a_service_that_was_ready_and_ends_by_itself(place: Place, serve: Serve) -> None:
    got = place.world.attempt(place.folder.state().grant, "answers").obtain()
    model = got.granted.inputs["model"][0]
    started = ServiceStarted(claims=got.claims, evidence=got.evidence, releases=dict(got.releases), model=model)
    error, ready = serve(started.canonical() + b"\n")
    assert (error.code, error.got, ready) == (6554, "exit status 7", [model])
    (record,) = (record for record in place.folder.state().attempts if record.consumer == "answers")
    assert record.claims == got.claims


def test_why_a_service_did_not_start_is_told_under_its_own_code(serve: Serve) -> None:
    error, ready = serve(StageFailure.of(RefusedError(3502)).canonical() + b"\n")
    assert (error.code, ready) == (3502, [])
