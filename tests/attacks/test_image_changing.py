"""The storage changes a block between check and use, or between two uses."""

import os
import random
from pathlib import Path

import pytest

from cloister import seal
from cloister.errors import CloisterError, IntegrityError

BLOCK = 4096


class Storage:
    """Untrusted storage in the test's hands: ``change`` sees each answer's bytes before the reader does."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        self.change = None

    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        answer = bytearray(self.data[offset : offset + size])
        if self.change:
            self.change(offset, answer)
        return bytes(answer)

    def close(self) -> None:
        pass


@pytest.fixture
def content() -> bytes:
    return os.urandom(1_500_000)


@pytest.fixture
def sealed(content: bytes, tmp_path: Path) -> seal.SealedImage:
    (tmp_path / "content").write_bytes(content)
    return seal.seal_file(tmp_path / "content", tmp_path / "image")


@pytest.fixture
def storage(sealed: seal.SealedImage) -> Storage:
    return Storage(Path(sealed.url))


def test_a_block_changed_after_it_was_read_well_is_named(sealed, storage: Storage, content: bytes) -> None:
    with seal.open_image(storage, image_id=sealed.id, key=sealed.key) as reader:
        assert reader.read(0, 100) == content[:100]
        storage.data[sealed.descriptor.offset] ^= 1
        with pytest.raises(IntegrityError) as caught:
            reader.read(0, 100)
        assert caught.value.code == 5211
        storage.data[sealed.descriptor.offset] ^= 1
        assert reader.read(0, 100) == content[:100]


def test_a_block_changed_after_the_whole_was_verified_is_refused(sealed, storage: Storage) -> None:
    seal.verify_image(storage, image_id=sealed.id)
    storage.data[sealed.descriptor.offset + 50 * BLOCK] ^= 1
    with seal.open_image(storage, image_id=sealed.id, key=sealed.key) as reader:
        with pytest.raises(IntegrityError) as caught:
            reader.read(50 * BLOCK, 1)
        assert caught.value.code == 5208


def test_each_block_is_fetched_once_for_check_and_use(sealed, storage: Storage, content: bytes) -> None:
    """Were it read once to be checked and again to be used, the second answer would be the attacker's."""
    seen: dict[int, int] = {}

    def second_time_is_a_lie(offset: int, answer: bytearray) -> None:
        for start in range(0, len(answer), BLOCK):
            block = (offset + start) // BLOCK
            seen[block] = seen.get(block, 0) + 1
            if seen[block] > 1:
                answer[start : start + BLOCK] = bytes(BLOCK)

    with seal.open_image(storage, image_id=sealed.id, key=sealed.key) as reader:
        storage.change = second_time_is_a_lie
        assert reader.read(10_000, 700_000) == content[10_000:710_000]
        with pytest.raises(IntegrityError) as caught:
            reader.read(10_000, 700_000)
        assert caught.value.code == 5211


@pytest.mark.parametrize("seed", range(10))
def test_storage_that_lies_at_random_never_yields_a_wrong_byte(
    seed: int, sealed, storage: Storage, content: bytes
) -> None:
    choose = random.Random(seed)
    padded = content.ljust(sealed.descriptor.length, b"\0")

    def lie(_: int, answer: bytearray) -> None:
        if answer and choose.random() < 0.2:
            answer[choose.randrange(len(answer))] ^= 1 << choose.randrange(8)
        elif choose.random() < 0.05:
            del answer[choose.randrange(len(answer)) :]

    good, codes = 0, set()
    with seal.open_image(storage, image_id=sealed.id, key=sealed.key) as reader:
        storage.change = lie
        for _ in range(60):
            offset, size = choose.randrange(len(padded)), choose.randrange(1, 60_000)
            try:
                assert reader.read(offset, size) == padded[offset : offset + size]
                good += 1
            except CloisterError as error:
                codes.add(error.code)
    assert good
    assert codes
    assert codes <= {5201, 5207, 5208, 5209, 5211}


def test_a_file_cut_while_it_is_read_is_refused(sealed, storage: Storage) -> None:
    with seal.open_image(storage, image_id=sealed.id, key=sealed.key) as reader:
        stream = reader.stream()
        del storage.data[sealed.descriptor.offset + 100 * BLOCK :]
        with pytest.raises(IntegrityError) as caught:
            for _ in stream:
                pass
        assert caught.value.code == 5201


def test_a_hash_block_changed_while_it_is_read_is_refused(sealed, storage: Storage) -> None:
    def change_tree(offset: int, answer: bytearray) -> None:
        if offset > sealed.descriptor.hash_offset:
            answer[0] ^= 1

    with seal.open_image(storage, image_id=sealed.id, key=sealed.key) as reader:
        storage.change = change_tree
        with pytest.raises(IntegrityError) as caught:
            reader.read(0, 1)
        assert caught.value.code == 5207
