"""The log page by page: bounded, the same while the log grows, and whole."""

from typing import Any

import pytest
from tests.keyworld import World, code_of

from cloister.keys import LogPage, TreeHead, open_head, open_signed, verify_pages
from cloister.wire import Envelope


def head(world: World) -> TreeHead:
    client = world.clients["keys-a"]
    return open_head(client.head(), client.key)


def pages(world: World, tree: TreeHead, **asked: Any) -> list[LogPage]:
    found = world.clients["keys-a"].pages(tree, **{"manifest": world.manifest.id, **asked})
    return [page for _, page in found]


def raw(world: World, **query: object) -> Envelope:
    asked = {"manifest": world.manifest.id, "size": "1", **{name: str(value) for name, value in query.items()}}
    return world.clients["keys-a"]._get("/v1/log/entries", asked)


@pytest.fixture
def long_log(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Three entries to a page."""
    monkeypatch.setattr("cloister.keys._client.MAX_PAGE_ENTRIES", 3)
    world.install()
    for _ in range(8):
        world.run()
    return world


def test_pages_make_up_the_whole(long_log: World) -> None:
    tree = head(long_log)
    got = pages(long_log, tree)
    assert [len(page.entries) for page in got] == [3, 3, 3, 2]
    assert {page.total for page in got} == {11}
    whole = verify_pages(got, got[0].asked, head=tree)
    assert [item.index for item in whole] == list(range(1, 12))
    store = long_log.stores["keys-a"]
    assert [item.entry.canonical() for item in whole] == store.read(1, 12)


def test_some_of_them(long_log: World) -> None:
    tree = head(long_log)
    for start, count, sizes in ((0, 4, [3, 1]), (10, 4, [1]), (4, 0, [0]), (11, None, [0]), (99, None, [0])):
        got = pages(long_log, tree, start=start, count=count)
        assert [len(page.entries) for page in got] == sizes
        assert [page.entries[0].index for page in got if page.entries][:1] == ([start + 1] if sum(sizes) else [])


def test_pages_of_one_tree_while_the_log_grows(long_log: World) -> None:
    tree = head(long_log)
    before = [page for page in pages(long_log, tree)]
    following = long_log.clients["keys-a"].pages(tree, manifest=long_log.manifest.id)
    got = [next(following)[1]]
    long_log.run()
    got += [page for _, page in following]
    assert got == before
    assert len(pages(long_log, head(long_log))[-1].entries) == 3


def test_manifest_that_nobody_installed_has_one_page_of_nothing(world: World) -> None:
    tree = head(world)
    [page] = pages(world, tree)
    assert (page.total, page.entries) == (0, ())
    assert verify_pages([page], page.asked, head=tree) == ()


def test_large_entries_make_shorter_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded in bytes too; one entry that is larger than the bound is still shown."""
    world.install()
    sizes = [len(leaf) for leaf in world.stores["keys-a"].read(1, 4)]
    monkeypatch.setattr("cloister.keys._desk.MAX_PAGE_BYTES", sum(sizes[:2]))
    assert [len(page.entries) for page in pages(world, head(world))] == [2, 1]
    monkeypatch.setattr("cloister.keys._desk.MAX_PAGE_BYTES", 1)
    assert [len(page.entries) for page in pages(world, head(world))] == [1, 1, 1]


def test_page_reads_no_more_of_the_store_than_it_may_show(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    for _ in range(200):
        world.run()
    asked, read = list[int](), world.stores["keys-a"].read

    def counting(start: int, stop: int) -> list[bytes]:
        asked.append(stop - start)
        return read(start, stop)

    tree = head(world)
    monkeypatch.setattr(world.stores["keys-a"], "read", counting)
    monkeypatch.setattr("cloister.keys._desk.MAX_PAGE_BYTES", 1)
    raw(world, size=tree.size)
    assert sum(asked) <= 50


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"size": 100}, 3436),
        ({"size": "x"}, 2005),
        ({"size": "9" * 16}, 2005),
        ({"size": 0}, 2005),
        ({"start": "-1"}, 2005),
        ({"count": 501}, 2005),
        ({"selection": "some"}, 2005),
        ({"selection": "account"}, 2005),
        ({"manifest": "x"}, 2005),
        ({"run": "x"}, 2005),
        ({"more": 1}, 2005),
    ],
)
def test_question_that_is_none(world: World, query: dict[str, Any], code: int) -> None:
    assert code_of(lambda: raw(world, **query)) == code
    assert open_signed(LogPage, raw(world), world.clients["keys-a"].key).total == 0


def test_head_of_a_longer_log(world: World) -> None:
    tree = head(world).model_copy(update={"size": 100})
    assert code_of(lambda: pages(world, tree)) == 3436


def test_question_without_a_size(world: World) -> None:
    assert code_of(lambda: world.clients["keys-a"]._get("/v1/log/entries", {"manifest": "0" * 64})) == 2005
