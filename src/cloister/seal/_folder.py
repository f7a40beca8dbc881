"""What may be sealed: files, folders, and symlinks that stay inside."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cloister.errors import CloisterError, InputError

__all__ = ["Listing", "check_name", "scan_folder"]

_KINDS = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder as it was at one moment: what to compare with a later one.

    Attributes:
        paths: How many entries.
        size_bytes: Sum of the files' sizes.
        marks: For each entry in order, 64 bits of a hash of its name, kind, mode, size and times; eight bytes an
            entry, so that a folder of millions of files is compared within little memory.
    """

    paths: int
    size_bytes: int
    marks: array[int] = field(repr=False)


def scan_folder(folder: Path) -> Listing:
    """Walks ``folder`` in a fixed order and refuses, by name, what an image must not hold.

    Raises:
        InputError: 2001 not a folder or unreadable; 2201 a symlink that leaves it; 2202 a device, pipe or socket;
            2203 a name that is not portable; 2204 a setuid or setgid program.
    """
    try:
        if not folder.is_dir():
            raise InputError(2001, f"not a folder: '{folder}'")
        root = os.path.realpath(folder)
        marks: array[int] = array("Q")
        size_bytes = 0
        for relative, status in _walk(os.fsencode(root), b""):
            size_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
            marks.append(_mark(relative, status))
    except OSError as error:
        raise InputError(2001, f"cannot read the folder: {error.strerror}: '{error.filename}'") from error
    return Listing(len(marks), size_bytes, marks)


def changed_entry(folder: Path, before: Listing) -> str | None:
    """The name of the first entry that is not as it was in ``before``, or None."""
    root = os.path.realpath(folder)
    position = 0
    try:
        for relative, status in _walk(os.fsencode(root), b""):
            if position >= before.paths or before.marks[position] != _mark(relative, status):
                return _show(relative)
            position += 1
    except (OSError, CloisterError) as error:
        return str(error)
    return None if position == before.paths else "an entry that is gone"


def _walk(root: bytes, relative: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    folders = [relative]
    while folders:
        here = folders.pop()
        with os.scandir(os.path.join(root, here)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = os.path.join(here, entry.name)
            check_name(entry.name, path)
            status = entry.stat(follow_symlinks=False)
            _check_entry(root, path, status)
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)


def check_name(name: bytes, path: bytes) -> None:
    """Returns when ``name``, one component of ``path``, means the same thing on every system.

    Raises:
        InputError: 2203 for an empty name, ``.``, ``..``, NUL or a slash, other control characters, or not UTF-8.
    """
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(2203, f"name is not UTF-8: {_show(path)}") from None
    if text in ("", ".", "..") or "/" in text:
        raise InputError(2203, f"name would lead elsewhere: {_show(path)}")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise InputError(2203, f"name holds a control character: {_show(path)}")


def _check_entry(root: bytes, path: bytes, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        _check_link(root, path)
    elif kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InputError(2202, f"{_show(path)} is {_KINDS.get(kind, 'neither file, folder nor symlink')}")
    elif kind == stat.S_IFREG and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise InputError(2204, f"{_show(path)} is setuid or setgid", got=stat.filemode(status.st_mode))


def _check_link(root: bytes, path: bytes) -> None:
    """Both as written and as resolved, the target stays inside: an unpacked copy lies elsewhere."""
    target = os.readlink(os.path.join(root, path))
    depth = path.count(b"/")
    outside = target.startswith(b"/")
    for part in target.split(b"/"):
        depth += {b"..": -1, b".": 0, b"": 0}.get(part, 1)
        outside = outside or depth < 0
    resolved = os.path.realpath(os.path.join(root, path))
    outside = outside or (resolved != root and not resolved.startswith(root.rstrip(b"/") + b"/"))
    if outside:
        raise InputError(2201, f"symlink leaves the folder: {_show(path)}", got=_show(target))


def _mark(path: bytes, status: os.stat_result) -> int:
    facts = (path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=8).digest(), "little")


def _show(path: bytes) -> str:
    """A name as it can be printed: what is not plain text is escaped."""
    return ascii(path.decode("utf-8", "backslashreplace"))
