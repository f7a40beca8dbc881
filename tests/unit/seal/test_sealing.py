"""Sealing: buckets, keys used once, all or nothing."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister import seal
from cloister.errors import InputError, PeerError, RefusedError
from cloister.seal import _pipeline, _sealing
from cloister.wire import Secret

BLOCK = 4096


@given(st.integers(0, 2**48))
def test_buckets_are_whole_blocks_and_cost_at_most_an_eighth(size: int) -> None:
    length = seal.padded_length(size)
    assert length >= size
    assert length % BLOCK == 0
    assert length - size <= max(length * 0.0625, 64 * 1024)
    assert seal.padded_length(length) == length


def test_sizes_that_are_close_share_a_bucket() -> None:
    million = {seal.padded_length(size) for size in range(1_000_000, 1_010_000, 7)}
    assert len(million) <= 2
    assert {seal.padded_length(size) for size in (0, 1, 65536)} == {65536}
    assert len({seal.padded_length(size) for size in range(1 << 30, 1 << 31, 1 << 18)}) == 33


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 2 << 20, (2 << 20) + 1, 5_000_001])
def test_what_is_sealed_is_opened_at_every_size(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "content").write_bytes(content)
    image = seal.seal_file(tmp_path / "content", tmp_path / "image")
    assert (tmp_path / "image").stat().st_size == image.descriptor.size
    assert image.content_bytes == size
    seal.verify_image(tmp_path / "image", image_id=image.id)
    with seal.open_image(tmp_path / "image", image_id=image.id, key=image.key) as reader:
        assert b"".join(reader.stream()) == content.ljust(reader.length, b"\0")


@settings(max_examples=8, deadline=None)
@given(threads=st.integers(1, 5), chunk=st.sampled_from([128, 256]))
def test_neither_threads_nor_chunks_change_a_byte(threads: int, chunk: int) -> None:
    content, key = os.urandom(3_000_000), Secret.random(64)

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        length = seal.padded_length(len(content))
        plain = b"".join(bytes(part.ciphertext) for part in _sealing._encrypt(file.file, length, key, bytes(32)))
        with (
            mock.patch.object(_pipeline, "_THREADS", threads),
            mock.patch.object(_sealing, "CHUNK_BLOCKS", chunk),
            mock.patch.object(_sealing, "CHUNK_BYTES", chunk * BLOCK),
        ):
            other = b"".join(bytes(part.ciphertext) for part in _sealing._encrypt(file.file, length, key, bytes(32)))
    assert other == plain


def test_two_sealings_share_no_ciphertext(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"the same block again".ljust(BLOCK, b".") * 300)
    blocks: set[bytes] = set()
    total = 0
    for name in ("one", "two"):
        seal.seal_file(tmp_path / "content", tmp_path / name)
        data = (tmp_path / name).read_bytes()
        area = data[32768 : 32768 + seal.padded_length(300 * BLOCK)]
        blocks |= {area[start : start + BLOCK] for start in range(0, len(area), BLOCK)}
        total += len(area) // BLOCK
    assert len(blocks) == total


def test_a_key_seals_once_even_when_the_sealing_failed(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x")
    key = Secret.random(64)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seal.seal_file(tmp_path / "content", tmp_path / "image", key=key, progress=stop)
    assert os.listdir(tmp_path) == ["content"]
    with pytest.raises(RefusedError) as caught:
        seal.seal_file(tmp_path / "content", tmp_path / "image", key=Secret(key.reveal()))
    assert caught.value.code == 3201
    assert os.listdir(tmp_path) == ["content"]


def test_a_key_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        seal.seal_file(tmp_path / "content", tmp_path / "image", key=Secret.random(32))
    assert caught.value.code == 2210


def test_xts_with_equal_halves_is_refused(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        seal.seal_file(tmp_path / "content", tmp_path / "image", key=Secret(b"k" * 64))
    assert caught.value.code == 2210


def test_an_image_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x")
    (tmp_path / "image").write_bytes(b"mine")
    with pytest.raises(InputError) as caught:
        seal.seal_file(tmp_path / "content", tmp_path / "image")
    assert caught.value.code == 2007
    assert (tmp_path / "image").read_bytes() == b"mine"
    image = seal.seal_file(tmp_path / "content", f"file://{tmp_path}/image", overwrite=True)
    seal.verify_image(f"file:{tmp_path}/image", image_id=image.id)


def test_an_image_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        seal.seal_file(
            tmp_path / "content", tmp_path / "image", progress=lambda *_: (tmp_path / "image").write_bytes(b"theirs")
        )
    assert caught.value.code == 2007
    assert (tmp_path / "image").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["content", "image"]


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x")
    for source, target, code in (
        ("none", "image", 2001),
        (".", "image", 2001),
        ("content", "no/image", 2001),
        ("content", "nope://image", 2213),
    ):
        with pytest.raises(InputError) as caught:
            seal.seal_file(tmp_path / source, target if "://" in target else tmp_path / target)
        assert caught.value.code == code
    assert os.listdir(tmp_path) == ["content"]


def test_a_kill_leaves_no_image_under_its_name(tmp_path: Path) -> None:
    """The process dies without cleaning up, in the middle of the ciphertext."""
    (tmp_path / "content").write_bytes(os.urandom(5_000_000))
    program = (
        "import os, signal, sys; from cloister import seal;"
        "seal.seal_file(sys.argv[1], sys.argv[2], progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "content"), str(tmp_path / "image")]
    assert subprocess.run(command, check=False).returncode == -9
    assert not (tmp_path / "image").exists()


class TestRemote:
    """An fsspec URL; memory: stands in for the clouds."""

    @pytest.fixture(autouse=True)
    def _clean(self):
        yield
        memory = fsspec.filesystem("memory")
        if memory.exists("/seal"):
            memory.rm("/seal", recursive=True)

    def test_a_round_trip(self, tmp_path: Path) -> None:
        content = os.urandom(3_000_000)
        (tmp_path / "content").write_bytes(content)
        image = seal.seal_file(tmp_path / "content", "memory://seal/image")
        seal.verify_image("memory://seal/image", image_id=image.id)
        with seal.open_image("memory://seal/image", image_id=image.id, key=image.key) as reader:
            assert reader.read(0, len(content)) == content
        with pytest.raises(InputError) as caught:
            seal.seal_file(tmp_path / "content", "memory://seal/image")
        assert caught.value.code == 2007

    def test_nothing_appears_when_it_fails(self, tmp_path: Path) -> None:
        (tmp_path / "content").write_bytes(b"x")

        def stop(*_) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            seal.seal_file(tmp_path / "content", "memory://seal/image", progress=stop)
        assert not fsspec.filesystem("memory").exists("/seal/image")

    def test_a_storage_that_loses_bytes_or_fails_is_named(self, tmp_path: Path, monkeypatch) -> None:
        from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

        (tmp_path / "content").write_bytes(b"x")

        def fail(*_, **__):
            raise OSError("no room")

        for target, name, answer in (
            (MemoryFileSystem, "info", lambda *_: {"size": 1}),
            (MemoryFile, "write", fail),
            (MemoryFile, "commit", fail),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(target, name, answer)
                with pytest.raises(PeerError) as caught:
                    seal.seal_file(tmp_path / "content", "memory://seal/other", overwrite=True)
                assert caught.value.code == 6201

    def test_a_missing_extra_is_named(self, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "content").write_bytes(b"x")
        for module in ("s3fs", "adlfs", "gcsfs"):
            monkeypatch.setitem(sys.modules, module, None)
        registry = importlib.import_module("fsspec.registry").__dict__["_registry"]
        for scheme in ("s3", "abfs", "gs"):
            monkeypatch.delitem(registry, scheme, raising=False)
        for scheme, extra in (("s3", "s3"), ("abfs", "azure"), ("gs", "gcs")):
            with pytest.raises(InputError) as caught:
                seal.seal_file(tmp_path / "content", f"{scheme}://bucket/image")
            assert caught.value.code == 2006
            assert f"cloister[{extra}]" in caught.value.hint


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_size(tmp_path: Path, needs: Callable[[str], str]) -> None:
    needs("mksquashfs")
    folder = tmp_path / "folder"
    folder.mkdir()
    block = os.urandom(1 << 20)
    with open(folder / "big", "wb") as file:  # incompressible, so that the image is as large
        for index in range(1200):
            file.write(index.to_bytes(8, "little") + block[8:] if index % 2 else os.urandom(1 << 20))
    program = """
import json, resource, sys
from cloister import seal
class Nowhere:
    def write(self, data): return len(data)
image = seal.seal_folder(sys.argv[1], sys.argv[2], scratch=sys.argv[3])
seal.verify_image(sys.argv[2], image_id=image.id)
with seal.open_image(sys.argv[2], image_id=image.id, key=image.key) as reader:
    reader.copy_to(Nowhere())
    for part in reader.stream(): pass
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
own = int(peak[0]) // 1024  # not ru_maxrss, which a process inherits from whoever started it
tools = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
print(json.dumps({"own": own, "tools": tools, "bytes": image.content_bytes}))
"""
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "image"), str(tmp_path)]
    used = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert used["bytes"] > 1 << 30
    assert used["own"] < 256
    assert used["tools"] < 256
