"""The owner's key file."""

import json
import os
import stat
from pathlib import Path

import pytest

from cloister.errors import InputError
from cloister.seal import check_key_file, load_image_key, save_image_key
from cloister.wire import Secret

ID = "ab" * 32


def save(path: Path, key: Secret | None = None) -> Secret:
    key = key or Secret.random(64)
    save_image_key(path, name="xray-a", image_id=ID, key=key)
    return key


def code(action) -> int:
    with pytest.raises(InputError) as caught:
        action()
    return caught.value.code


def test_what_is_saved_is_loaded_and_private(tmp_path: Path) -> None:
    key = save(tmp_path / "key")
    entry = load_image_key(tmp_path / "key")
    assert entry.secret.matches(key)
    assert (entry.name, entry.image) == ("xray-a", ID)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_the_key_is_not_in_the_repr(tmp_path: Path) -> None:
    key = save(tmp_path / "key")
    shown = repr(load_image_key(tmp_path / "key"))
    assert repr(key.reveal())[2:-1] not in shown
    assert "key=" not in shown


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    key = save(tmp_path / "key")
    assert code(lambda: save(tmp_path / "key")) == 2007
    assert load_image_key(tmp_path / "key").secret.matches(key)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert code(lambda: check_key_file(tmp_path / "link", name="a")) == 2007


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620])
def test_a_key_that_others_can_reach_is_refused(mode: int, tmp_path: Path) -> None:
    save(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    assert code(lambda: load_image_key(tmp_path / "key")) == 2014


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, 2005),
        ({"format": "age"}, 2005),
        ({"key": "AAAA"}, 2005),
        ({"extra": 1}, 2005),
        ({"image": "AB" * 32}, 2005),
        ({"name": "Name"}, 2005),
        ({"name": "x" * 5000}, 2003),
    ],
)
def test_a_file_that_is_not_exactly_a_key_is_refused_without_quoting_it(change, expected: int, tmp_path: Path) -> None:
    key = save(tmp_path / "key")
    value = json.loads((tmp_path / "key").read_text())
    (tmp_path / "key").write_text(json.dumps({**value, **change}))
    with pytest.raises(InputError) as caught:
        load_image_key(tmp_path / "key")
    assert caught.value.code == expected
    assert caught.value.got is None
    assert value["key"] not in str(caught.value)
    assert len(key) == 64


def test_unusable_arguments_are_named(tmp_path: Path) -> None:
    assert code(lambda: load_image_key(tmp_path / "none")) == 2001
    assert code(lambda: check_key_file(tmp_path / "no" / "key", name="a")) == 2001
    assert code(lambda: check_key_file(tmp_path / "key", name="Not A Name")) == 2005
    assert code(lambda: save_image_key(tmp_path / "key", name="a", image_id="x", key=Secret.random(64))) == 2209
    assert code(lambda: save(tmp_path / "key", Secret.random(32))) == 2210
    assert not os.listdir(tmp_path)
