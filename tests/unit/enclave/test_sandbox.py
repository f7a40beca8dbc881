import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister.enclave import _bytecode, _sandbox, _trees
from cloister.enclave._bytecode import compiled, imported_packages
from cloister.enclave._limits import ResourceGroup
from cloister.enclave._sandbox import Bind, require_bubblewrap, run_sandboxed
from cloister.errors import InputError, RefusedError
from cloister.manifest import Limits
from cloister.wire import Secret

LIMITS = Limits(memory_bytes=1 << 29, time_s=60)


def run(*argv, binds=(), **options):
    with ResourceGroup(LIMITS) as group:
        return run_sandboxed(argv, binds=binds, limits=LIMITS, group=group, **options)


def test_status_and_output_come_back():
    ended = run("bash", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.ended, ended.status, ended.output) == ("exited", 7, b"out\nerr\n")


def test_a_signal_is_a_status_above_128():
    assert run("bash", "-c", "kill -SEGV $$").status == 128 + 11


def test_arguments_are_passed_exactly():
    odd = ["", " ", "a b", "--", "$HOME", "*", "\n", "é", "-"]
    assert run("python", "-c", "import sys; print(sys.argv[1:])", *odd).output.decode() == f"{odd}\n"


def test_python_is_the_launchers_interpreter_with_its_packages():
    said = run("python3", "-c", "import sys, numpy; print(sys.version, sys.prefix, numpy.__version__)").output.decode()
    import numpy

    assert said == f"{sys.version} {sys.prefix} {numpy.__version__}\n"


def test_multiprocessing_and_threads_work():
    source = (
        "import multiprocessing as m, threading, tempfile\n"
        "t = threading.Thread(target=print, args=(1,)); t.start(); t.join()\n"
        "with m.get_context('fork').Pool(2) as p: print(p.map(abs, [-2, -3]))\n"
        "tempfile.TemporaryFile().write(b'x')"
    )
    assert run("python", "-c", source).output == b"1\n[2, 3]\n"


def test_a_program_that_is_not_there_is_an_input_error():
    with pytest.raises(InputError) as caught:
        run("/work/nonsense")
    assert caught.value.code == 2504


def test_without_bubblewrap_nothing_runs_and_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr(_trees, "SYSTEM_PATH", "/nonexistent")
    with pytest.raises(RefusedError) as caught:
        require_bubblewrap()
    assert caught.value.code == 3501
    assert "install the package 'bubblewrap'" in caught.value.hint


