"""Files: read within bounds, written whole or not at all."""

import os
from pathlib import Path

import pytest

from cloister.errors import InputError
from cloister.wire import read_bounded, write_atomic, write_private


def test_a_read_stops_at_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert read_bounded(tmp_path / "a", max_bytes=11, what="a") == b"x" * 11
    for path, limit, code in ((tmp_path / "a", 10, 2003), (tmp_path / "none", 10, 2001)):
        with pytest.raises(InputError) as caught:
            read_bounded(path, max_bytes=limit, what="a")
        assert caught.value.code == code


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(InputError):
        read_bounded("/dev/zero", max_bytes=1000, what="zeros")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.read_bytes() == b"old"


def test_private_files_are_private(tmp_path: Path) -> None:
    write_private(tmp_path / "k", b"k")
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
