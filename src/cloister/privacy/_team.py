"""Work for the threads that torch's own functions run on.

torch's threads wait for their next work by spinning. Threads of our own would find the cores taken, wherever there are
no more cores than torch has threads; so ours is handed to the same team, by the entry that the OpenMP runtime has for
compilers (``GOMP_parallel``, libgomp's documented ABI). Where torch has loaded another runtime, and in a fork, whose
parent's team is not there any more, there is no team.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["Team", "team"]

_forked = False


class Team:
    """Of the thread that asks.

    Args:
        path: Of the runtime that torch has loaded.
    """

    def __init__(self, path: str) -> None:
        self._parallel = ctypes.CDLL(path).GOMP_parallel  # gives up the GIL
        quick = ctypes.PyDLL(path)
        self._number, self._count = quick.omp_get_thread_num, quick.omp_get_num_threads
        self._entry = _ENTRY(self._enter)
        self._parallel.argtypes = _ENTRY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        self._parallel.restype = None
        self._jobs: dict[int, tuple[Callable[[int], None], int, list[BaseException]]] = {}
        self._tokens = itertools.count(1)

    def run(self, parts: int, work: Callable[[int], None]) -> None:
        """Calls ``work(0)`` to ``work(parts - 1)``, each once, on as many threads where there are so many.

        Raises:
            BaseException: What one of the calls raised, after all have ended.
        """
        token, raised = next(self._tokens), list[BaseException]()
        self._jobs[token] = work, parts, raised
        try:
            self._parallel(self._entry, token, parts, 0)
        finally:
            del self._jobs[token]
        if raised:
            raise raised[0]

    def _enter(self, token: int) -> None:
        work, parts, raised = self._jobs[token]
        try:
            for part in range(self._number(), parts, self._count()):
                work(part)
        except BaseException as error:
            raised.append(error)


_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def team() -> Team | None:
    """torch's, or None where it cannot be had."""
    return None if _forked else _team()


@lru_cache(maxsize=1)
def _team() -> Team | None:
    if "OpenMP" not in torch.__config__.parallel_info().partition("ATen parallel backend:")[2]:
        return None
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        loaded = {Path(line.split()[-1]) for line in maps if "libgomp" in line}
        own = {path for path in loaded if path.is_relative_to(Path(torch.__file__).parent)}
        (found,) = own or loaded  # other packages bring theirs
        return Team(str(found))
    except (OSError, AttributeError, ValueError):
        return None


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
