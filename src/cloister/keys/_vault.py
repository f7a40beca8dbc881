"""Secrets at rest: AES-256-GCM under the state key, each bound to its id.

Source: NIST SP 800-38D. Nonces are random: at 2^32 secrets a store, the chance of a repeated one stays below 2^-32.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import IntegrityError
from cloister.wire import Secret, canonical

__all__ = ["Vault"]

_NONCE_BYTES = 12


class Vault:
    """Seals and opens the secrets of one store.

    Args:
        root: 32 bytes from the TEE's sealing or from the administrators' shares.
        store: The store's id: two stores under one root have different keys.
    """

    __slots__ = ("_cipher", "_store")

    def __init__(self, root: Secret, *, store: str) -> None:
        kdf = HKDF(algorithm=SHA256(), length=32, salt=bytes.fromhex(store), info=b"cloister/state-key/v1")
        self._cipher = AESGCM(kdf.derive(root.reveal()))
        self._store = store

    def seal(self, secret_id: str, secret: Secret) -> bytes:
        """``nonce ‖ ciphertext``, which opens under this id alone."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret.reveal(), self._context(secret_id))

    def open(self, secret_id: str, box: bytes) -> Secret:
        """The secret.

        Raises:
            IntegrityError: 5403 when the box is not this store's, not this id's, or was changed.
        """
        try:
            return Secret(self._cipher.decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], self._context(secret_id)))
        except (InvalidTag, ValueError):
            raise IntegrityError(5403, f"stored secret {secret_id!r} does not open") from None

    def _context(self, secret_id: str) -> bytes:
        return canonical({"label": "cloister/vault/v1", "store": self._store, "id": secret_id})
