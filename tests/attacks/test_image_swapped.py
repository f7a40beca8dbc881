"""The storage offers an image that is genuine, but not the one that was agreed."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloister import seal
from cloister.errors import IntegrityError
from cloister.seal._descriptor import encode_trailer
from cloister.seal._verity import BLOCK, HashRows, TreeBuilder, superblock


def make(folder: Path, name: str, content: bytes) -> seal.SealedImage:
    (folder / f"{name}.content").write_bytes(content)
    return seal.seal_file(folder / f"{name}.content", folder / name)


def code(path: Path, image_id: str) -> int:
    with pytest.raises(IntegrityError) as caught:
        seal.verify_image(path, image_id=image_id)
    return caught.value.code


def test_another_image_under_the_right_name(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path, "ours", b"a" * 100_000), make(tmp_path, "theirs", b"b" * 100_000)
    assert code(tmp_path / "theirs", ours.id) == 5203
    with pytest.raises(IntegrityError) as caught:
        seal.open_image(tmp_path / "theirs", image_id=ours.id, key=ours.key)
    assert caught.value.code == 5203
    assert (caught.value.expected, caught.value.got) == (ours.id, theirs.id)


def test_another_version_under_our_descriptor(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path, "ours", b"a" * 100_000), make(tmp_path, "theirs", b"b" * 100_000)
    body = (tmp_path / "theirs").read_bytes()[:-BLOCK]
    (tmp_path / "mixed").write_bytes(body + encode_trailer(ours.descriptor))
    assert theirs.descriptor.size == ours.descriptor.size
    assert code(tmp_path / "mixed", ours.id) == 5205


def test_ciphertext_of_another_version_under_our_header_and_tree(tmp_path: Path) -> None:
    ours, _ = make(tmp_path, "ours", b"a" * 100_000), make(tmp_path, "theirs", b"b" * 100_000)
    data = bytearray((tmp_path / "ours").read_bytes())
    area = slice(ours.descriptor.offset, ours.descriptor.hash_offset)
    data[area] = (tmp_path / "theirs").read_bytes()[area]
    (tmp_path / "mixed").write_bytes(data)
    assert code(tmp_path / "mixed", ours.id) == 5208


def test_root_of_another_version_in_the_descriptor(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path, "ours", b"a" * 100_000), make(tmp_path, "theirs", b"b" * 100_000)
    edited = ours.descriptor.model_copy(update={"root": theirs.descriptor.root})
    data = (tmp_path / "ours").read_bytes()[:-BLOCK] + encode_trailer(edited)
    (tmp_path / "mixed").write_bytes(data)
    assert code(tmp_path / "mixed", ours.id) == 5203  # the edited descriptor is another id
    assert code(tmp_path / "mixed", edited.id) == 5207  # even who expects it finds that nothing leads to that root


def test_the_hash_block_of_an_image_as_an_image_of_its_own(tmp_path: Path) -> None:
    """A 100-block image and the one-block image made of its hash block have one verity root, but not one id."""
    salt = os.urandom(32)
    long, short = os.urandom(100 * BLOCK), b""
    rows = HashRows(salt, capacity=100)
    with TreeBuilder(salt, data_blocks=100) as tree:
        tree.add(rows.digests(rows.put(long)))
        root = tree.finish()
        short = b"".join(tree.area())
    assert len(short) == BLOCK
    with TreeBuilder(salt, data_blocks=1) as tree:
        tree.add(rows.digests(rows.put(short)))
        assert tree.finish() == root

    def image(data: bytes, area: bytes) -> tuple[seal.ImageDescriptor, bytes]:
        descriptor = seal.ImageDescriptor(
            root=root.hex(),
            salt=salt.hex(),
            data_blocks=len(data) // BLOCK,
            offset=BLOCK if len(data) > BLOCK else 0,
            length=len(data) - BLOCK if len(data) > BLOCK else BLOCK,
            hash_offset=len(data),
            header=hashlib.sha256(data[:BLOCK] if len(data) > BLOCK else b"").hexdigest(),
        )
        return descriptor, data + superblock(len(data) // BLOCK, salt) + area + encode_trailer(descriptor)

    whole, whole_file = image(long, short)
    part, part_file = image(short, b"")
    assert whole.id != part.id
    (tmp_path / "whole").write_bytes(whole_file)
    (tmp_path / "part").write_bytes(part_file)
    assert seal.verify_image(tmp_path / "whole", image_id=whole.id) == whole
    assert code(tmp_path / "part", whole.id) == 5203
    assert code(tmp_path / "whole", part.id) == 5203
    (tmp_path / "forced").write_bytes(part_file[:-BLOCK] + encode_trailer(whole))
    assert code(tmp_path / "forced", whole.id) == 5201

    program = shutil.which("veritysetup", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("veritysetup is not installed (package cryptsetup-bin): ids checked, the shared root not shown")
    for name, offset in (("whole", len(long)), ("part", len(short))):
        path = str(tmp_path / name)
        command = [program, "verify", path, path, root.hex(), f"--hash-offset={offset}"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, "veritysetup takes both"
