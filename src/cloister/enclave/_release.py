"""What a launcher needs from the key managers, as a seam: attested keys for one attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from cloister.attest import Attester, Evidence, SessionClaims
from cloister.enclave._job import Job
from cloister.keys._messages import AttemptGrant
from cloister.wire import Envelope, Secret, SigningKey

__all__ = ["AttemptKeys", "ObtainKeys", "obtain_keys"]


class AttemptKeys(Protocol):
    """The keys of one attempt, and what was said to get them.

    Contract: an image id comes from the manifest or from a released plaintext, never from the host.
    """

    @property
    def claims(self) -> SessionClaims:
        """What was attested to."""
        ...

    @property
    def evidence(self) -> Evidence:
        """The evidence over the claims."""
        ...

    @property
    def releases(self) -> Mapping[str, Envelope]:
        """Each key manager's signed answer."""
        ...

    @property
    def sign(self) -> SigningKey:
        """The session's signing key, whose public half is in the claims."""
        ...

    @property
    def assurance(self) -> Literal["hardware", "simulated"]:
        """``simulated`` when anything that flowed into the inputs was."""
        ...

    def image_of(self, name: str) -> str:
        """The image id of an input, or of the code."""
        ...

    def key_of(self, name: str) -> Secret:
        """The key of an input, or of the code."""
        ...

    def output_key(self, name: str) -> Secret:
        """The key that this attempt seals an output with, once."""
        ...

    def register(self, outputs: Mapping[str, str], receipt: Envelope) -> tuple[Envelope, dict[str, Envelope]]:
        """Registers image ids: the signed registration, and each key manager's receipt for it.

        Raises:
            RefusedError: another attempt was registered before.
        """
        ...


class ObtainKeys(Protocol):
    """Attests and gets the keys of one attempt."""

    def __call__(self, job: Job, grant: AttemptGrant, attester: Attester, /) -> AttemptKeys:
        """The keys.

        Raises:
            CloisterError: a key manager's refusal under its own code; 6xxx when one cannot be reached.
        """
        ...


def obtain_keys(job: Job, grant: AttemptGrant, attester: Attester) -> AttemptKeys:
    """The keys of one attempt, from the key managers of the manifest."""
    raise NotImplementedError
