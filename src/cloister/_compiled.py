"""Functions compiled by numba: no GIL, one core, and no cache where Python itself may keep none.

What numba keeps beside a source is a pickle. A process that was told not to read ``__pycache__`` (an enclave's, where
nothing measures that folder) must not read those either: it compiles anew, ten seconds for the whole room. Whoever
names a folder (``NUMBA_CACHE_DIR``) has one; a closed process takes no such variable from its host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["compiled"]

_OPTIONS = {"nogil": True, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles ``function`` at its first call; exact float semantics, so that no result depends on the machine."""
    kept = "NUMBA_CACHE_DIR" in os.environ or (sys.pycache_prefix is None and not sys.dont_write_bytecode)
    if kept:
        try:
            return njit(cache=True, **_OPTIONS)(function)
        except RuntimeError:  # no folder that may be written
            pass
    return njit(**_OPTIONS)(function)
