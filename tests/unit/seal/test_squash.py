"""Folders become the same squashfs everywhere, and unpack only into what could be sealed."""

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister import seal
from cloister.errors import InputError, IntegrityError, RefusedError
from cloister.seal import _squash


@pytest.fixture(autouse=True)
def _tools(needs: Callable[[str], str]) -> None:
    needs("mksquashfs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "folder"
    (source / "sub" / "deep").mkdir(parents=True)
    for index in range(40):
        (source / "sub" / f"file-{index * 7919 % 101}").write_bytes(os.urandom(index * 997))
    (source / "sub" / "deep" / "same").write_bytes((source / "sub" / "file-0").read_bytes())
    (source / "big").write_bytes(os.urandom(700_000) + bytes(700_000))
    (source / "script").write_bytes(b"#!/bin/sh\n")
    (source / "script").chmod(0o755)
    (source / "link").symlink_to("sub/deep/same")
    return source


def digest(folder: Path, target: Path) -> str:
    size = seal.squash_folder(folder, target)
    data = target.read_bytes()
    assert len(data) == size
    return hashlib.sha256(data).hexdigest()


def test_a_copied_folder_gives_the_same_squashfs(folder: Path, tmp_path: Path, monkeypatch) -> None:
    first = digest(folder, tmp_path / "1")
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    for path in sorted(folder.rglob("*"), reverse=True):  # another order on disk, other times and modes
        target = other / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o770)
        if path.is_symlink():
            target.symlink_to(os.readlink(path))
        elif path.is_file():
            target.write_bytes(path.read_bytes())
            target.chmod(0o700 if path.name == "script" else 0o600)
            os.utime(target, (1, 2))
    os.link(other / "big", tmp_path / "hard link")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "12345")
    assert digest(other, tmp_path / "2") == first


def test_content_names_and_the_executable_bit_count(folder: Path, tmp_path: Path) -> None:
    digests = {digest(folder, tmp_path / "0")}
    (folder / "script").chmod(0o644)
    digests.add(digest(folder, tmp_path / "1"))
    (folder / "script").rename(folder / "renamed")
    digests.add(digest(folder, tmp_path / "2"))
    (folder / "renamed").write_bytes(b"#!/bin/SH\n")
    digests.add(digest(folder, tmp_path / "3"))
    assert len(digests) == 4


def test_a_folder_comes_back_as_it_went_in(folder: Path, tmp_path: Path) -> None:
    image = seal.seal_folder(folder, tmp_path / "image")
    with seal.open_image(tmp_path / "image", image_id=image.id, key=image.key) as reader:
        seal.unpack(reader, tmp_path / "back")
    subprocess.run(["diff", "-r", "--no-dereference", str(folder), str(tmp_path / "back")], check=True)
    assert os.readlink(tmp_path / "back" / "link") == "sub/deep/same"
    assert os.access(tmp_path / "back" / "script", os.X_OK)
    assert not (tmp_path / "back" / "big").stat().st_mode & 0o111
    assert sorted(os.listdir(tmp_path)) == ["back", "folder", "image"]  # nothing left beside


