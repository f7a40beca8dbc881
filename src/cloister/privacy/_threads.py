"""Examples shared among as many threads as torch uses: its own (:mod:`cloister.privacy._team`), or ours.

The threads are kept between calls: a step makes hundreds of them. A fork has none of its parent's threads, so it makes
its own. What a thread computes for an example depends on that example alone, so results do not depend on their number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from cloister.privacy._team import team

__all__ = ["idle", "scratch", "share"]

_ALIGNMENT = 64  # a cache line, and the widest vector

_pools: dict[int, ThreadPoolExecutor] = {}
_own = threading.local()
_buffers: dict[int, np.ndarray] = {}  # of torch's threads, by identity: what is local to them ends with each call


def _forget() -> None:
    _pools.clear()


if hasattr(os, "register_at_fork"):  # where it is missing, there is no fork
    os.register_at_fork(after_in_child=_forget)


def share(count: int, work: Callable[[int, int], None], *, threads: int | None = None) -> None:
    """Calls ``work(first, last)`` for parts of ``range(count)``, on torch's number of threads; the caller is one."""
    threads = min(threads or torch.get_num_threads(), count)
    if threads <= 1:
        if count:
            work(0, count)
        return
    edges = [count * part // threads for part in range(threads + 1)]
    lent = team()
    if lent is not None:
        lent.run(threads, lambda part: _lent(work, part, *edges[part : part + 2]))
        return
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="cloister-rows")
    others = [_pools[threads].submit(work, *part) for part in pairwise(edges[1:])]
    try:
        work(edges[0], edges[1])
    finally:
        for other in others:
            other.exception()  # waits; the memory they write must not be let go before
    for other in others:
        other.result()


def _lent(work: Callable[[int, int], None], part: int, first: int, last: int) -> None:
    if part:
        _buffers.setdefault(threading.get_ident(), np.empty(0, np.uint8))
    work(first, last)


def idle() -> bool:
    """Whether this process may use a core that torch's threads leave alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores > torch.get_num_threads()


def scratch(size_bytes: int) -> int:
    """The address of at least so many bytes of this thread's own, aligned to a cache line, with anything in them.

    They are the thread's until its next call.
    """
    ident = threading.get_ident()
    buffer = _buffers.get(ident, getattr(_own, "buffer", None))
    if buffer is None or buffer.size < size_bytes + _ALIGNMENT:
        buffer = np.empty(size_bytes + _ALIGNMENT, np.uint8)
        if ident in _buffers:
            _buffers[ident] = buffer
        else:
            _own.buffer = buffer
    return -(-buffer.ctypes.data // _ALIGNMENT) * _ALIGNMENT
