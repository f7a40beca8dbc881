"""Compiled code for the sandbox, and for the launcher itself, made by the launcher from measured source only.

The ``__pycache__`` beside a package is never read in a sandbox: nothing measures it. Compiling a large library anew for
every stage costs seconds, so the launcher keeps its own compiled copy, one for each state of the code. It is filled by
importing packages in a sandbox that holds nothing else: no code image, no input, no key. Kernels that numba compiled
are kept with it.

Between attempts the copy lies where the host can write, so it is authenticated under a key that the TEE gives to this
measured code only, and checked after it was read into private memory: what a stage loads is what was checked. Without
such a key nothing is kept.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import hmac
import json
import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs

from cloister.enclave._limits import ResourceGroup
from cloister.enclave._sandbox import BYTECODE, Bind, run_sandboxed
from cloister.enclave._trees import code_trees
from cloister.errors import CloisterError
from cloister.manifest import Limits
from cloister.wire import Secret, digest, write_private

__all__ = ["BYTECODE_KEY_LABEL", "MAX_PACKAGES", "compiled", "imported_packages", "is_kept", "use_compiled"]

BYTECODE_KEY_LABEL = "cloister/bytecode/v1"

MAX_PACKAGES = 64
"""Names that compiled code is kept of, at most, at once."""

_MAX_ALL_BYTES = 2 << 30  # of compiled code for all states of the code and all TEEs: what was used last stays
_MAX_SOURCE_BYTES = 1 << 20
_MAX_KEPT_BYTES = 1 << 30
_ENDINGS = (".pyc", ".nbi", ".nbc")  # of Python, and of numba: an index and machine code
_KERNELS = "numba"  # the folder of the latter
_TAG_BYTES = 32
_LENGTH_BYTES = 8
_PATIENCE_S = 30.0
_LIMITS = Limits(memory_bytes=4 << 30, time_s=300, processes=256)
_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    module, _, function = name.partition(":")
    try:
        found = importlib.import_module(module)
        if function:
            getattr(found, function)()
    except BaseException:
        pass
"""
_log = logging.getLogger("cloister.enclave")


def imported_packages(code: Path) -> frozenset[str]:
    """Top-level names that the Python files of ``code`` import and that are not files of ``code`` themselves."""
    found: set[str] = set()
    own = {entry.name.removesuffix(".py") for entry in code.iterdir()}
    for path in sorted(code.rglob("*.py")):
        with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            if path.is_symlink() or path.stat().st_size > _MAX_SOURCE_BYTES:
                continue
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    found.add(node.module)
    return frozenset(name for name in found if name.partition(".")[0] not in own | sys.stdlib_module_names)


