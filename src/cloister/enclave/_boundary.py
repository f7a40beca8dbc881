"""The outer boundary: where a simulated launcher keeps plaintext.

On hardware the enclave's memory is the boundary. Without it, a launcher runs in a mount namespace of its own, in which
``/dev/shm`` is a file system in memory that no other process's paths lead to; it cannot be traced by processes of the
same user, and leaves no core dump. Root on the host can still look, and what is in memory may be swapped: that is what
SIMULATED means.
"""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from cloister.enclave._sandbox import require_bubblewrap
from cloister.errors import RefusedError

__all__ = ["boundary_command", "close_process", "private_folder"]

PRIVATE_ROOT = Path("/dev/shm")  # noqa: S108 - exists on every Linux, and is memory already
_PR_SET_DUMPABLE = 4
_MODE = 0o700  # the host's own is 1777, so that one is never taken for the other


def boundary_command(argv: Sequence[str], *, memory_bytes: int) -> list[str]:
    """The command that runs ``argv`` with private memory of at most ``memory_bytes`` under ``PRIVATE_ROOT``.

    Raises:
        InputError: 2008 on another system than Linux.
        RefusedError: 3501 without bubblewrap.
    """
    command = [require_bubblewrap(), "--dev-bind", "/", "/", "--size", str(memory_bytes), "--perms", f"{_MODE:04o}"]
    return [*command, "--tmpfs", str(PRIVATE_ROOT), "--die-with-parent", "--", *argv]


def close_process() -> None:
    """No core dump, no debugger and no ``/proc/PID/mem`` for other processes of this user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise RefusedError(3501, "the launcher cannot close its own memory", got=os.strerror(ctypes.get_errno()))


def private_folder(root: Path = PRIVATE_ROOT) -> Path:
    """A new folder in the private memory.

    Raises:
        RefusedError: 3501 when there is no private memory, because the boundary was not made.
    """
    status = root.stat()
    if stat.S_IMODE(status.st_mode) != _MODE or status.st_uid != os.geteuid() or not root.is_mount():
        raise RefusedError(
            3501,
            "the launcher has no private memory here",
            expected=f"a private file system at '{root}'",
            hint="start stages with 'cloister run', whose executor makes it",
        )
    folder = root / secrets.token_hex(8)
    folder.mkdir(mode=0o700)
    return folder
