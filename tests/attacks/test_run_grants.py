"""The network between the runner and the key managers answers with grants of another run, stage or manifest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import World, code_of
from tests.runs import FakeExecutor, Place

from cloister.run import RunFolder, Runner, start_run
from cloister.wire import Envelope


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path)
    made.install()
    yield made
    made.close()


class Relay:
    """A registrar's client whose grants the host replaced on the way, after the client's own checks."""

    def __init__(self, inner: Any, **answers: Envelope) -> None:
        self._inner, self._answers = inner, answers

    def __getattr__(self, name: str) -> Any:
        if name in self._answers:
            return lambda *_: self._answers[name]
        return getattr(self._inner, name)


def flipped(envelope: Envelope) -> Envelope:
    payload = bytearray(envelope.payload)
    payload[-4] ^= 1
    return envelope.model_copy(update={"payload": bytes(payload)})


def test_run_grant_that_the_registrar_did_not_sign(world: World, tmp_path: Path) -> None:
    clients = {**world.clients, "keys-a": Relay(world.registrar, start_run=flipped(world.run()))}
    folder = RunFolder(tmp_path / "run")
    assert code_of(lambda: start_run(world.signed, folder, clients)) == 5001
    assert not folder.started


def test_attempt_grant_of_another_stage(world: World, tmp_path: Path) -> None:
    """The launcher compares, and the runner's state then knows no outcome of it."""
    place = Place.start(world, tmp_path)
    other = world.registrar.start_attempt(place.folder.state().grant, "train")
    clients = {**world.clients, "keys-a": Relay(world.registrar, start_attempt=other)}
    runner = Runner(place.folder, place.host, executor=FakeExecutor(world), clients=clients)
    assert code_of(runner.run) == 3424
    assert place.folder.state().outputs == {}


def test_attempt_grant_that_the_registrar_did_not_sign(world: World, tmp_path: Path) -> None:
    place = Place.start(world, tmp_path)
    forged = flipped(world.registrar.start_attempt(place.folder.state().grant, "prepare"))
    clients = {**world.clients, "keys-a": Relay(world.registrar, start_attempt=forged)}
    runner = Runner(place.folder, place.host, executor=FakeExecutor(world), clients=clients)
    assert code_of(runner.run) == 5001
    assert place.folder.state().attempts == ()


def test_host_file_cannot_name_another_registrar(world: World, tmp_path: Path) -> None:
    """Another key manager answers under the registrar's name: its signature is not the manifest's."""
    clients = {**world.clients, "keys-a": world.clients["keys-b"]}
    assert code_of(lambda: start_run(world.signed, RunFolder(tmp_path / "run"), clients)) == 3426
