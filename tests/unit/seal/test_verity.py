"""The hash tree against veritysetup, byte for byte."""

import hashlib
import os
import re
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.seal._verity import BLOCK, FANOUT, HashRows, Tree, TreeBuilder, superblock

SALT = bytes(range(32))


def build(data: bytes) -> tuple[bytes, bytes]:
    """The root and the hash area, superblock included."""
    blocks = len(data) // BLOCK
    rows = HashRows(SALT, capacity=FANOUT)
    with TreeBuilder(SALT, data_blocks=blocks) as tree:
        for start in range(0, len(data), FANOUT * BLOCK):
            tree.add(rows.digests(rows.put(data[start : start + FANOUT * BLOCK])))
        root = tree.finish()
        return root, superblock(blocks, SALT) + b"".join(tree.area())


@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 16384, 16385])
def test_hash_area_is_veritysetups_own(blocks: int, tmp_path: Path, needs: Callable[[str], str]) -> None:
    veritysetup = needs("veritysetup")
    data = os.urandom(64 * BLOCK) * (blocks // 64) + os.urandom(blocks % 64 * BLOCK)
    (tmp_path / "data").write_bytes(data)
    root, area = build(data)
    identifier = area[16:32].hex()
    command = [veritysetup, "format", "data", "hash", f"--salt={SALT.hex()}", "--uuid", str(uuid.UUID(identifier))]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.search(r"Root hash:\s+([0-9a-f]{64})", said)[1] == root.hex()
    assert (tmp_path / "hash").read_bytes() == area


@pytest.mark.parametrize(
    ("data_blocks", "levels"),
    [(1, ()), (2, (1,)), (128, (1,)), (129, (2, 1)), (16384, (128, 1)), (16385, (129, 2, 1))],
)
def test_levels_shrink_by_the_fan_out_until_one_block_is_left(data_blocks: int, levels: tuple[int, ...]) -> None:
    tree = Tree(data_blocks)
    assert tree.levels == levels
    assert tree.blocks == sum(levels)
    if levels:
        assert tree.first_block(len(levels) - 1) == 0  # the top is stored first


def test_a_row_is_hashed_with_its_salt_before_it() -> None:
    rows = HashRows(SALT, capacity=3)
    data = os.urandom(2 * BLOCK)
    assert rows.put(data) == 2
    expected = [hashlib.sha256(SALT + data[i : i + BLOCK]).digest() for i in (0, BLOCK)]
    assert rows.digests(2) == b"".join(expected)


def test_superblock_has_no_free_bit() -> None:
    assert superblock(7, SALT) == superblock(7, SALT)
    assert superblock(7, SALT)[16:32] != superblock(7, bytes(32))[16:32]
    assert len(superblock(7, SALT)) == BLOCK


def test_levels_beyond_memory_are_spooled(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(300 * BLOCK)
    plain = build(data)
    monkeypatch.setattr("cloister.seal._verity._SPOOL_BYTES", 64)
    assert build(data) == plain
