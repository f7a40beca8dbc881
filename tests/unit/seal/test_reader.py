"""Reading checks every block, every time, in private memory."""

import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister import seal
from cloister.errors import InputError, IntegrityError, PeerError
from cloister.seal import _reader
from cloister.wire import Secret

BLOCK = 4096


class MemorySource:
    """A source that a test can change between reads."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.reads = []
        self.closed = False

    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return bytes(self.data[offset : offset + size])

    def close(self) -> None:
        self.closed = True


def open_sample(sample, source=None) -> seal.ImageReader:
    return seal.open_image(source or sample.path, image_id=sample.image.id, key=sample.image.key)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 2_600_000), size=st.integers(0, 300_000))
def test_any_range_is_the_plaintexts(sample, offset: int, size: int) -> None:
    padded = sample.content.ljust(sample.image.descriptor.length, b"\0")
    with open_sample(sample) as reader:
        assert reader.read(offset, size) == padded[offset : offset + size]


def test_the_whole_streams_copies_and_reads_the_same(sample) -> None:
    padded = sample.content.ljust(sample.image.descriptor.length, b"\0")
    out, steps = io.BytesIO(), []
    with open_sample(sample) as reader:
        assert reader.length == len(padded)
        assert b"".join(reader.stream()) == padded
        assert reader.copy_to(out, progress=lambda done, total: steps.append((done, total))) == len(padded)
        assert reader.read(0, len(padded) + 5) == padded
        assert reader.read(1, len(padded)) == padded[1:]
    assert out.getvalue() == padded
    assert steps[-1] == (len(padded), len(padded))


def test_reading_past_the_end_is_empty_and_negative_ranges_are_refused(sample) -> None:
    with open_sample(sample) as reader:
        assert reader.read(reader.length, 1) == b""
        assert reader.read(0, 0) == b""
        for offset, size in ((-1, 1), (0, -1)):
            with pytest.raises(InputError) as caught:
                reader.read(offset, size)
            assert caught.value.code == 2212


def test_an_abandoned_stream_stops_its_threads(sample) -> None:
    with open_sample(sample) as reader:
        stream = reader.stream()
        next(stream)
        stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cloister-seal")]


def test_several_threads_may_read_at_once(sample) -> None:
    padded = sample.content.ljust(sample.image.descriptor.length, b"\0")
    wrong = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(20):
            offset, size = choose.randrange(len(padded)), choose.randrange(50_000)
            if reader.read(offset, size) != padded[offset : offset + size]:
                wrong.append(offset)

    with open_sample(sample) as reader:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_data_blocks_are_read_and_checked_anew_on_every_read(sample) -> None:
    source = MemorySource(sample.path.read_bytes())
    with open_sample(sample, source) as reader:
        first = reader.read(0, BLOCK)
        source.reads.clear()
        assert reader.read(0, BLOCK) == first
        assert source.reads == [(sample.image.descriptor.offset, BLOCK)]  # data again, hash blocks from the cache
    assert source.closed


def test_cached_hash_blocks_are_bounded_and_the_bound_changes_nothing(sample, monkeypatch) -> None:
    monkeypatch.setattr(_reader, "_CACHED_BLOCKS", 1)
    padded = sample.content.ljust(sample.image.descriptor.length, b"\0")
    with open_sample(sample) as reader:
        for offset in (0, 2_000_000, 5, 1_000_000):
            assert reader.read(offset, 10_000) == padded[offset : offset + 10_000]
        assert len(reader._blocks._cache) <= 1
        assert b"".join(reader.stream()) == padded


def test_another_key_is_named_before_anything_is_decrypted(sample) -> None:
    with pytest.raises(InputError) as caught:
        seal.open_image(sample.path, image_id=sample.image.id, key=Secret.random(64))
    assert caught.value.code == 2207
    with pytest.raises(InputError) as caught:
        seal.open_image(sample.path, image_id=sample.image.id, key=Secret.random(32))
    assert caught.value.code == 2210


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"x", b"x" * 4095, b"x" * 4096, os.urandom(50_000)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(IntegrityError) as caught:
            seal.verify_image(tmp_path / "file", image_id="0" * 64)
        assert caught.value.code == 5201
    with pytest.raises(InputError) as caught:
        seal.verify_image(tmp_path / "none", image_id="0" * 64)
    assert caught.value.code == 2001
    with pytest.raises(InputError) as caught:
        seal.verify_image(tmp_path, image_id="0" * 64)
    assert caught.value.code == 2001


def test_verifying_needs_no_key_and_returns_the_descriptor(sample) -> None:
    steps = []
    found = seal.verify_image(
        sample.path, image_id=sample.image.id, progress=lambda done, total: steps.append((done, total))
    )
    assert found == sample.image.descriptor
    assert steps[-1][0] == steps[-1][1] == found.data_blocks * BLOCK


def test_remote_images_are_read_by_ranges(sample) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/reader/image", sample.path.read_bytes())
    url = "memory://reader/image"
    try:
        assert seal.verify_image(url, image_id=sample.image.id) == sample.image.descriptor
        with seal.open_image(url, image_id=sample.image.id, key=sample.image.key) as reader:
            assert reader.read(700_000, 9_999) == sample.content[700_000:709_999]
            assert b"".join(reader.stream()).startswith(sample.content)
    finally:
        memory.rm("/reader", recursive=True)


@pytest.fixture
def remote(sample, monkeypatch) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The sample behind a URL, and the ranges that storage was asked for."""
    from fsspec.implementations.memory import MemoryFileSystem

    memory, asked, whole = fsspec.filesystem("memory"), [], MemoryFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **options):
        asked.append((start, end))
        return whole(self, path, start=start, end=end, **options)

    memory.pipe_file("/reader/image", sample.path.read_bytes())
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    yield "memory://reader/image", asked
    memory.rm("/reader", recursive=True)


