"""The demo's machine: made once, prepared once an environment, and never a reason for the demo to fail."""

import sys

import pytest

from cloister import enclave
from cloister.attest import SimulatedSite
from cloister.cli import main
from cloister.demo import _machine
from cloister.errors import InputError


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(enclave, "prepare", asked.append)
    return asked


def test_it_is_made_once_and_asked_for_what_the_scripts_import(asked):
    assert not _machine.is_machine_prepared()
    _machine.prepare_machine()
    assert _machine.is_machine_prepared()
    first = SimulatedSite.open(_machine.machine_folder()).root_spki
    _machine.prepare_machine()
    assert SimulatedSite.open(_machine.machine_folder()).root_spki == first
    assert asked[0] == asked[1]
    assert {"torch", "onnx", "sklearn.metrics", "cloister.offload"} <= set(asked[0].modules)
    assert asked[0].offload


def test_for_the_private_demo_it_is_prepared_apart(asked):
    _machine.prepare_machine()
    assert not _machine.is_machine_prepared(private=True)
    _machine.prepare_machine(private=True)
    assert _machine.is_machine_prepared(private=True)
    open_, private = asked
    assert (open_.privacy, private.privacy, private.offload) == (False, True, True)
    assert "onnx" in private.modules


def test_another_environment_is_prepared_for_itself(asked, monkeypatch):
    _machine.prepare_machine()
    monkeypatch.setattr(sys, "prefix", "/another")
    assert not _machine.is_machine_prepared()


def test_what_could_not_be_kept_is_said_and_not_marked(asked, monkeypatch, capsys):
    def keep_nothing(_):
        raise InputError(2506)

    monkeypatch.setattr(enclave, "prepare", keep_nothing)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--prepare"])
    assert ended.value.code == 2
    assert "2506" in capsys.readouterr().err
    assert not _machine.is_machine_prepared()
