"""``cloister keys`` against a server process."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.keyserver import KEYS, ServerProcess
from tests.keyworld import IDENTITIES, build_manifest

from cloister.attest import SimulatedSite
from cloister.cli import _key_manager, main
from cloister.cli._key_manager import PROGRAM, KeyManagerJob, ServeTask, execute
from cloister.errors import InputError
from cloister.keys._time import stamp
from cloister.manifest import KeyManager, SignedManifest, Validity, sign
from cloister.party import Pins, fingerprint
from cloister.seal import save_image_key
from cloister.wire import Secret, parse_message

PASSPHRASE = "correct horse"

Command = Callable[..., Any]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command with ``--json``; its facts, or its error's code. The enclave's measurement is a constant.

    What the command hands to a process of its own is done in this one.
    """
    site = SimulatedSite.create(tmp_path / "site")

    def become(program: str, given: bytes) -> None:
        assert program == PROGRAM
        execute(parse_message(KeyManagerJob, given, what="job"), attester=lambda _: site.attester(KEYS))

    monkeypatch.setattr(_key_manager, "become", become)
    monkeypatch.setenv("CLOISTER_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["keys", *map(str, arguments), "--json"])
        said = json.loads(capsys.readouterr().out)
        assert (ended.value.code or 0) == said.get("error", {}).get("code", 0) // 1000
        return said["error"]["code"] if ended.value.code else said

    return run


@pytest.fixture
def running(command: Command, tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A server process, and the signed manifest that names it; identities and key files lie in the home folder."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    made = command("init", "--store", store, "--site", tmp_path / "site")
    server = ServerProcess(store, tmp_path / "site")
    site = SimulatedSite.open(tmp_path / "site")
    manifest = build_manifest({"keys": made["sign"]}, site.root_spki)
    now = datetime.now(UTC)
    valid = Validity(not_before=stamp(now - timedelta(hours=1)), not_after=stamp(now + timedelta(hours=1)))
    manager = KeyManager(sign=made["sign"], tee="keys", url=f"http://{server.address}")
    signed = SignedManifest(manifest=manifest.model_copy(update={"valid": valid, "key_managers": {"keys": manager}}))
    for name, identity in IDENTITIES.items():
        signed = sign(signed, identity)
        identity.save(tmp_path / "home", PASSPHRASE)
        Pins(tmp_path / "home").pin(identity.public, words=fingerprint(identity.public))
        if name == "hospital-a":
            save_image_key(tmp_path / "a.key", name="data-a", image_id="a" * 64, key=Secret.random(64))
    path = tmp_path / "manifest.json"
    path.write_bytes(signed.canonical())
    yield path, made
    server.kill()


def test_an_owner_installs_watches_and_withdraws(
    running: tuple[Path, dict[str, Any]], command: Command, tmp_path: Path
) -> None:
    path, made = running
    assert made["simulated"] is True
    install = ("install", path, "--image", "data-a", "--key-file", tmp_path / "a.key", "--as", "hospital-a")
    assert command(*install) == 3435
    said = command(*install, "--allow-simulated", "--uses", "3")
    assert (said["assurance"], said["uses"], said["measurement"]) == ("simulated", 3, KEYS.hex())

    first = command("head", path)["keys"]
    assert first["consistency"].startswith("extends")
    log = command("log", path)["keys"]
    assert [entry["kind"] for entry in log] == ["manifest", "key"]
    assert command("log", path, "--start", "1")["keys"] == log[1:]
    assert command("log", path, "--count", "1")["keys"] == log[:1]
    assert command("log", path, "--select", "refusals")["keys"] == []
    assert command("log", path, "--select", "account", "--run", "0" * 32)["keys"] == log
    assert command("log", path, "--select", "account") == 2005

    assert command("revoke", path, "--image", "data-a", "--as", "hospital-b") == 3406
    command("revoke", path, "--image", "data-a", "--as", "hospital-a")
    command("suspend", path, "--as", "doctor", "--reason", "enough")
    out = tmp_path / "heads.json"
    assert command("head", path, "--out", out)["keys"]["size"] == first["size"] + 3
    assert [item["payloadType"] for item in json.loads(out.read_text())] == [
        "cloister/keys/tree-head/v1",
        "cloister/keys/consistency/v1",
    ]


def test_what_does_not_fit_the_manifest_is_named(running: tuple[Path, Any], command: Command, tmp_path: Path) -> None:
    path, _ = running
    save_image_key(tmp_path / "x.key", name="other", image_id="9" * 64, key=Secret.random(64))
    wrong = ("--key-file", tmp_path / "x.key", "--as", "hospital-a", "--allow-simulated")
    assert command("install", path, "--image", "data-a", *wrong) == 2406
    assert command("install", path, "--image", "nothing", *wrong) == 2005
    assert command("revoke", path, "--image", "nothing", "--as", "hospital-a") == 2005
    assert command("head", path, "--name", "nobody") == 2005
    assert command("head", path, "--key-manager", "keys") == 2005
    assert command("head", path, "--key-manager", "keys=http://127.0.0.1:9") == 6401


def test_administrators_unlock_it_together(command: Command, tmp_path: Path) -> None:
    store, shares = f"sqlite:///{tmp_path / 'locked.db'}", tmp_path / "shares"
    people = ("hospital-a", "hospital-b", "lab")
    admins: list[object] = []
    for name in people:
        IDENTITIES[name].save(tmp_path / "home", PASSPHRASE)
        admins += ["--admin", tmp_path / "home" / f"{name}.pub"]
    init = ("init", "--store", store, "--site", tmp_path / "site", *admins, "--threshold", "2")
    assert command(*init) == 2404
    made = command(*init, "--shares-to", shares)
    assert sorted(made["shares"]) == sorted(people)
    server = ServerProcess(store, tmp_path / "site")
    root = SimulatedSite.open(tmp_path / "site").root_spki
    service = ("--url", f"http://{server.address}", "--measurement", KEYS.hex(), "--simulated-root", root)

    def unlock(name: str, *how: str) -> Any:
        return command("unlock", shares / f"{name}.share.json", *service, "--as", name, *how)

    assert unlock("lab") == 3435
    assert unlock("lab", "--allow-simulated") == {"received": 1, "threshold": 2, "unlocked": False}
    assert unlock("hospital-a", "--allow-simulated") == {"received": 2, "threshold": 2, "unlocked": True}
    assert unlock("hospital-b", "--allow-simulated") == 3434
    server.kill()


def test_store_is_never_made_twice(command: Command, tmp_path: Path) -> None:
    init = ("init", "--store", f"sqlite:///{tmp_path / 'store.db'}", "--site", tmp_path / "site")
    command(*init)
    assert command(*init) == 2403


def test_a_store_that_is_none(command: Command) -> None:
    assert command("init", "--store", "postgresql+psycopg://u:pass@host:word/db") == 2405
    assert command("init", "--store", "mysql://host/db") == 2405


def test_a_key_manager_runs_on_linux_only(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_key_manager.sys, "platform", "darwin")
    assert command("init", "--store", "sqlite://") == 2008


def test_an_option_that_no_job_can_hold(command: Command) -> None:
    assert command("init", "--store", "sqlite:///\udc80") == 2002


def test_the_address_of_the_store_is_never_shown() -> None:
    job = KeyManagerJob(store="postgresql+psycopg://u:swordfish@host/db", todo=ServeTask(listen="127.0.0.1:0"))
    assert "swordfish" not in f"{job} {job!r}"
    wrong = job.canonical().replace(b"127.0.0.1:0", b"x").replace(b'"store":"', b'"store":9,"s":"')
    with pytest.raises(InputError) as caught:
        parse_message(KeyManagerJob, wrong, what="job", secret=True)
    assert caught.value.code == 2005
    assert "swordfish" not in str(caught.value.as_json())


def test_same_administrator_twice(command: Command, tmp_path: Path) -> None:
    IDENTITIES["lab"].save(tmp_path / "home", PASSPHRASE)
    public = tmp_path / "home" / "lab.pub"
    where = ("--store", f"sqlite:///{tmp_path / 'store.db'}", "--shares-to", tmp_path)
    assert command("init", *where, "--admin", public, "--admin", public) == 2404
