"""The data owner's way back: an open image becomes a folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cloister.errors import InputError
from cloister.seal._reader import ImageReader
from cloister.seal._sealing import Progress
from cloister.seal._squash import unsquash

__all__ = ["unpack"]


def unpack(
    reader: ImageReader,
    folder: Path | str,
    *,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Unpacks the image into the new folder ``folder``, beside which the plaintext lies meanwhile (mode 0700).

    Args:
        reader: An open image.
        folder: Must not exist.
        max_bytes: The most that its files may take together.
        progress: Called with bytes done and bytes in all while the image is read.

    Raises:
        InputError: 2001, 2007, 2008, 2009.
        RefusedError: 3202 when larger than ``max_bytes``.
        IntegrityError: 5201, 5207 to 5209, 5211 from reading; 5212, 5213 from unpacking.
    """
    target = Path(folder)
    if target.exists() or target.is_symlink():
        raise InputError(2007, f"the target already exists: '{target}'")
    if not target.absolute().parent.is_dir():
        raise InputError(2001, f"no such folder: '{target.absolute().parent}'")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent) as private:
        squashfs = Path(private) / "content.squashfs"
        with open(squashfs, "wb") as file:
            reader.copy_to(file, progress=progress)
        unsquash(squashfs, target, max_bytes=max_bytes)
