"""``cloister manifest``: what the parties agree on, from a first draft to everybody's signature."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home, PassphraseFile, open_identity
from cloister.cli._voice import Json, note, show
from cloister.errors import InputError, RefusedError

if TYPE_CHECKING:
    from cloister.manifest import Draft, Manifest, SignedManifest
    from cloister.party import PublicIdentity

__all__ = ["register"]

_log = logging.getLogger("cloister.cli")

_manifest = typer.Typer(name="manifest", help="Write, review and sign what the parties agree on.", no_args_is_help=True)
_File = Annotated[Path, typer.Argument(help="a manifest in YAML, or a signed manifest", metavar="FILE")]
_Signed = Annotated[Path, typer.Argument(help="what 'manifest propose' wrote", metavar="FILE")]
_Out = Annotated[Path | None, typer.Option("--out", "-o", help="file to write (never overwritten)")]
_MAX_PUBLIC_BYTES = 16 * 1024


@_manifest.command()
def new(
    name: Annotated[str, typer.Argument(help="what the parties call this agreement")],
    party: Annotated[list[str], typer.Option("--party", help="a public file, or the name of a pinned or own identity")],
    out: _Out = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write a commented manifest to start from, with the parties' keys filled in."""
    from datetime import UTC, datetime

    from cloister.manifest import template

    parties = [_public(text, home) for text in party]
    text = template(name, parties=parties, now=datetime.now(UTC))
    if out is None:
        show({"manifest": text}, text, json=json)
        return
    _write_new(out, text.encode())
    show({"file": str(out)}, f"wrote {out}: fill in what says FILL-IN, then 'cloister manifest check {out}'", json=json)


@_manifest.command()
def check(file: _File, json: Json = False) -> None:
    """Check that the parts of a manifest fit each other; name every broken rule with its line."""
    from cloister import manifest as room

    document, draft, _ = _read(file)
    findings = room.check(document)
    _log.info("manifest %s: %d findings", document.id, len(findings))
    where = [draft.at(finding.place) if draft else None for finding in findings]
    if not findings:
        show({"sound": True, "id": document.id, "findings": []}, f"sound: {document.name}, id {document.id}", json=json)
        return
    if not json:
        for finding, place in list(zip(findings, where, strict=True))[1:]:
            note(str(finding.error(where=place)))
        raise findings[0].error(where=where[0])
    rows = [
        {"code": f.code, "place": ".".join(map(str, f.place)), "where": place, "what": f.what}
        for f, place in zip(findings, where, strict=True)
    ]
    show({"sound": False, "id": document.id, "findings": rows}, json=True)
    raise typer.Exit(findings[0].code // 1000)


@_manifest.command()
def review(
    file: _File,
    as_: Annotated[str | None, typer.Option("--as", help="the party whose view is shown")] = None,
    against: Annotated[Path | None, typer.Option(help="another version: say what changed since")] = None,
    json: Json = False,
) -> None:
    """Say in plain language what is read, what leaves to whom, and who is trusted."""
    from cloister import manifest as room

    document, _, signed = _read(file)
    seen = room.review(document, party=as_)
    facts, text = seen.as_json(), seen.text()
    if against is not None:
        changed = room.changes(_read(against)[0], document)
        facts["changes"] = list(changed)
        text += "\n\nCHANGED     " + ("\n            ".join(changed) or "nothing")
    if signed is not None:
        facts |= _consent(signed)
        text += f"\n\nSIGNED      {_signed_line(signed)}"
    show(facts, text, json=json)


@_manifest.command()
def propose(file: _File, out: _Out = None, json: Json = False) -> None:
    """Freeze a manifest for signing: every default written out, one id."""
    from cloister import manifest as room

    document, draft, _ = _read(file)
    for finding in room.check(document):
        raise finding.error(where=draft.at(finding.place) if draft else None)
    signed = room.propose(document)
    target = out or file.with_suffix(".signed.json")
    _write_new(target, signed.canonical() + b"\n")
    signers = sorted(room.required_signers(document))
    text = f"proposed  {document.id}\nfile      {target}\nsigners   {', '.join(signers)}"
    show({"id": document.id, "file": str(target), "required_signers": signers}, text, json=json)


@_manifest.command()
def sign(
    file: _Signed,
    as_: Annotated[str, typer.Option("--as", help="your identity's name")],
    yes: Annotated[bool, typer.Option("--yes", help="you have read the review and consent")] = False,
    passphrase_file: PassphraseFile = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show the review, ask for consent, and add your signature to the file."""
    from cloister import manifest as room
    from cloister.party import Pins, home_folder
    from cloister.wire import write_atomic

    signed = _read_signed(file)
    identity = open_identity(as_, home=home, passphrase_file=passphrase_file)
    room.require_pinned(signed.manifest, {**Pins(home_folder(home)).all(), identity.name: identity.public})
    note(room.review(signed.manifest, party=identity.name).text() + "\n")
    if not yes and not _says_yes(signed):
        raise RefusedError(3307, f"'{identity.name}' did not consent to {signed.manifest.id[:12]}")
    signed = room.sign(signed, identity)
    write_atomic(file, signed.canonical() + b"\n")
    _log.info("manifest %s: signed by %s", signed.manifest.id, identity.name)
    facts = {"id": signed.manifest.id, "file": str(file)} | _consent(signed)
    show(facts, f"signed    {signed.manifest.id}\nby        {_signed_line(signed)}", json=json)


@_manifest.command()
def merge(
    files: Annotated[
        list[Path], typer.Argument(help="copies of one manifest, each with some signatures", metavar="FILE…")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write (never overwritten)")],
    json: Json = False,
) -> None:
    """Gather the signatures of several copies into one file."""
    from cloister import manifest as room

    first, *others = (_read_signed(path) for path in files)
    signed = room.merge(first, *others)
    _write_new(out, signed.canonical() + b"\n")
    facts = {"id": signed.manifest.id, "file": str(out)} | _consent(signed)
    show(facts, f"merged    {signed.manifest.id}\nby        {_signed_line(signed)}", json=json)


@_manifest.command(name="show")
def show_(file: _File, json: Json = False) -> None:
    """Show a manifest's id, its normal form, and who has signed."""
    import json as jsonlib

    from cloister import manifest as room

    document, _, signed = _read(file)
    room.require_sound(document)
    facts: dict[str, Any] = {"id": document.id, "name": document.name, "manifest": document.as_json()}
    text = jsonlib.dumps(document.as_json(), indent=2, ensure_ascii=False) + f"\n\nid        {document.id}"
    if signed is not None:
        facts |= _consent(signed)
        text += f"\nsigned    {_signed_line(signed)}"
    show(facts, text, json=json)


@_manifest.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="the fields as tables to read")] = False,
    json: Json = False,
) -> None:
    """Print the JSON Schema of a manifest, for editors."""
    from cloister import manifest as room

    if markdown:
        show({"markdown": room.reference()}, room.reference(), json=json)
    else:
        show(room.schema(), json=True)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(_manifest)


