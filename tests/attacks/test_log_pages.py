"""A key manager whose pages of the log lie, or whose host swaps them: what a client and an auditor notice."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import httpx
import pytest
from tests.keyworld import World, code_of

from cloister.keys import (
    IndexedEntry,
    KeyManagerClient,
    LogPage,
    TreeHead,
    open_head,
    open_signed,
    sign_message,
    verify_pages,
)
from cloister.wire import Envelope

Lie = Callable[[LogPage], LogPage]


@pytest.fixture
def world(key_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Three entries to a page; runs of the manifest and of another, and refusals."""
    monkeypatch.setattr("cloister.keys._client.MAX_PAGE_ENTRIES", 3)
    for _ in range(6):
        key_world.run()
    assert code_of(lambda: key_world.registrar.start_attempt(key_world.run(), "nothing")) == 3428
    return key_world


class Lying(httpx.BaseTransport):
    """Carries questions for pages to the key manager, and its answers back through ``lie``."""

    def __init__(self, world: World, lie: Callable[[Envelope], bytes]) -> None:
        self._inner, self._lie = world.transports[0], lie

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._inner.handle_request(request)
        if request.url.path != "/v1/log/entries":
            return answer
        return httpx.Response(200, stream=httpx.ByteStream(self._lie(Envelope.model_validate_json(answer.read()))))


def asked_of(world: World, lie: Callable[[Envelope], bytes], **asked: Any) -> list[LogPage]:
    client = KeyManagerClient("http://keys.test", world.clients["keys-a"].key, transport=Lying(world, lie))
    pages = client.pages(head(world), **{"manifest": world.manifest.id, **asked})
    return [page for _, page in islice(pages, 50)]  # a client that were led on for ever would end here, unnoticed


def head(world: World) -> TreeHead:
    client = world.clients["keys-a"]
    return open_head(client.head(), client.key)


def signed(world: World, lie: Lie) -> Callable[[Envelope], bytes]:
    """Every page as ``lie`` changes it, signed by the key manager itself."""
    core = world.services["keys-a"].desk.core

    def change(envelope: Envelope) -> bytes:
        return core.sign(lie(open_signed(LogPage, envelope, core._sign.public))).canonical()

    return change


def told(world: World, page: LogPage, places: list[int], **change: Any) -> LogPage:
    """The page with the entries at these places, in order, and a proof that holds where there is one."""
    core = world.services["keys-a"].desk.core
    leaves = {place: world.stores["keys-a"].read(place, place + 1)[0] for place in places}
    entries = tuple(IndexedEntry.model_validate_json(b'{"index":%d,"entry":%s}' % (p, leaves[p])) for p in places)
    proof = core._log.joint_inclusion(sorted(set(places)), page.asked.size)
    said = {"entries": entries, "proof": tuple(step.hex() for step in proof), **change}
    return page.model_copy(update=said)


def test_truth_passes(world: World) -> None:
    assert sum(len(page.entries) for page in asked_of(world, lambda envelope: envelope.canonical())) == 11


# ---- the host -------------------------------------------------------------------------------------------------------


def test_first_page_repeated(world: World) -> None:
    kept: list[bytes] = []

    def replay(envelope: Envelope) -> bytes:
        kept.append(envelope.canonical())
        return kept[0]

    assert code_of(lambda: asked_of(world, replay)) == 5412


def test_page_of_an_older_tree(world: World) -> None:
    old = world.services["keys-a"].desk.page(asked_of(world, Envelope.canonical)[0].asked).canonical()
    world.run()
    assert code_of(lambda: asked_of(world, lambda _: old)) == 5407


@pytest.mark.parametrize("change", [{"manifest": "0" * 64}, {"run": "0" * 32}, {"selection": "refusals"}, {"count": 2}])
def test_answer_to_another_question(world: World, change: dict[str, Any]) -> None:
    asked = asked_of(world, Envelope.canonical)[0].asked.model_copy(update=change)
    other = world.services["keys-a"].desk.page(asked).canonical()
    assert code_of(lambda: asked_of(world, lambda _: other)) == 5407


def test_page_signed_by_another_key(world: World) -> None:
    other = world.services["keys-b"].desk.core._sign

    def forge(envelope: Envelope) -> bytes:
        page = open_signed(LogPage, envelope, world.clients["keys-a"].key)
        return sign_message(page, other).canonical()

    assert code_of(lambda: asked_of(world, forge)) == 5001


def test_answer_without_end(world: World) -> None:
    assert code_of(lambda: asked_of(world, lambda _: b" " * (16 << 20) + b"{}")) == 6402


# ---- the key manager ------------------------------------------------------------------------------------------------


