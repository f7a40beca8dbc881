"""What an attacker would do to a finished demo, and the check that notices: security that one can watch."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cloister.demo._roles import Role, Script, Server, free_port
from cloister.errors import CloisterError, InputError, InternalError

__all__ = ["TAMPERINGS", "Caught", "tamper"]


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
        InputError: 2553 when the folder holds no finished demo; 2005 for an unknown kind.
        InternalError: 9001 when nothing noticed.
    """
    if kind not in TAMPERINGS:
        raise InputError(2005, f"no such tampering: {kind!r}", expected=", ".join(TAMPERINGS))
    if not (folder / "demo.json").is_file():
        raise InputError(2553, f"'{folder}' holds no finished demo", hint=f"cloister demo --dir {folder}")
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
    verify_image(str(image), image_id=facts["images"]["hospital-a"]["id"])


def _worker(folder: Path, copy: Path) -> None:
    """The whole run once more, on copies of what changes, with one worker that lies."""
    facts = json.loads((folder / "demo.json").read_bytes())
    shutil.copytree(folder / "keys", copy / "keys")
    (copy / "storage").mkdir()
    script = Script(copy / "commands.txt")
    names = ("keys", "host", *facts["workers"])
    roles = {name: Role(name, copy / name, folder, script) for name in names}
    with ExitStack() as stack:

        def serve(server: Server) -> str:
            stack.callback(server.close)
            return str(server.facts["listen"])

        cheat = next(iter(facts["workers"]))
        addresses = {
            name: serve(
                roles[name].serve_program("cloister.demo._cheat", f"{name}/{name}.key", f"127.0.0.1:{free_port()}")
                if name == cheat
                else roles[name].serve("worker", "serve", "--key", f"{name}/{name}.key", "--listen", "127.0.0.1:0")
            )
            for name in facts["workers"]
        }
        store = f"sqlite:///{copy / 'keys' / 'store.db'}"
        listen = f"127.0.0.1:{free_port()}"
        kept = ("--store", store, "--site", facts["site"]["site"], "--listen", listen)
        stack.callback(roles["keys"].serve("keys", "serve", *kept).close)
        images = "\n".join(
            f'{made["name"]} = "{folder / "storage" / made["name"]}.cloister"' for made in facts["images"].values()
        )
        workers = "\n".join(f'{name} = "tcp://{address}"' for name, address in addresses.items())
        (copy / "host.toml").write_text(
            f'storage = "{copy / "storage"}"\nsite = "{facts["site"]["site"]}"\n[images]\n{images}\n'
            f'[key_managers]\nkeys = "http://{listen}"\n[workers]\n{workers}\n',
            encoding="utf-8",
        )
        where = ("--host", str(copy / "host.toml"), "--dir", str(copy / "run"))
        roles["host"].run("run", "start", "host/manifest.signed.json", *where)


TAMPERINGS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "quote": ("the host changes one bit of the training enclave's quote", _quote),
    "image": ("the storage changes one bit of hospital-a's sealed data", _image),
    "manifest": ("the host adds a release of the model to the lab after everybody signed", _manifest),
    "key": ("somebody puts their own encryption key in place of the training enclave's", _key),
    "worker": ("one of the three workers changes one number of one answer, in a run of the same manifest", _worker),
    "log": ("the key manager's operator drops the release to 'train' from the log", _log),
}
"""By name: what happens, and the act."""
