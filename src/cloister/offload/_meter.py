"""Where an offloaded step's time and bytes go, by layer and by stage."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from fractions import Fraction

    from cloister.ring import Product, Role

__all__ = ["STAGES", "Meter", "Use"]

STAGES = ("hide", "ask", "wait", "recover", "check")
"""Stages of a product in the enclave: quantise, mask and send; ask the workers; wait for them; unmask, hold to the
bound and scale; the rest of the Freivalds check."""


@dataclass(slots=True)
class Use:
    """What one layer took.

    Attributes:
        products: How many products were made, by role; a product that was cut counts once.
        checks: How many checks were made; one a part.
        multiplications: Of the products.
        sent_bytes: To all workers together, as tensors; frames and commands come on top.
        received_bytes: From all workers together.
        seconds: By stage.
        bits: Of the operands.
        clipped: Values that did not fit their bits.
    """

    products: dict[Role, int] = field(default_factory=lambda: defaultdict(int))
    checks: int = 0
    multiplications: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    bits: int = 8
    clipped: int = 0


class Meter:
    """Counts for one conversion. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[str, Use] = {}
        self._now = threading.local()
        self.by_worker: dict[int, tuple[int, int]] = {}
        self.error: Fraction | None = None

    @property
    def uses(self) -> dict[str, Use]:
        """By layer, in the order of their first product."""
        return self._uses

    @contextmanager
    def stage(self, layer: str, stage: str) -> Iterator[Use]:
        """Times a stage of a layer's product; bytes that are counted within are this layer's."""
        use = self._use(layer)
        before = getattr(self._now, "use", None)
        self._now.use = use
        start = time.perf_counter()
        try:
            yield use
        finally:
            took = time.perf_counter() - start
            self._now.use = before
            with self._lock:
                use.seconds[stage] += took

    def product(self, layer: str, product: Product, bits: int) -> None:
        """Counts a product."""
        with self._lock:
            use = self._uses[layer]
            use.products[product.role] += 1
            use.multiplications += product.multiplications
            use.bits = bits

    def check(self, layer: str, error: Fraction) -> None:
        """Counts a check, and keeps the greatest error."""
        with self._lock:
            self._uses[layer].checks += 1
            self.error = error if self.error is None else max(self.error, error)

    def sent(self, worker: int, size_bytes: int) -> None:
        """Counts a tensor that was sent."""
        self._add(worker, size_bytes, 0)

    def received(self, worker: int, size_bytes: int) -> None:
        """Counts an answer."""
        self._add(worker, 0, size_bytes)

    def clear(self) -> None:
        """Begins to count anew."""
        with self._lock:
            self._uses.clear()
            self.by_worker.clear()

    def _add(self, worker: int, sent: int, received: int) -> None:
        use: Use | None = getattr(self._now, "use", None)
        with self._lock:
            before = self.by_worker.get(worker, (0, 0))
            self.by_worker[worker] = (before[0] + sent, before[1] + received)
            if use is not None:
                use.sent_bytes += sent
                use.received_bytes += received

    def _use(self, layer: str) -> Use:
        with self._lock:
            return self._uses.setdefault(layer, Use())
