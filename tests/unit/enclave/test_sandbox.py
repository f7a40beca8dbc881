import shutil
import sys

import pytest

from cloister.enclave import _sandbox
from cloister.enclave._bytecode import compiled, imported_packages
from cloister.enclave._limits import ResourceGroup
from cloister.enclave._sandbox import Bind, require_bubblewrap, run_sandboxed
from cloister.errors import InputError, RefusedError
from cloister.manifest import Limits

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
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RefusedError) as caught:
        require_bubblewrap()
    assert caught.value.code == 3501
    assert "install the package 'bubblewrap'" in caught.value.hint


def test_a_bubblewrap_that_cannot_make_namespaces_runs_nothing(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
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


def test_packages_are_compiled_once_outside_the_packages_folder(tmp_path):
    home = compiled(["rfc8785", "no.such.module"], state="s", folder=tmp_path / "cache")
    made = list(home.rglob("rfc8785*.pyc")) + list(home.rglob("rfc8785/*.pyc"))
    assert made
    before = {path: path.stat().st_mtime_ns for path in made}
    compiled(["rfc8785"], state="s", folder=tmp_path / "cache")
    assert before == {path: path.stat().st_mtime_ns for path in made}


def test_a_stage_cannot_write_compiled_code_for_the_next(tmp_path):
    home = compiled(["rfc8785"], state="s", folder=tmp_path / "cache")
    ended = run("bash", "-c", "touch /run/cloister/bytecode/x", bytecode=home)
    assert ended.status != 0


def test_compiled_code_that_others_may_write_is_not_used(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert compiled(["rfc8785"], state="s", folder=tmp_path / "cache") is None


def test_only_a_few_states_of_compiled_code_are_kept(tmp_path):
    for state in "abcde":
        compiled([], state=state, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_imports_are_found_without_running_anything(tmp_path):
    (tmp_path / "train.py").write_text(
        "import numpy.linalg as l, helper, os\nfrom rfc8785 import dumps\nfrom . import x"
    )
    (tmp_path / "helper.py").write_text("import pandas")
    (tmp_path / "broken.py").write_text("import (")
    assert imported_packages(tmp_path) == {"numpy.linalg", "rfc8785", "pandas"}
