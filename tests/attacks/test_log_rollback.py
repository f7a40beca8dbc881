"""The host restores an old copy of the store, forks it, or edits it at rest. Who kept a head sees it."""

# ruff: noqa: S608 - this host writes SQL into its own database

import sqlite3
from pathlib import Path

import pytest
from tests.keyworld import World, code_of

from cloister.errors import CloisterError
from cloister.keys import KeptHeads, KeyRelease, TreeHead, open_head, open_signed, sign_message, store_at
from cloister.wire import SigningKey


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World.make(tmp_path, store=lambda name: store_at(f"sqlite:///{tmp_path / name}.db"))
    made.install()
    yield made
    made.close()


def copy(world: World, tmp_path: Path, name: str, to: str) -> Path:
    """A copy of a store as it is, as a host would take one."""
    target = tmp_path / f"{to}.db"
    with sqlite3.connect(tmp_path / f"{name}.db") as source, sqlite3.connect(target) as copied:
        source.backup(copied)
    return target


def heads(tmp_path: Path) -> KeptHeads:
    return KeptHeads(tmp_path / "heads")


def test_old_copy_of_the_store_is_seen_by_a_kept_head(world: World, tmp_path: Path) -> None:
    old = copy(world, tmp_path, "keys-a", "old")
    world.attempt(world.run(), "prepare").obtain()
    kept = heads(tmp_path)
    kept.check(world.clients["keys-a"])
    world.restart("keys-a", store_at(f"sqlite:///{old}"))
    assert code_of(lambda: kept.check(world.clients["keys-a"])) == 5406


def test_old_copy_that_has_grown_past_the_kept_head_is_seen_too(world: World, tmp_path: Path) -> None:
    old = copy(world, tmp_path, "keys-a", "old")
    world.run()
    kept = heads(tmp_path)
    kept.check(world.clients["keys-a"])
    world.restart("keys-a", store_at(f"sqlite:///{old}"))
    for _ in range(5):
        world.run()
    assert code_of(lambda: kept.check(world.clients["keys-a"])) == 5406


def test_old_copy_is_seen_by_the_head_of_a_release(world: World, tmp_path: Path) -> None:
    old = copy(world, tmp_path, "keys-a", "old")
    obtained = world.attempt(world.run(), "prepare").obtain()
    client = world.clients["keys-a"]
    receipt = open_signed(KeyRelease, obtained.releases["keys-a"], client.key).receipt
    world.restart("keys-a", store_at(f"sqlite:///{old}"))
    client = world.clients["keys-a"]
    assert code_of(lambda: client.consistency(open_head(receipt.head, client.key))) == 5406


def test_without_a_kept_head_nothing_is_claimed(world: World, tmp_path: Path) -> None:
    """A use is spent twice by rolling back; no check of ours may say otherwise when nobody kept a head."""
    old = copy(world, tmp_path, "keys-a", "old")
    world.attempt(world.run(), "prepare").obtain()
    world.restart("keys-a", store_at(f"sqlite:///{old}"))
    head, proof = heads(tmp_path).check(world.clients["keys-a"])
    assert proof is None
    assert open_head(head, world.clients["keys-a"].key).size == store_at(f"sqlite:///{old}").size()


def test_honest_growth_and_restart_keep_the_head_valid(world: World, tmp_path: Path) -> None:
    kept = heads(tmp_path)
    first, _ = kept.check(world.clients["keys-a"])
    world.run()
    world.restart("keys-a")
    world.run()
    second, proof = kept.check(world.clients["keys-a"])
    key = world.clients["keys-a"].key
    assert proof is not None
    assert open_head(second, key).size == open_head(first, key).size + 2


def test_log_fork(world: World, tmp_path: Path) -> None:
    """Two copies served to two parties: the same size, another root."""
    other = copy(world, tmp_path, "keys-a", "fork")
    world.run()
    kept = heads(tmp_path)
    kept.check(world.clients["keys-a"])
    world.restart("keys-a", store_at(f"sqlite:///{other}"))
    world.run()
    assert code_of(lambda: kept.check(world.clients["keys-a"])) == 5406
    fork = world.clients["keys-a"].head()
    assert code_of(lambda: kept.keep(fork, world.clients["keys-a"].key)) == 5406


