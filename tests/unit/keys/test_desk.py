"""Two processes on one store, batches that fail, and what a restart finds."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.keyworld import KEYS, World, attester_of, code_of

from cloister.errors import CloisterError, PeerError
from cloister.keys import Commit, KeptHeads, KeyManagerClient, LocalTransport, Service, create_app, store_at


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World.make(tmp_path, store=lambda name: store_at(f"sqlite:///{tmp_path / name}.db"))
    made.install()
    yield made
    made.close()


def twin(world: World, tmp_path: Path) -> tuple[Service, KeyManagerClient]:
    """A second process over the store of ``keys-a``."""
    store = store_at(f"sqlite:///{tmp_path / 'keys-a'}.db")
    service = Service(store, attester=attester_of(world, KEYS), clock=world.clock)
    transport = LocalTransport(create_app(service))
    world.transports.append(transport)
    return service, KeyManagerClient("http://twin.test", world.clients["keys-a"].key, transport=transport)


def test_two_processes_on_one_store_make_one_log(world: World, tmp_path: Path) -> None:
    service, other = twin(world, tmp_path)
    kept = KeptHeads(tmp_path / "heads")
    for _ in range(5):
        world.run()
        kept.check(other)
        other.start_run(world.manifest.id)
        kept.check(world.clients["keys-a"])
    assert service.desk.core.size == world.stores["keys-a"].size()
    service.desk.close()


def test_two_processes_at_once_spend_no_use_twice(world: World, tmp_path: Path) -> None:
    service, other = twin(world, tmp_path)
    run = world.run()
    mine = world.clients["keys-a"]

    def obtain(client: KeyManagerClient) -> int:
        attempt = world.attempt(run, "prepare")
        challenges = {
            "keys-a": client.challenge(attempt.grant),
            "keys-b": world.clients["keys-b"].challenge(attempt.grant),
        }
        claims = attempt.session.claims(attempt.grant, challenges)
        request = attempt.session.request("keys-a", attempt.evidence(claims))
        try:
            client.release(request)
        except CloisterError as error:
            return error.code
        return 0

    with ThreadPoolExecutor(8) as pool:
        codes = sorted(pool.map(obtain, [mine, other] * 4))
    assert codes == [0] * 5 + [3411] * 3
    service.desk.close()


def test_failed_commit_did_not_happen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.stores["keys-a"]
    before, append = store.size(), store.append

    def full(size: int, commit: Commit) -> None:
        raise PeerError(6406, "the disk is full")

    monkeypatch.setattr(store, "append", full)
    assert code_of(lambda: world.run()) == 6406
    monkeypatch.setattr(store, "append", append)
    world.run()
    assert store.size() == before + 1
    world.restart("keys-a")
    assert world.services["keys-a"].desk.core.size == before + 1


def test_commit_that_happened_although_it_failed_is_found_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection broke after the commit: the use is spent, the caller knows nothing, the log is whole."""
    store = world.stores["keys-a"]
    before, append = store.size(), store.append

    def broken(size: int, commit: Commit) -> None:
        append(size, commit)
        raise PeerError(6406, "the connection broke")

    monkeypatch.setattr(store, "append", broken)
    assert code_of(lambda: world.run()) == 6406
    monkeypatch.setattr(store, "append", append)
    world.run()
    assert store.size() == before + 2


def test_answer_to_a_failed_commit_is_no_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = world.attempt(world.run(), "prepare")
    request = attempt.session.request("keys-a", attempt.evidence(attempt.claims()))
    store = world.stores["keys-a"]

    def full(size: int, commit: Commit) -> None:
        raise PeerError(6406, "the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "append", full)
        assert code_of(lambda: world.clients["keys-a"].release(request)) == 6406
    assert code_of(lambda: world.clients["keys-a"].release(request)) == 3423


def test_full_queue_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import queue

    def full(_: object) -> None:
        raise queue.Full

    monkeypatch.setattr(world.services["keys-a"].desk._queue, "put_nowait", full)
    assert code_of(lambda: world.run()) == 6405
