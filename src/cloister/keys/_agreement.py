"""Decisions of the parties: install a manifest, install a key, suspend, revoke."""

from __future__ import annotations

from typing import TypeVar

from cloister.attest import parse_policy
from cloister.errors import IntegrityError, RefusedError
from cloister.keys._binding import install_info
from cloister.keys._budgets import book_of
from cloister.keys._context import Context, Outcome, Prepared
from cloister.keys._entries import KeyEntry, ManifestEntry, ReleaseEntry, RevocationEntry, SuspensionEntry
from cloister.keys._messages import (
    Acknowledged,
    Checkpoint,
    KeyInstall,
    LogReceipt,
    Registration,
    Revocation,
    S,
    Suspension,
    open_signed,
)
from cloister.keys._plan import Agreement
from cloister.keys._state import key_id
from cloister.manifest import Image, Manifest, SignedManifest, require_signed
from cloister.wire import Envelope, Secret, VerifyKey, canonical, digest, parse_message

__all__ = ["attested", "install_key", "install_manifest", "peek", "revoke", "signed_by", "suspend"]

A = TypeVar("A", Registration, Checkpoint)

KEY_BYTES = 64  # AES-XTS-512, the cipher of sealed images


def peek(cls: type[S], envelope: Envelope) -> S:
    """The payload *before* its signature is checked, only to learn whose signature it needs.

    Raises:
        InputError: 2002, 2003, 2005 when it is not a ``cls``.
    """
    return parse_message(cls, envelope.payload, what=cls.LABEL, max_bytes=1 << 20)


def signed_by(cls: type[S], envelope: Envelope, manifest: Manifest, party: str) -> S:
    if party not in manifest.parties:
        raise RefusedError(3406, f"the manifest has no party {party!r}")
    try:
        return open_signed(cls, envelope, VerifyKey.parse(manifest.parties[party].sign))
    except IntegrityError as error:
        raise RefusedError(3406, f"not signed by party {party!r}: {error.what}") from None


def attested(cls: type[A], envelope: Envelope, source: ReleaseEntry) -> A:
    """What the launcher that keys were released to has signed.

    Raises:
        IntegrityError: 5401 when another key signed it, or it is of other claims.
    """
    try:
        said = open_signed(cls, envelope, VerifyKey.parse(source.sign))
    except IntegrityError as error:
        raise IntegrityError(5401, expected=f"the attested key {source.sign}", got=error.what) from None
    if said.claims != source.claims:
        what = f"the {cls.__name__.lower()} is of other claims"
        raise IntegrityError(5401, what, expected=source.claims, got=said.claims)
    return said


def _acknowledge(ctx: Context, manifest: str, receipt: LogReceipt) -> Acknowledged:
    return Acknowledged(key_manager=ctx.me, manifest=manifest, receipt=receipt)


def install_manifest(ctx: Context, prepared: Prepared[SignedManifest]) -> Outcome:
    """Takes note of an agreement that every required party signed and that names this key manager."""
    signed = prepared.body
    manifest, manifest_id = signed.manifest, signed.manifest.id
    with ctx.trace.rule("every required party signed"):
        require_signed(signed)
    with ctx.trace.rule("the manifest names this key manager"):
        names = [name for name, manager in manifest.key_managers.items() if manager.sign == ctx.me]
        if len(names) != 1:
            raise RefusedError(3405, expected=f"one key manager with the key {ctx.me}", got=f"{len(names)}")
    with ctx.trace.rule("the manifest is not suspended"):
        if manifest_id in ctx.state.suspended:
            raise RefusedError(3404, f"party {ctx.state.suspended[manifest_id]!r} suspended this manifest")
    with ctx.trace.rule("the manifest has not ended"):
        if manifest.valid.not_after < ctx.at:
            raise RefusedError(3403, expected=f"until {manifest.valid.not_after}", got=ctx.at)
    with ctx.trace.rule("its parts can be planned"):
        Agreement.of(manifest, name=names[0])

    def reply(receipt: LogReceipt) -> Acknowledged:
        return _acknowledge(ctx, manifest_id, receipt)

    old = ctx.state.manifest_entries.get(manifest_id)
    if old is not None:
        return Outcome(reply, old=old)
    return Outcome(reply, ManifestEntry(at=ctx.at, manifest=manifest_id, name=names[0], signed=signed))


