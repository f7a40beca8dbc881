"""What a GPU behind PCIe would make of a run, by the planner's cost model. A projection, and never a measurement.

The enclave's seconds a word and a multiplication are measured here, on this machine's cores, by
:class:`cloister.offload._costs.Costs`. What is not here is assumed, and these assumptions are printed with each number:
a ring product of two word operands, a link and a round trip. A product of words by public bytes is four products of
bytes where one of words by words is ten, and one of bytes by bytes is one, so they are that much faster. What the
enclave does besides, as activations and opening blinding, is taken from the measured run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cloister.offload import InlineWorker, offloading
from cloister.offload._costs import Costs
from cloister.offload._meter import Meter
from cloister.offload._schemes import SCHEMES, Scheme
from cloister.ring import Product

__all__ = ["Assumptions", "projected_s"]

_BYTE_PRODUCTS = {"words": 10, "public": 4, "verify": 1}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Of a GPU that is not there.

    Attributes:
        ring_ops_s: Multiplications and additions a second of a product of words by words: the target for an H200.
        link_bytes_s: Each way: PCIe 4 x16 as it is reached.
        call_s: A kernel's launch and the link's delay, on top of what a call costs here.
    """

    ring_ops_s: float = 100e12
    link_bytes_s: float = 25e9
    call_s: float = 50e-6

    def as_json(self) -> dict[str, float]:
        """The same numbers, by name."""
        return {"ring_ops_s": self.ring_ops_s, "link_bytes_s": self.link_bytes_s, "call_s": self.call_s}

    def __str__(self) -> str:
        return (
            f"a GPU of {self.ring_ops_s / 1e12:.0f} Tops/s for ring products, "
            f"{self.link_bytes_s / 1e9:.0f} GB/s each way, {1e6 * self.call_s:.0f} µs more a call"
        )


ASSUMED = Assumptions()
_measured: dict[str, Costs] = {}


def projected_s(model: nn.Module, mode: str, *, calls: int, besides_s: float, training: bool) -> float:
    """Seconds of a step with a GPU behind PCIe for each worker.

    Args:
        model: Offloaded in the mode, and run.
        mode: With workers.
        calls: Passes that it was run for.
        besides_s: Measured seconds of a step that the model knows nothing of.
        training: Whether a step makes gradients.
    """
    scheme = SCHEMES[mode]  # type: ignore[index]
    costs = _costs(scheme)
    linear = 0.0
    for row in offloading(model).conversion.offloaded:
        product = Product(row.layer.operator, "forward", x=row.x, w=row.w)
        gradients = training and row.layer.weight != "frozen"
        linear += row.calls / calls * costs.estimate(product, scheme, training=gradients).offloaded
    return linear + besides_s


def _costs(scheme: Scheme) -> Costs:
    """This machine's costs in the enclave, with the assumed link and worker."""
    if scheme.mode not in _measured:
        workers = [InlineWorker(f"trial-{index}") for index in range(scheme.workers)]
        for worker in workers:
            worker.start({})
        _measured[scheme.mode] = Costs.measure(workers, scheme, meter=Meter())
        for worker in workers:
            worker.close()
    measured = _measured[scheme.mode]
    kind = "verify" if scheme.mode == "verify" else "public" if scheme.public else "words"
    word_bytes = 1 if kind == "verify" else 4
    return replace(
        measured,
        hide_s=measured.hide_s + word_bytes / ASSUMED.link_bytes_s,
        recover_s=measured.recover_s + 4 / ASSUMED.link_bytes_s,
        worker_s=2 * _BYTE_PRODUCTS[kind] / 10 / ASSUMED.ring_ops_s,
        call_s=measured.call_s + ASSUMED.call_s,
    )


def as_json() -> dict[str, Any]:
    """Assumptions, and what was measured of this machine's cores, by mode."""
    found = {mode: costs.as_json() for mode, costs in _measured.items()}
    return {"assumed": ASSUMED.as_json(), "measured": found, "threads": torch.get_num_threads()}
