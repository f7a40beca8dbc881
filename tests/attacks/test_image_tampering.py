"""The storage changes an image: each way of changing it has its own code, whoever reads it and however."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister import seal
from cloister.errors import IntegrityError

BLOCK = 4096
CONTENT = os.urandom(2_400_000)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seal.SealedImage]:
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "content").write_bytes(CONTENT)
    yield seal.seal_file(folder / "content", folder / "image")
    shutil.rmtree(folder)


@pytest.fixture
def spoil(sealed: seal.SealedImage, tmp_path: Path) -> Callable[[Callable[[bytearray], object]], Path]:
    """``spoil(change)``: a copy of the image after ``change``."""

    def make(change: Callable[[bytearray], object]) -> Path:
        data = bytearray(Path(sealed.url).read_bytes())
        change(data)
        (tmp_path / "spoiled").write_bytes(data)
        return tmp_path / "spoiled"

    return make


def code_of_verify(sealed: seal.SealedImage, path: Path) -> int:
    with pytest.raises(IntegrityError) as caught:
        seal.verify_image(path, image_id=sealed.id)
    return caught.value.code


def code_of_open(sealed: seal.SealedImage, path: Path) -> int:
    with (
        pytest.raises(IntegrityError) as caught,
        seal.open_image(path, image_id=sealed.id, key=sealed.key) as reader,
    ):
        reader.read(0, reader.length)
    return caught.value.code


def flip(data: bytearray, bit: int) -> None:
    data[bit // 8] ^= 1 << bit % 8


def areas(sealed: seal.SealedImage) -> dict[str, tuple[int, int, set[int]]]:
    """Each area of the file: first byte, end, and the codes that a flipped bit there may have."""
    descriptor = sealed.descriptor
    tree = descriptor.hash_offset + BLOCK
    trailer = descriptor.size - BLOCK
    return {
        "header": (0, descriptor.offset, {5205}),
        "ciphertext": (descriptor.offset, descriptor.offset + len(CONTENT), {5208}),
        "padding": (descriptor.offset + len(CONTENT), descriptor.hash_offset, {5208}),
        "superblock": (descriptor.hash_offset, tree, {5206}),
        "hash tree": (tree, trailer, {5207}),
        "descriptor": (trailer, descriptor.size, {5201, 5203, 5210}),
    }


@pytest.mark.parametrize("area", ["header", "ciphertext", "padding", "superblock", "hash tree", "descriptor"])
def test_any_flipped_bit_is_refused_by_its_area(area: str, sealed: seal.SealedImage, spoil) -> None:
    first, end, codes = areas(sealed)[area]
    choose = random.Random(area)
    for bit in {first * 8, end * 8 - 1, *(choose.randrange(first * 8, end * 8) for _ in range(10))}:
        path = spoil(lambda data, bit=bit: flip(data, bit))
        assert code_of_verify(sealed, path) in codes, bit
        assert code_of_open(sealed, path) in codes, bit


@pytest.mark.parametrize("area", ["header", "ciphertext", "padding", "hash tree"])
def test_veritysetup_agrees(area: str, sealed: seal.SealedImage, spoil) -> None:
    program = shutil.which("veritysetup", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("veritysetup is not installed (package cryptsetup-bin)")
    descriptor = sealed.descriptor

    def verify(path: str | Path) -> int:
        offset = f"--hash-offset={descriptor.hash_offset}"
        command = [program, "verify", str(path), str(path), descriptor.root, offset]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert verify(sealed.url) == 0
    first, end, _ = areas(sealed)[area]
    choose = random.Random(area)
    for bit in {first * 8, end * 8 - 1, *(choose.randrange(first * 8, end * 8) for _ in range(6))}:
        assert verify(spoil(lambda data, bit=bit: flip(data, bit))) != 0, bit


def test_swapped_blocks(sealed: seal.SealedImage, spoil) -> None:
    def swap(data: bytearray) -> None:
        one, two = slice(40 * BLOCK, 41 * BLOCK), slice(500 * BLOCK, 501 * BLOCK)
        data[one], data[two] = data[two], data[one]

    path = spoil(swap)
    assert code_of_verify(sealed, path) == 5209
    assert code_of_open(sealed, path) == 5209
    with pytest.raises(IntegrityError, match="block 40 holds what belongs into block 500"):
        seal.verify_image(path, image_id=sealed.id)


def test_a_block_repeated_over_another(sealed: seal.SealedImage, spoil) -> None:
    def repeat(data: bytearray) -> None:
        data[40 * BLOCK : 41 * BLOCK] = data[41 * BLOCK : 42 * BLOCK]

    assert code_of_verify(sealed, spoil(repeat)) == 5209


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 10 * BLOCK, 2_400_000])
def test_truncation(size: int, sealed: seal.SealedImage, spoil) -> None:
    path = spoil(lambda data: data.__delitem__(slice(len(data) - size, None)))
    assert code_of_verify(sealed, path) == 5201
    assert code_of_open(sealed, path) == 5201


def test_truncation_to_nothing(sealed: seal.SealedImage, spoil) -> None:
    assert code_of_verify(sealed, spoil(bytearray.clear)) == 5201


def test_bytes_taken_out_of_the_middle(sealed: seal.SealedImage, spoil) -> None:
    path = spoil(lambda data: data.__delitem__(slice(10 * BLOCK, 11 * BLOCK)))
    assert code_of_verify(sealed, path) == 5201


@pytest.mark.parametrize("extra", [b"\0", b"x" * 4095, bytes(BLOCK), os.urandom(70_000)])
def test_append(extra: bytes, sealed: seal.SealedImage, spoil) -> None:
    path = spoil(lambda data: data.extend(extra))
    assert code_of_verify(sealed, path) == 5202
    assert code_of_open(sealed, path) == 5202


def test_append_of_another_descriptor(sealed: seal.SealedImage, spoil, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    seal.seal_file(tmp_path / "other", tmp_path / "image")
    trailer = (tmp_path / "image").read_bytes()[-BLOCK:]
    assert code_of_verify(sealed, spoil(lambda data: data.extend(trailer))) == 5202


def test_bytes_put_into_the_middle(sealed: seal.SealedImage, spoil) -> None:
    def insert(data: bytearray) -> None:
        data[10 * BLOCK : 10 * BLOCK] = bytes(BLOCK)

    assert code_of_verify(sealed, spoil(insert)) == 5202


def test_luks_header_edited_with_a_good_checksum(sealed: seal.SealedImage, spoil, tmp_path: Path) -> None:
    """The host adds a keyslot of its own: cryptsetup would take the header, we do not."""
    program = shutil.which("cryptsetup", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("cryptsetup is not installed (package cryptsetup-bin)")
    path = spoil(lambda data: None)
    done = subprocess.run([program, "config", "--label", "evil", str(path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() != Path(sealed.url).read_bytes()
    assert code_of_verify(sealed, path) == 5205
    assert code_of_open(sealed, path) == 5205


def test_superblock_states_fewer_blocks(sealed: seal.SealedImage, spoil) -> None:
    at = sealed.descriptor.hash_offset + 72  # data_blocks: u64

    def edit(data: bytearray) -> None:
        assert int.from_bytes(data[at : at + 8], "little") == sealed.descriptor.data_blocks
        data[at : at + 8] = (1).to_bytes(8, "little")

    assert code_of_verify(sealed, spoil(edit)) == 5206


def test_a_read_of_good_blocks_beside_a_bad_one_still_works(sealed: seal.SealedImage, spoil) -> None:
    path = spoil(lambda data: flip(data, (sealed.descriptor.offset + 5 * BLOCK) * 8))
    with seal.open_image(path, image_id=sealed.id, key=sealed.key) as reader:
        assert reader.read(0, 5 * BLOCK) == CONTENT[: 5 * BLOCK]
        assert reader.read(6 * BLOCK, BLOCK) == CONTENT[6 * BLOCK : 7 * BLOCK]
        with pytest.raises(IntegrityError) as caught:
            reader.read(5 * BLOCK + 100, 1)
    assert caught.value.code == 5208