def compiled(
    names: Iterable[str],
    *,
    state: str,
    key: Secret,
    private: Path,
    folder: Path | None = None,
    max_bytes: int = _MAX_KEPT_BYTES,
) -> Path | None:
    """A folder for ``PYTHONPYCACHEPREFIX`` that holds the compiled code of ``names`` and what they import.

    Args:
        names: Modules, or ``MODULE:FUNCTION`` for one that is called once, so that its kernels are compiled; those that
            do not exist are ignored.
        state: Digest of the measured code; another state has another copy.
        key: What only this measured code is given.
        private: In private memory; made here.
        folder: Where compiled code is kept between attempts; the user's cache by default.
        max_bytes: Of private memory that the compiled code may take.

    Returns:
        ``private``; None where the stage has too little memory for it, and compiles for itself.
    """
    root, kept, context = _place(state, key, folder)
    wanted = _wanted(names)
    have = _opened(kept, context, key, max_bytes) or _Compiled()
    if wanted <= have.names:
        with contextlib.suppress(OSError):
            os.utime(kept)  # in use
        private.mkdir(mode=0o700)
        have.write(private)
        return private
    with _turn(root):
        have = _opened(kept, context, key, max_bytes) or have
        private.mkdir(mode=0o700)
        have.write(private)
        missing = wanted - have.names
        if not missing or not _import(private, sorted(missing)):
            return private
        files = _collect(private, max_bytes)
        if files is None:
            shutil.rmtree(private, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            write_private(kept, _Compiled(have.names | missing, files).sealed(context, key))
            _forget_unused(root)
    return private


def is_kept(names: Iterable[str], *, state: str, key: Secret, folder: Path | None = None) -> bool:
    """Whether compiled code of all of ``names`` is kept; args are those of :func:`compiled`."""
    _, kept, context = _place(state, key, folder)
    have = _opened(kept, context, key, _MAX_KEPT_BYTES)
    return have is not None and _wanted(names) <= have.names


def _place(state: str, key: Secret, folder: Path | None) -> tuple[Path, Path, str]:
    """The folder, the file in it, and whose it is: another TEE's is beside it, not in its place."""
    root, context = folder or Path(platformdirs.user_cache_dir("cloister")) / "bytecode", _context(state)
    return root, root / f"{_tag(context, key, b'').hex()}.kept", context


def _wanted(names: Iterable[str]) -> frozenset[str]:
    return frozenset(sorted(set(names))[:MAX_PACKAGES])


def use_compiled(
    names: Iterable[str], *, state: str, key: Secret, private: Path, folder: Path | None = None, max_bytes: int
) -> None:
    """Lets this very process, which reads no ``__pycache__``, import ``names`` from compiled code that it may believe.

    Args are those of :func:`compiled`. To be called before any of ``names`` is imported.
    """
    made = compiled(names, state=state, key=key, private=private, folder=folder, max_bytes=max_bytes)
    if made is not None:
        sys.pycache_prefix = str(made)
        os.environ["NUMBA_CACHE_DIR"] = str(made / _KERNELS)


@contextlib.contextmanager
def _turn(root: Path) -> Iterator[None]:
    """Attempts that start together compile one after the other: the second finds what the first has made.

    The lock lies where the host can hold it for ever, so nobody waits longer than compiling takes.
    """
    import fcntl

    handle = None
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(root.with_name(f"{root.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        _log.debug("no lock on compiled code: %s", error)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while handle is not None and time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.02)
        yield
    finally:
        if handle is not None:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """Names that were imported, and the compiled files that this made, by path below the prefix."""

    names: frozenset[str] = frozenset()
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    def sealed(self, context: str, key: Secret) -> bytes:
        """TAG ‖ length of the head ‖ head ‖ contents, one after the other."""
        head = {"names": sorted(self.names), "files": [[name, len(data)] for name, data in self.files.items()]}
        text = json.dumps(head, separators=(",", ":")).encode()
        body = b"".join((len(text).to_bytes(_LENGTH_BYTES, "big"), text, *self.files.values()))
        return _tag(context, key, body) + body

    def write(self, folder: Path) -> None:
        """The files, below ``folder``."""
        for parent in sorted({str(PurePosixPath(name).parent) for name in self.files}):
            (folder / parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


def _opened(kept: Path, context: str, key: Secret, max_bytes: int) -> _Compiled | None:
    """What is kept, if this code kept it; whatever else lies there is as good as nothing."""
    try:
        with open(os.open(kept, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError:
        return None
    tag, body = data[:_TAG_BYTES], data[_TAG_BYTES:]
    if len(data) > max_bytes or not hmac.compare_digest(tag, _tag(context, key, body)):
        return None
    start = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
    head: dict[str, Any] = json.loads(body[_LENGTH_BYTES:start])
    files: dict[str, bytes] = {}
    for name, size in head["files"]:
        files[name] = body[start : start + size]
        start += size
    return _Compiled(frozenset(head["names"]), files)


def _context(state: str) -> str:
    """Which compiled code is whose: of this code, at these places, since its files are named by its sources' paths."""
    places = [[tree.label, str(tree.path)] for tree in code_trees()]
    return digest(json.dumps([BYTECODE_KEY_LABEL, state, sys.implementation.cache_tag, places]).encode())[:64]


def _tag(context: str, key: Secret, body: bytes) -> bytes:
    state = hmac.new(key.reveal(), f"{len(context)}:{context}".encode(), hashlib.sha256)
    state.update(body)
    return state.digest()


def _import(private: Path, names: list[str]) -> bool:
    """Imports ``names`` in a sandbox whose bytecode goes to ``private``."""
    try:
        with ResourceGroup(_LIMITS) as group:
            argv = ["python", "-I", "-X", f"pycache_prefix={BYTECODE}", "-c", _IMPORT, *names]
            env = {"NUMBA_CACHE_DIR": f"{BYTECODE}/{_KERNELS}"}
            run_sandboxed(argv, binds=[Bind(private, BYTECODE, writable=True)], limits=_LIMITS, group=group, env=env)
    except CloisterError as error:
        _log.warning("packages are compiled anew by every stage: %s", error)
        return False
    return True


def _collect(private: Path, max_bytes: int) -> dict[str, bytes] | None:
    """Every compiled file by path; None when they are too many bytes."""
    files: dict[str, bytes] = {}
    total = 0
    for folder, _, names in os.walk(private):
        for name in sorted(names):
            path = Path(folder, name)
            status = path.lstat()
            if name.endswith(_ENDINGS) and stat.S_ISREG(status.st_mode):
                total += status.st_size
                if total > max_bytes:
                    return None
                files[str(path.relative_to(private))] = path.read_bytes()
    return files


def _forget_unused(root: Path) -> None:
    found = sorted(((entry.stat(), entry) for entry in root.glob("*.kept")), key=lambda pair: -pair[0].st_mtime_ns)
    total = 0
    for status, entry in found:
        total += status.st_size
        if total > _MAX_ALL_BYTES:
            entry.unlink(missing_ok=True)
