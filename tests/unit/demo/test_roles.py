"""A role of the demo whose command ends without an answer is named, with the place of its log."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.demo import _roles
from cloister.demo._roles import Role, Script
from cloister.errors import CloisterError


@pytest.fixture
def role(tmp_path: Path) -> Role:
    return Role("hospital-a", tmp_path / "hospital-a", tmp_path, Script(tmp_path / "script.txt"))


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes each command of a role this Python."""
    real, started = subprocess.Popen, list[Any]()

    def put(source: str) -> None:
        def start(_: list[str], **how: Any) -> Any:
            started.append(real([sys.executable, "-c", source], **how))
            return started[-1]

        monkeypatch.setattr(_roles.subprocess, "Popen", start)

    yield put
    for process in started:
        process.stdout.close()


@pytest.mark.parametrize("source", ["import os; os._exit(7)", "print('half of {'); raise SystemExit(7)"])
@pytest.mark.parametrize("act", ["run", "serve"])
def test_a_command_that_ends_without_an_answer(
    role: Role, instead: Callable[[str], None], act: str, source: str
) -> None:
    instead(source)
    with pytest.raises(CloisterError) as caught:
        getattr(role, act)("version")
    assert caught.value.code == 6552
    assert "'hospital-a'" in caught.value.what
    assert "status 7" in caught.value.what
    assert (str(role.folder / "log.txt") in caught.value.what) == (act == "run")


def test_a_script_at_home_is_written_down_and_named_when_it_fails(role: Role, tmp_path: Path) -> None:
    (tmp_path / "well.py").write_text("import sys; print(sys.argv[1])")
    (tmp_path / "badly.py").write_text("raise SystemExit(7)")
    assert role.python("well.py", "so") == "so\n"
    with pytest.raises(CloisterError) as caught:
        role.python("badly.py")
    assert caught.value.code == 6552
    assert "'badly.py' of 'hospital-a'" in caught.value.what
    assert "status 7" in caught.value.what
    written = (tmp_path / "script.txt").read_text().splitlines()
    assert written == ["hospital-a$ python well.py so", "hospital-a$ python badly.py"]


def test_a_commands_own_error_keeps_its_code(role: Role) -> None:
    with pytest.raises(CloisterError) as caught:
        role.run("manifest", "show", "nowhere.json")
    assert caught.value.code // 1000 == 2
    assert caught.value.what.startswith("hospital-a: ")
