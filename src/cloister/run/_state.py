"""A run's state on disk: what is needed to go on after any interruption, and to make the bundle.

Each part is a file of its own that is written whole or not at all, so a step costs what it adds, however long the run::

    manifest.json                   the signed manifest
    run.json                        the run grant, the outputs that are registered, receipts of predictions
    attempts/000007-train-2.json    one record an attempt, in the order in which they were granted
    collaterals/DIGEST.json         collateral of the evidence, once each
    logs/train-2.json               what the script printed, sealed to the parties that the manifest names
    findings/train-2.json           which products of its workers were wrong, sealed to the owners of its data
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import Field

from cloister.attest import Collateral
from cloister.errors import InputError
from cloister.manifest import SignedManifest
from cloister.receipt import AttemptRecord, Collaterals
from cloister.run._findings import KeptFindings
from cloister.run._logs import KeptLog
from cloister.wire import (
    Digest,
    Envelope,
    Message,
    Name,
    parse_json,
    parse_message,
    read_bounded,
    require_format,
    write_atomic,
)

__all__ = ["Produced", "RunFolder", "RunState"]

RUN_FORMAT: Final = "cloister/run/v1"
_MAX_PART_BYTES = 64 << 20
_DIGITS = 6
M = TypeVar("M", bound=Message)


class Produced(Message):
    """A sealed output that was registered: where its ciphertext lies."""

    stage: Name
    attempt: int
    image: Digest
    url: str


class _RunFile(Message):
    """``run.json``."""

    format: Literal["cloister/run/v1"] = RUN_FORMAT
    manifest: Digest
    run: str
    grant: Envelope
    outputs: dict[Name, Produced] = Field(default_factory=dict)
    inference: tuple[Envelope, ...] = ()


class RunState(Message):
    """One run, as far as it came. Holds signed parts and addresses; no key, no plaintext.

    Attributes:
        manifest: The manifest's id.
        run: The run's id.
        grant: The registrar's run grant.
        attempts: Every attempt, in order.
        collaterals: The evidence's collateral, once each.
        outputs: By name, once registered everywhere.
        inference: Receipts of predictions that the model's users handed in.
    """

    manifest: Digest
    run: str
    grant: Envelope
    attempts: tuple[AttemptRecord, ...] = ()
    collaterals: Collaterals = Field(default_factory=dict)
    outputs: dict[Name, Produced] = Field(default_factory=dict)
    inference: tuple[Envelope, ...] = ()


class RunFolder:
    """The folder of one run. Safe for several threads; :meth:`working` keeps other processes away."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    @property
    def started(self) -> bool:
        """Whether a run's state lies here."""
        return (self.path / "run.json").is_file()

    def require_free(self) -> None:
        """Returns when no run lies here.

        Raises:
            InputError: 2552 when one does.
        """
        if self.started:
            raise InputError(2552, f"'{self.path}' holds another run")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Only one process executes a run: two would attempt each stage twice.

        Raises:
            InputError: 2555 when another one does.
        """
        try:
            import fcntl
        except ImportError:  # no sandboxed stage runs where there is no fcntl
            yield
            return
        with open(self.path / ".lock", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(2555, f"another process executes the run in '{self.path}'") from None
            yield

    # ---- writing -----------------------------------------------------------------------------------------------

    def create(self, signed: SignedManifest, state: RunState) -> None:
        """Writes a new run.

        Raises:
            InputError: 2552 when the folder holds one already; 2001 when it cannot be written.
        """
        self.require_free()
        try:
            for part in ("attempts", "collaterals", "findings", "logs"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "manifest.json", signed.canonical())
            self.save(state)
        except OSError as error:
            raise InputError(2001, f"cannot write the run's folder: {error.strerror}: '{self.path}'") from error

    def save(self, state: RunState) -> None:
        """Writes the whole state; what lies there alike is not written again."""
        for mark, collateral in state.collaterals.items():
            self.save_collateral(mark, collateral)
        for record in state.attempts:
            self.save_attempt(record)
        self.update(state)

    def update(self, state: RunState) -> None:
        """Writes what belongs to no attempt: grant, outputs, receipts of predictions."""
        said = _RunFile(
            manifest=state.manifest, run=state.run, grant=state.grant, outputs=state.outputs, inference=state.inference
        )
        write_atomic(self.path / "run.json", said.canonical())

    def save_attempt(self, record: AttemptRecord) -> None:
        """Adds or replaces one attempt's record."""
        with self._lock:
            path = self._place(record)
            data = record.canonical()
            if not path.is_file() or path.read_bytes() != data:
                write_atomic(path, data)

    def save_collateral(self, mark: str, collateral: Collateral) -> None:
        """Adds collateral under its digest."""
        path = self.path / "collaterals" / f"{mark}.json"
        if not path.is_file():
            write_atomic(path, collateral.canonical())

    def save_log(self, kept: KeptLog) -> Path:
        """Adds an attempt's sealed log."""
        path = self.path / "logs" / f"{kept.stage}-{kept.attempt}.json"
        write_atomic(path, kept.canonical())
        return path

    def save_findings(self, kept: KeptFindings) -> Path:
        """Adds an attempt's findings."""
        path = self.path / "findings" / f"{kept.stage}-{kept.attempt}.json"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, kept.canonical())
        return path

    # ---- reading -----------------------------------------------------------------------------------------------

    def manifest(self) -> SignedManifest:
        """The signed manifest.

        Raises:
            InputError: 2001 when there is no run here; 2002, 2005 when the file is no signed manifest.
        """
        data = read_bounded(self.path / "manifest.json", max_bytes=_MAX_PART_BYTES, what="the run's manifest")
        return parse_message(SignedManifest, data, what="the run's manifest", max_bytes=_MAX_PART_BYTES)

    def state(self) -> RunState:
        """The state.

        Raises:
            InputError: 2001 when there is no run here; 2002, 2005 when a file is not a part of a run's state; 2004
                when another version wrote it.
        """
        path = self.path / "run.json"
        data = read_bounded(path, max_bytes=_MAX_PART_BYTES, what="the run's state")
        value = parse_json(data, what=str(path), max_bytes=_MAX_PART_BYTES)
        require_format(value, RUN_FORMAT, what=str(path))
        said = parse_message(_RunFile, value, what=str(path))
        return RunState(
            manifest=said.manifest,
            run=said.run,
            grant=said.grant,
            outputs=said.outputs,
            inference=said.inference,
            attempts=tuple(_read(AttemptRecord, each) for each in self._files("attempts")),
            collaterals={each.stem: _read(Collateral, each) for each in self._files("collaterals")},
        )

    def log_files(self) -> list[Path]:
        """The sealed logs, oldest first."""
        return sorted(self._files("logs"), key=lambda path: path.stat().st_mtime_ns)

    def findings_files(self) -> list[Path]:
        """The findings, oldest first."""
        return sorted(self._files("findings"), key=lambda path: path.stat().st_mtime_ns)

    def _files(self, part: str) -> list[Path]:
        """The files of a part, in order; the temporary ones of a write that was cut off begin with a dot."""
        folder = self.path / part
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        return [folder / name for name in names if name.endswith(".json") and not name.startswith(".")]

    def _place(self, record: AttemptRecord) -> Path:
        """The record's file: its old one, or the next in order."""
        ending = f"-{record.consumer}-{record.attempt}.json"
        files = self._files("attempts")
        for path in files:
            if path.name[_DIGITS:] == ending:
                return path
        number = 1 + max((int(path.name[:_DIGITS]) for path in files if path.name[:_DIGITS].isdecimal()), default=0)
        return self.path / "attempts" / f"{number:0{_DIGITS}d}{ending}"


def _read(cls: type[M], path: Path) -> M:
    return parse_message(
        cls, read_bounded(path, max_bytes=_MAX_PART_BYTES, what=path.name), what=path.name, max_bytes=_MAX_PART_BYTES
    )
