"""The first two messages of a session: that all hold the same agreement and plan, and what they call the session.

Each sends a version, two digests and a fresh nonce; then its signature over the session's name, a hash of everything in
it and of all nonces in order. Whoever told two parties different nonces cannot sign what both of them check.
"""

from __future__ import annotations

import hmac
import secrets
import struct

from cloister.errors import IntegrityError, PeerError
from cloister.linear._agreement import Agreement
from cloister.linear._bounds import bound
from cloister.linear._channel import Channel
from cloister.linear._plan import Plan, constants
from cloister.linear._transcript import labelled
from cloister.party import Identity
from cloister.wire import VerifyKey, labelled_digest

__all__ = ["PROTOCOL_VERSION", "SESSION_LABEL", "greet", "plan_digest"]

PROTOCOL_VERSION = 1
SESSION_LABEL = "cloister/linear-session/v1"
_PLAN_LABEL = "cloister/linear-plan/v1"
_HELLO = struct.Struct(">I32s32s32s")
_SIGNATURE_BYTES = 64


def greet(channel: Channel, agreement: Agreement, identity: Identity) -> bytes:
    """What all parties call this session, 32 bytes, once each has signed it.

    Raises:
        PeerError: 6904 when a peer runs another version or follows another plan; 6907 when it holds another agreement;
            and as the channel has it.
        IntegrityError: 5909 when a peer's signature is not over the nonces that came here.
    """
    own_digest, own_plan = bytes.fromhex(agreement.id), plan_digest(*agreement.plans(), fits=agreement.fits)
    own = _HELLO.pack(PROTOCOL_VERSION, own_digest, own_plan, secrets.token_bytes(32))
    nonces: list[bytes] = []
    for party, said in zip(agreement.parties, channel.swap("hello", [own] * channel.parties, _HELLO.size), strict=True):
        version, digest, plan, nonce = _HELLO.unpack(said)
        if version != PROTOCOL_VERSION:
            what = f"'{party.name}' speaks another version of the protocol"
            raise PeerError(6904, what, expected=PROTOCOL_VERSION, got=version)
        if not hmac.compare_digest(digest, own_digest):
            what = f"'{party.name}' holds another agreement"
            raise PeerError(6907, what, expected=agreement.id, got=digest.hex())
        if not hmac.compare_digest(plan, own_plan):
            raise PeerError(6904, f"'{party.name}' follows another plan", expected=own_plan.hex(), got=plan.hex())
        nonces.append(nonce)
    session = labelled("session", PROTOCOL_VERSION, own_digest, own_plan, *nonces)
    signed = identity.signing_key.sign(SESSION_LABEL, session)
    for party, signature in zip(
        agreement.parties, channel.swap("hello signature", [signed] * channel.parties, _SIGNATURE_BYTES), strict=True
    ):
        try:
            VerifyKey.parse(party.key).verify(SESSION_LABEL, session, signature)
        except IntegrityError:
            raise IntegrityError(5909, f"'{party.name}' did not sign the nonces that came here") from None
    return session


def plan_digest(*plans: Plan, fits: int = 1) -> bytes:
    """Of what plans of a session of so many fits say and of the integers that follow from them, 32 bytes."""
    return bytes.fromhex(labelled_digest(_PLAN_LABEL, [_said(plan, fits) for plan in plans]))


def _said(plan: Plan, fits: int) -> dict[str, object]:
    made = constants(plan)
    said = {name: _text(getattr(plan, name)) for name in Plan.__slots__}
    derived = {name: _text(getattr(made, name)) for name in type(made).__slots__}
    return {"plan": said, "constants": derived, "level": bound(plan, fits=fits).level}


def _text(value: object) -> object:
    """Fractions and large integers as text: canonical JSON has neither."""
    return [_text(item) for item in value] if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownVariableType]
