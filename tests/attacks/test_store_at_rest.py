"""The host reads a key manager's database file. No secret is in it, in no form that a search would find."""

from __future__ import annotations

import base64
import hashlib
import hmac
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.keyworld import KEYS, World, attester_of

from cloister.keys import store_at
from cloister.keys._setup import open_store, read_terms, sealing_root
from cloister.wire import Secret


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A run of both stages, ended; its key managers run on and their files are open."""
    made = World.make(tmp_path, store=lambda name: store_at(f"sqlite:///{tmp_path / name}.db"))
    made.install()
    run = made.run()
    for stage in ("prepare", "train"):
        made.finish(run, stage)
    yield made
    made.close()


def at_rest(folder: Path, name: str) -> bytes:
    """All that the host has: the database's files with their freed pages, and each value of each table in one piece."""
    files = sorted(folder.glob(f"{name}.db*"))
    pieces = [file.read_bytes() for file in files]
    with sqlite3.connect(folder / f"{name}.db") as database:
        tables = [table for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - its own table's name
                pieces += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    database.close()
    return b"\n".join(pieces)


def forms(secret: bytes) -> Iterator[bytes]:
    """The bytes, their hexadecimal, and what each Base64 makes of them at any place of a longer text."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            whole = (len(secret) + before) // 3 * 4
            yield alphabet(bytes(before) + secret)[4 if before else 0 : whole]


def found(secret: bytes, data: bytes) -> bool:
    """Whether either half of the secret is there, in one of its forms."""
    half = len(secret) // 2
    return any(form in data for part in (secret[:half], secret[half:]) for form in forms(part))


def hkdf_32(root: bytes, *, salt: bytes, info: bytes) -> bytes:
    """RFC 5869, one block."""
    key = hmac.digest(salt, root, hashlib.sha256)
    return hmac.digest(key, info + b"\x01", hashlib.sha256)


@pytest.mark.parametrize("name", ["keys-a", "keys-b"])
def test_no_secret_is_in_the_database_file(world: World, tmp_path: Path, name: str) -> None:
    root = sealing_root(attester_of(world, KEYS))
    store = world.stores[name]
    store_id, _ = read_terms(store)
    opened, boxes = open_store(store, root), store.boxes()
    secrets = {box_id: opened.vault.open(box_id, box) for box_id, box in boxes.items()}
    kinds = {box_id.partition("/")[0] for box_id in secrets}
    assert kinds == {"self", "key", "contribution", "share"}
    installed = {image: key for image, key in world.keys.items() if world.manifest.images[image].key_manager == name}
    assert installed
    for image, key in installed.items():
        assert secrets[f"key/{world.manifest.id}/{image}"].matches(key)
    secrets |= {f"installed {image}": key for image, key in installed.items()}
    state_key = hkdf_32(root.reveal(), salt=bytes.fromhex(store_id), info=b"cloister/state-key/v1")
    secrets |= {"root": root, "state key": Secret(state_key)}

    data = at_rest(tmp_path, name)
    for box_id, box in boxes.items():
        assert found(box, data), f"this is not the file that holds {box_id}"
    assert [label for label, secret in secrets.items() if found(secret.reveal(), data)] == []


def test_the_state_key_is_the_one_that_seals(world: World) -> None:
    """What the test above searches for opens the boxes: it would be a leak."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    root = sealing_root(attester_of(world, KEYS))
    store = world.stores["keys-a"]
    store_id, _ = read_terms(store)
    cipher = AESGCM(hkdf_32(root.reveal(), salt=bytes.fromhex(store_id), info=b"cloister/state-key/v1"))
    box_id, key = f"key/{world.manifest.id}/data-a", world.keys["data-a"]
    box = store.boxes()[box_id]
    context = f'{{"id":"{box_id}","label":"cloister/vault/v1","store":"{store_id}"}}'.encode()
    assert cipher.decrypt(box[:12], box[12:], context) == key.reveal()


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("encode", [bytes, lambda b: b.hex().encode(), base64.b64encode, base64.urlsafe_b64encode])
def test_the_search_finds_a_secret_in_each_form(before: int, encode: object) -> None:
    secret = hashlib.sha512(b"a secret of 64 bytes").digest()
    assert found(secret, b'{"key":"' + encode(bytes(before) + secret) + b'"}')  # type: ignore[operator]
    assert not found(secret, b'{"key":"' + encode(bytes(before) + bytes(64)) + b'"}')  # type: ignore[operator]
