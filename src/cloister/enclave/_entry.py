"""Where the process of a launcher, service or key manager begins: measured code, variables that only say where.

Run by its path, this file is the first of ours that the interpreter reads, before any library. The ``__pycache__``
beside a source is code that no measurement covers, and a variable such as ``OPENSSL_CONF`` or ``FSSPEC_CONFIG_DIR``
names code or settings that nobody measured: a process that was started with either starts itself again without.
It imports the standard library alone, and one file beside it that does the same, because nothing else may be read
before that.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import NoReturn

__all__ = [
    "LAUNCHER",
    "NO_BYTECODE",
    "PROGRAMS",
    "SYSTEM_PATH",
    "become",
    "closed_environment",
    "ensure_closed",
    "start_command",
]

LAUNCHER = "cloister.cli._launcher"
PROGRAMS = (LAUNCHER, "cloister.serve", "cloister.cli._key_manager")
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
NO_BYTECODE = "/dev/null/bytecode"  # nothing can ever lie below a device, whoever owns the machine's folders
_NO_HOME = "/nonexistent"  # settings in a home folder can name modules, providers and commands
_STORAGE = (  # read as text by the storage's client: none names a file of code, a proxy or a certificate
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
)


def closed_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Every variable that a closed process has: fixed ones, where it may keep things, and keys to storage."""
    kept = {name: given[name] for name in _STORAGE if name in given}
    home = given.get("HOME", _NO_HOME)
    cache = given.get("XDG_CACHE_HOME") or ("" if home == _NO_HOME else os.path.join(home, ".cache"))
    if os.path.isabs(cache):
        kept["XDG_CACHE_HOME"] = cache
    return {**kept, "PATH": SYSTEM_PATH, "HOME": _NO_HOME, "LANG": "C.UTF-8"}


def start_command(program: str) -> list[str]:
    """The command that starts one of ``PROGRAMS``."""
    flags = ("-I", "-B", "-X", f"pycache_prefix={NO_BYTECODE}")
    return [sys.executable, *flags, os.path.abspath(__file__), program]


def ensure_closed(program: str) -> None:
    """Returns in a process that was started as it must be; starts this one again where it was not.

    The new process has the same number, descriptors and namespaces; nothing may have been read from its input.
    """
    environment = closed_environment(os.environ)
    isolated = bool(sys.flags.isolated) and sys.dont_write_bytecode and sys.pycache_prefix == NO_BYTECODE
    if not isolated or dict(os.environ) != environment:
        os.execve(sys.executable, start_command(program), environment)  # noqa: S606 - ourselves


def become(program: str, given: bytes) -> NoReturn:
    """Ends what this process runs and starts ``program`` in it, closed, with ``given`` on its standard input.

    Number, folder, output and whoever supervises it stay. What is given may hold a password, so it is neither in an
    argument nor in a variable nor on a disk. Linux only.
    """
    handle = os.memfd_create(program)
    with os.fdopen(handle, "wb", closefd=False) as file:
        file.write(given)
    os.lseek(handle, 0, os.SEEK_SET)
    os.dup2(handle, 0)
    os.set_inheritable(0, True)  # also where standard input was closed, and the file took its place
    os.execve(sys.executable, start_command(program), closed_environment(os.environ))  # noqa: S606 - ourselves


def _remember() -> None:
    """What :mod:`cloister.enclave._remembered` says; the package is not imported for that."""
    remembered = ModuleType("_remembered")
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_remembered.py")
    SourceFileLoader("_remembered", path).exec_module(remembered)
    remembered.remember(NO_BYTECODE)


def main() -> None:
    """Runs the program that the first argument names."""
    program = sys.argv[1] if len(sys.argv) == 2 else ""
    if program not in PROGRAMS:
        sys.exit(2)
    ensure_closed(program)
    _remember()
    sys.argv = [program]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