def test_an_empty_folder_can_be_sealed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = seal.seal_folder(tmp_path / "empty", tmp_path / "image")
    with seal.open_image(tmp_path / "image", image_id=image.id, key=image.key) as reader:
        seal.unpack(reader, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


def test_a_folder_that_changes_meanwhile_is_refused(folder: Path, tmp_path: Path, monkeypatch) -> None:
    run = _squash._run

    def slow(command: list[str], name: str) -> bytes:
        said = run(command, name)
        (folder / "big").write_bytes(b"other")
        return said

    monkeypatch.setattr(_squash, "_run", slow)
    with pytest.raises(InputError) as caught:
        seal.seal_folder(folder, tmp_path / "image")
    assert caught.value.code == 2205
    assert "big" in caught.value.what
    assert not (tmp_path / "image").exists()


def test_the_plaintext_is_removed_whatever_happens(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    seal.seal_folder(folder, tmp_path / "image", scratch=tmp_path / "scratch")
    with pytest.raises(InputError):
        seal.seal_folder(folder, tmp_path / "image", scratch=tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_image_inside_its_own_folder_is_refused(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        seal.seal_folder(folder, folder / "sub" / "image")
    assert caught.value.code == 2211


def test_missing_tools_and_platforms_are_named(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_squash.shutil, "which", lambda _: None)
        with pytest.raises(InputError) as caught:
            seal.squash_folder(folder, tmp_path / "out")
        assert caught.value.code == 2009
        assert "squashfs-tools" in caught.value.hint
    with monkeypatch.context() as patch:
        patch.setattr(_squash.sys, "platform", "darwin")
        with pytest.raises(InputError) as caught:
            seal.squash_folder(folder, tmp_path / "out")
        assert caught.value.code == 2008


def test_a_place_that_cannot_be_written_is_named(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        seal.squash_folder(folder, "/dev/null/out")
    assert caught.value.code == 2206


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """What the tools are asked to do."""
    run, asked = _squash._run, []

    def record(command: list[str], name: str) -> bytes:
        asked.append(command)
        return run(command, name)

    monkeypatch.setattr(_squash, "_run", record)
    return asked


def make_squashfs(folder: Path, target: Path, *options: str) -> Path:
    command = ["mksquashfs", str(folder), str(target), "-noappend", "-quiet", "-no-progress", *options]
    subprocess.run(command, check=True, capture_output=True)
    return target


def test_unpacking_refuses_devices_before_writing(folder: Path, tmp_path: Path, commands) -> None:
    image = make_squashfs(folder, tmp_path / "sq", "-p", "null c 666 0 0 1 3")
    with pytest.raises(IntegrityError) as caught:
        seal.unsquash(image, tmp_path / "out")
    assert caught.value.code == 5212
    assert len(commands) == 1  # it was listed and not unpacked
    assert "-lln" in commands[0]


def test_unpacking_refuses_setuid_files_before_writing(folder: Path, tmp_path: Path, commands) -> None:
    (folder / "script").chmod(0o4755)
    image = make_squashfs(folder, tmp_path / "sq")
    with pytest.raises(IntegrityError) as caught:
        seal.unsquash(image, tmp_path / "out")
    assert caught.value.code == 5212
    assert len(commands) == 1


@pytest.mark.parametrize("name", [b"new\nline", b"new\n-rw-r--r-- 0/0 1 2020-01-01 00:00 squashfs-root/x", b"caf\xe9"])
def test_unpacking_refuses_hostile_names(name: bytes, folder: Path, tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(folder), name.replace(b"/", b"_")), "wb"):
        pass
    image = make_squashfs(folder, tmp_path / "sq")
    with pytest.raises(IntegrityError) as caught:
        seal.unsquash(image, tmp_path / "out")
    assert caught.value.code == 5212
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_unpacking_refuses_symlinks_that_leave(folder: Path, tmp_path: Path) -> None:
    (folder / "escape").symlink_to("/etc")
    image = make_squashfs(folder, tmp_path / "sq")
    with pytest.raises(IntegrityError) as caught:
        seal.unsquash(image, tmp_path / "out")
    assert caught.value.code == 5212
    assert not (tmp_path / "out").exists()


def test_unpacking_refuses_more_than_was_agreed(folder: Path, tmp_path: Path) -> None:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    image = make_squashfs(folder, tmp_path / "sq")
    with pytest.raises(RefusedError) as caught:
        seal.unsquash(image, tmp_path / "out", max_bytes=total - 1)
    assert (caught.value.code, caught.value.got) == (3202, total)
    seal.unsquash(image, tmp_path / "out", max_bytes=total)
    with pytest.raises(InputError) as exists:
        seal.unsquash(image, tmp_path / "out")
    assert exists.value.code == 2007


def test_what_is_no_squashfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(10_000))
    with pytest.raises(IntegrityError) as caught:
        seal.unsquash(tmp_path / "noise", tmp_path / "out")
    assert caught.value.code == 5213
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert stat.S_ISREG((tmp_path / "noise").stat().st_mode)