def test_a_bubblewrap_that_cannot_make_namespaces_runs_nothing(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(_trees, "SYSTEM_PATH", str(tmp_path))
    with pytest.raises(RefusedError) as caught:
        require_bubblewrap()
    assert (caught.value.code, caught.value.got) == (3501, "bwrap: No permissions to create new namespace")


def test_another_platform_is_an_input_error(monkeypatch):
    monkeypatch.setattr(_sandbox.sys, "platform", "darwin")
    with pytest.raises(InputError) as caught:
        require_bubblewrap()
    assert caught.value.code == 2008


def test_a_source_that_is_gone_is_a_refusal_and_not_a_hang(tmp_path):
    with pytest.raises(RefusedError) as caught:
        run("true", binds=[Bind(tmp_path / "gone", "/code")])
    assert caught.value.code == 3501


KEY = Secret.random(32)


def keep(tmp_path, private, *names, state="s", **options):
    return compiled(names, state=state, key=KEY, private=tmp_path / private, folder=tmp_path / "cache", **options)


def test_packages_are_compiled_once_outside_the_packages_folder(tmp_path, monkeypatch):
    home = keep(tmp_path, "one", "rfc8785", "no.such.module")
    made = {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*.pyc")}
    assert any("rfc8785" in name for name in made)
    monkeypatch.setattr(_bytecode, "run_sandboxed", None)  # the second time nothing is run
    again = keep(tmp_path, "two", "rfc8785")
    assert {str(p.relative_to(again)): p.read_bytes() for p in again.rglob("*.pyc")} == made


def test_another_package_is_added_to_what_is_kept(tmp_path):
    keep(tmp_path, "one", "rfc8785")
    keep(tmp_path, "two", "platformdirs")
    found = {path.name.partition(".")[0] for path in keep(tmp_path, "three").rglob("*.pyc")}
    assert {"_impl", "unix"} <= found


def test_a_stage_cannot_write_compiled_code_for_the_next(tmp_path):
    ended = run("bash", "-c", "touch /run/cloister/bytecode/x", bytecode=keep(tmp_path, "one", "rfc8785"))
    assert ended.status != 0


@pytest.mark.parametrize("damage", [b"", b"x", bytes(32), bytes(100)])
def test_damaged_compiled_code_is_only_slow(tmp_path, damage):
    keep(tmp_path, "one", "rfc8785")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(damage)
    assert list(keep(tmp_path, "two", "rfc8785").rglob("*.pyc"))


def test_a_stage_with_little_memory_compiles_for_itself(tmp_path):
    assert keep(tmp_path, "one", "rfc8785", max_bytes=100) is None


def test_attempts_that_start_together_compile_once(tmp_path, monkeypatch):
    made = []
    imported = _bytecode._import
    monkeypatch.setattr(_bytecode, "_import", lambda *given: made.append(given) or imported(*given))
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(keep, tmp_path, f"private-{i}", "rfc8785") for i in range(3)]
        folders = [each.result() for each in asked]
    assert len(made) == 1
    assert all(list(folder.rglob("*.pyc")) for folder in folders)


def test_a_lock_that_the_host_never_gives_up_is_only_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(_bytecode, "_PATIENCE_S", 0.1)
    with open(tmp_path / "cache.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert list(keep(tmp_path, "private", "rfc8785").rglob("*.pyc"))


USE = """
import sys
from pathlib import Path
from cloister.enclave._bytecode import use_compiled
from cloister.wire import Secret
own, cache = map(Path, sys.argv[1:])
use_compiled(["jinja2"], state="s", key=Secret(bytes(32)), private=own, folder=cache, max_bytes=1 << 30)
import jinja2
print(Path(jinja2.__cached__).is_file(), jinja2.__cached__.startswith(sys.argv[1]))
"""


def test_a_closed_process_imports_what_was_kept_for_it(tmp_path):
    command = [sys.executable, "-I", "-B", "-X", "pycache_prefix=/dev/null/none", "-c", USE]
    said = subprocess.run([*command, tmp_path / "own", tmp_path / "cache"], capture_output=True, text=True, check=True)
    assert said.stdout == "True True\n"


@pytest.mark.slow
def test_kernels_are_compiled_once_for_all_stages(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    name = "cloister.offload._warm:compile_kernels"
    made = {path.name for path in keep(tmp_path, "one", name).rglob("*.nbc")}
    assert len(made) >= 20
    monkeypatch.setattr(_bytecode, "run_sandboxed", None)
    assert {path.name for path in keep(tmp_path, "two", name).rglob("*.nbc")} == made


def test_compiled_code_that_was_used_last_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "cache"

    def used(state, again=""):
        before = set(folder.iterdir()) if folder.exists() else set()
        keep(tmp_path, state + again, "no.such.module", state=state)
        return set(folder.iterdir()) - before

    first, second = used("a"), used("b")
    size_bytes = sum(path.stat().st_size for path in first | second)
    monkeypatch.setattr(_bytecode, "_MAX_ALL_BYTES", size_bytes)
    for path in first | second:
        os.utime(path, (1, 1))  # the file system's clock is too coarse for what follows
    used("a", "again")
    third = used("c")
    assert set(folder.iterdir()) == first | third


def test_imports_are_found_without_running_anything(tmp_path):
    (tmp_path / "train.py").write_text(
        "import numpy.linalg as l, helper, os\nfrom rfc8785 import dumps\nfrom . import x"
    )
    (tmp_path / "helper.py").write_text("import pandas")
    (tmp_path / "broken.py").write_text("import (")
    assert imported_packages(tmp_path) == {"numpy.linalg", "rfc8785", "pandas"}
