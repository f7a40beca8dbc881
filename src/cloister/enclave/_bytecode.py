"""Compiled modules for the sandbox, made by the launcher from measured source only.

The ``__pycache__`` beside a package is never read in a sandbox: nothing measures it. Compiling a large library anew for
every stage costs seconds, so the launcher keeps its own compiled copy, one for each state of the code. It is filled by
importing packages in a sandbox that holds nothing else: no code image, no input, no key. What a stage's script compiles
stays in that stage's private memory.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from cloister.enclave._limits import ResourceGroup
from cloister.enclave._sandbox import BYTECODE, Bind, run_sandboxed
from cloister.errors import CloisterError
from cloister.manifest import Limits

__all__ = ["compiled", "imported_packages"]

_KEPT = 3  # states of the code whose bytecode is kept
_MAX_SOURCE_BYTES = 1 << 20
_MAX_PACKAGES = 64
_LIMITS = Limits(memory_bytes=4 << 30, time_s=300, processes=256)
_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
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


def compiled(names: Iterable[str], *, state: str, folder: Path | None = None) -> Path | None:
    """A folder for ``PYTHONPYCACHEPREFIX`` that holds the compiled code of ``names`` and what they import.

    Args:
        names: Modules; those that do not exist are ignored.
        state: Digest of the measured code; another state has another folder.
        folder: Where compiled code is kept; the user's cache by default.

    Returns:
        None where nothing can be kept: then every stage compiles for itself.
    """
    root = folder or Path(platformdirs.user_cache_dir("cloister")) / "bytecode"
    home = root / state
    with contextlib.suppress(OSError):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _private(root) and _private(home):
            _fill(home, sorted(set(names))[:_MAX_PACKAGES])
            os.utime(home)
            _forget_old(root)
            return home
    return None


def _private(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o022


def _fill(home: Path, names: list[str]) -> None:
    marks = home / ".done"
    marks.mkdir(mode=0o700, exist_ok=True)
    missing = [name for name in names if len(name) < 200 and not (marks / name).exists()]
    if not missing:
        return
    try:
        with ResourceGroup(_LIMITS) as group:
            argv = ["python", "-I", "-X", f"pycache_prefix={BYTECODE}", "-c", _IMPORT, *missing]
            run_sandboxed(argv, binds=[Bind(home, BYTECODE, writable=True)], limits=_LIMITS, group=group)
    except CloisterError as error:
        _log.warning("packages are compiled anew by every stage: %s", error)
        return
    for name in missing:
        (marks / name).touch(mode=0o600)


def _forget_old(root: Path) -> None:
    homes = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=lambda entry: entry.stat().st_mtime)
    for old in homes[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
