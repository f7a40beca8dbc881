"""Chunks worked on by several threads, delivered in order, within a fixed number of buffers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["CHUNK_BLOCKS", "CHUNK_BYTES", "in_order"]

CHUNK_BLOCKS = 512  # a multiple of the tree's fan-out, so that a chunk's digests fill whole hash blocks
CHUNK_BYTES = CHUNK_BLOCKS * 4096
_THREADS = min(os.cpu_count() or 1, 4)  # each bench costs about 12 MiB; hashing and AES let go of the GIL

B = TypeVar("B")
T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[B, T], R], items: Iterable[T], *, bench: Callable[[], B]) -> Iterator[R]:
    """``work(bench, item)`` for each item, computed ahead by threads, given in the order of ``items``.

    A result may live in its bench's buffers: the bench is used again only when the next result is asked for.
    """
    benches: deque[B] = deque()
    made = 0
    running: deque[tuple[B, Future[R]]] = deque()
    queue = iter(items)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="cloister-seal") as pool:
        try:
            while True:
                while benches or made <= _THREADS:
                    item = next(queue, _END)
                    if item is _END:
                        break
                    if not benches:
                        benches.append(bench())
                        made += 1
                    own = benches.popleft()
                    running.append((own, pool.submit(work, own, item)))  # pyright: ignore[reportArgumentType]
                if not running:
                    return
                own, future = running.popleft()
                yield future.result()
                benches.append(own)
        finally:
            for _, future in running:
                future.cancel()


_END = object()
