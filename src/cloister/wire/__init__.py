"""Wire: the bytes that are signed or sent.

Rules:

* What is signed is canonical: RFC 8785 JSON, read back by a strict reader (size first, then depth, then no
  duplicate keys, no floats, no ``NaN``).
* Every signature covers a *label* with a version beside the payload (DSSE's pre-authentication encoding), so a
  signature made for one purpose never verifies for another.
* Every HPKE message is bound to its context by ``info``; there is no message without one.
* Secrets are :class:`Secret`: they have no ``repr``, no ``==``, no pickle, no JSON.

>>> from cloister import wire
>>> wire.canonical({"b": 1, "a": "x"})
b'{"a":"x","b":1}'
>>> key = wire.SigningKey.generate()
>>> signature = key.sign("example/v1", b"payload")
>>> key.public.verify("example/v1", b"payload", signature)
>>> key.public.verify("example/v2", b"payload", signature)
Traceback (most recent call last):
    ...
cloister.errors._tree.IntegrityError: error[CLOISTER-5001]: signature over 'example/v2' does not verify
"""

from cloister.wire._canonical import canonical, digest, labelled_digest, parse_json
from cloister.wire._files import read_bounded, write_atomic, write_private
from cloister.wire._hpke import OpeningKey, SealingKey
from cloister.wire._models import B64, Digest, Message, Name, Timestamp, parse_message, require_format
from cloister.wire._pieces import Pieces, PieceWriter, sealed_length
from cloister.wire._secret import Secret
from cloister.wire._signing import Envelope, SigningKey, VerifyKey, open_envelope, sign_envelope

__all__ = [
    "B64",
    "Digest",
    "Envelope",
    "Message",
    "Name",
    "OpeningKey",
    "PieceWriter",
    "Pieces",
    "SealingKey",
    "Secret",
    "SigningKey",
    "Timestamp",
    "VerifyKey",
    "canonical",
    "digest",
    "labelled_digest",
    "open_envelope",
    "parse_json",
    "parse_message",
    "read_bounded",
    "require_format",
    "sealed_length",
    "sign_envelope",
    "write_atomic",
    "write_private",
]
