"""Who signed exactly this agreement: a DSSE envelope around its canonical bytes, with a signature of each party.

It is run only when *every* party has signed: each learns the result, and each could be the one that cheats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cloister.errors import InputError, IntegrityError, RefusedError
from cloister.linear._agreement import AGREEMENT_LABEL, Agreement
from cloister.linear._sound import require_sound
from cloister.manifest._yaml import MAX_YAML_BYTES, parse_yaml
from cloister.party import Identity, PublicIdentity
from cloister.wire import Envelope, VerifyKey, canonical, open_envelope, parse_message, read_bounded, sign_envelope

__all__ = [
    "MAX_BYTES",
    "Signed",
    "load_agreement",
    "load_signed",
    "merge",
    "propose",
    "require_in_force",
    "require_pinned",
    "require_signed",
    "sign",
]

MAX_BYTES = 2 << 20  # base64 of a written agreement, and its signatures
_ASK = "ask them to run 'cloister linear sign', and join the copies with it"


class Signed:
    """An agreement as it travels, with the signatures gathered so far, each of them verified.

    Args:
        envelope: Whose payload is canonical.
        agreement: What the payload says.

    Raises:
        IntegrityError: 5302 when somebody signed who is no party, 5301 when a signature does not verify.
    """

    def __init__(self, envelope: Envelope, agreement: Agreement) -> None:
        self.envelope, self.agreement = envelope, agreement
        self.signers = _verified(envelope, agreement)

    @property
    def missing(self) -> tuple[str, ...]:
        """Parties who have yet to sign, in their order."""
        return tuple(party.name for party in self.agreement.parties if party.name not in self.signers)

    def canonical(self) -> bytes:
        """The bytes of the file."""
        return self.envelope.canonical()


def load_agreement(source: bytes | str | Path, *, what: str | None = None) -> Agreement:
    """The agreement written in YAML 1.2 or JSON; its parts are not yet held against each other.

    Args:
        source: The bytes, or the path of a file.
        what: The name for messages; the path by default.

    Raises:
        InputError: 2001 unreadable; 2003 too large; 23xx not the part of YAML that is read here; 2005 a field is
            missing, unknown or of the wrong type, with its line.
    """
    if isinstance(source, bytes):
        data, name = source, what or "agreement"
    else:
        data, name = read_bounded(source, max_bytes=MAX_YAML_BYTES, what="agreement"), what or Path(source).name
    tree = parse_yaml(data, what=name)
    _require_filled_in(data, name)
    try:
        return Agreement.model_validate_json(canonical(tree.value))
    except ValidationError as error:
        first: Any = min(error.errors(include_url=False), key=lambda one: tree.mark(one["loc"]))
        place = tuple(part for part in first["loc"] if part not in _KINDS)
        dotted = ".".join(str(part) for part in place) or "the whole"
        message = str(first["msg"]).removeprefix("Value error, ").lower()
        got = ascii(first.get("input"))[:80]
        raise InputError(2005, f"{tree.at(place)}: {dotted}: {message}", got=got, hint="see docs/linear.md") from None


def _require_filled_in(data: bytes, name: str) -> None:
    for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
        if _UNFILLED in line.partition("#")[0]:
            raise InputError(2005, f"{name}, line {number} still says {_UNFILLED}", expected="what is yours to say")


def load_signed(data: bytes, *, what: str = "signed agreement") -> Signed:
    """A signed agreement from its bytes.

    Raises:
        InputError: 2002, 2003, 2005 when it is none.
        IntegrityError: 5303 when its payload is not in normal form; 5301, 5302 as :class:`Signed`.
    """
    envelope = parse_message(Envelope, data, what=what, max_bytes=MAX_BYTES)
    if envelope.payloadType != AGREEMENT_LABEL:
        raise InputError(2005, f"{what} is something else", expected=AGREEMENT_LABEL, got=envelope.payloadType[:80])
    agreement = parse_message(Agreement, envelope.payload, what=what, max_bytes=MAX_YAML_BYTES)
    if agreement.canonical() != envelope.payload:
        raise IntegrityError(5303, f"{what} leaves out fields that its id covers, or writes them in another form")
    return Signed(envelope, agreement)


def propose(agreement: Agreement) -> Signed:
    """The agreement, frozen, ready to be signed; raises as :func:`cloister.linear._sound.require_sound`."""
    require_sound(agreement)
    return Signed(Envelope(payloadType=AGREEMENT_LABEL, payload=agreement.canonical(), signatures=()), agreement)


def sign(signed: Signed, identity: Identity) -> Signed:
    """``signed`` with the identity's signature.

    Raises:
        CloisterError: as :func:`cloister.linear._sound.require_sound`.
        RefusedError: 3305 when the agreement does not name this identity with its key.
    """
    require_sound(signed.agreement)
    key = str(identity.signing_key.public)
    party = next((one for one in signed.agreement.parties if one.name == identity.name), None)
    if party is None or party.key != key:
        what = f"the agreement does not name '{identity.name}' with its key"
        raise RefusedError(3305, what, expected=key, got=party.key if party else "no such party")
    return _joined(signed, sign_envelope(AGREEMENT_LABEL, signed.agreement.as_json(), identity.signing_key))


def merge(first: Signed, *others: Signed) -> Signed:
    """One with the signatures of all; raises 2331 when they hold different agreements."""
    for other in others:
        if other.agreement.id != first.agreement.id:
            what = "the files hold different agreements"
            raise InputError(2331, what, expected=first.agreement.id, got=other.agreement.id)
        first = _joined(first, other.envelope)
    return first


def require_signed(signed: Signed) -> Agreement:
    """The agreement, sound and signed by every party: the question to ask before acting on it.

    Raises:
        CloisterError: as :func:`cloister.linear._sound.require_sound`.
        RefusedError: 3301 when a signature is missing; 3903 when that agreement is a semi-honest one.
    """
    require_sound(signed.agreement)
    if signed.missing:
        who, id_ = ", ".join(signed.missing), signed.agreement.id
        if not signed.agreement.malicious:
            raise RefusedError(
                3903, f"no consent to semi-honest computation by {who}", expected=f"signatures over {id_}"
            )
        raise RefusedError(3301, f"not signed by {who}", expected=f"signatures over {id_}", hint=_ASK)
    return signed.agreement


def require_pinned(agreement: Agreement, pinned: Mapping[str, PublicIdentity]) -> None:
    """Returns when every party is pinned with the key that the agreement gives it.

    Raises:
        RefusedError: 3303 when a party is not pinned; 3302 when its key is not the pinned one.
    """
    for party in agreement.parties:
        public = pinned.get(party.name)
        if public is None:
            raise RefusedError(3303, f"'{party.name}' is not pinned: its key in the agreement may be anybody's")
        if public.sign != party.key:
            what = f"the key of '{party.name}' is not the pinned one"
            raise RefusedError(3302, what, expected=public.sign, got=party.key)


def require_in_force(agreement: Agreement, *, at: str) -> None:
    """Raises 3403 when ``at``, a timestamp, is outside the agreement's validity."""
    valid = agreement.valid
    if not valid.not_before <= at <= valid.not_after:
        expected = f"{valid.not_before} to {valid.not_after}"
        raise RefusedError(3403, "the agreement is not in force", expected=expected, got=at, hint="agree anew")


