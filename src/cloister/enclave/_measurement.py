"""What a manifest pins: one number for the code that an enclave runs."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cloister.enclave._hashes import FileHashes
from cloister.enclave._trees import Tree, code_trees, pth_places
from cloister.errors import InputError
from cloister.wire import canonical, digest

__all__ = ["ROLES", "Measured", "diff_listings", "measure", "parse_listing"]

ROLES = ("launcher", "key-manager", "service")
MEASUREMENT_LABEL = "cloister/measurement/v1"

_IGNORED_FOLDERS = {"__pycache__", ".git", ".pytest_cache", ".ruff_cache"}
_INSTALLER_NOTES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}  # say where, not what


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement and what it is made of.

    Attributes:
        measurement: SHA-384 in hexadecimal; takes the place of a TDX ``MRTD``.
        role: What the code is started as.
        facts: The configuration, trust roots, interpreter version and processor that are covered.
        listing: SHA-256 of every file, by name.
        files: SHA-256 of the listing.
    """

    measurement: str
    role: str
    facts: Mapping[str, Any]
    listing: Mapping[str, str]
    files: str

    def for_tee(self, tee: Literal["tdx", "sgx"]) -> str:
        """The measurement at the size of a TEE's own: an ``MRENCLAVE`` has the first 64 hexadecimal digits."""
        return self.measurement if tee == "tdx" else self.measurement[:64]

    def listing_text(self) -> str:
        """The files as ``sha256sum`` would list them."""
        return _listing_text(self.listing)


def measure(
    role: str,
    *,
    configuration: Mapping[str, Any] | None = None,
    roots: Mapping[str, str] | None = None,
    trees: tuple[Tree, ...] | None = None,
    hashes: FileHashes | None = None,
    listing: Mapping[str, str] | None = None,
) -> Measured:
    """The measurement of this installation in a role.

    It covers the interpreter, its standard library, every file in its package folders whether or not a distribution
    lists it (so a planted ``.pth`` or ``sitecustomize.py`` shows), Cloister's own source, the sandbox's tools, the
    role's ``configuration`` and the trust ``roots``. Bytecode caches are left out because neither a launcher nor its
    sandbox reads them. The operating system's own libraries belong to the platform's measurement: on hardware that is
    the guest image, in simulation nothing vouches for them.

    Args:
        role: ``launcher``, ``key-manager`` or ``service``.
        configuration: What the role was configured with; JSON values without floats.
        roots: SPKI digests of the trust roots, by name.
        trees: What to measure; this interpreter's code unless told otherwise.
        hashes: Where hashes are remembered.
        listing: What was measured for another role just now; nothing is read again.

    Raises:
        InputError: 2501 for another role; 2001 when a file cannot be read; 2002 when the configuration is not JSON.
    """
    if role not in ROLES:
        raise InputError(2501, f"no such role: {role!r}", expected=", ".join(ROLES))
    if listing is None:
        listing = _list(code_trees() if trees is None else trees, hashes or FileHashes())
    facts = {
        "label": MEASUREMENT_LABEL,
        "role": role,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "configuration": dict(configuration or {}),
        "roots": dict(roots or {}),
    }
    files = digest(_listing_text(listing).encode())
    return Measured(hashlib.sha384(canonical(facts | {"files": files})).hexdigest(), role, facts, listing, files)


def diff_listings(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, list[str]]:
    """What was added, removed and changed between two listings."""
    return {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }


def parse_listing(text: str) -> dict[str, str]:
    """A listing from its text.

    Raises:
        InputError: 2002 when a line is not ``HASH  NAME``.
    """
    listing: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        value, separator, name = line.partition("  ")
        if not separator or len(value) != 64 or not name or name in listing:
            raise InputError(2002, f"line {number} of the listing is not 'HASH  NAME'", got=line[:80])
        listing[name] = value
    return listing


def _listing_text(listing: Mapping[str, str]) -> str:
    return "".join(f"{listing[name]}  {name}\n" for name in sorted(listing))


def _list(trees: tuple[Tree, ...], hashes: FileHashes) -> dict[str, str]:
    names: dict[str, str] = {}  # path → name in the listing
    files: list[tuple[str, os.stat_result]] = []
    listing: dict[str, str] = {}
    for tree in trees:
        for path, name, status in _walk(tree):
            if stat.S_ISLNK(status.st_mode):
                listing[name] = digest(b"link\0" + os.fsencode(os.readlink(path)))
            elif path.endswith(".pth") and tree.label.startswith("site") and name.count("/") == 1:
                listing[name] = _pth_digest(Path(path), trees)
            elif path not in names:
                names[path] = name
                files.append((path, status))
    listing |= {names[path]: value for path, value in hashes.of(files).items()}
    return listing


def _walk(tree: Tree) -> Iterator[tuple[str, str, os.stat_result]]:
    """(path, name, status) of every file and link of a tree; a folder that cannot be read is an error, not a gap."""
    if not tree.path.is_dir():
        yield str(tree.path), tree.label, os.stat(tree.path)
        return
    waiting = [(str(tree.path), tree.label)]
    while waiting:
        folder, name = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(2001, f"cannot read what is to be measured: {error.strerror}: '{folder}'") from error
        notes = _INSTALLER_NOTES if folder.endswith(".dist-info") else set()
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                top = name == tree.label
                if entry.name not in _IGNORED_FOLDERS and not (top and entry.name in tree.without):
                    waiting.append((entry.path, f"{name}/{entry.name}"))
            elif entry.name not in notes:
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                    raise InputError(2001, f"neither a file nor a folder, so it cannot be measured: '{entry.path}'")
                if not entry.name.isprintable():
                    raise InputError(2001, f"a name that no listing can hold: {entry.name!r} in '{folder}'")
                yield entry.path, f"{name}/{entry.name}", status


def _pth_digest(pth: Path, trees: tuple[Tree, ...]) -> str:
    """A ``.pth`` file that only adds measured places is what these are called here, in its order; another is its bytes.

    Where an editable distribution's source lies is local; which source it is, and what comes before what, is not.
    """
    names = [None if place is None else _name_of(place, trees) for place in pth_places(pth)]
    if not names or None in names:
        return digest(b"bytes\0" + pth.read_bytes())
    return digest(b"names\0" + "\n".join(str(name) for name in names).encode())


def _name_of(place: Path, trees: tuple[Tree, ...]) -> str | None:
    """Under which name a listing has ``place``: that of the first tree that holds it."""
    for tree in trees:
        if place.is_relative_to(tree.path) and place.exists():
            inner = place.relative_to(tree.path).parts
            if not inner or inner[0] not in tree.without:
                return "/".join((tree.label, *inner))
    return None
