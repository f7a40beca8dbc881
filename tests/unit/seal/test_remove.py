"""Removing what nobody needs any more, wherever it lies."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cloister.errors import CloisterError
from cloister.seal import remove_file


def test_a_local_file_is_removed_and_one_that_is_not_there_is_no_error(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    remove_file(path)
    remove_file(str(path))
    assert not path.exists()


def test_so_is_one_behind_a_url(tmp_path):
    url = f"memory://{tmp_path.name}/x"
    fsspec.filesystem("memory").pipe_file(url, b"x")
    remove_file(url)
    remove_file(url)
    assert not fsspec.filesystem("memory").exists(url)


def test_storage_that_fails_and_storage_that_is_none_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "rm_file", lambda *_: 1 / 0, raising=False)
    for url, code in ((f"memory://{tmp_path.name}/x", 6201), (str(tmp_path), 6201), ("http://x/y", 2213)):
        with pytest.raises(CloisterError) as caught:
            remove_file(url)
        assert caught.value.code == code
