"""Where plaintext lies while a stage runs, and what may be in it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import CloisterError, IntegrityError, RefusedError
from cloister.manifest import Stage
from cloister.seal import scan_folder

__all__ = ["Workspace", "check_output", "check_unpacked"]


@dataclass(frozen=True, slots=True)
class Workspace:
    """One attempt's folders under private memory: ``code``, ``inputs/NAME``, ``outputs/NAME``."""

    root: Path

    @classmethod
    def create(cls, root: Path, *, outputs: Iterable[str]) -> Workspace:
        """The folders, empty, for their owner alone."""
        for name in ("images", "inputs", "outputs", "scratch"):
            (root / name).mkdir(mode=0o700)
        for name in outputs:
            (root / "outputs" / name).mkdir(mode=0o755)
        return cls(root)

    @property
    def code(self) -> Path:
        """The unpacked code image."""
        return self.root / "images" / "code" / "content"

    @property
    def scratch(self) -> Path:
        """For files that are plaintext for a moment."""
        return self.root / "scratch"

    @property
    def bytecode(self) -> Path:
        """Compiled modules of the measured code; made when there are any."""
        return self.root / "bytecode"

    @property
    def checkpoint(self) -> Path:
        """Where the script saves its state; made when the stage has terms for that."""
        return self.root / "checkpoint"

    def unpacked(self, name: str, stage: Stage) -> Path:
        """Where an image's content goes. The parent is made here; the folder itself is the unpacker's."""
        holder = self.root / "images" / "code" if name == stage.code else self.root / "inputs" / name
        holder.mkdir(mode=0o700, exist_ok=True)
        return holder / "content"

    def input(self, name: str) -> Path:
        """An unpacked input."""
        return self.root / "inputs" / name / "content"

    def output(self, name: str) -> Path:
        """What the script writes."""
        return self.root / "outputs" / name

    def wipe(self) -> None:
        """Removes everything. In private memory that is all there is; on a disk it is only a deletion."""
        shutil.rmtree(self.root, ignore_errors=True)


def check_unpacked(folder: Path, *, name: str) -> None:
    """Returns when an unpacked image holds files, folders and inner links only.

    An image that opens is authentic, which says who made it and not that it is harmless.

    Raises:
        IntegrityError: 5505 otherwise.
    """
    try:
        scan_folder(folder)
    except CloisterError as error:
        raise IntegrityError(5505, f"input {name!r} holds what sealing refuses: {error.what}") from None


def check_output(folder: Path, *, name: str, max_bytes: int) -> int:
    """Bytes of files in an output, once it is shown to be sealable and small enough.

    Raises:
        RefusedError: 3506 when it holds a link that leaves it, a device, a pipe, a socket, a setuid program or an
            unusable name; 3505 when its files are larger than the manifest allows.
    """
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise RefusedError(3506, f"output {name!r} is no longer a folder")
    try:
        size_bytes = scan_folder(folder).size_bytes
    except CloisterError as error:
        raise RefusedError(3506, f"output {name!r} cannot be sealed: {error.what}") from None
    if size_bytes > max_bytes:
        raise RefusedError(3505, f"output {name!r} is too large", expected=f"at most {max_bytes} bytes", got=size_bytes)
    return size_bytes
