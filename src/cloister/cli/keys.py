"""``cloister keys``: make and serve a key manager; install, revoke, suspend, unlock; look at its log.

``init`` and ``serve`` only read their options: the process goes on as :mod:`cloister.cli._key_manager`, closed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli._identity import Home, PassphraseFile
from cloister.cli._voice import Json, note, show
from cloister.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloister.keys import KeptHeads, KeyManagerClient
    from cloister.manifest import Manifest, SignedManifest
    from cloister.party import Identity

__all__ = ["register"]

_SIGNED_BYTES = 1 << 20
_ENVELOPE_BYTES = 1 << 16

Store = Annotated[str, typer.Option("--store", help="sqlite:///FILE or postgresql+psycopg://…")]
Site = Annotated[
    Path | None, typer.Option("--site", help="folder of a SIMULATED site; without one, this machine's own TEE")
]
SignedFile = Annotated[Path, typer.Argument(help="the signed manifest")]
AsParty = Annotated[str, typer.Option("--as", help="who you are")]
Name = Annotated[str | None, typer.Option("--name", help="which key manager of the manifest; all of them if left out")]
Urls = Annotated[
    list[str] | None,
    typer.Option("--key-manager", help="NAME=URL, where the manifest has no hint or the host moved it"),
]
AllowSimulated = Annotated[
    bool, typer.Option("--allow-simulated", help="accept SIMULATED evidence: nothing is protected")
]


def init(
    context: typer.Context,
    store: Store,
    site: Site = None,
    admin: Annotated[
        list[Path] | None, typer.Option("--admin", help="public identity of an administrator; several make k of n")
    ] = None,
    threshold: Annotated[int, typer.Option(help="how many administrators unlock it together")] = 1,
    shares_to: Annotated[Path | None, typer.Option(help="folder for the administrators' share files")] = None,
    json: Json = False,
) -> None:
    """Make a key manager: print the signing key and the measurement that manifests name."""
    from cloister.cli._key_manager import InitTask, start

    todo = InitTask(
        administrators=tuple(map(str, admin or ())),
        threshold=threshold,
        shares_to=None if shares_to is None else str(shares_to),
    )
    start(context, todo, store=store, site=site, json=json)


def serve(
    context: typer.Context,
    store: Store,
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT; port 0 takes a free one")] = "127.0.0.1:8420",
    site: Site = None,
    json: Json = False,
) -> None:
    """Serve a key manager until it is told to stop. One that administrators unlock starts locked."""
    from cloister.cli._key_manager import ServeTask, start

    start(context, ServeTask(listen=listen), store=store, site=site, json=json)


def unlock(
    share: Annotated[Path, typer.Argument(help="your share file, from 'keys init'")],
    url: Annotated[str, typer.Option(help="where the locked service listens")],
    as_party: AsParty,
    measurement: Annotated[
        str, typer.Option(help="what the service must run: see 'enclave measure --role key-manager'")
    ],
    simulated_root: Annotated[str | None, typer.Option(help="SHA-256 of the SIMULATED site's root key")] = None,
    tee: Annotated[str, typer.Option(help="tdx or sgx")] = "tdx",
    allow_simulated: AllowSimulated = False,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Give your share of the state key to the locked service, once its evidence is verified."""
    from datetime import UTC, datetime

    from cloister.cli._identity import open_identity
    from cloister.keys import AdministratorShare, KeyManagerClient
    from cloister.keys import unlock as deliver
    from cloister.manifest import Tee
    from cloister.wire import Envelope, VerifyKey, parse_message, read_bounded

    data = read_bounded(share, max_bytes=_ENVELOPE_BYTES, what="share")
    envelope = parse_message(Envelope, data, what="share")
    claimed = parse_message(AdministratorShare, envelope.payload, what="share")
    value = {"type": tee, "measurements": [measurement]} | (
        {"simulated_root": simulated_root} if simulated_root else {}
    )
    wanted = parse_message(Tee, value, what="measurement")
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    with KeyManagerClient(url, VerifyKey.parse(claimed.key_manager)) as client:
        progress = deliver(
            client, envelope, tee=wanted, identity=identity, at=datetime.now(UTC), allow_simulated=allow_simulated
        )
    facts = {"received": progress.received, "threshold": progress.threshold}
    facts["unlocked"] = progress.received >= progress.threshold
    show(facts, json=json)


