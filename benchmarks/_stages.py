"""Where the time of an offloaded step goes, and how often its tensors are read, written and sent.

A :class:`Clock` gives each moment of the enclave's thread to the stage that is innermost then, so that the stages of a
step add up to the step:

==================  ==================================================================================================
``PRG``             waiting for masks and rounding bytes, as far as they were not made ahead; opening sealed blinding
``quantise``        the greatest magnitude; rounding and masking in one pass
``transfer``        commands; the device's copies, of what goes and of what comes
``GEMM``            waiting while workers multiply
``verify``          unmasking, the bound, the check and scaling, which are one pass; what the operands demand
``non-linear``      everything else: activations, normalisation, biases, the loss, autograd, the optimizer
==================  ==================================================================================================

While the enclave waits, its time is divided as the workers' own is. Nothing here is used but in benchmarks: the stages
are read off by wrapping, so that the code that is measured knows nothing of it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cloister.offload import Compute, Expand, InlineWorker, Put, offloading
from cloister.offload._blinding import Blinding
from cloister.offload._commands import Command
from cloister.offload._meter import Meter
from cloister.offload._schemes import SCHEMES
from cloister.ring import Challenge, MaskSource, Product, RoundingStream, kernels_for, recover
from cloister.ring._fused import mask_words, maximum, quantise_words

__all__ = ["PUBLISHED_PASSES", "PUBLISHED_UPLOADS", "STAGES", "Clock", "TimedWorker", "counts", "timed_workers"]

STAGES = ("PRG", "quantise", "transfer", "GEMM", "verify", "non-linear")
PUBLISHED_PASSES = 6
"""About so many times Goten's code goes over a tensor before it is sent (see `cloister.ring._multipass`)."""
PUBLISHED_UPLOADS = 4
"""So often it sends each of x, W and dy to a server: two pieces for each of the two products that read it."""

_WAIT = "wait"
_OF_METER = {"hide": "quantise", "ask": "transfer", "wait": _WAIT, "recover": "verify", "check": "verify"}
_OF_COMMAND = {Put: "transfer", Expand: "PRG"}
_MEMORY_BYTES = 64 << 30  # a bound that no benchmark reaches
_LARGE = 1024  # elements, from which on a tensor of torch's own is counted


class Clock:
    """Seconds of one thread by stage; what no stage was open for is ``non-linear``."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._open = ["non-linear"]
        self._since = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts for this stage until it ends, but for what is counted for one within. Other threads count nothing."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def step(self, work: Callable[[], object], workers: list[TimedWorker]) -> tuple[float, dict[str, float]]:
        """Does a step's work.

        Returns:
            Its seconds, and these by stage.
        """
        self.seconds.clear()
        before = [dict(worker.seconds) for worker in workers]
        for worker in workers:
            worker.clock = self
        with self._watching():
            start = self._since = time.perf_counter()
            work()
            self._count()
            took = time.perf_counter() - start
        spent: defaultdict[str, float] = defaultdict(float)
        for worker, earlier in zip(workers, before, strict=True):
            for name, seconds in worker.seconds.items():
                spent[name] += seconds - earlier.get(name, 0.0)
        waited, busy = self.seconds.pop(_WAIT, 0.0), sum(spent.values())
        found = {name: self.seconds[name] for name in STAGES}
        for name in spent:
            found[name] += waited * spent[name] / busy if busy else 0.0
        if not workers:  # this process multiplied, when it was asked
            found["GEMM"] += waited + found["transfer"]
            found["transfer"] = 0.0
        return took, found

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def _watching(self) -> Iterator[None]:
        clock = self
        metered = Meter.stage

        @contextmanager
        def stage(meter: Meter, layer: str, name: str) -> Iterator[Any]:
            with clock.stage(_OF_METER[name]), metered(meter, layer, name) as use:
                yield use

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(Meter, "stage", stage))
            for owner, name in ((MaskSource, "next"), (RoundingStream, "next"), (Blinding, "mask"), (Blinding, "take")):
                stack.enter_context(mock.patch.object(owner, name, self._within("PRG", getattr(owner, name))))
            yield

    def _within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


class TimedWorker(InlineWorker):
    """A worker in this process that knows how long it multiplied, and how long it copied.

    Args:
        name: Its name.
        device: Where it multiplies.

    Attributes:
        seconds: Its own, by stage.
        uploads: Tensors that it was sent.
        clock: Of the enclave's thread.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._inside = kernels_for(device)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.uploads = 0
        self.clock: Clock | None = None
        self._multiplied = 0.0
        self._on = device
        super().__init__(name, kernels=self, device=device, memory_bytes=_MEMORY_BYTES)

    def product(self, product: Product, left: Tensor, right: Tensor) -> Tensor:
        """The kernels' product, waited for."""
        start = time.perf_counter()
        answer = self._inside.product(product, left, right)
        self._synchronise()
        self._multiplied += time.perf_counter() - start
        return answer

    def submit(self, command: Command, tensor: Tensor | None = None) -> Future[Tensor | None]:
        """See :class:`InlineWorker`."""
        self.uploads += tensor is not None
        if self.clock is None:
            return super().submit(command, tensor)
        with self.clock.stage("transfer"):
            return super().submit(command, tensor)

    def _do(self, future: Future[Tensor | None], command: Command, tensor: Tensor | None) -> None:
        start, self._multiplied = time.perf_counter(), 0.0
        super()._do(future, command, tensor)
        self._synchronise()
        took = time.perf_counter() - start
        if isinstance(command, Compute):
            self.seconds["GEMM"] += self._multiplied
        self.seconds[_OF_COMMAND.get(type(command), "transfer")] += took - self._multiplied

    def _synchronise(self) -> None:
        if self._on.type == "cuda":
            torch.cuda.synchronize(self._on)


