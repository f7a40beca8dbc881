"""The LUKS2 header: written once, compared byte for byte, read only after it is authenticated.

Two copies of 16 KiB (binary header and JSON), no keyslots, one segment, one PBKDF2 digest of the volume key.
The volume key is the only key: nothing in the file opens under a passphrase.

Source: LUKS2 On-Disk Format Specification 1.1.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import struct
import uuid
from typing import Any

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.wire import Secret, parse_json

__all__ = ["HEADER_BYTES", "KEY_BYTES", "check_key", "luks_header", "require_key"]

KEY_BYTES = 64  # AES-256-XTS takes two 256-bit keys
HEADER_BYTES = 32 * 1024
_COPY_BYTES = 16 * 1024
_BINARY_BYTES = 4096
_CHECKSUM_AT = 448
_ITERATIONS = 1000  # the least that cryptsetup takes: the key has 512 random bits, so stretching adds nothing


def luks_header(key: Secret, *, length: int) -> bytes:
    """The header area for a segment of ``length`` bytes of ciphertext that follows it."""
    salt = secrets.token_bytes(32)
    metadata = {
        "keyslots": {},
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": str(HEADER_BYTES),
                "size": str(length),
                "iv_tweak": "0",
                "encryption": "aes-xts-plain64",
                "sector_size": 4096,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": [],
                "segments": ["0"],
                "hash": "sha256",
                "iterations": _ITERATIONS,
                "salt": base64.b64encode(salt).decode(),
                "digest": base64.b64encode(_key_digest(key, salt, _ITERATIONS)).decode(),
            }
        },
        "config": {"json_size": str(_COPY_BYTES - _BINARY_BYTES), "keyslots_size": "0"},
    }
    body = json.dumps(metadata, separators=(",", ":")).encode().ljust(_COPY_BYTES - _BINARY_BYTES, b"\0")
    identifier = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4)).encode()
    first = _copy(b"LUKS\xba\xbe", 0, identifier, body)
    return first + _copy(b"SKUL\xba\xbe", _COPY_BYTES, identifier, body)


def _copy(magic: bytes, offset: int, identifier: bytes, body: bytes) -> bytes:
    binary = struct.pack(
        ">6sHQQ48s32s64s40s48sQ184s64s",
        magic,
        2,
        _COPY_BYTES,
        1,  # seqid
        b"cloister",
        b"sha256",
        secrets.token_bytes(64),
        identifier,
        b"",
        offset,
        b"",
        b"",  # checksum, computed with this field zero
    ).ljust(_BINARY_BYTES, b"\0")
    checksum = hashlib.sha256(binary + body).digest().ljust(64, b"\0")
    return binary[:_CHECKSUM_AT] + checksum + binary[_CHECKSUM_AT + 64 :] + body


def _key_digest(key: Secret, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", key.reveal(), salt, iterations, 32)


def require_key(key: Secret) -> Secret:
    """``key`` itself.

    Raises:
        InputError: 2210 when it is not 64 bytes, or its two halves are equal (IEEE 1619 forbids that: the tweak of a
            sector could be cancelled).
    """
    raw = key.reveal()
    if len(raw) != KEY_BYTES:
        raise InputError(2210, "not an image key", expected=f"{KEY_BYTES} bytes", got=f"{len(raw)} bytes")
    if hmac.compare_digest(raw[:32], raw[32:]):
        raise InputError(2210, "not an image key: its two halves are equal")
    return key


def check_key(header: bytes, key: Secret) -> None:
    """Returns when ``key`` is the volume key of the image.

    Security: the caller must already have compared ``header`` with the digest in the descriptor.

    Raises:
        InputError: 2207 when it is not the key.
        IntegrityError: 5204 when the authenticated header is not one that sealing writes.
    """
    try:
        body = header[_BINARY_BYTES:_COPY_BYTES].rstrip(b"\0")
        entry: Any = parse_json(body, what="LUKS2 metadata", max_bytes=_COPY_BYTES)["digests"]["0"]
        salt, stated = base64.b64decode(entry["salt"]), base64.b64decode(entry["digest"])
        if entry["iterations"] != _ITERATIONS or entry["hash"] != "sha256":
            raise ValueError("another digest")
    except (CloisterError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(5204, "LUKS2 header is authentic but holds no digest of the volume key") from error
    if len(key) != KEY_BYTES or not hmac.compare_digest(_key_digest(key, salt, _ITERATIONS), stated):
        raise InputError(2207, "this key does not open this image")
