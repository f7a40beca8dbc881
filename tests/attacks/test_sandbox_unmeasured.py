"""The host leaves code where a launcher or its sandbox might find it, and the measurement stays what it was."""

import json
import os
import py_compile
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister.enclave import _bytecode, _entry, _hashes
from cloister.enclave._bytecode import compiled
from cloister.enclave._entry import closed_environment, ensure_closed, start_command
from cloister.enclave._hashes import FileHashes
from cloister.enclave._limits import ResourceGroup
from cloister.enclave._measurement import measure
from cloister.enclave._sandbox import require_bubblewrap, run_sandboxed
from cloister.enclave._trees import Tree, code_trees, tool
from cloister.errors import InputError
from cloister.manifest import Limits
from cloister.wire import Secret

LIMITS = Limits(memory_bytes=1 << 29, time_s=60)
HOSTILE = {
    "OPENSSL_CONF": "/tmp/evil.cnf",
    "SSL_CERT_FILE": "/evil.pem",
    "FSSPEC_CONFIG_DIR": "/evil",
    "PYTHONPATH": "/evil",
    "LD_PRELOAD": "",
    "HTTPS_PROXY": "http://evil.invalid",
}


def planted(folder, text):
    """Bytecode of ``text`` that never looks at its source."""
    source = folder / "evil.py"
    source.write_text(text)
    target = folder / "evil.pyc"
    py_compile.compile(str(source), cfile=str(target), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return target.read_bytes()


def run_import(bytecode):
    argv = ["python", "-c", "import rfc8785; print('imported')"]
    with ResourceGroup(LIMITS) as group:
        return run_sandboxed(argv, binds=(), limits=LIMITS, group=group, bytecode=bytecode).output


def kept_by_host(tmp_path, key):
    import rfc8785

    source = Path(rfc8785.__file__)
    name = f"{str(source.parent)[1:]}/{source.stem}.{sys.implementation.cache_tag}.pyc"
    evil = _bytecode._Compiled(frozenset({"rfc8785"}), {name: planted(tmp_path, "print('UNMEASURED')")})
    return evil.sealed(_bytecode._context("s"), key)


def test_bytecode_that_the_host_put_into_the_cache_is_not_run(tmp_path):
    key, cache = Secret.random(32), tmp_path / "cache"
    compiled(["rfc8785"], state="s", key=key, private=tmp_path / "first", folder=cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept_by_host(tmp_path, Secret.random(32)))
    assert run_import(compiled(["rfc8785"], state="s", key=key, private=tmp_path / "p", folder=cache)) == b"imported\n"


def test_bytecode_that_was_kept_for_other_code_is_not_run(tmp_path):
    key, cache = Secret.random(32), tmp_path / "cache"
    compiled(["rfc8785"], state="other", key=key, private=tmp_path / "first", folder=cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept_by_host(tmp_path, key))
    home = compiled(["rfc8785"], state="other", key=key, private=tmp_path / "p", folder=cache)
    assert run_import(home) == b"imported\n"


def test_a_cache_folder_that_the_host_names_brings_no_hashes(tmp_path):
    file = tmp_path / "site" / "m.py"
    file.parent.mkdir()
    file.write_text("honest")
    honest = FileHashes(remember=False).of([(str(file), file.lstat())])[str(file)]
    file.write_text("evil!!")
    status = file.lstat()
    entries = json.dumps({str(file): [*_hashes._key(status), honest]}).encode()
    cache = tmp_path / "cache"
    cache.mkdir()
    for forged in (entries, _hashes._tag(b"x" * 32, entries) + entries):
        for name in ("hashes-v1.json", _hashes.memory(cache).name):
            (cache / name).write_bytes(forged)
            (cache / name).chmod(0o600)
        assert FileHashes(cache, key=b"k" * 32).of([(str(file), status)])[str(file)] != honest


def test_the_key_of_remembered_hashes_is_not_where_a_variable_says(tmp_path, monkeypatch):
    before = _hashes._user_key()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _hashes._user_key() == before
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_reads_no_bytecode_beside_its_sources(tmp_path):
    (tmp_path / "lib.py").write_text("print('measured')")
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    (cache / f"lib.{sys.implementation.cache_tag}.pyc").write_bytes(planted(tmp_path, "print('UNMEASURED')"))
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lib"
    command = [*start_command("cloister.cli._launcher")[:-2], "-c", source]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"measured\n"


@pytest.mark.parametrize("program", _entry.PROGRAMS)
def test_a_process_drops_the_hosts_variables_itself(program):
    """However it is started: the executor's own filter runs on the host."""
    env = {**os.environ, **HOSTILE}
    with subprocess.Popen(
        [sys.executable, "-m", program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process_files, end = Path(f"/proc/{process.pid}"), time.monotonic() + 30
        while b"pycache_prefix" not in (process_files / "cmdline").read_bytes():
            assert time.monotonic() < end, "it never started itself again"
            assert process.poll() is None
            time.sleep(0.01)
        variables = (process_files / "environ").read_bytes()
        process.kill()
    names = {line.partition(b"=")[0].decode() for line in variables.split(b"\0") if line}
    assert names <= set(closed_environment(os.environ))


@pytest.mark.parametrize("given", [{}, {"HOME": "/root"}, {"HOME": "rel"}, {"XDG_CACHE_HOME": "/x", **HOSTILE}])
def test_what_a_closed_process_has_stays_what_it_has(given):
    once = closed_environment(given)
    assert closed_environment(once) == once
    assert not set(once) & set(HOSTILE)


def test_a_process_that_may_read_bytecode_starts_again(monkeypatch):
    started = []
    monkeypatch.setattr(_entry.os, "execve", lambda *arguments: started.append(arguments))
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in closed_environment({}).items():
        monkeypatch.setenv(name, value)
    ensure_closed("cloister.cli._launcher")
    assert started == [(sys.executable, start_command("cloister.cli._launcher"), closed_environment({}))]


def test_a_tool_that_comes_first_on_the_hosts_path_is_neither_measured_nor_run(tmp_path, monkeypatch):
    before = code_trees()
    for name in ("bwrap", "unsquashfs", "mksquashfs"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert code_trees() == before
    measured = {tree.label: str(tree.path) for tree in before}
    assert require_bubblewrap() == measured["tool-bwrap"]
    assert str(tool("unsquashfs")) == measured["tool-unsquashfs"]


@pytest.fixture
def linked(tmp_path):
    for name in ("site", "a/inner", "b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "inner" / "m.py").write_text("1")

    def measurement(*lines, end="\n"):
        (tmp_path / "site" / "x.pth").write_text("".join(f"{line}{end}" for line in lines), encoding="utf-8")
        trees = (Tree("site", tmp_path / "site"), Tree("linked", tmp_path / "a"), Tree("linked-1", tmp_path / "b"))
        return measure("launcher", trees=trees, hashes=FileHashes(remember=False)).measurement

    return tmp_path, measurement


def test_the_order_and_the_inner_folders_of_a_pth_file_count(linked):
    folder, measurement = linked
    a, b = folder / "a", folder / "b"
    variants = [(a, b), (b, a), (a,), (a / "inner", b), (a, b, a), (a, folder), ("# nothing",)]
    assert len({measurement(*variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize("line", ["é", "a\x0bb", "a\x85b", "a\x00"])
def test_a_pth_file_that_two_readers_read_differently_is_refused(linked, line):
    with pytest.raises(InputError) as caught:
        linked[1](line)
    assert caught.value.code == 2001