def install(
    manifest: SignedFile,
    image: Annotated[str, typer.Option(help="the image whose key it is")],
    key_file: Annotated[Path, typer.Option(help="the key file that 'cloister seal' wrote")],
    as_party: AsParty,
    uses: Annotated[
        int | None, typer.Option(help="at most so many releases; the manifest's number if left out")
    ] = None,
    until: Annotated[str | None, typer.Option(help="not after this time, such as 2026-12-31T00:00:00Z")] = None,
    policy: Annotated[Path | None, typer.Option(help="a further condition (secure-key-release grammar, JSON)")] = None,
    allow_simulated: AllowSimulated = False,
    key_manager: Urls = None,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Verify the key manager's evidence, then install an image's key there under your rule."""
    from datetime import UTC, datetime

    from cloister.cli._identity import open_identity
    from cloister.keys import KeyRule, install_key, verify_service
    from cloister.seal import load_image_key
    from cloister.wire import parse_json, parse_message, read_bounded

    signed = _signed(manifest)
    item = signed.manifest.images.get(image)
    if item is None:
        raise InputError(2005, f"the manifest has no image {image!r}", expected=", ".join(signed.manifest.images))
    sealed = load_image_key(key_file)
    if sealed.image != item.id:
        raise InputError(2406, expected=f"image {item.id}", got=f"image {sealed.image}")
    rule: dict[str, Any] = {"uses": item.uses if uses is None else uses, "simulated": allow_simulated}
    if until is not None:
        rule["until"] = until
    if policy is not None:
        rule["policy"] = parse_json(read_bounded(policy, max_bytes=1 << 16, what="policy"), what="policy")
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    _require_known(signed, identity, home)
    client = _client(signed.manifest, item.key_manager, key_manager)
    at = datetime.now(UTC)
    service = verify_service(client, signed.manifest, item.key_manager, at=at, allow_simulated=allow_simulated)
    _heads(home).check(client)
    client.install_manifest(signed)
    said = install_key(
        client,
        service,
        manifest=signed.manifest,
        image=image,
        key=sealed.secret,
        rule=parse_message(KeyRule, rule, what="rule"),
        identity=identity,
    )
    _heads(home).keep(said.receipt.head, client.key)
    if service.verdict.simulated:
        note("SIMULATED: the key manager's evidence is software-signed; its host can read your key")
    facts = {
        "image": image,
        "key_manager": item.key_manager,
        "measurement": service.verdict.value("tee.measurement"),
        "assurance": service.verdict.assurance,
        "entry": said.receipt.index,
        **rule,
    }
    show(facts, json=json)


def revoke(
    manifest: SignedFile,
    image: Annotated[str, typer.Option(help="the image whose key to withdraw")],
    as_party: AsParty,
    key_manager: Urls = None,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Withdraw an image's key: neither it nor what is made of the image is released any more."""
    from datetime import UTC, datetime

    from cloister.cli._identity import open_identity
    from cloister.keys import revoke_image

    signed = _signed(manifest).manifest
    if image not in signed.images:
        raise InputError(2005, f"the manifest has no image {image!r}", expected=", ".join(signed.images))
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    client = _client(signed, signed.images[image].key_manager, key_manager)
    said = revoke_image(client, manifest=signed, image=image, identity=identity, at=datetime.now(UTC))
    _heads(home).keep(said.receipt.head, client.key)
    show({"revoked": image, "entry": said.receipt.index}, json=json)


def suspend(
    manifest: SignedFile,
    as_party: AsParty,
    reason: Annotated[str, typer.Option(help="for the log; every party can read it")] = "",
    name: Name = None,
    key_manager: Urls = None,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Stop a manifest, at every key manager it names. There is no way back but a new manifest."""
    from datetime import UTC, datetime

    from cloister.cli._identity import open_identity
    from cloister.keys import suspend_manifest

    signed = _signed(manifest).manifest
    identity = open_identity(as_party, home=home, passphrase_file=passphrase_file)
    entries: dict[str, int] = {}
    for each in _names(signed, name):
        client = _client(signed, each, key_manager)
        said = suspend_manifest(client, manifest=signed, identity=identity, reason=reason, at=datetime.now(UTC))
        _heads(home).keep(said.receipt.head, client.key)
        entries[each] = said.receipt.index
    show({"suspended": signed.id, "entries": entries}, json=json)


def head(
    manifest: SignedFile,
    out: Annotated[
        Path | None, typer.Option(help="also write the heads and proofs there, for 'audit verify --head'")
    ] = None,
    name: Name = None,
    key_manager: Urls = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Fetch each key manager's tree head, check that it extends the one you kept, and keep it."""
    from cloister.keys import open_head
    from cloister.wire import canonical, write_atomic

    signed = _signed(manifest).manifest
    facts: dict[str, Any] = {}
    gathered: list[Any] = []
    for each in _names(signed, name):
        client = _client(signed, each, key_manager)
        kept = _heads(home).kept(client.key)
        envelope, proof = _heads(home).check(client)
        tree = open_head(envelope, client.key)
        gathered += [item.as_json() for item in (envelope, proof) if item is not None]
        extends = f"extends your head of {kept.size} entries" if kept else "first head: nothing to compare it with"
        facts[each] = {"size": tree.size, "root": tree.root, "at": tree.at, "consistency": extends}
    if out is not None:
        write_atomic(out, canonical(gathered) + b"\n")
    lines = [
        f"{each}  {fact['size']} entries  {fact['root'][:16]}…  {fact['consistency']}" for each, fact in facts.items()
    ]
    show(facts, "\n".join(lines), json=json)


def log(
    manifest: SignedFile,
    run: Annotated[str | None, typer.Option(help="only the entries of this run")] = None,
    select: Annotated[str, typer.Option(help="all, refusals, or account: what an audit of --run counts")] = "all",
    start: Annotated[int, typer.Option(min=0, help="leave out so many at the beginning")] = 0,
    count: Annotated[int | None, typer.Option(min=0, help="show at most so many; all of them if left out")] = None,
    name: Name = None,
    key_manager: Urls = None,
    json: Json = False,
) -> None:
    """Show every decision under a manifest, refusals with their reason, each proven to be in the log."""
    from cloister.keys import open_head

    signed = _signed(manifest).manifest
    facts: dict[str, Any] = {}
    lines: list[str] = []
    for each in _names(signed, name):
        client = _client(signed, each, key_manager)
        head, shown, total = open_head(client.head(), client.key), list[Any](), 0
        for _, page in client.pages(head, manifest=signed.id, run=run, selection=select, start=start, count=count):
            shown += page.entries
            total = page.total
        if start + len(shown) < total:
            note(f"{each}: {total - start - len(shown)} more: go on with --start {start + len(shown)}")
        facts[each] = [{"index": item.index, **item.entry.as_json()} for item in shown]
        lines += [f"{each} {item.index:>5}  {_line(item.entry)}" for item in shown]
    show(facts, "\n".join(lines) or "no entries", json=json)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="Key managers: make, serve, unlock; install, revoke, suspend; heads and log.", no_args_is_help=True
    )
    for command in (init, serve, unlock, install, revoke, suspend, head, log):
        group.command()(command)
    app.add_typer(group, name="keys")


def _line(entry: Any) -> str:
    about = [entry.at, entry.kind]
    what = ("action", "code", "consumer", "stage", "image", "output", "party")
    for field in (*what, "attempt", "sequence", "assurance", "what"):
        value = getattr(entry, field, None)
        if value is not None:
            about.append(str(value))
    return "  ".join(about)


def _signed(path: Path) -> SignedManifest:
    from cloister.manifest import load_signed, require_signed
    from cloister.wire import read_bounded

    signed = load_signed(read_bounded(path, max_bytes=_SIGNED_BYTES, what="signed manifest"))
    require_signed(signed)
    return signed


def _names(manifest: Manifest, name: str | None) -> Iterable[str]:
    if name is None:
        return sorted(manifest.key_managers)
    if name not in manifest.key_managers:
        raise InputError(2005, f"the manifest has no key manager {name!r}", expected=", ".join(manifest.key_managers))
    return [name]


def _client(manifest: Manifest, name: str, urls: list[str] | None) -> KeyManagerClient:
    from cloister.keys import KeyManagerClient
    from cloister.wire import VerifyKey

    given: dict[str, str] = {}
    for text in urls or []:
        known, sign, url = text.partition("=")
        if not sign or not url:
            raise InputError(2005, "not NAME=URL", got=text[:80])
        given[known] = url
    url = given.get(name) or manifest.key_managers[name].url
    if url is None:
        raise InputError(2005, f"where does key manager {name!r} listen?", hint=f"pass --key-manager {name}=URL")
    return KeyManagerClient(url, VerifyKey.parse(manifest.key_managers[name].sign))


def _require_known(signed: SignedManifest, identity: Identity, home: Path | None) -> None:
    """Everybody in the manifest is who was pinned, the owner itself included: before any key is sealed to anybody."""
    from cloister.manifest import require_pinned
    from cloister.party import Pins, home_folder

    require_pinned(signed.manifest, {**Pins(home_folder(home)).all(), identity.name: identity.public})


def _heads(home: Path | None) -> KeptHeads:
    from cloister.keys import KeptHeads
    from cloister.party import home_folder

    return KeptHeads(home_folder(home) / "heads")