def install_key(ctx: Context, prepared: Prepared[Envelope]) -> Outcome:
    """Stores an owner's key for one image, under the owner's rule."""
    envelope = prepared.body
    claimed = peek(KeyInstall, envelope)
    agreement = ctx.agreement(claimed.manifest)
    with ctx.trace.rule("the image's key belongs here"):
        image = agreement.manifest.images.get(claimed.image)
        if image is None or image.key_manager != agreement.name:
            raise RefusedError(3405, f"the manifest keeps no key of image {claimed.image!r} here")
    with ctx.trace.rule("signed by the image's owner"):
        install = signed_by(KeyInstall, envelope, agreement.manifest, image.owner)
    with ctx.trace.rule("not revoked"):
        if (install.manifest, install.image) in ctx.state.revoked:
            raise RefusedError(3410, f"the owner revoked image {install.image!r}", hint="agree on a new manifest")
    with ctx.trace.rule("the rule is within the manifest's terms"):
        _require_within(install, image)
        if install.rule.policy is not None:
            parse_policy(canonical(install.rule.policy))  # as bytes, so that its size is bounded too
    with ctx.trace.rule("the image's privacy budget is the one that is counted"):
        book_of(ctx.state.books, agreement.manifest, install.image)
    with ctx.trace.rule("the key opens"):
        info = install_info(manifest=install.manifest, image=install.image, owner=image.owner)
        key = Secret(ctx.opening.open(install.sealed, info=info))
        if len(key) != KEY_BYTES:
            raise RefusedError(3406, "not a key for a sealed image", expected=f"{KEY_BYTES} bytes", got=f"{len(key)}")

    def reply(receipt: LogReceipt) -> Acknowledged:
        return _acknowledge(ctx, install.manifest, receipt)

    secret_id = key_id(install.manifest, install.image)
    old = ctx.state.installed.get((install.manifest, install.image))
    if old is not None:
        with ctx.trace.rule("installed once"):
            # The same key and rule again is an owner whose first answer was lost; anything else would replace a rule.
            if old.rule != install.rule or not ctx.secrets[secret_id].matches(key):
                raise RefusedError(3407, f"image {install.image!r} has another key or rule already")
        return Outcome(reply, old=(old.index, old.entry))
    entry = KeyEntry(
        at=ctx.at,
        manifest=install.manifest,
        image=install.image,
        owner=image.owner,
        rule=install.rule,
        statement=digest(envelope.payload),
    )
    return Outcome(reply, entry, put={secret_id: key})


def _require_within(install: KeyInstall, image: Image) -> None:
    rule = install.rule
    if rule.uses > image.uses:
        raise RefusedError(3408, expected=f"at most {image.uses} uses", got=rule.uses)
    if image.until is not None and (rule.until or image.until) > image.until:
        raise RefusedError(3408, expected=f"until {image.until}", got=rule.until)


def suspend(ctx: Context, prepared: Prepared[Envelope]) -> Outcome:
    """Stops a manifest for good, at the word of any of its parties."""
    envelope = prepared.body
    claimed = peek(Suspension, envelope)
    with ctx.trace.rule("the manifest is installed"):
        agreement = ctx.state.agreements.get(claimed.manifest)
        if agreement is None:
            raise RefusedError(3401, "this manifest is not installed here", got=claimed.manifest)
    with ctx.trace.rule("signed by a party"):
        stop = signed_by(Suspension, envelope, agreement.manifest, claimed.party)
    entry = SuspensionEntry(
        at=ctx.at, manifest=stop.manifest, party=stop.party, reason=stop.reason, statement=digest(envelope.payload)
    )
    old = ctx.state.statements.get(entry.statement)

    def reply(receipt: LogReceipt) -> Acknowledged:
        return _acknowledge(ctx, stop.manifest, receipt)

    return Outcome(reply, old=old) if old is not None else Outcome(reply, entry)


def revoke(ctx: Context, prepared: Prepared[Envelope]) -> Outcome:
    """Withdraws an image's key, at its owner's word, and erases it."""
    envelope = prepared.body
    claimed = peek(Revocation, envelope)
    with ctx.trace.rule("the manifest is installed"):
        agreement = ctx.state.agreements.get(claimed.manifest)
        if agreement is None:
            raise RefusedError(3401, "this manifest is not installed here", got=claimed.manifest)
    with ctx.trace.rule("the image's key belongs here"):
        image = agreement.manifest.images.get(claimed.image)
        if image is None or image.key_manager != agreement.name:
            raise RefusedError(3405, f"the manifest keeps no key of image {claimed.image!r} here")
    with ctx.trace.rule("signed by the image's owner"):
        stop = signed_by(Revocation, envelope, agreement.manifest, image.owner)
    entry = RevocationEntry(
        at=ctx.at, manifest=stop.manifest, image=stop.image, owner=image.owner, statement=digest(envelope.payload)
    )
    old = ctx.state.statements.get(entry.statement)

    def reply(receipt: LogReceipt) -> Acknowledged:
        return _acknowledge(ctx, stop.manifest, receipt)

    if old is not None:
        return Outcome(reply, old=old)
    held = (stop.manifest, stop.image) in ctx.state.installed
    return Outcome(reply, entry, erase=(key_id(stop.manifest, stop.image),) if held else ())
