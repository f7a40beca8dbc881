"""The process that a secret was made in: a fork has the same bytes, and would use them a second time."""

from __future__ import annotations

import os

from cloister.errors import InternalError

__all__ = ["ThisProcess"]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # where it is missing, there is no fork
    os.register_at_fork(after_in_child=_count_fork)


class ThisProcess:
    """Remembers the process that it was made in."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made = (os.getpid(), _forks)

    def require(self) -> None:
        """Returns in the same process.

        Raises:
            InternalError: 9701 in a process that was forked from it.
        """
        if self._made != (os.getpid(), _forks):
            raise InternalError(9701, "the masks of one process were about to be used in a fork of it")
