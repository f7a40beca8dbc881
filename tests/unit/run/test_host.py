from pathlib import Path

import pytest
from tests.keyworld import code_of
from tests.manifests import two_hospitals

from cloister.run import Host, load_host

GOOD = """
storage = "outputs"
site = "site"
[images]
data-a = "a.cloister"
data-b = "s3://bucket/b.cloister"
scripts = "/srv/scripts.cloister"
[key_managers]
keys-a = "http://10.0.0.7:8080"
"""


def load(tmp_path: Path, text: str | bytes) -> Host:
    path = tmp_path / "host.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_host(path)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    host = load(tmp_path, GOOD)
    assert host.storage == str(tmp_path / "outputs")
    assert host.site == str(tmp_path / "site")
    assert host.images == {
        "data-a": str(tmp_path / "a.cloister"),
        "data-b": "s3://bucket/b.cloister",
        "scripts": "/srv/scripts.cloister",
    }


def test_defaults(tmp_path: Path) -> None:
    host = load(tmp_path, 'storage = "x"')
    assert (host.executor, host.parallel, host.attempts, host.site) == ("process", 2, 2, None)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ('storage = "x"\nretries = 3', 2005, "retries"),
        ("storage = 7", 2005, "storage"),
        ("", 2005, "storage"),
        ('storage = ""', 2005, "storage"),
        ('storage = "x"\nparallel = 0', 2005, "parallel"),
        ('storage = "x"\nparallel = "2"', 2005, "parallel"),
        ('storage = "x"\nattempts = 101', 2005, "attempts"),
        ('storage = "x"\nexecutor = "ray"', 2005, "executor"),
        ('storage = "x"\n[images]\nUPPER = "y"', 2005, "images"),
        ('storage = "x"\n[images]\ndata = 7', 2005, "images"),
        ('storage = "x"\nattempts = 1.5', 2002, "float"),
        ("storage = ", 2015, "not TOML"),
        ('storage = "x"\nstorage = "y"', 2015, "not TOML"),
        (b"\xff\xfe", 2015, "not TOML"),
        ("#" * (1 << 20) + "\n", 2003, "too large"),
    ],
)
def test_what_is_not_a_host_file(tmp_path: Path, text: str | bytes, code: int, says: str) -> None:
    from cloister.errors import CloisterError

    with pytest.raises(CloisterError) as raised:
        load(tmp_path, text)
    assert raised.value.code == code
    assert says in raised.value.what


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert code_of(lambda: load_host(tmp_path / "none.toml")) == 2001


def test_addresses(tmp_path: Path) -> None:
    host, manifest = load(tmp_path, GOOD), two_hospitals()
    assert host.key_manager_url("keys-a", manifest) == "http://10.0.0.7:8080"
    assert code_of(lambda: host.key_manager_url("keys-b", manifest)) == 2551
    assert code_of(lambda: host.image_url("data-z")) == 2551
    hinted = manifest.key_managers["keys-b"].model_copy(update={"url": "https://keys.example"})
    manifest = manifest.model_copy(update={"key_managers": {**manifest.key_managers, "keys-b": hinted}})
    assert host.key_manager_url("keys-b", manifest) == "https://keys.example"
    host.require_complete(manifest)
