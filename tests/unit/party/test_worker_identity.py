"""A worker's key file: private, whole, never replaced."""

import json
import os
import pickle

import pytest
from tests.workers import refused

from cloister.party import WorkerIdentity

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


@pytest.fixture
def saved(tmp_path):
    identity = WorkerIdentity.generate("gpu")
    return identity, identity.save(tmp_path / "worker")


@pytest.mark.parametrize("post_quantum", [False, True])
def test_what_was_saved_is_loaded(tmp_path, post_quantum):
    identity = WorkerIdentity.generate("gpu", post_quantum=post_quantum)
    loaded = WorkerIdentity.load(identity.save(tmp_path))
    assert loaded.name == "gpu"
    sealed = identity.opening_key.public.seal(b"to the worker", info=b"test")
    assert loaded.opening_key.open(sealed, info=b"test") == b"to the worker"


@posix
def test_the_file_is_its_owner_s_alone(saved):
    _, path = saved
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o660])
def test_a_key_that_others_may_read_is_not_used(saved, mode):
    saved[1].chmod(mode)
    refused(2014, WorkerIdentity.load, saved[1])


@pytest.mark.parametrize("which", ["gpu.key", "gpu.pub"])
def test_neither_file_is_replaced(tmp_path, which):
    (tmp_path / which).symlink_to(tmp_path / "nowhere")
    refused(2007, WorkerIdentity.generate("gpu").save, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [which]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    refused(2001, WorkerIdentity.generate("gpu").save, tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda value: b"{", 2002),
        (lambda value: b" " * 5000, 2003),
        (lambda value: json.dumps(value | {"format": "cloister/worker-key/v2"}).encode(), 2004),
        (lambda value: json.dumps(value | {"name": "GPU"}).encode(), 2005),
        (lambda value: json.dumps(value | {"seed": "AAAA"}).encode(), 2005),
        (lambda value: json.dumps(value | {"more": 1}).encode(), 2005),
    ],
)
def test_a_file_that_is_no_key(saved, change, code):
    """Its error quotes no seed."""
    _, path = saved
    value = json.loads(path.read_bytes())
    path.write_bytes(change(value))
    error = refused(code, WorkerIdentity.load, path)
    assert value["seed"] not in str(error.as_json())
    refused(2001, WorkerIdentity.load, path.parent / "none.key")


def test_it_is_neither_shown_nor_pickled(saved):
    identity, path = saved
    seed = json.loads(path.read_bytes())["seed"]
    assert seed not in repr(identity)
    with pytest.raises(TypeError):
        pickle.dumps(identity)


@pytest.mark.parametrize("name", ["", "GPU", "../gpu", "a" * 65])
def test_its_name_is_one_that_manifests_take(name):
    refused(2005, WorkerIdentity.generate, name)
