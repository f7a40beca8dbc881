"""``cloister party``: identities and pins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home, PassphraseFile, passphrase_from
from cloister.cli._voice import Json, note, show
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.party import PublicIdentity

__all__ = ["register"]

_party = typer.Typer(name="party", help="Make your identity; pin your partners'.", no_args_is_help=True)
_MAX_PUBLIC_BYTES = 16 * 1024


@_party.command()
def init(
    name: Annotated[str, typer.Argument(help="lower-case letters and digits, joined by - or .")],
    post_quantum: Annotated[
        bool, typer.Option("--post-quantum", help="hybrid ML-KEM-768 + X25519 for what is sealed to you (longer keys)")
    ] = False,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make an identity: NAME.key (encrypted, stays here) and NAME.pub (send it to your partners)."""
    from cloister.party import Identity, home_folder

    identity = Identity.generate(name, post_quantum=post_quantum)
    passphrase = passphrase_from(passphrase_file, prompt=f"new passphrase for {name}", twice=True)
    key_path = identity.save(home_folder(home), passphrase)
    facts = _facts(identity.public) | {"key_file": str(key_path), "public_file": str(key_path.with_suffix(".pub"))}
    text = (
        f"identity     {facts['name']}\n"
        f"fingerprint  {facts['fingerprint']}   (read it to your partners by phone)\n"
        f"key file     {facts['key_file']}   (encrypted; keep it, and a copy elsewhere)\n"
        f"public file  {facts['public_file']}   (send it to your partners)"
    )
    show(facts, text, json=json)


@_party.command()
def trust(
    files: Annotated[list[Path], typer.Argument(help="public files that partners sent", metavar="FILE…")],
    fingerprint: Annotated[
        list[str] | None, typer.Option("--fingerprint", help="the words that were read out, one option a file")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Pin partners' identities, once they have read you the words of their fingerprints."""
    from cloister.party import Pins, PublicIdentity, home_folder
    from cloister.wire import read_bounded

    words = list(fingerprint or [])
    if words and len(words) != len(files):
        raise InputError(2018, "one --fingerprint is needed for each file", expected=len(files), got=len(words))
    pins, pinned = Pins(home_folder(home)), []
    for index, path in enumerate(files):
        data = read_bounded(path, max_bytes=_MAX_PUBLIC_BYTES, what="public file")
        public = PublicIdentity.parse(data, what=f"public file '{path}'")
        new = pins.pin(public, words=words[index] if words else _ask_words(public.name))
        pinned.append(_facts(public) | {"new": new})
    lines = [f"{'pinned' if facts['new'] else 'already pinned'}  {facts['name']}" for facts in pinned]
    show({"pinned": pinned}, "\n".join(lines), json=json)


@_party.command(name="list")
def list_(home: Home = None, json: Json = False) -> None:
    """List your identities and the partners you have pinned."""
    from cloister.party import Pins, home_folder

    folder = home_folder(home)
    rows = [_facts(public) | {"kind": "own"} for public in _own(folder).values()]
    rows += [_facts(public) | {"kind": "pinned"} for public in Pins(folder).all().values()]
    width = max((len(row["name"]) for row in rows), default=0)
    text = "\n".join(f"{row['kind']:<6}  {row['name']:<{width}}  {row['fingerprint']}" for row in rows)
    show({"parties": rows}, text or f"no identities in '{folder}'", json=json)


@_party.command(name="show")
def show_(
    name: Annotated[str | None, typer.Argument(help="an own or pinned party; your only identity by default")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show a party's keys and fingerprint."""
    from cloister.party import Pins, home_folder

    folder = home_folder(home)
    own = _own(folder)
    if name is None and len(own) != 1:
        raise InputError(2013, f"which party? there are {len(own)} identities in '{folder}'", expected=", ".join(own))
    chosen = next(iter(own)) if name is None else name
    public = own.get(chosen) or Pins(folder).get(chosen)
    show(_facts(public) | {"kind": "own" if chosen in own else "pinned"}, json=json)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(_party)


def _facts(public: PublicIdentity) -> dict[str, Any]:
    from cloister.party import fingerprint

    return {"name": public.name, "fingerprint": fingerprint(public), "sign": public.sign, "hpke": public.hpke}


def _own(folder: Path) -> dict[str, PublicIdentity]:
    """The public halves beside the key files."""
    from cloister.party import PublicIdentity
    from cloister.wire import read_bounded

    found: dict[str, PublicIdentity] = {}
    for path in sorted(folder.glob("*.key")) if folder.is_dir() else []:
        data = read_bounded(path.with_suffix(".pub"), max_bytes=_MAX_PUBLIC_BYTES, what="public file")
        public = PublicIdentity.parse(data, what=f"public file '{path.with_suffix('.pub')}'")
        found[public.name] = public
    return found


def _ask_words(name: str) -> str:
    """Asks for the words without showing them: shown, they would be compared with themselves."""
    if not sys.stdin.isatty():
        raise InputError(2018, f"nobody is here to type the words that '{name}' reads out")
    note(f"call {name} and ask for the eight words of their fingerprint")
    return str(typer.prompt(f"words of {name}", err=True))
