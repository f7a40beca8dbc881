"""Compiling ahead of the first stage: what is kept, for whom, and what is said when nothing is."""

import json

import pytest

from cloister.attest import SimulatedSite
from cloister.cli import main
from cloister.enclave import Preparation, _preparing, measure_installed, parse_task, prepare, prepare_here
from cloister.enclave._bytecode import BYTECODE_KEY_LABEL, is_kept
from cloister.enclave._installed import installed_attester
from cloister.enclave._training import TRAINING
from cloister.errors import CloisterError
from cloister.wire import canonical


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    SimulatedSite.create(tmp_path / "site")
    return str(tmp_path / "site")


def kept(site, *names):
    measured = measure_installed("launcher")
    key = installed_attester(measured, tee="tdx", site=site).sealing_key(BYTECODE_KEY_LABEL)
    assert key is not None
    return is_kept(names, state=measured.files, key=key)


def test_what_is_prepared_is_kept_for_the_launchers_of_this_machine_alone(site, tmp_path):
    done = prepare(Preparation(modules=("rfc8785",), site=site))
    assert done.files > 0
    assert done.size_bytes > 1000
    assert done.measurement == measure_installed("launcher").measurement
    assert kept(site, "rfc8785")
    assert not kept(site, "rfc8785", "jinja2")
    other = tmp_path / "other"
    SimulatedSite.create(other)
    assert not kept(str(other), "rfc8785")


def test_as_typed_with_what_scripts_import(site, tmp_path, capsys):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text("import rfc8785, os, helper\nfrom platformdirs import unix")
    (tmp_path / "scripts" / "helper.py").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["enclave", "prepare", "--scripts", str(tmp_path / "scripts"), "--site", site, "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["files"] > 0
    assert kept(site, "rfc8785", "platformdirs")


def test_what_private_stages_import_is_asked_for_by_one_word(site, tmp_path, monkeypatch):
    asked = []

    def compiled(names, **_):
        asked.append(set(names))

    monkeypatch.setattr(_preparing, "compiled", compiled)
    for privacy in (False, True):
        with pytest.raises(CloisterError):
            prepare_here(Preparation(privacy=privacy, site=site), private=tmp_path, multiplying=())
    assert asked == [set(), set(TRAINING)]
    assert "cloister.privacy._warm:compile_kernels" in TRAINING


def test_a_machine_whose_code_gets_no_key_keeps_nothing(site, tmp_path, monkeypatch):
    class Keyless:
        def sealing_key(self, label):
            return None

    monkeypatch.setattr(_preparing, "installed_attester", lambda *_, **__: Keyless())
    with pytest.raises(CloisterError) as caught:
        prepare_here(Preparation(modules=("rfc8785",), site=site), private=tmp_path, multiplying=())
    assert caught.value.code == 2506


def test_what_could_not_be_compiled_is_not_called_prepared(site, tmp_path, monkeypatch):
    from cloister.enclave import _bytecode

    monkeypatch.setattr(_bytecode, "_import", lambda *_: False)
    with pytest.raises(CloisterError) as caught:
        prepare_here(Preparation(modules=("rfc8785",), site=site), private=tmp_path, multiplying=())
    assert caught.value.code == 2506


def test_the_launchers_own_error_is_told(tmp_path):
    with pytest.raises(CloisterError) as caught:
        prepare(Preparation(modules=("rfc8785",), site=str(tmp_path / "nowhere")))
    assert caught.value.code == 2001


@pytest.mark.parametrize(("program", "code"), [("true", 6501), ("echo {}", 6502), ("echo x", 6502)])
def test_a_launcher_that_does_not_answer_is_named(monkeypatch, program, code):
    monkeypatch.setattr(_preparing, "boundary_command", lambda *_, **__: program.split())
    with pytest.raises(CloisterError) as caught:
        prepare(Preparation())
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        {"modules": ["os:abort"]},
        {"modules": ["os; import evil"]},
        {"modules": ["a/b"]},
        {"modules": ["-c"]},
        {"modules": ["x"] * 65},
        {"more": 1},
    ],
)
def test_what_is_no_preparation_is_refused(change):
    said = {"format": "cloister/preparation/v1", "modules": ["numpy"]} | change
    with pytest.raises(CloisterError) as caught:
        parse_task(canonical(said))
    assert caught.value.code == 2005
