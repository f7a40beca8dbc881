"""The storage changes an image: each way of changing it has its own code, whoever reads it and however."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
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


@pytest.fixture
def veritysetup(sealed: seal.SealedImage) -> Callable[[str | Path], int]:
    """``veritysetup(path)``: the exit status of ``veritysetup verify``, with the image's root and offset."""
    program = shutil.which("veritysetup", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("veritysetup is not installed (package cryptsetup-bin)")
    descriptor = sealed.descriptor

    def verify(path: str | Path) -> int:
        offset = f"--hash-offset={descriptor.hash_offset}"
        command = [program, "verify", str(path), str(path), descriptor.root, offset]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert verify(sealed.url) == 0
    return verify


@pytest.mark.parametrize("area", ["header", "ciphertext", "padding", "hash tree"])
def test_veritysetup_agrees(area: str, sealed: seal.SealedImage, spoil, veritysetup) -> None:
    first, end, _ = areas(sealed)[area]
    choose = random.Random(area)
    for bit in {first * 8, end * 8 - 1, *(choose.randrange(first * 8, end * 8) for _ in range(6))}:
        assert veritysetup(spoil(lambda data, bit=bit: flip(data, bit))) != 0, bit


# The fields of a verity superblock: first byte, end, and whether ``veritysetup verify`` looks at them
# (docs/adr/0005-image-layout.md). Of the algorithm's three letters it does not see the case.
SUPERBLOCK = {
    "signature": (0, 8, True),
    "version": (8, 12, True),
    "hash type": (12, 16, True),
    "uuid": (16, 32, False),
    "algorithm": (32, 39, True),
    "after the algorithm": (39, 64, False),
    "block sizes": (64, 72, True),
    "data blocks": (72, 80, True),
    "salt size": (80, 82, True),
    "padding": (82, 88, False),
    "salt": (88, 120, True),
    "after the salt": (120, BLOCK, False),
}
LETTER_CASES = {byte * 8 + 5 for byte in (32, 33, 34)}


@pytest.mark.parametrize("field", SUPERBLOCK)
def test_what_veritysetup_leaves_out_of_the_superblock_we_refuse(
    field: str, sealed: seal.SealedImage, spoil, veritysetup
) -> None:
    first, end, counts = SUPERBLOCK[field]
    choose = random.Random(field)
    bits = {first * 8, end * 8 - 1, *(choose.randrange(first * 8, end * 8) for _ in range(4))}
    for bit in bits if field != "algorithm" else range(first * 8, end * 8):
        path = spoil(lambda data, bit=bit: flip(data, sealed.descriptor.hash_offset * 8 + bit))
        assert code_of_verify(sealed, path) == 5206, bit
        assert (veritysetup(path) != 0) == (counts and bit not in LETTER_CASES), bit


def test_veritysetup_leaves_out_the_descriptor_and_we_refuse_it(sealed: seal.SealedImage, spoil, veritysetup) -> None:
    first, end, codes = areas(sealed)["descriptor"]
    choose = random.Random("descriptor")
    for bit in {first * 8, end * 8 - 1, *(choose.randrange(first * 8, end * 8) for _ in range(6))}:
        path = spoil(lambda data, bit=bit: flip(data, bit))
        assert code_of_verify(sealed, path) in codes, bit
        assert veritysetup(path) == 0, bit
    for change, code in (
        (lambda data: data.__delitem__(slice(first, None)), 5201),
        (lambda data: data.append(0), 5202),
    ):
        assert code_of_verify(sealed, spoil(change)) == code
        assert veritysetup(spoil(change)) == 0


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


@pytest.fixture
def upload() -> Iterator[Callable[[Path], str]]:
    """``upload(path)``: the URL of a copy in remote storage."""
    memory = fsspec.filesystem("memory")

    def put(path: Path) -> str:
        memory.pipe_file("/tampering/image", path.read_bytes())
        return "memory://tampering/image"

    yield put
    memory.rm("/tampering", recursive=True)


@pytest.mark.parametrize("area", ["ciphertext", "hash tree"])
def test_a_ranged_read_of_remote_storage_refuses_a_flipped_block(
    area: str, sealed: seal.SealedImage, spoil, upload
) -> None:
    descriptor = sealed.descriptor
    tree = descriptor.hash_offset + BLOCK
    block = descriptor.offset // BLOCK + 5  # of the verity data: the header comes first
    leaf = tree + (descriptor.tree.first_block(0) + block // 128) * BLOCK + block % 128 * 32
    at, code = {"ciphertext": (block * BLOCK + 1000, 5208), "hash tree": (leaf, 5207)}[area]
    url = upload(spoil(lambda data: flip(data, at * 8 + 3)))
    far = 500 * BLOCK
    with seal.open_image(url, image_id=sealed.id, key=sealed.key) as reader:
        assert reader.read(far, 9_999) == CONTENT[far : far + 9_999]
        for offset, size in ((5 * BLOCK + 100, 1), (4 * BLOCK, 3 * BLOCK)):
            with pytest.raises(IntegrityError) as caught:
                reader.read(offset, size)
            assert caught.value.code == code


@pytest.mark.parametrize("area", ["header", "superblock", "descriptor"])
def test_remote_storage_that_changes_a_fixed_area_is_refused_at_opening(
    area: str, sealed: seal.SealedImage, spoil, upload
) -> None:
    first, _, codes = areas(sealed)[area]
    url = upload(spoil(lambda data: flip(data, first * 8)))
    with pytest.raises(IntegrityError) as caught:
        seal.open_image(url, image_id=sealed.id, key=sealed.key)
    assert caught.value.code in codes


def test_remote_storage_that_changes_a_block_after_it_was_read_is_refused(
    sealed: seal.SealedImage, spoil, upload
) -> None:
    url = upload(Path(sealed.url))
    with seal.open_image(url, image_id=sealed.id, key=sealed.key) as reader:
        assert reader.read(5 * BLOCK, 1) == CONTENT[5 * BLOCK : 5 * BLOCK + 1]
        upload(spoil(lambda data: flip(data, (sealed.descriptor.offset + 5 * BLOCK) * 8)))
        with pytest.raises(IntegrityError) as caught:
            reader.read(5 * BLOCK, 1)
    assert caught.value.code == 5211
