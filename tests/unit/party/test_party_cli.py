"""`cloister party`, as typed."""

import itertools
import json
import os
import pty

import pytest

from cloister.cli import main
from cloister.errors import InputError


@pytest.fixture
def cloister(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "correct horse")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=os.devnull):
        with open(stdin) as file:
            monkeypatch.setattr("sys.stdin", file)
            with pytest.raises(SystemExit) as ended:
                main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), (json.loads(out) if "--json" in arguments else out), err

    return run


def test_init_then_trust_by_a_partner(cloister, tmp_path):
    status, made, _ = cloister("party", "init", "hospital-b", "--json")
    assert status == 0
    partner = tmp_path / "partner"
    status, facts, _ = cloister(
        "party", "trust", made["public_file"], "--home", partner, "--fingerprint", made["fingerprint"], "--json"
    )
    assert status == 0
    assert facts["pinned"][0]["new"] is True
    _, facts, _ = cloister("party", "list", "--home", partner, "--json")
    assert [(row["kind"], row["name"]) for row in facts["parties"]] == [("pinned", "hospital-b")]
    _, facts, _ = cloister("party", "show", "hospital-b", "--home", partner, "--json")
    assert facts["sign"] == made["sign"]


def test_trust_without_a_terminal_needs_the_words(cloister):
    _, made, _ = cloister("party", "init", "hospital-b", "--json")
    status, facts, _ = cloister("party", "trust", made["public_file"], "--json")
    assert (status, facts["error"]["code"]) == (2, 2018)


def test_trust_with_wrong_words_is_refused(cloister):
    _, made, _ = cloister("party", "init", "hospital-b", "--json")
    status, facts, _ = cloister("party", "trust", made["public_file"], "--fingerprint", "abandon " * 8, "--json")
    assert (status, facts["error"]["code"]) == (2, 2012)


def test_at_a_terminal_the_words_are_asked_for_and_never_shown(cloister, monkeypatch):
    _, made, _ = cloister("party", "init", "hospital-b", "--json")
    seen = []

    def answer(text, **_):
        seen.append(text)
        return made["fingerprint"]

    monkeypatch.setattr("typer.prompt", answer)
    _, child = pty.openpty()
    status, out, err = cloister("party", "trust", made["public_file"], stdin=os.ttyname(child))
    assert status == 0
    assert seen == ["words of hospital-b"]
    words = made["fingerprint"].split()
    assert not any(f"{one} {next_one}" in out + err for one, next_one in itertools.pairwise(words))


def test_the_passphrase_comes_from_a_file_without_its_newline(cloister, tmp_path, monkeypatch):
    monkeypatch.delenv("CLOISTER_PASSPHRASE")
    (tmp_path / "p").write_text("from a file\r\n")
    status, made, _ = cloister("party", "init", "bank", "--passphrase-file", tmp_path / "p", "--json")
    assert status == 0
    from cloister.party import Identity

    assert Identity.load(made["key_file"], "from a file").name == "bank"


def test_an_empty_passphrase_is_refused_by_init(cloister, monkeypatch):
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "")
    status, facts, _ = cloister("party", "init", "bank", "--json")
    assert (status, facts["error"]["code"]) == (2, 2017)


def test_without_terminal_or_passphrase_init_says_what_to_do(cloister, monkeypatch):
    monkeypatch.delenv("CLOISTER_PASSPHRASE")
    status, _, err = cloister("party", "init", "bank")
    assert status == 2
    assert "CLOISTER-2017" in err


def test_no_command_takes_a_secret_as_an_argument(cloister):
    _, out, _ = cloister("party", "init", "--help")
    assert "--passphrase " not in out
    assert "--passphrase-file" in out


def test_an_identity_is_opened_by_name_for_other_commands(cloister, tmp_path):
    from cloister.cli._identity import open_identity

    cloister("party", "init", "bank")
    assert open_identity("bank", home=tmp_path / "home", passphrase_file=None).name == "bank"
    with pytest.raises(InputError) as caught:
        open_identity("nobody", home=tmp_path / "home", passphrase_file=None)
    assert caught.value.code == 2013
