"""What every key store must do: in memory, in SQLite, in a real PostgreSQL."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.keyworld import World
from tests.postgres import postgres_server

from cloister.errors import CloisterError
from cloister.keys import Commit, KeyStore, MemoryStore, StoreMoved, read_terms, store_at

FIRST = Commit((b"genesis",), b"head 1", {"self": b"box"})

Open = Callable[[], KeyStore]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store again and again, as several processes would."""
    opened: list[KeyStore] = []
    if request.param == "memory":
        memory = MemoryStore()
        yield lambda: memory
        return
    url = f"sqlite:///{tmp_path / 'store.db'}"
    if request.param == "postgresql":
        url = _fresh_database(request.getfixturevalue("server"))

    def again() -> KeyStore:
        opened.append(store_at(url))
        return opened[-1]

    yield again
    for store in opened:
        store.close()


def _fresh_database(server: str) -> str:
    import uuid

    import sqlalchemy

    name = f"t{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


class TestKeyStore:
    def test_a_new_store_holds_nothing(self, reopen: Open) -> None:
        assert reopen().meta() == {}

    def test_what_create_was_given_is_there_afterwards(self, reopen: Open) -> None:
        reopen().create({"store": b"id"}, FIRST)
        store = reopen()
        assert store.meta() == {"store": b"id", "schema": b"1"}
        assert (store.size(), store.head()) == (1, (1, b"head 1"))
        assert store.read(0, 10) == [b"genesis"]
        assert store.boxes() == {"self": b"box"}

    def test_create_works_once(self, reopen: Open) -> None:
        reopen().create({"store": b"id"}, FIRST)
        with pytest.raises(CloisterError) as raised:
            reopen().create({"store": b"other"}, FIRST)
        assert raised.value.code == 2403
        assert reopen().meta()["store"] == b"id"

    def test_append_adds_after_what_is_there(self, reopen: Open) -> None:
        reopen().create({}, FIRST)
        reopen().append(1, Commit((b"a", b"b"), b"head 3", {"x": b"1", "y": b"2"}))
        reopen().append(3, Commit((b"c",), b"head 4", {}, ("x",)))
        store = reopen()
        assert store.head() == (4, b"head 4")
        assert store.read(1, 3) == [b"a", b"b"]
        assert store.boxes(["y", "x", "self"]) == {"self": b"box", "y": b"2"}
        assert store.boxes([]) == {}

    @pytest.mark.parametrize("size", [0, 2])
    def test_append_from_another_size_changes_nothing(self, reopen: Open, size: int) -> None:
        reopen().create({}, FIRST)
        with pytest.raises(StoreMoved):
            reopen().append(size, Commit((b"a",), b"head 2", {"x": b"1"}, ("self",)))
        store = reopen()
        assert store.head() == (1, b"head 1")
        assert store.read(0, 9) == [b"genesis"]
        assert store.boxes() == {"self": b"box"}

    def test_of_many_writers_from_one_size_one_wins(self, reopen: Open) -> None:
        reopen().create({}, FIRST)
        won: list[int] = []
        barrier = threading.Barrier(6)

        def write(number: int) -> None:
            store = reopen()
            barrier.wait()
            try:
                store.append(1, Commit((b"%d" % number,), b"head of %d" % number))
            except StoreMoved:
                return
            won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert reopen().read(1, 9) == [b"%d" % won[0]]
        assert reopen().head() == (2, b"head of %d" % won[0])

    def test_bytes_come_back_as_they_were(self, reopen: Open) -> None:
        reopen().create({}, FIRST)
        leaf = bytes(range(256)) * 64
        reopen().append(1, Commit((leaf, b""), leaf, {"x": b"\0"}))
        assert reopen().read(1, 3) == [leaf, b""]
        assert reopen().boxes(["x"]) == {"x": b"\0"}

    def test_many_ids_can_be_asked_for_at_once(self, reopen: Open) -> None:
        reopen().create({}, FIRST)
        boxes = {f"id/{number}": b"%d" % number for number in range(2500)}
        reopen().append(1, Commit((b"a",), b"head", boxes))
        assert reopen().boxes(boxes) == boxes

    def test_a_whole_run_works_on_it(self, reopen: Open, tmp_path: Path) -> None:
        world = World.make(tmp_path, names=("keys",), store=lambda _: reopen())
        world.install()
        run = world.run()
        prepared, _ = world.finish(run, "prepare")
        world.restart("keys", reopen())
        trained, _ = world.finish(run, "train")
        assert trained.granted.inputs["joined"][1].matches(prepared.session.output_key("joined"))
        world.close()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://x/y", "nosuch+driver://x", "sqlite+nosuch:///x"])
def test_url_of_no_store(url: str) -> None:
    with pytest.raises(CloisterError) as raised:
        store_at(url)
    assert raised.value.code == 2405


def test_database_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(CloisterError) as raised:
        store_at(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}").meta()
    assert raised.value.code == 6406


def test_store_that_was_never_made(tmp_path: Path) -> None:
    with pytest.raises(CloisterError) as raised:
        read_terms(store_at(f"sqlite:///{tmp_path / 'empty.db'}"))
    assert raised.value.code == 2403