_UNFILLED = "FILL-IN"
_KINDS = ("ridge", "lasso", "elastic-net", "logistic", "statistics")  # pydantic's places name a union's member


def _joined(signed: Signed, envelope: Envelope) -> Signed:
    known = {signature.keyid for signature in signed.envelope.signatures}
    fresh = tuple(one for one in envelope.signatures if one.keyid not in known)
    order = {VerifyKey.parse(party.key).id: number for number, party in enumerate(signed.agreement.parties)}
    every = sorted((*signed.envelope.signatures, *fresh), key=lambda one: order.get(one.keyid, len(order)))
    return Signed(signed.envelope.model_copy(update={"signatures": tuple(every)}), signed.agreement)


def _verified(envelope: Envelope, agreement: Agreement) -> frozenset[str]:
    """The parties who signed, by name. One bad signature spoils the file: nobody adds one by mistake."""
    keys = {VerifyKey.parse(party.key).id: party for party in agreement.parties}
    signers: set[str] = set()
    for signature in envelope.signatures:
        party = keys.get(signature.keyid)
        if party is None or party.name in signers:
            raise IntegrityError(5302, "somebody signed who is no party, or twice", got=signature.keyid[:80])
        one = envelope.model_copy(update={"signatures": (signature,)})
        try:
            open_envelope(one, AGREEMENT_LABEL, VerifyKey.parse(party.key))
        except IntegrityError:
            what = f"the signature of '{party.name}' is not over this agreement"
            raise IntegrityError(5301, what, expected=f"id {agreement.id} signed by {party.key}") from None
        signers.add(party.name)
    return frozenset(signers)
