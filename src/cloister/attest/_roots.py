"""Which roots a verifier accepts, by the SHA-256 of their public key."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloister.errors import InputError

__all__ = ["VENDOR_ROOTS", "Root", "TrustRoots"]


@dataclass(frozen=True, slots=True)
class Root:
    """One accepted root.

    Attributes:
        name: What claims and messages call it.
        spki_sha256: SHA-256 of its SubjectPublicKeyInfo, hexadecimal. The key is pinned, not a certificate: Intel has
            issued two certificates for one key.
        simulated: No hardware stands behind it.
    """

    name: str
    spki_sha256: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """The set of roots that a verifier accepts; a production verifier has :data:`VENDOR_ROOTS` and no more."""

    roots: tuple[Root, ...]

    def find(self, spki_sha256: str) -> Root | None:
        """The accepted root with this key, or None."""
        return next((root for root in self.roots if root.spki_sha256 == spki_sha256), None)

    def with_development(self, spki_sha256: str) -> TrustRoots:
        """These roots and a simulated site's development root.

        Security: evidence under it proves nothing about hardware; every verdict that rests on it says
        ``simulated`` and its ``assurance`` is ``"simulated"``.

        Raises:
            InputError: 2107 when ``spki_sha256`` is not 64 lower-case hexadecimal digits, or names a vendor's root.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", spki_sha256):
            raise InputError(2107, expected="64 lower-case hexadecimal digits", got=spki_sha256[:80])
        known = self.find(spki_sha256)
        if known is not None:
            if known.simulated:
                return self
            raise InputError(2107, f"this is the key of {known.name!r}, not of a development root", got=spki_sha256)
        return TrustRoots((*self.roots, Root(f"development {spki_sha256[:16]}", spki_sha256, simulated=True)))


VENDOR_ROOTS = TrustRoots(
    (Root("Intel SGX Root CA", "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e", simulated=False),)
)
"""The roots of the makers of the hardware, for both SGX and TDX."""
