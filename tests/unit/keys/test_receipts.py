"""What a client takes from a key manager about its log, and what it does not."""

from typing import Any

import pytest
from tests.keyworld import World, code_of

from cloister.errors import CloisterError
from cloister.keys import (
    ConsistencyProof,
    KeptHeads,
    LogPage,
    TreeHead,
    open_head,
    open_signed,
    parse_entry,
    require_extends,
    sign_message,
)


def test_head_that_names_another_key_manager(world: World) -> None:
    client, core = world.clients["keys-a"], world.services["keys-a"].desk.core
    other = core.tree_head().model_copy(update={"key_manager": str(world.clients["keys-b"].key)})
    assert code_of(lambda: open_head(core.sign(other), client.key)) == 5407


def test_newer_head_with_an_older_time(world: World) -> None:
    world.install()
    core, key = world.services["keys-a"].desk.core, world.clients["keys-a"].key
    kept = core.tree_head().model_copy(update={"at": "2026-11-21T00:00:00Z"})
    proof = open_signed(ConsistencyProof, world.services["keys-a"].desk.consistency(kept.size), key)
    assert code_of(lambda: require_extends(kept=kept, proof=proof, key=key)) == 5406


def test_proof_from_another_size_than_the_kept_head(world: World) -> None:
    world.install()
    core, key = world.services["keys-a"].desk.core, world.clients["keys-a"].key
    proof = open_signed(ConsistencyProof, world.services["keys-a"].desk.consistency(2), key)
    assert code_of(lambda: require_extends(kept=core.tree_head(), proof=proof, key=key)) == 5406


def test_damaged_file_of_a_kept_head(world: World, tmp_path: Any) -> None:
    client, kept = world.clients["keys-a"], KeptHeads(tmp_path)
    head, _ = kept.check(client)
    file = next(tmp_path.glob("*.json"))
    file.write_bytes(head.canonical().replace(b"A", b"B", 1))
    with pytest.raises(CloisterError):
        kept.check(client)


def test_smaller_head_never_replaces_a_larger_one(world: World, tmp_path: Any) -> None:
    client, kept = world.clients["keys-a"], KeptHeads(tmp_path)
    small = client.head()
    world.install()
    kept.check(client)
    kept.keep(small, client.key)
    found = kept.kept(client.key)
    assert found is not None
    assert found.size > open_signed(TreeHead, small, client.key).size


@pytest.mark.parametrize("leaf", [b"{}", b'{"kind":"nonsense"}', b'{"at":"2026-11-20T12:00:00Z","kind":"refusal"}'])
def test_entry_of_an_unknown_kind(leaf: bytes) -> None:
    assert code_of(lambda: parse_entry(leaf)) == 5405


def test_entry_in_another_form_of_the_same_json(world: World) -> None:
    leaf = world.stores["keys-a"].read(0, 1)[0]
    assert parse_entry(leaf).kind == "genesis"
    assert code_of(lambda: parse_entry(leaf.replace(b":", b": ", 1))) == 5405


def test_answer_signed_as_another_kind(world: World) -> None:
    core = world.services["keys-a"].desk.core
    envelope = sign_message(core.tree_head(), core._sign)
    assert code_of(lambda: open_signed(LogPage, envelope, world.clients["keys-a"].key)) == 5001