LIES: dict[str, tuple[int, Callable[[World, LogPage], LogPage]]] = {
    "of another root": (5407, lambda _, page: page.model_copy(update={"root": "0" * 64})),
    "another key manager's": (
        5407,
        lambda world, page: page.model_copy(update={"key_manager": str(world.clients["keys-b"].key)}),
    ),
    "an entry of nobody": (5407, lambda world, page: told(world, page, [0, *places(page)[1:]])),
    "an entry changed": (5003, lambda _, page: edited(page, at="2026-11-20T12:00:01Z")),
    "a proof that is too short": (5003, lambda _, page: page.model_copy(update={"proof": page.proof[:-1]})),
    "nothing, for ever": (5412, lambda world, page: told(world, page, [])),
    "more than it counts": (5412, lambda _, page: page.model_copy(update={"total": page.asked.start + 2})),
    "fewer than it counts": (5412, lambda _, page: page.model_copy(update={"total": page.total + 1})),
    "one count here, another there": (
        5412,
        lambda _, page: (
            page if page.asked.start == 0 else page.model_copy(update={"total": page.asked.start + len(page.entries)})
        ),
    ),
    "more than was asked for": (5412, lambda world, page: told(world, page, [1, 2, 3, 4])),
    "an entry twice": (5412, lambda world, page: told(world, page, [places(page)[0]] * len(page.entries))),
    "backwards": (5412, lambda world, page: told(world, page, places(page)[::-1])),
    "the same entries on every page": (5412, lambda world, page: told(world, page, [1, 2, 3][: len(page.entries)])),
    "another start": (
        5412,
        lambda _, page: page.model_copy(
            update={"asked": page.asked.model_copy(update={"start": page.asked.start + 1})}
        ),
    ),
}


def places(page: LogPage) -> list[int]:
    return [item.index for item in page.entries]


def edited(page: LogPage, **fields: Any) -> LogPage:
    first, *rest = page.entries
    changed = first.model_copy(update={"entry": first.entry.model_copy(update=fields)})
    return page.model_copy(update={"entries": (changed, *rest)})


@pytest.mark.parametrize("name", LIES)
def test_page_that_lies(world: World, name: str) -> None:
    code, lie = LIES[name]
    assert code_of(lambda: asked_of(world, signed(world, lambda page: lie(world, page)))) == code


def test_page_of_more_entries_than_a_page_may_have(world: World) -> None:
    """A key manager that ignores its own bound."""

    def many(page: LogPage) -> LogPage:
        return page.model_copy(update={"entries": page.entries[:1] * 501})

    assert code_of(lambda: asked_of(world, signed(world, many))) == 2005


@pytest.mark.parametrize("kind", ["refusal", "run"])
def test_account_that_holds_what_does_not_count(world: World, kind: str) -> None:
    """Strangers' entries in an account: a key manager that is made to show them cannot pass them off."""
    name = next(iter(world.services["keys-a"].desk.core._state.runs))
    size = world.stores["keys-a"].size()
    kinds = [entry.kind for entry in world.shown("keys-a")]
    foreign = next(place for place in reversed(range(1, size)) if kinds[place - 1] == kind)

    def lie(page: LogPage) -> LogPage:
        return told(world, page, [*places(page)[:-1], foreign])

    asked = {"run": name, "selection": "account"}
    assert [item.entry.kind for page in asked_of(world, Envelope.canonical, **asked) for item in page.entries] == [
        "manifest",
        "key",
        "key",
        "run",
    ]
    assert code_of(lambda: asked_of(world, signed(world, lie), **asked)) == 5407


# ---- pages that were kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choose",
    [
        lambda pages: pages[1:],
        lambda pages: pages[:-1],
        lambda pages: [*pages[:1], *pages[2:]],
        lambda pages: [*pages[:1], *pages],
        lambda pages: [*pages, pages[-1]],
        lambda pages: [pages[1], pages[0], *pages[2:]],
        lambda pages: [],
    ],
    ids=["first gone", "last gone", "one gone", "first twice", "last twice", "swapped", "all gone"],
)
def test_pages_that_are_no_whole(world: World, choose: Callable[[list[LogPage]], list[LogPage]]) -> None:
    tree, pages = head(world), asked_of(world, Envelope.canonical)
    asked = pages[0].asked
    assert len(verify_pages(pages, asked, head=tree)) == 11
    assert code_of(lambda: verify_pages(choose(pages), asked, head=tree)) == 5412


def test_no_entries_are_one_empty_page(world: World) -> None:
    tree, pages = head(world), asked_of(world, Envelope.canonical, manifest="0" * 64)
    assert verify_pages(pages, pages[0].asked, head=tree) == ()
    assert code_of(lambda: verify_pages(pages * 2, pages[0].asked, head=tree)) == 5412


def test_page_cut_so_that_it_shows_nothing(world: World) -> None:
    """Whoever keeps pages may cut them, but an empty one among them moves nothing on."""
    tree, pages = head(world), asked_of(world, Envelope.canonical)
    desk, key = world.services["keys-a"].desk, world.clients["keys-a"].key
    empty = pages[1].asked.model_copy(update={"count": 0})
    cut = [pages[0], open_signed(LogPage, desk.page(empty), key), *pages[1:]]
    assert code_of(lambda: verify_pages(cut, pages[0].asked, head=tree)) == 5412
