"""What an attacker would do to a finished demo, and the check that notices: security that one can watch."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cloister.demo._roles import Role, Script, Server, free_port
from cloister.errors import CloisterError, InputError, InternalError, PeerError

__all__ = ["TAMPERINGS", "Caught", "tamper"]

_RUNS = 4  # more than a budget holds


@dataclass(frozen=True, slots=True)
class Caught:
    """What was done, and the error that stopped it."""

    story: str
    error: CloisterError


def tamper(folder: Path, kind: str) -> Caught:
    """Tampers with a *copy* of one thing in a finished demo and runs the ordinary check on it.

    Args:
        folder: A finished demo; it is not changed.
        kind: One of :data:`TAMPERINGS`.

    Raises:
        InputError: 2553 when the folder holds no finished demo, or one that the kind does not fit; 2005 for an unknown
            kind.
        InternalError: 9001 when nothing noticed.
    """
    if kind not in TAMPERINGS:
        raise InputError(2005, f"no such tampering: {kind!r}", expected=", ".join(TAMPERINGS))
    if not (folder / "demo.json").is_file():
        raise InputError(2553, f"'{folder}' holds no finished demo", hint=f"cloister demo --dir {folder}")
    if kind in _PRIVATE and "terms" not in json.loads((folder / "demo.json").read_bytes()):
        raise InputError(2553, f"'{folder}' holds no private demo", hint="cloister demo --private")
    story, act = TAMPERINGS[kind]
    folder = folder.resolve()
    copy = folder / "tampered"
    copy.mkdir(exist_ok=True)
    try:
        act(folder, copy)
    except CloisterError as error:
        return Caught(story, error)
    finally:
        shutil.rmtree(copy)
    raise InternalError(9001, f"the tampering '{kind}' was not noticed")


def _audit(bundle: dict[str, Any]) -> None:
    """The audit that anybody would run."""
    from datetime import UTC, datetime

    from cloister.audit import verify
    from cloister.receipt import parse_bundle

    whole = parse_bundle(json.dumps(bundle).encode())
    verify(whole, at=datetime.now(UTC)).require()


def _bundle(folder: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((folder / "host" / "run.bundle.json").read_bytes()))


def _flip(text: str, position: int) -> str:
    """Base64 text with one bit of its bytes flipped."""
    raw = bytearray(base64.b64decode(text))
    raw[position] ^= 1
    return base64.b64encode(bytes(raw)).decode()


def _train(bundle: dict[str, Any]) -> dict[str, Any]:
    return next(record for record in bundle["attempts"] if record["consumer"] == "train" and "registration" in record)


def _quote(folder: Path, _: Path) -> None:
    bundle = _bundle(folder)
    evidence = _train(bundle)["evidence"]
    evidence["quote"] = _flip(evidence["quote"], 200)  # inside the TD's measurement
    _audit(bundle)


def _key(folder: Path, _: Path) -> None:
    from cloister.wire import OpeningKey

    bundle = _bundle(folder)
    _train(bundle)["claims"]["hpke"] = str(OpeningKey.generate().public)
    _audit(bundle)


def _log(folder: Path, _: Path) -> None:
    bundle = _bundle(folder)
    envelope = bundle["key_managers"]["keys"]["account"][0]
    said = json.loads(base64.b64decode(envelope["payload"]))
    said["entries"] = [item for item in said["entries"] if item["entry"].get("consumer") != "train"]
    envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    _audit(bundle)


def _manifest(folder: Path, copy: Path) -> None:
    from cloister.manifest import load_signed, require_signed

    signed = json.loads((folder / "host" / "manifest.signed.json").read_bytes())
    signed["manifest"]["releases"].append({"output": "model", "party": "lab", "uses": 10})
    (copy / "manifest.signed.json").write_text(json.dumps(signed))
    require_signed(load_signed((copy / "manifest.signed.json").read_bytes()))


def _image(folder: Path, copy: Path) -> None:
    from cloister.seal import verify_image

    image = copy / "biopsies-a.cloister"
    shutil.copyfile(folder / "storage" / "biopsies-a.cloister", image)
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    facts = json.loads((folder / "demo.json").read_bytes())
    verify_image(str(image), image_id=facts["images"]["biopsies-a"]["id"])


def _worker(folder: Path, copy: Path) -> None:
    """The whole run once more, with one worker that lies."""
    with ExitStack() as stack:
        again = _Again(folder, copy, stack)
        cheat = next(iter(again.facts["workers"]))

        def worker(name: str) -> Server:
            role, key = again.roles[name], f"{name}/{name}.key"
            if name == cheat:
                return role.serve_program("cloister.demo._cheat", key, f"127.0.0.1:{free_port()}")
            return role.serve("worker", "serve", "--key", key, "--listen", "127.0.0.1:0")

        again.run("run", workers={name: again.served(worker(name)) for name in again.facts["workers"]})


def _budget(folder: Path, copy: Path) -> None:
    """Runs until the key manager keeps the keys. No worker is there, so that none of them trains anything."""
    with ExitStack() as stack:
        again = _Again(folder, copy, stack)
        nobody = {name: f"127.0.0.1:{free_port()}" for name in again.facts["workers"]}
        for number in range(_RUNS):
            with suppress(PeerError):
                again.run(f"run-{number}", workers=nobody)


def _ledger(folder: Path, _: Path) -> None:
    bundle = _bundle(folder)
    receipt = _train(bundle)["receipt"]
    said = json.loads(base64.b64decode(receipt["payload"]))
    said["predicate"]["privacy"]["lines"][0]["event"]["count"] = 1
    receipt["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    _audit(bundle)


class _Again:
    """The finished demo's manifest, to be run once more on a copy of what that changes: keys and storage."""

    def __init__(self, folder: Path, copy: Path, stack: ExitStack) -> None:
        self.facts = json.loads((folder / "demo.json").read_bytes())
        self._folder, self._copy, self._stack = folder, copy, stack
        shutil.copytree(folder / "keys", copy / "keys")
        (copy / "storage").mkdir()
        script = Script(copy / "commands.txt")
        names = ("keys", "host", *self.facts["workers"])
        self.roles = {name: Role(name, copy / name, folder, script) for name in names}
        self._keys = f"127.0.0.1:{free_port()}"
        kept = ("--store", f"sqlite:///{copy / 'keys' / 'store.db'}", "--site", self.facts["site"]["site"])
        self.served(self.roles["keys"].serve("keys", "serve", *kept, "--listen", self._keys))

    def served(self, server: Server) -> str:
        """Where it listens, until all is over."""
        self._stack.callback(server.close)
        return str(server.facts["listen"])

    def run(self, name: str, *, workers: Mapping[str, str]) -> None:
        """Starts a run with workers at these addresses."""
        places = "\n".join(f'{each} = "{self._folder / "storage" / each}.cloister"' for each in self.facts["images"])
        reached = "\n".join(f'{each} = "tcp://{address}"' for each, address in workers.items())
        (self._copy / "host.toml").write_text(
            f'storage = "{self._copy / "storage"}"\nsite = "{self.facts["site"]["site"]}"\nattempts = 1\n'
            f'[images]\n{places}\n[key_managers]\nkeys = "http://{self._keys}"\n[workers]\n{reached}\n',
            encoding="utf-8",
        )
        where = ("--host", str(self._copy / "host.toml"), "--dir", str(self._copy / name))
        self.roles["host"].run("run", "start", "host/manifest.signed.json", *where)


TAMPERINGS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "quote": ("the host changes one bit of the training enclave's quote", _quote),
    "image": ("the storage changes one bit of hospital-a's sealed data", _image),
    "manifest": ("the host adds a release of the model to the lab after everybody signed", _manifest),
    "key": ("somebody puts their own encryption key in place of the training enclave's", _key),
    "worker": ("one of the three workers changes one number of one answer, in a run of the same manifest", _worker),
    "log": ("the key manager's operator drops the release to 'train' from the log", _log),
    "ledger": ("the host makes the account of the private training smaller in its receipt", _ledger),
    "budget": ("the host starts the agreed training again, until each patient's budget is spent", _budget),
}
"""By name: what happens, and the act. The last two need a private demo."""

_PRIVATE = ("ledger", "budget")
