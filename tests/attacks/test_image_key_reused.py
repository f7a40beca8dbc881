"""A second image under one key would show, block by block, what changed: the key seals once."""

from pathlib import Path

import pytest

from cloister import seal
from cloister.errors import RefusedError
from cloister.wire import Secret


def test_a_second_image_under_the_same_key(tmp_path: Path) -> None:
    key = Secret.random(64)
    (tmp_path / "monday").write_bytes(b"monday")
    (tmp_path / "tuesday").write_bytes(b"tuesday")
    seal.seal_file(tmp_path / "monday", tmp_path / "monday.image", key=key)
    with pytest.raises(RefusedError) as caught:
        seal.seal_file(tmp_path / "tuesday", tmp_path / "tuesday.image", key=key)
    assert caught.value.code == 3201
    assert not (tmp_path / "tuesday.image").exists()