def _read(path: Path) -> tuple[Manifest, Draft | None, SignedManifest | None]:
    """A manifest from YAML (with its places) or from a signed manifest."""
    from cloister import manifest as room
    from cloister.wire import read_bounded

    data = read_bounded(path, max_bytes=room.MAX_SIGNED_BYTES, what="manifest")
    if data.lstrip().startswith(b"{") and b'"cloister/signed-manifest/' in data:
        signed = room.load_signed(data, what=f"'{path}'")
        return signed.manifest, None, signed
    draft = room.load_draft(data, what=path.name)
    return draft.manifest, draft, None


def _read_signed(path: Path) -> SignedManifest:
    from cloister import manifest as room
    from cloister.wire import read_bounded

    data = read_bounded(path, max_bytes=room.MAX_SIGNED_BYTES, what="signed manifest")
    return room.load_signed(data, what=f"'{path}'")


def _public(text: str, home: Path | None) -> PublicIdentity:
    """A public file, or a name: pinned, else one's own. A file must not contradict a pin."""
    from cloister.party import Pins, PublicIdentity, home_folder
    from cloister.wire import read_bounded

    folder = home_folder(home)
    pins = Pins(folder).all()
    own = folder / f"{text}.pub"
    if not text.endswith(".pub") and text in pins:
        return pins[text]
    path = Path(text) if text.endswith(".pub") else own
    if not path.is_file():
        raise InputError(2013, f"neither a public file nor a pinned or own party: {text!r}")
    data = read_bounded(path, max_bytes=_MAX_PUBLIC_BYTES, what="public file")
    public = PublicIdentity.parse(data, what=f"public file '{path}'")
    pinned = pins.get(public.name)
    if pinned is not None and not pinned.same_keys(sign=public.sign, hpke=public.hpke):
        raise RefusedError(3001, f"'{public.name}' is pinned to other keys than '{path}' holds")
    if pinned is None and path != own:
        note(
            f"'{public.name}' is not pinned: compare the fingerprint with 'cloister party trust {path}' before you sign"
        )
    return public


def _consent(signed: SignedManifest) -> dict[str, Any]:
    """Who has signed, who has yet to."""
    from cloister import manifest as room

    signers = room.verify_signatures(signed)
    return {"signed_by": sorted(signers), "missing": sorted(room.required_signers(signed.manifest) - signers.keys())}


def _signed_line(signed: SignedManifest) -> str:
    consent = _consent(signed)
    missing = f"; still needed: {', '.join(consent['missing'])}" if consent["missing"] else "; complete"
    return (", ".join(consent["signed_by"]) or "nobody yet") + missing


def _says_yes(signed: SignedManifest) -> bool:
    if not sys.stdin.isatty():
        return False
    question = f"type 'yes' to sign {signed.manifest.id[:12]}"
    return str(typer.prompt(question, err=True)).strip() == "yes"


def _write_new(path: Path, data: bytes) -> None:
    from cloister.wire import write_atomic

    if path.exists():
        raise InputError(
            2007, f"the file is already there: '{path}'", hint="choose another name, or remove it yourself"
        )
    try:
        write_atomic(path, data)
    except OSError as error:
        raise InputError(2001, f"cannot write: {error.strerror}: '{path}'") from error