def timed_workers(mode: str, device: torch.device) -> list[TimedWorker]:
    """As many as a mode has; none for the modes that have none."""
    scheme = SCHEMES.get(mode)  # type: ignore[call-overload]
    return [TimedWorker(f"worker-{index}", device) for index in range(scheme.workers if scheme else 0)]


class _TorchOperations(TorchDispatchMode):
    """Elements that torch's own operations read or write, by the stage that is open."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, made) if isinstance(each, Tensor)]
        largest = max((each.numel() for each in tensors), default=0)
        returned = func._schema.returns
        view = bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write
        if largest >= _LARGE and not view and not func._schema.name.startswith("aten::empty"):
            self.elements[self._clock._open[-1]] += largest
        return made


def counts(model: nn.Module, workers: list[TimedWorker], work: Callable[[], object]) -> dict[str, float]:
    """Does one step of an offloaded model, and counts.

    Returns:
        ``passes_out``: how often each element of an operand is read or written by this thread before it is sent, the
        greatest magnitude among them; ``passes_back``: the same for an answer, after it came; ``check_reads``: how
        often the check reads an operand's bytes, over the elements of operands; ``uploads``: how often the busiest
        worker is sent an operand, over the operands of the layers' forms, three a layer; ``sent_bytes_published``:
        what Goten's code would send to its two servers for the same layers, 4 bytes an element.
    """
    clock = Clock()
    seen: Counter[str] = Counter()
    operations = _TorchOperations(clock)
    before = [worker.uploads for worker in workers]
    products = offloading(model).engine.products
    products.clear()
    calls = {row.layer: row.calls for row in offloading(model).conversion.offloaded}

    def counted(name: str, function: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[name] += size(*args, **kwargs)
            return function(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for function, size in (
            (maximum, lambda values, *_: values.numel()),
            (quantise_words, lambda values, *_, **__: values.numel()),
            (mask_words, lambda values, *_, **__: values.numel()),
            (recover, lambda answers, **_: answers[0][1].numel()),
        ):
            _patch_everywhere(stack, function, counted(function.__name__, function, size))
        judge = counted("judge", Challenge.judge, lambda _, left, right, **__: left.numel() + right.numel())
        stack.enter_context(mock.patch.object(Challenge, "judge", judge))
        stack.enter_context(operations)
        clock.step(work, workers)
    forward = sum(use.products["forward"] for use in products.tally().uses.values())
    out = seen["maximum"] + seen["quantise_words"] + seen["mask_words"] + operations.elements["quantise"]
    back = seen["recover"] + operations.elements["verify"]
    uploads = max((worker.uploads - b for worker, b in zip(workers, before, strict=True)), default=0)
    words = 0
    for row in offloading(model).conversion.offloaded:
        product = Product(row.layer.operator, "forward", x=row.x, w=row.w)
        elements = math.prod(product.x) + math.prod(product.w) + math.prod(product.y)
        words += (row.calls - calls.get(row.layer, 0)) * elements
    return {
        "passes_out": out / max(1, seen["quantise_words"]),
        "passes_back": back / max(1, seen["recover"]),
        "check_reads": seen["judge"] / max(1, seen["quantise_words"]),
        "uploads": uploads / max(1, 3 * forward),
        "sent_bytes_published": 4 * PUBLISHED_UPLOADS * 2 * words,
    }


def _patch_everywhere(stack: ExitStack, function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Wherever the library has imported it to."""
    for name, module in list(sys.modules.items()):
        if name.startswith("cloister.") and vars(module).get(function.__name__) is function:
            stack.enter_context(mock.patch.object(module, function.__name__, other))
