"""The root command: quick, light, and one voice for errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.cli import _key_manager, main

HEAVY = ("torch", "pandas", "ray", "numpy", "sklearn", "onnxruntime", "fastapi", "sqlalchemy")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom cloister.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "--version")[:2] == (0, "cloister 0.1.0\n")


def test_an_error_is_told_on_stderr_with_its_code_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = _run(capsys, "explain", "1234")
    assert (status, out) == (2, "")
    assert err.startswith("error[CLOISTER-2010]: no such code: 1234\nhint:")


def test_an_error_in_json_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "explain", "1234", "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == 2010


@pytest.mark.parametrize("code", ["5001", "CLOISTER-5001", "cloister-5001"])
def test_explain_prints_the_page(capsys: pytest.CaptureFixture[str], code: str) -> None:
    status, out, _ = _run(capsys, "explain", code)
    assert status == 0
    assert "what to do:" in out


def test_explain_lists_all_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "5001" in json.loads(_run(capsys, "explain", "--json")[1])


def test_doctor_says_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "doctor", "--json")
    assert status == 0
    assert "SIMULATED" in json.loads(out)["tee"]["simulated"]


def test_a_setting_comes_from_flag_then_environment_then_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("settings")
    monkeypatch.chdir(folder)
    (folder / "cloister.toml").write_text('log_level = "nonsense"\n')
    assert "CLOISTER-2015" in _run(capsys, "explain", "5001")[2]
    monkeypatch.setenv("CLOISTER_LOG_LEVEL", "error")
    assert _run(capsys, "explain", "5001")[0] == 0
    assert "CLOISTER-2015" in _run(capsys, "--log-level", "loud", "explain", "5001")[2]
    (folder / "cloister.toml").write_text("log_level = ")
    assert "CLOISTER-2015" in _run(capsys, "explain", "5001")[2]


def test_an_option_of_a_command_comes_from_flag_then_environment_then_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[str] = []
    monkeypatch.setattr(_key_manager, "start", lambda _, todo, **__: started.append(todo.listen))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOISTER_CONFIG", raising=False)
    command = ("keys", "serve", "--store", "sqlite:///store")
    assert _run(capsys, *command)[0] == 0
    (tmp_path / "cloister.toml").write_text('[keys.serve]\nlisten = "127.0.0.1:1"\n')
    assert _run(capsys, *command)[0] == 0
    monkeypatch.setenv("CLOISTER_KEYS_SERVE_LISTEN", "127.0.0.1:2")
    assert _run(capsys, *command)[0] == 0
    assert _run(capsys, *command, "--listen", "127.0.0.1:3")[0] == 0
    assert started == ["127.0.0.1:8420", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('log_levle = "info"', "did you mean 'log_level'"),
        ("[keys.install]\nallow_simulated = true", "consent"),
        ("[manifest.sign]\nyes = true", "consent"),
        ("[keys.nothing]\nx = 1", "unknown key 'nothing'"),
    ],
)
def test_a_configuration_that_would_be_ignored_or_would_consent_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    says: str,
) -> None:
    folder = tmp_path_factory.mktemp("settings")
    (folder / "named.toml").write_text(text)
    monkeypatch.setenv("CLOISTER_CONFIG", str(folder / "named.toml"))
    status, _, err = _run(capsys, "explain", "5001")
    assert (status, "CLOISTER-2015" in err, says in err) == (2, True, True)


def test_a_switch_does_not_come_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_EXPLAIN_JSON", "1")
    assert not _run(capsys, "explain", "5001")[1].startswith("{")


def test_the_command_line_is_built_once_in_a_process() -> None:
    from cloister.cli import command

    assert command() is command()


def test_every_command_has_json() -> None:
    from cloister.cli import command

    def leaves(command, path):  # type: ignore[no-untyped-def]
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from leaves(child, [*path, name])
        else:
            yield path, command

    missing = [
        " ".join(path)
        for path, command in leaves(command(), [])
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert missing == []
