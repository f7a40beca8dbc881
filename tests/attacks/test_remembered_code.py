"""Whoever cannot read the user's own key brings no code into a closed process, and where there is a TEE nobody does."""

import hashlib
import importlib.machinery
import marshal
import os
import subprocess
import sys

import pytest

from cloister.attest._tsm import DEFAULT_ROOT
from cloister.enclave import _remembered
from cloister.enclave._entry import NO_BYTECODE
from cloister.enclave._remembered import Memory

KEY = b"k" * 32
HONEST, EVIL = "print('measured')", "print('REMEMBERED')"
CHILD = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("_remembered", sys.argv[1])
remembered = importlib.util.module_from_spec(spec)
spec.loader.exec_module(remembered)
remembered.user_folder = lambda: Path(sys.argv[2])
remembered._TEE = Path(sys.argv[3])
remembered.remember(sys.argv[4])
sys.path.insert(0, sys.argv[5])
import lib
"""


class Place:
    """A user's home with a key, a cache, and a module that a closed process imports."""

    def __init__(self, folder):
        self.home, self.cache, self.source = folder / "home", folder / "cache", folder / "code" / "lib.py"
        self.tee = folder / "no-tee"
        for made in (self.home, self.cache / "cloister", self.source.parent):
            made.mkdir(parents=True)
        self.key = self.home / "hashes.key"
        self.key.write_bytes(KEY)
        self.key.chmod(0o600)
        self.source.write_text(HONEST)
        self.memory = Memory(self.cache / "cloister", KEY)
        self.file = self.memory._path

    def leave(self, text=EVIL, *, key=KEY, source=HONEST):
        """What a process of a user with ``key`` would leave, had ``source`` given the code of ``text``."""
        memory = Memory(self.cache / "cloister", key)
        mark = hashlib.sha256(source.encode()).hexdigest()
        memory._fresh[str(self.source)] = mark, marshal.dumps(compile(text, str(self.source), "exec"))
        memory.save()

    def run(self, never=NO_BYTECODE):
        arguments = [_remembered.__file__, self.home, self.tee, never, self.source.parent]
        command = [sys.executable, "-I", "-B", "-X", f"pycache_prefix={NO_BYTECODE}", "-c", CHILD, *arguments]
        env = {"XDG_CACHE_HOME": str(self.cache)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_what_this_users_processes_left_is_used(place):
    assert place.run() == "measured"
    assert str(place.source) in place.memory._load()
    place.leave()
    assert place.run() == "REMEMBERED"


def test_code_under_another_key_is_not(place):
    place.leave(key=b"x" * 32)
    assert place.run() == "measured"


@pytest.mark.parametrize("at", [0, 31, 32, 40, -1])
def test_a_changed_byte_makes_all_of_it_worthless(place, at):
    place.leave()
    data = bytearray(place.file.read_bytes())
    data[at] ^= 1
    place.file.write_bytes(data)
    assert place.run() == "measured"


@pytest.mark.parametrize("data", [b"", b"x", bytes(32), bytes(200)])
def test_what_is_no_memory_is_as_good_as_nothing(place, data):
    place.file.write_bytes(data)
    assert place.run() == "measured"


def test_code_of_another_source_is_not_used(place):
    place.leave(source=HONEST + " ")
    assert place.run() == "measured"
    place.leave()
    place.source.write_text("print('changed')")
    assert place.run() == "changed"


def test_code_of_another_python_is_not_used(place, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(sys, "prefix", "/another/environment")
        place.leave()
        left = Memory(place.cache / "cloister", KEY)._path
    assert left != place.file
    os.replace(left, place.file)
    assert place.run() == "measured"


def test_on_a_machine_with_a_tee_nothing_is_read_or_left(place):
    place.leave()
    before = place.file.read_bytes()
    place.tee.mkdir()
    place.source.with_name("lib.py").write_text(HONEST)
    assert place.run() == "measured"
    assert place.file.read_bytes() == before


def test_a_tee_is_looked_for_where_evidence_would_come_from():
    assert str(_remembered._TEE) == DEFAULT_ROOT


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_can_read_is_none(place, mode):
    place.leave()
    place.key.chmod(mode)
    assert place.run() == "measured"


def test_a_link_is_not_followed(place):
    place.leave()
    place.file.rename(place.cache / "elsewhere")
    place.file.symlink_to(place.cache / "elsewhere")
    assert place.run() == "measured"
    place.file.unlink()
    place.leave()
    place.key.rename(place.home / "moved")
    place.key.symlink_to(place.home / "moved")
    assert place.run() == "measured"


def test_under_another_prefix_modules_come_from_there(place):
    place.leave()
    assert place.run(never="/some/other/place") == "measured"


def test_what_others_added_meanwhile_is_kept(place, tmp_path):
    sources = [tmp_path / f"{name}.py" for name in "ab"]
    both = [Memory(place.cache / "cloister", KEY) for _ in sources]
    for memory, source in zip(both, sources, strict=True):
        source.write_text("x = 1")
        memory.code(str(source), b"x = 1", importlib.machinery.SourceFileLoader("m", str(source)))
    for memory in both:
        memory.save()
    assert set(place.memory._load()) == {str(source) for source in sources}
    assert place.file.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_left_is_only_slow(place, monkeypatch):
    monkeypatch.setattr(_remembered, "_MAX_BYTES", 100)
    place.leave()
    assert not place.file.exists()
    monkeypatch.undo()
    place.file.mkdir()
    place.leave()
    assert [path.name for path in place.file.parent.iterdir()] == [place.file.name]
