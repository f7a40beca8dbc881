"""`cloister manifest`, as typed, from a first draft to everybody's signature."""

import json
import os
import pty

import pytest
from tests.unit.manifest.full import FULL_YAML, PEOPLE

from cloister.cli import main
from cloister.party import Pins, fingerprint

SIGNERS = ("hospital-a", "hospital-b", "host")


@pytest.fixture(scope="module")
def key_files(tmp_path_factory):
    """The signers' key files, with the cheapest derivation that a reader accepts."""
    from cloister.party import _keyfile

    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_keyfile, "_COST", _keyfile._LEAST)
        for name in SIGNERS:
            PEOPLE[name].save(folder, "correct horse")
    return folder


@pytest.fixture
def home(key_files, tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    for path in key_files.iterdir():
        os.link(path, folder / path.name)
    for identity in PEOPLE.values():
        Pins(folder).pin(identity.public, words=fingerprint(identity.public))
    return folder


@pytest.fixture
def cloister(monkeypatch, tmp_path, capsys, home):
    monkeypatch.setenv("CLOISTER_HOME", str(home))
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "correct horse")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full.yaml").write_text(FULL_YAML)

    def run(*arguments, stdin=os.devnull):
        with open(stdin) as file:
            monkeypatch.setattr("sys.stdin", file)
            with pytest.raises(SystemExit) as ended:
                main(["manifest", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), (json.loads(out) if "--json" in arguments else out), err

    return run


def test_from_draft_to_agreement(cloister, tmp_path):
    assert cloister("check", "full.yaml")[0] == 0
    status, proposed, _ = cloister("propose", "full.yaml", "-o", "full.signed.json", "--json")
    assert (status, proposed["required_signers"]) == (0, list(SIGNERS))
    for index, name in enumerate(SIGNERS):
        status, facts, err = cloister("sign", "full.signed.json", "--as", name, "--yes", "--json")
        assert status == 0
        assert "YOUR DATA" in err
        assert facts["missing"] == list(SIGNERS[index + 1 :])
    _, shown, _ = cloister("show", "full.signed.json", "--json")
    assert shown["id"] == proposed["id"]
    assert shown["signed_by"] == list(SIGNERS)
    _, text, _ = cloister("review", "full.signed.json", "--as", "host")
    assert "SIGNED      hospital-a, hospital-b, host; complete" in text


def test_copies_signed_apart_are_merged(cloister, tmp_path):
    cloister("propose", "full.yaml", "-o", "a.json")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.json").read_bytes())
    cloister("sign", "a.json", "--as", "hospital-a", "--yes")
    cloister("sign", "b.json", "--as", "host", "--yes")
    status, facts, _ = cloister("merge", "a.json", "b.json", "-o", "c.json", "--json")
    assert (status, facts["missing"]) == (0, ["hospital-b"])
    assert cloister("merge", "a.json", "b.json", "-o", "c.json", "--json")[1]["error"]["code"] == 2007


def test_without_consent_nothing_is_signed(cloister, tmp_path, monkeypatch):
    cloister("propose", "full.yaml", "-o", "a.json")
    before = (tmp_path / "a.json").read_bytes()
    status, facts, _ = cloister("sign", "a.json", "--as", "host", "--json")
    assert (status, facts["error"]["code"]) == (3, 3307)
    _, child = pty.openpty()
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "y")
    status, facts, _ = cloister("sign", "a.json", "--as", "host", "--json", stdin=os.ttyname(child))
    assert (status, facts["error"]["code"]) == (3, 3307)
    assert (tmp_path / "a.json").read_bytes() == before
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "yes")
    assert cloister("sign", "a.json", "--as", "host", stdin=os.ttyname(child))[0] == 0
    assert (tmp_path / "a.json").read_bytes() != before


def test_nobody_signs_beside_a_party_that_is_not_pinned(cloister, home):
    cloister("propose", "full.yaml", "-o", "a.json")
    (home / "pins" / "cloud-z.pub").unlink()
    status, facts, _ = cloister("sign", "a.json", "--as", "host", "--yes", "--json")
    assert (status, facts["error"]["code"]) == (3, 3303)


def test_check_names_every_finding_with_its_line(cloister, tmp_path):
    broken = FULL_YAML.replace("registrar: keys-a", "registrar: none").replace("SEED:", "LD_PRELOAD:")
    (tmp_path / "broken.yaml").write_text(broken)
    line = broken.splitlines().index("registrar: none") + 1
    status, _, err = cloister("check", "broken.yaml")
    assert status == 2
    assert f"broken.yaml:{line}:1: there is no key manager 'none'" in err
    assert "CLOISTER-3304" in err
    status, facts, _ = cloister("check", "broken.yaml", "--json")
    assert (status, facts["sound"]) == (2, False)
    assert [row["code"] for row in facts["findings"]] == [2312, 3304]
    assert facts["findings"][0]["where"] == f"broken.yaml:{line}:1"
    status, facts, _ = cloister("propose", "broken.yaml", "--json")
    assert (status, facts["error"]["code"]) == (2, 2312)
    assert "broken.yaml:" in facts["error"]["what"]


def test_review_says_what_changed(cloister, tmp_path):
    (tmp_path / "new.yaml").write_text(FULL_YAML.replace("uses: 5,", "uses: 6,"))
    status, text, _ = cloister("review", "new.yaml", "--against", "full.yaml")
    assert status == 0
    assert "CHANGED     ~ images.data-a.uses: 5 → 6" in text
    assert cloister("review", "full.yaml", "--against", "full.yaml", "--json")[1]["changes"] == []


def test_new_fills_in_pinned_and_own_keys(cloister, tmp_path):
    status, text, _ = cloister("new", "study", "--party", "hospital-a", "--party", "cloud-x")
    assert status == 0
    assert PEOPLE["cloud-x"].public.sign in text
    status, facts, _ = cloister("new", "study", "--party", "host", "-o", "study.yaml", "--json")
    assert (status, facts["file"]) == (0, "study.yaml")
    assert cloister("new", "study", "--party", "host", "-o", "study.yaml", "--json")[1]["error"]["code"] == 2007
    assert cloister("new", "study", "--party", "stranger", "--json")[1]["error"]["code"] == 2013


def test_new_warns_of_a_file_that_is_not_pinned_and_refuses_one_that_contradicts_a_pin(cloister, tmp_path):
    from cloister.party import Identity

    (tmp_path / "stranger.pub").write_bytes(Identity.generate("stranger").public.canonical())
    _, _, err = cloister("new", "study", "--party", "stranger.pub")
    assert "is not pinned" in err
    (tmp_path / "host.pub").write_bytes(Identity.generate("host").public.canonical())
    status, facts, _ = cloister("new", "study", "--party", "host.pub", "--json")
    assert (status, facts["error"]["code"]) == (3, 3001)


def test_schema_prints_the_schema(cloister):
    _, facts, _ = cloister("schema", "--json")
    assert facts["$schema"].startswith("https://json-schema.org/")
    assert "| `max_bytes` or `max_size` |" in cloister("schema", "--markdown")[1]
