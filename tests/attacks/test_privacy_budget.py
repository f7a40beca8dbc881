"""Attacks on an image's privacy budget: more runs, other manifests, a restart, a stranger. What is spent is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.keyworld import IDENTITIES, World, code_of, last_refusal
from tests.runs import BUDGET, TERMS, with_privacy

from cloister.errors import CloisterError
from cloister.keys import ReleaseEntry
from cloister.ledger import Book
from cloister.manifest import Image, Manifest, Party, PrivacyBudget, Release
from cloister.party import Identity


def private(manifest: Manifest, *, budget: PrivacyBudget | None = BUDGET, name: str = "trained") -> Manifest:
    """Two hospitals' data go into a private training, and nowhere else."""
    made = with_privacy(manifest, budget=budget)
    update = {
        "name": name,
        "stages": {"prepare": made.stages["prepare"]},
        "services": {},
        "releases": (Release(output="joined", party="hospital-a"),),
    }
    return made.model_copy(update=update)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path, change=private)
    made.install()
    yield made
    made.close()


def outcome(act: Callable[[], object]) -> int:
    """The code of the error that ``act`` ends with; 0 when it succeeds."""
    try:
        act()
    except CloisterError as error:
        return error.code
    return 0


def books(world: World, name: str) -> dict[str, Book]:
    """A key manager's books, by image id."""
    return {image: book for (_, image), book in world.services[name].desk._core._state.books.items()}


def spend(world: World) -> int:
    """Runs until a budget is exhausted; how many runs there were."""
    for count in range(50):
        code = outcome(world.attempt(world.run(), "prepare").obtain)
        if code:
            assert code == 7801
            return count
    raise AssertionError("nothing was ever refused")


def under(world: World, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Everybody signs another manifest about the same images."""
    manifest = change(world.manifest)
    world.agree(manifest)
    for client in world.clients.values():
        client.install_manifest(world.signed)
    return manifest


def test_what_a_training_costs_is_charged_and_a_run_beyond_the_budget_gets_no_key(world: World) -> None:
    runs = spend(world)
    assert 1 < runs < 10
    book = books(world, "keys-a")["a" * 64]
    assert len(book.postings) == runs
    assert float(book.epsilon_spent() or "nan") <= 2
    refusal = last_refusal(world, "keys-a")
    assert refusal.code == 7801
    released = [entry for entry in world.shown("keys-a") if isinstance(entry, ReleaseEntry)]
    assert len(released) == runs
    assert all("privacy budget of image data-a" in str(entry.trace) for entry in released)


def test_attempts_of_one_run_are_one_charge_and_another_run_is_another(world: World) -> None:
    run = world.run()
    for _ in range(12):
        world.attempt(run, "prepare").obtain()
    assert len(books(world, "keys-b")["b" * 64].postings) == 1
    world.attempt(world.run(), "prepare").obtain()
    assert len(books(world, "keys-b")["b" * 64].postings) == 2


def test_a_restarted_key_manager_has_forgotten_nothing(world: World) -> None:
    spend(world)
    for name in ("keys-a", "keys-b"):
        world.restart(name)
    assert code_of(lambda: world.attempt(world.run(), "prepare").obtain()) == 7801


def test_another_manifest_spends_from_the_same_budget(world: World) -> None:
    spend(world)
    under(world, lambda manifest: manifest.model_copy(update={"name": "again"}))
    world.install()
    assert code_of(lambda: world.attempt(world.run(), "prepare").obtain()) == 7801


@pytest.mark.parametrize(
    "budget",
    [None, BUDGET.model_copy(update={"epsilon": "20"}), BUDGET.model_copy(update={"relation": "replace-one"})],
    ids=["none", "larger", "another relation"],
)
def test_another_manifest_does_not_change_a_budget(world: World, budget: PrivacyBudget | None) -> None:
    def changed(manifest: Manifest) -> Manifest:
        made = private(manifest, budget=budget, name="looser")
        if budget is None or budget.relation == BUDGET.relation:
            return made
        terms = TERMS.model_copy(update={"relation": budget.relation})
        return made.model_copy(
            update={"stages": {"prepare": made.stages["prepare"].model_copy(update={"privacy": terms})}}
        )

    under(world, changed)
    assert code_of(lambda: world.install_one("data-a")) == 3442


def test_a_manifest_from_before_the_budget_releases_no_more(tmp_path: Path) -> None:
    world = World.make(tmp_path, change=lambda manifest: private(manifest, budget=None, name="earlier"))
    world.install()
    before = world.signed
    world.attempt(world.run(), "prepare").obtain()
    under(world, private)
    world.install()
    world.signed = before
    assert code_of(lambda: world.attempt(world.run(), "prepare").obtain()) == 3442
    world.close()


def test_a_strangers_manifest_about_the_same_image_touches_nothing(world: World) -> None:
    stranger = Identity.generate("hospital-c")
    IDENTITIES["hospital-c"] = stranger
    try:

        def changed(manifest: Manifest) -> Manifest:
            party = Party(sign=str(stranger.signing_key.public), hpke=str(stranger.opening_key.public))
            image = manifest.images["data-a"].model_copy(
                update={"owner": "hospital-c", "budget": BUDGET.model_copy(update={"epsilon": "0.0001"})}
            )
            images: dict[str, Image] = {**manifest.images, "data-a": image}
            update: dict[str, Any] = {
                "name": "strange",
                "images": images,
                "parties": {**manifest.parties, "hospital-c": party},
            }
            return manifest.model_copy(update=update)

        before = world.signed
        under(world, changed)
        world.install_one("data-a")
    finally:
        del IDENTITIES["hospital-c"]
    world.signed = before
    world.attempt(world.run(), "prepare").obtain()
