"""Consent: who signed exactly this manifest, and who has yet to.

A signature is ed25519 over ``MANIFEST_LABEL`` and the raw 32 bytes of the manifest's id. A signed manifest travels in
its normal form, every default written out: a field that could be left out could be left out after signing.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.errors import InputError, IntegrityError, RefusedError
from cloister.manifest._checks import require_sound
from cloister.manifest._graph import required_signers
from cloister.manifest._model import MANIFEST_LABEL, SIGNED_FORMAT, Manifest, Party, SignedManifest
from cloister.party import Identity, PublicIdentity
from cloister.wire import VerifyKey, canonical, parse_json, parse_message, require_format

__all__ = [
    "MAX_SIGNED_BYTES",
    "load_signed",
    "merge",
    "propose",
    "require_pinned",
    "require_signed",
    "sign",
    "verify_signatures",
]

MAX_SIGNED_BYTES = 1 << 20  # twice what a written manifest may hold: defaults are spelt out


def load_signed(data: bytes, *, what: str = "signed manifest") -> SignedManifest:
    """A signed manifest from its bytes. Neither its rules nor its signatures are checked here (``require_signed``).

    Raises:
        InputError: 2002, 2003, 2005 when it is not one; 2004 when its format is unknown.
        IntegrityError: 5303 when it is not in normal form.
    """
    value = parse_json(data, what=what, max_bytes=MAX_SIGNED_BYTES)
    require_format(value, SIGNED_FORMAT, what=what)
    signed = parse_message(SignedManifest, value, what=what, max_bytes=MAX_SIGNED_BYTES)
    if signed.canonical() != canonical(value):
        raise IntegrityError(5303, f"{what} leaves out fields that its id covers, or writes them in another form")
    return signed


def propose(manifest: Manifest) -> SignedManifest:
    """The manifest, frozen, ready to be signed.

    Raises:
        CloisterError: a rule is broken; the code is the rule's.
    """
    require_sound(manifest)
    return SignedManifest(manifest=manifest)


def sign(signed: SignedManifest, identity: Identity) -> SignedManifest:
    """``signed`` with the identity's signature added.

    Raises:
        CloisterError: the manifest breaks a rule, or a signature that is there does not verify.
        RefusedError: 3305 when the manifest does not name this identity with these keys.
    """
    require_sound(signed.manifest)
    verify_signatures(signed)
    public = identity.public
    party = signed.manifest.parties.get(public.name)
    if party is None or not public.same_keys(sign=party.sign, hpke=party.hpke):
        got = "no such party" if party is None else party.sign
        raise RefusedError(
            3305, f"the manifest does not name '{public.name}' with its keys", expected=public.sign, got=got
        )
    signature = identity.signing_key.sign(MANIFEST_LABEL, _payload(signed.manifest))
    return signed.model_copy(update={"signatures": dict(sorted({**signed.signatures, public.name: signature}.items()))})


def verify_signatures(signed: SignedManifest) -> dict[str, Party]:
    """The parties who signed, by name. One bad signature spoils the file: nobody adds one by mistake.

    Raises:
        IntegrityError: 5302 a signature of somebody who is no party; 5301 one that is not the named party's over
            this manifest.
        InputError: 2005 a party's key is not one (``require_sound`` says so first).
    """
    payload, verified = _payload(signed.manifest), dict[str, Party]()
    for name, signature in signed.signatures.items():
        party = signed.manifest.parties.get(name)
        if party is None:
            raise IntegrityError(5302, f"'{name}' signed, but is no party of manifest {signed.manifest.id[:12]}")
        try:
            VerifyKey.parse(party.sign).verify(MANIFEST_LABEL, payload, signature)
        except IntegrityError:
            why = f"the signature of '{name}' is not over this manifest"
            raise IntegrityError(5301, why, expected=f"id {signed.manifest.id} signed by {party.sign}") from None
        verified[name] = party
    return verified


def require_signed(signed: SignedManifest) -> dict[str, Party]:
    """The parties who signed, once the manifest is sound and every owner of what is read is among them.

    This is the one question to ask before acting on a manifest.

    Raises:
        CloisterError: the manifest breaks a rule; the code is the rule's.
        IntegrityError: 5301, 5302 as :func:`verify_signatures`.
        RefusedError: 3301 when a required signature is missing.
    """
    require_sound(signed.manifest)
    signers = verify_signatures(signed)
    missing = sorted(required_signers(signed.manifest) - signers.keys())
    if missing:
        raise RefusedError(
            3301, f"not signed by {', '.join(missing)}", expected=f"signatures over {signed.manifest.id}"
        )
    return signers


def merge(first: SignedManifest, *others: SignedManifest) -> SignedManifest:
    """One file with the signatures of all.

    Raises:
        InputError: 2331 when they hold different manifests.
        IntegrityError: 5301, 5302 when a signature does not verify.
    """
    signatures: dict[str, bytes] = {}
    for signed in (first, *others):
        if signed.manifest.id != first.manifest.id:
            raise InputError(
                2331, "the files hold different manifests", expected=first.manifest.id, got=signed.manifest.id
            )
        verify_signatures(signed)
        signatures.update(signed.signatures)
    return first.model_copy(update={"signatures": dict(sorted(signatures.items()))})


def require_pinned(manifest: Manifest, pinned: Mapping[str, PublicIdentity]) -> None:
    """Returns when every party is pinned with exactly the keys that the manifest gives it.

    Raises:
        RefusedError: 3303 when a party is not pinned; 3302 when its keys are not the pinned ones.
    """
    for name, party in manifest.parties.items():
        public = pinned.get(name)
        if public is None:
            raise RefusedError(3303, f"'{name}' is not pinned: its keys in the manifest may be anybody's")
        if not public.same_keys(sign=party.sign, hpke=party.hpke):
            raise RefusedError(
                3302, f"the keys of '{name}' are not the pinned ones", expected=public.sign, got=party.sign
            )


def _payload(manifest: Manifest) -> bytes:
    return bytes.fromhex(manifest.id)