def test_head_signed_by_somebody_else(world: World, tmp_path: Path) -> None:
    key = world.clients["keys-a"].key
    forged = sign_message(
        TreeHead(key_manager=str(key), size=900, root="0" * 64, at="2026-11-20T12:00:00Z"), SigningKey.generate()
    )
    assert code_of(lambda: heads(tmp_path).keep(forged, key)) == 5001


# ---- the store, edited at rest -------------------------------------------------------------------------------------


def edited(world: World, tmp_path: Path, *statements: str) -> int:
    """The code with which a key manager refuses to start over its edited store."""
    world.run()
    world.services["keys-a"].desk.close()
    world.stores["keys-a"].close()
    path = tmp_path / "keys-a.db"
    spoiled = tmp_path / "spoiled.db"
    with sqlite3.connect(path) as source, sqlite3.connect(spoiled) as target:
        source.backup(target)
        for statement in statements:
            target.execute(statement)
    target.close()
    world.stores["keys-a"] = store_at(f"sqlite:///{spoiled}")
    try:
        return code_of(lambda: world.start("keys-a", world.clients["keys-a"].key))
    finally:
        world.stores["keys-a"] = store_at(f"sqlite:///{path}")
        world.start("keys-a", world.clients["keys-a"].key)


def test_entry_cut_off_the_end(world: World, tmp_path: Path) -> None:
    cut = "DELETE FROM cloister_entries WHERE place = (SELECT max(place) FROM cloister_entries)"
    shorter = "UPDATE cloister_tip SET size = size - 1"
    assert edited(world, tmp_path, cut, shorter) == 5404


def test_entry_edited(world: World, tmp_path: Path) -> None:
    place = "place = (SELECT max(place) FROM cloister_entries)"
    edit = f"UPDATE cloister_entries SET leaf = CAST(replace(leaf, '12:00:00', '12:00:01') AS BLOB) WHERE {place}"
    assert edited(world, tmp_path, edit) == 5404


def test_entry_that_is_none(world: World, tmp_path: Path) -> None:
    edit = "UPDATE cloister_entries SET leaf = CAST('{}' AS BLOB) WHERE place = 1"
    assert edited(world, tmp_path, edit) == 5405


def test_first_entry_of_another_key_manager(world: World, tmp_path: Path) -> None:
    other = world.stores["keys-b"].read(0, 1)[0].hex()
    assert edited(world, tmp_path, f"UPDATE cloister_entries SET leaf = x'{other}' WHERE place = 0") == 5404


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE cloister_entries SET leaf = 'text' WHERE place = 1",
        "UPDATE cloister_secrets SET box = 7",
        "UPDATE cloister_tip SET head = 'text'",
        "UPDATE cloister_tip SET size = 'text'",
        "UPDATE cloister_meta SET value = 1.5",
    ],
)
def test_values_of_another_type(world: World, tmp_path: Path, edit: str) -> None:
    assert edited(world, tmp_path, edit) == 5403


def test_acknowledged_key_erased(world: World, tmp_path: Path) -> None:
    assert edited(world, tmp_path, "DELETE FROM cloister_secrets WHERE id LIKE 'key/%/data-a'") == 5403


def test_secrets_swapped_between_two_ids(world: World, tmp_path: Path) -> None:
    boxes = world.stores["keys-a"].boxes()
    one, two = sorted(name for name in boxes if name.startswith("key/"))
    swap = [
        f"UPDATE cloister_secrets SET box = x'{boxes[other].hex()}' WHERE id = '{name}'"
        for name, other in ((one, two), (two, one))
    ]
    assert edited(world, tmp_path, *swap) == 5403


def test_head_of_another_key_manager(world: World, tmp_path: Path) -> None:
    _, head = world.stores["keys-b"].head()
    assert edited(world, tmp_path, f"UPDATE cloister_tip SET head = x'{head.hex()}'") == 5404


def test_store_moved_to_another_enclave(world: World, tmp_path: Path) -> None:
    """The state key is the enclave's: other code on the same site cannot open it."""
    from cloister.keys import Service

    copy(world, tmp_path, "keys-a", "stolen")
    attester = world.site.attester(b"\x77" * 48, clock=world.clock)
    with pytest.raises(CloisterError) as raised:
        Service(store_at(f"sqlite:///{tmp_path / 'stolen.db'}"), attester=attester)
    assert raised.value.code == 5403


def test_store_of_another_schema(world: World, tmp_path: Path) -> None:
    assert edited(world, tmp_path, "UPDATE cloister_meta SET value = CAST('2' AS BLOB) WHERE name = 'schema'") == 2402
