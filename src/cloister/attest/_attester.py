"""What makes evidence."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cloister.attest._evidence import Evidence
from cloister.wire import Secret

__all__ = ["Attester"]


@runtime_checkable
class Attester(Protocol):
    """A TEE as seen from inside: it makes evidence about the code that calls it.

    Contract: ``attest`` accepts exactly 64 bytes and returns evidence whose ``tee.report_data`` is these bytes and
    whose ``tee.measurement`` is ``measurement``; ``sealing_key`` gives the same secret for the same code, label and
    machine, and another one for any other.
    """

    @property
    def measurement(self) -> str:
        """MRENCLAVE or MRTD, hexadecimal."""
        ...

    @property
    def simulated(self) -> bool:
        """No hardware stands behind the evidence."""
        ...

    def attest(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes of the caller's choice.

        Raises:
            InputError: 2108 when ``report_data`` is not 64 bytes.
            AttestationError: 4160 when the platform gives no evidence.
        """
        ...

    def sealing_key(self, label: str) -> Secret | None:
        """32 bytes that only this code on this machine gets, or None where the TEE has no sealing."""
        ...
