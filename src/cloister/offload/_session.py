"""How a session with a worker begins: whose it is, and which keys nobody else has.

==  =========  =====================================================================================================
1   enclave    session id (random) ‖ {secret, answer key} sealed by HPKE to the worker's key, which the manifest names
2   worker     {secret} sealed by HPKE to the answer key
3   enclave    first message under the session's keys: the keystreams that this worker may expand
4   worker     first message under the session's keys: what it is ready with
==  =========  =====================================================================================================

Rules:

* The session's two keys come from both secrets and from every byte of steps 1 and 2 (HKDF-SHA256). Only the owner of
  the worker's private key reads the enclave's secret, so only that worker can answer: that is its proof.
* The worker's secret is fresh, so a recorded session that is played to it again opens nothing and repeats no nonce.
* The answer key is drawn for this session and forgotten with it, and is a hybrid one. A worker's private key that is
  stolen, or broken by a quantum computer, opens no session of the past: otherwise "do not collude" would have to hold
  for ever, since a worker's link carries its shares.
* ``info`` of both seals holds version, session id and the worker's name.

An enclave proves nothing about itself: a worker works for whoever reaches it, and sees nothing worth protecting.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field

from cloister.errors import CloisterError, IntegrityError, PeerError
from cloister.offload._frames import KEY_BYTES, Inbound, Outbound, Reading
from cloister.wire import B64, Message, OpeningKey, SealingKey, Secret, canonical, parse_message

__all__ = ["BUSY", "UNOPENED", "VERSION", "Link", "Proposal", "answer", "refusal"]

VERSION = 1
LABEL = "cloister/worker-session/v1"
BUSY, UNOPENED = 1, 2
_MAGIC = b"CLWORKER"
_PREFIX = struct.Struct(">8sHHI")  # magic, version, status, size of what follows
_SESSION_BYTES = 32
_MAX_SETUP_BYTES = 8192  # a hybrid encapsulation has 1.1 kB, a hybrid key 1.7 kB of text
_REFUSALS = {
    BUSY: "it has as many sessions as it may have",
    UNOPENED: "it cannot open what was sealed for it: another key, another name, or changed on the way",
}


class Link(NamedTuple):
    """The two directions of a session, as one side has them."""

    outbound: Outbound
    inbound: Inbound


class _Offer(Message):
    """What the enclave seals to the worker."""

    secret: B64 = Field(min_length=KEY_BYTES, max_length=KEY_BYTES, repr=False)
    answer_to: str


class _Agreed(Message):
    """What the worker seals to the enclave."""

    secret: B64 = Field(min_length=KEY_BYTES, max_length=KEY_BYTES, repr=False)


class Proposal:
    """The enclave's half of a session's beginning.

    Args:
        worker: The worker's name in the manifest.
        key: Its key in the manifest.
    """

    def __init__(self, worker: str, key: SealingKey) -> None:
        self._worker = worker
        self._secret = Secret.random(KEY_BYTES)
        self._answer_key = OpeningKey.generate()
        self._session = Secret.random(_SESSION_BYTES).reveal()
        offer = _Offer(secret=self._secret.reveal(), answer_to=str(self._answer_key.public))
        sealed = key.seal(offer.canonical(), info=_context("offer", self._session, worker))
        self.opening = _prefixed(self._session + sealed)
        """What is sent first."""

    def answered(self) -> Reading[Link]:
        """Reads the worker's answer.

        Raises:
            PeerError: 6702 when it speaks another version; 6703 when it refuses; 6707 when that is no answer at all.
            IntegrityError: 5712 when whoever answered does not have the worker's private key.
        """
        prefix = bytes((yield _PREFIX.size))
        status, size = _parsed(prefix)
        if status or not size:
            raise PeerError(6703, f"the worker '{self._worker}' refuses the session", got=_REFUSALS.get(status))
        body = bytes((yield size))
        try:
            plain = self._answer_key.open(body, info=_context("answer", self._session, self._worker))
            agreed = parse_message(_Agreed, plain, what="worker's answer", secret=True)
        except CloisterError:
            raise IntegrityError(5712, f"whoever answers is not the worker '{self._worker}'") from None
        to_worker, to_enclave = _keys(self._secret, Secret(agreed.secret), self.opening + prefix + body)
        return Link(Outbound(to_worker), Inbound(to_enclave))


def answer(worker: str, key: OpeningKey) -> Reading[tuple[bytes, Link]]:
    """The worker's half: reads an opening; returns what is sent back, and the session.

    Raises:
        PeerError: 6702 when the other side speaks another version; 6707 when that is no opening at all.
        IntegrityError: 5713 when it was not sealed for this worker, or was changed.
    """
    prefix = bytes((yield _PREFIX.size))
    _, size = _parsed(prefix)
    if size <= _SESSION_BYTES:
        raise PeerError(6707, expected=f"more than {_SESSION_BYTES} bytes", got=f"{size} bytes")
    body = bytes((yield size))
    session, sealed = body[:_SESSION_BYTES], body[_SESSION_BYTES:]
    try:
        plain = key.open(sealed, info=_context("offer", session, worker))
        offer = parse_message(_Offer, plain, what="opening", secret=True)
        answer_to = SealingKey.parse(offer.answer_to)
    except CloisterError:
        raise IntegrityError(5713) from None
    secret = Secret.random(KEY_BYTES)
    agreed = _Agreed(secret=secret.reveal())
    said = _prefixed(answer_to.seal(agreed.canonical(), info=_context("answer", session, worker)))
    to_worker, to_enclave = _keys(Secret(offer.secret), secret, prefix + body + said)
    return said, Link(Outbound(to_enclave), Inbound(to_worker))


def refusal(status: int) -> bytes:
    """What a worker sends in place of an answer; it is not authentic, and the enclave takes it for advice only."""
    return _PREFIX.pack(_MAGIC, VERSION, status, 0)


def _prefixed(body: bytes) -> bytes:
    return _PREFIX.pack(_MAGIC, VERSION, 0, len(body)) + body


def _parsed(prefix: bytes) -> tuple[int, int]:
    """Status and size."""
    magic, version, status, size = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise PeerError(6707, "what came is not of a worker's link", expected=_MAGIC.decode())
    if version != VERSION:
        raise PeerError(6702, expected=VERSION, got=version)
    if size > _MAX_SETUP_BYTES:
        raise PeerError(6707, expected=f"at most {_MAX_SETUP_BYTES} bytes", got=f"{size} bytes")
    return status, size


def _context(what: str, session: bytes, worker: str) -> bytes:
    return canonical({"label": LABEL, "what": what, "session": session.hex(), "worker": worker})


def _keys(enclave: Secret, worker: Secret, transcript: bytes) -> tuple[Secret, Secret]:
    """The keys to the worker and to the enclave."""
    hkdf = HKDF(SHA256(), 2 * KEY_BYTES, salt=hashlib.sha256(transcript).digest(), info=LABEL.encode())
    keys = hkdf.derive(enclave.reveal() + worker.reveal())
    return Secret(keys[:KEY_BYTES]), Secret(keys[KEY_BYTES:])
