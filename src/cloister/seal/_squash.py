"""A folder ⇄ squashfs, by the system's own squashfs-tools.

The bytes depend on the folder's names, contents, and which files are executable, and on the tools' version; not on
times, owners, other permissions, hard links, extended attributes, the order in which a disk lists them, or the
machine's number of cores. So an auditor who has the folder can make the same squashfs again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cloister.errors import CloisterError, InputError, IntegrityError, RefusedError
from cloister.seal._folder import changed_entry, scan_folder

__all__ = ["squash_folder", "unsquash"]

_MEMORY = "96M"  # of mksquashfs; peak memory of sealing stays under 256 MiB
_QUEUE = "32"  # MiB, each of unsquashfs's two queues
_FIXED = (
    *("-noappend", "-no-recovery", "-no-progress", "-quiet", "-exit-on-error"),
    *("-reproducible", "-mkfs-time", "0", "-all-time", "0"),
    *("-all-root", "-no-xattrs", "-no-hardlinks", "-no-exports"),
    *("-comp", "zstd", "-Xcompression-level", "3", "-b", "128K", "-mem", _MEMORY),
    *("-action", "chmod(u=rwX,go=rX)@true"),
)
_ENTRY = re.compile(rb"^([a-z-])[a-zA-Z-]{9} +\d+/\d+ +(\d+) ")


def squash_folder(folder: Path | str, target: Path | str) -> int:
    """Writes the reproducible squashfs of ``folder`` to ``target``, which must not exist; returns its size in bytes.

    The folder is listed before and after: a file that changed meanwhile would be in the image half old, half new.

    Raises:
        InputError: 2001, 2201 to 2204 from :func:`~cloister.seal._folder.scan_folder`; 2205 the folder changed;
            2206 mksquashfs failed; 2008 not Linux; 2009 no mksquashfs.
    """
    program = _program("mksquashfs")
    source, output = Path(folder), Path(target)
    before = scan_folder(source)
    _run([program, os.path.realpath(source), str(output.absolute()), *_FIXED], "mksquashfs")
    if changed := changed_entry(source, before):
        output.unlink(missing_ok=True)
        raise InputError(2205, f"the folder changed while it was being sealed: {changed}")
    return output.stat().st_size


def unsquash(image: Path | str, target: Path | str, *, max_bytes: int | None = None) -> None:
    """Unpacks the squashfs file ``image`` into the new folder ``target``.

    An authentic image says who made it, not that it is harmless: its listing is checked before anything is
    written, and the result by the same rules as a folder that is sealed, before it gets its name.

    Raises:
        InputError: 2007 when ``target`` exists; 2001, 2008, 2009.
        IntegrityError: 5212 when it holds what sealing refuses; 5213 when it is no readable squashfs.
        RefusedError: 3202 when its files are larger than ``max_bytes``.
    """
    program = _program("unsquashfs")
    final = Path(target)
    if final.exists() or final.is_symlink():
        raise InputError(2007, f"the target already exists: '{final}'")
    _check_listing(program, str(image), max_bytes)
    try:
        holder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.absolute().parent))  # mode 0700
    except OSError as error:
        raise InputError(2001, f"cannot write to '{final.parent}': {error.strerror}") from error
    try:
        unpacked = holder / "content"
        queues = ["-da", _QUEUE, "-fr", _QUEUE]
        _run([program, "-q", "-n", "-no-xattrs", *queues, "-d", str(unpacked), str(image)], "unsquashfs")
        try:
            scan_folder(unpacked)
        except CloisterError as error:
            raise IntegrityError(5212, f"image holds what sealing refuses: {error.what}") from error
        os.rename(unpacked, final)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _check_listing(program: str, image: str, max_bytes: int | None) -> None:
    """Nothing but files, folders and symlinks, and no more bytes than allowed, before unsquashfs writes."""
    total = 0
    listing = _run([program, "-q", "-n", "-lln", "-UTC", image], "unsquashfs")
    for line in listing.splitlines():
        entry = _ENTRY.match(line)
        if entry is None or entry[1] not in b"-dl" or b"s" in line[:10].lower():
            raise IntegrityError(
                5212, "image holds what sealing refuses", got=ascii(line[:120].decode("utf-8", "replace"))
            )
        total += int(entry[2]) if entry[1] == b"-" else 0
    if max_bytes is not None and total > max_bytes:
        raise RefusedError(
            3202, "image unpacks to more than is allowed", expected=f"at most {max_bytes} bytes", got=total
        )


def _program(name: str) -> str:
    if sys.platform != "linux":
        raise InputError(2008, f"{name} is used on Linux only", got=sys.platform)
    found = shutil.which(name)
    if found is None:
        raise InputError(2009, f"'{name}' is not installed", hint="install the package squashfs-tools")
    return found


def _run(command: list[str], name: str) -> bytes:
    """Runs with an empty environment: SOURCE_DATE_EPOCH and locales would change the bytes."""
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        what = f"{name} failed: {said[0] if said else f'exit status {done.returncode}'}"
        if name == "unsquashfs":
            raise IntegrityError(5213, what)
        raise InputError(2206, what)
    return done.stdout