def test_of_a_remote_image_only_what_a_read_needs_is_fetched(sample, remote) -> None:
    (url, asked), descriptor = remote, sample.image.descriptor
    tree = descriptor.hash_offset + BLOCK
    fixed = [
        (descriptor.size - BLOCK, descriptor.size),
        (0, descriptor.offset),
        (descriptor.hash_offset, tree),
    ]
    with seal.open_image(url, image_id=sample.image.id, key=sample.image.key) as reader:
        assert asked == fixed
        asked.clear()
        assert reader.read(700_000, 9_999) == sample.content[700_000:709_999]
        first, end = 700_000 // BLOCK * BLOCK, -(-709_999 // BLOCK) * BLOCK
        *hashes, data = asked
        assert data == (descriptor.offset + first, descriptor.offset + end)
        assert len(hashes) == len(set(hashes)) == len(descriptor.tree.levels) == 2  # one block of each level
        assert all(tree <= start and stop == start + BLOCK <= descriptor.size - BLOCK for start, stop in hashes)
        asked.clear()
        assert reader.read(700_000, 1) == sample.content[700_000:700_001]
        assert asked == [(descriptor.offset + first, descriptor.offset + first + BLOCK)]


def test_storage_that_answers_nonsense_is_named(sample, monkeypatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/reader/image", sample.path.read_bytes())
    url = "memory://reader/image"

    def fail(*_, **__):
        raise TimeoutError("too slow")

    try:
        for name, answer, code in (
            ("cat_file", lambda *_, **__: b"x" * (1 << 21), 6201),
            ("cat_file", lambda *_, **__: "text", 6201),
            ("cat_file", fail, 6201),
            ("info", lambda *_, **__: {"size": None}, 6201),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(MemoryFileSystem, name, answer)
                with pytest.raises(PeerError) as caught:
                    seal.verify_image(url, image_id=sample.image.id)
                assert caught.value.code == code
    finally:
        memory.rm("/reader", recursive=True)
    with pytest.raises(InputError) as missing:
        seal.verify_image(url, image_id=sample.image.id)
    assert missing.value.code == 2001
