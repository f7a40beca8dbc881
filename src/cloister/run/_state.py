"""A run's state on disk: what is needed to go on after any interruption, and to make the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from cloister.errors import InputError
from cloister.manifest import SignedManifest
from cloister.receipt import AttemptRecord, Collaterals
from cloister.wire import Digest, Envelope, Message, Name, parse_message, read_bounded, write_atomic

__all__ = ["Produced", "RunFolder", "RunState"]

_MAX_STATE_BYTES = 256 << 20


class Produced(Message):
    """A sealed output that was registered: where its ciphertext lies."""

    stage: Name
    attempt: int
    image: Digest
    url: str


class RunState(Message):
    """One run, as far as it came. Holds signed parts and addresses; no key, no plaintext.

    Attributes:
        grant: The registrar's run grant.
        attempts: Every attempt, in order.
        collaterals: The evidence's collateral, once each.
        outputs: By name, once registered everywhere.
        inference: Receipts of predictions that the model's users handed in.
    """

    format: Literal["cloister/run/v1"] = "cloister/run/v1"
    manifest: Digest
    run: str
    grant: Envelope
    attempts: tuple[AttemptRecord, ...] = ()
    collaterals: Collaterals = Field(default_factory=dict)
    outputs: dict[Name, Produced] = Field(default_factory=dict)
    inference: tuple[Envelope, ...] = ()


class RunFolder:
    """The folder of one run: ``manifest.json`` (signed) and ``state.json``, each written whole or not at all."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def started(self) -> bool:
        """Whether a run's state lies here."""
        return (self.path / "state.json").is_file()

    def require_free(self) -> None:
        """Returns when no run lies here.

        Raises:
            InputError: 2552 when one does.
        """
        if self.started:
            raise InputError(2552, f"'{self.path}' holds another run")

    def create(self, signed: SignedManifest, state: RunState) -> None:
        """Writes a new run.

        Raises:
            InputError: 2552 when the folder holds one already.
        """
        self.require_free()
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / "manifest.json", signed.canonical())
        self.save(state)

    def save(self, state: RunState) -> None:
        """Replaces the state."""
        write_atomic(self.path / "state.json", state.canonical())

    def manifest(self) -> SignedManifest:
        """The signed manifest."""
        data = read_bounded(self.path / "manifest.json", max_bytes=_MAX_STATE_BYTES, what="the run's manifest")
        return parse_message(SignedManifest, data, what="the run's manifest", max_bytes=_MAX_STATE_BYTES)

    def state(self) -> RunState:
        """The state.

        Raises:
            InputError: 2001 when there is no run here; 2002, 2005 when the file is not a run's state.
        """
        data = read_bounded(self.path / "state.json", max_bytes=_MAX_STATE_BYTES, what="the run's state")
        return parse_message(RunState, data, what="the run's state", max_bytes=_MAX_STATE_BYTES)
