"""What a launcher needs from the key managers, as a seam: attested keys for one attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from cloister.attest import Attester, Evidence, SessionClaims
from cloister.enclave._job import Job
from cloister.errors import InputError
from cloister.keys import AttemptGrant, Checkpoints, KeyManagerClient, Obtained, StageSession, obtain
from cloister.manifest import Manifest
from cloister.wire import Envelope, Secret, SigningKey, VerifyKey, digest

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

    @property
    def checkpoints(self) -> Checkpoints | None:
        """For a stage that may save its state."""
        ...

    def save_checkpoint(self, sequence: int, checkpoint: str) -> None:
        """Returns once every key manager knows this checkpoint, by its number and its digest, as the last.

        Raises:
            CloisterError: a key manager's refusal under its own code; 6xxx when one cannot be reached.
        """
        ...

    def register(self, outputs: Mapping[str, str], receipt: Envelope) -> tuple[Envelope, dict[str, Envelope]]:
        """The signed registration of image ids, and the key managers' receipts for it as far as it was delivered."""
        ...

    def close(self) -> None:
        """Ends the connections."""
        ...


class ObtainKeys(Protocol):
    """Attests and gets the keys of one attempt."""

    def __call__(self, job: Job, grant: AttemptGrant, attester: Attester, /) -> AttemptKeys:
        """The keys.

        Raises:
            CloisterError: a key manager's refusal under its own code; 6xxx when one cannot be reached.
        """
        ...


class _ReleasedKeys:
    """:class:`AttemptKeys` from key managers."""

    def __init__(self, manifest: Manifest, obtained: Obtained, clients: Mapping[str, KeyManagerClient]) -> None:
        self._manifest, self._obtained, self._clients = manifest, obtained, clients
        self.claims, self.evidence, self.releases = obtained.claims, obtained.evidence, obtained.releases
        self.sign = obtained.session.sign
        self.assurance: Literal["hardware", "simulated"] = obtained.granted.assurance
        self.checkpoints = obtained.granted.checkpoints

    def image_of(self, name: str) -> str:
        if name in self._manifest.images:
            return self._manifest.images[name].id
        return self._obtained.granted.inputs[name][0]

    def key_of(self, name: str) -> Secret:
        granted = self._obtained.granted
        return granted.images[name] if name in self._manifest.images else granted.inputs[name][1]

    def output_key(self, name: str) -> Secret:
        return self._obtained.session.output_key(name)

    def save_checkpoint(self, sequence: int, checkpoint: str) -> None:
        """Tells them one after the other: which checkpoint is the last must not wait for the host to deliver it."""
        envelope = self._obtained.session.checkpoint(sequence=sequence, checkpoint=checkpoint)
        for client in self._clients.values():
            receipt = client.save_checkpoint(envelope)
            self._obtained.session.require_saved(receipt, sequence=sequence, checkpoint=checkpoint)

    def register(self, outputs: Mapping[str, str], receipt: Envelope) -> tuple[Envelope, dict[str, Envelope]]:
        """Signs, and leaves delivery to the host, which anybody may do.

        The host has the outcome on disk first, so that no interruption between the two ends a stage whose outputs
        nobody can name.
        """
        return self._obtained.session.registration(outputs=outputs, receipt_digest=digest(receipt.payload)), {}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def obtain_keys(job: Job, grant: AttemptGrant, attester: Attester) -> AttemptKeys:
    """The keys of one attempt, from the key managers of the manifest.

    Raises:
        InputError: 2505 when the job does not say where one is reached.
        CloisterError: as :func:`cloister.keys.obtain`.
    """
    manifest = job.manifest.manifest
    session = StageSession(manifest, grant.consumer)
    for name in session.contributors:
        if name not in job.key_managers:
            raise InputError(2505, f"the job names no place for the key manager {name!r}")
    clients = {
        name: KeyManagerClient(job.key_managers[name], VerifyKey.parse(manifest.key_managers[name].sign))
        for name in session.contributors
    }
    try:
        return _ReleasedKeys(manifest, obtain(session, job.grant, clients=clients, attester=attester), clients)
    except BaseException:
        for client in clients.values():
            client.close()
        raise
