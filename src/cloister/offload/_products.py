"""Where a model's products are made: in this process, or by the broker that a stage's launcher runs.

The engine knows a model's tensors and its autograd; whoever implements :class:`Products` hides tensors, has them
multiplied, checks what comes back, and keeps the verdict. In a notebook both are one process. In a stage they are two:
the script has the engine, the launcher's broker the rest (:mod:`cloister.offload._broker`), so that no mask's key and
no worker's link is where the script is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from cloister.offload._arithmetic import Quantising
from cloister.offload._pending import Pending
from cloister.ring import RoundingState, RoundingStream, parts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from torch import Tensor

    from cloister.offload._arithmetic import Arithmetic
    from cloister.offload._meter import Meter, Use
    from cloister.offload._operands import Operand
    from cloister.offload._verdict import Verdict
    from cloister.ring import Product, StreamAhead

__all__ = ["Hidden", "Products", "ProductsHere", "Promise", "StreamOf", "Tally"]

StreamOf = Literal["x", "w", "y"]
"""Which tensor of the form an operand is: the input, the weight, the gradient of the output."""


class Hidden(Protocol):
    """A tensor that was handed over. When nobody refers to it any more, its pieces are given up.

    Attributes:
        axis: Along which its scales vary; None for one scale.
    """

    @property
    def axis(self) -> int | None: ...


class Promise(Protocol):
    """A product that was asked for."""

    def result(self) -> Tensor:
        """Waits for it: float32 of the product's result shape; zeros where a check failed, and the verdict knows.

        Raises:
            PeerError: 67xx when a worker does not answer.
        """
        ...


H = TypeVar("H", bound=Hidden)


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted.

    Attributes:
        uses: By layer, in the order of their first product.
        error: The greatest error of one check so far; None without checks.
        late: How many blinding products were not ready when they were needed.
    """

    uses: Mapping[str, Use]
    error: Fraction | None
    late: int


class Products(Protocol[H]):
    """Hides tensors and makes checked products of them.

    Attributes:
        one_product: Whether an input that was hidden serves one product only, because its mask was drawn for that one.
        verdict: What the checks found; holds back the optimizers of this process.
    """

    one_product: bool
    verdict: Verdict

    def begin(self, *, training: bool, again: bool) -> None:
        """A forward pass begins; ``again`` when autograd recomputes a part of one.

        Raises:
            IntegrityError: 5701 when a check failed before.
        """
        ...

    def hide(
        self, layer: str, stream: StreamOf, values: Tensor, *, product: Product, axis: int | None, stochastic: bool,
        public: bool, exponent: int | None = None,
    ) -> H:  # fmt: skip
        """Takes a tensor in: rounds it, and hands out what the mode lets each worker have of it.

        Args:
            layer: Whose it is, for the report.
            stream: What it is in the form.
            values: float32, on the CPU.
            product: The product that it is first used in.
            axis: Along which its scales vary.
            stochastic: Whether it is rounded up and down at random, or to the nearest.
            public: Whether it is a published weight.
            exponent: Of its scale, where that is fixed; left out, it follows from the values.

        Raises:
            InputError: 2703 when a value is infinite or no number.
        """
        ...

    def ask(self, layer: str, product: Product, left: H, right: H) -> Promise:
        """Begins a product.

        Raises:
            UnsupportedError: 8701 when it cannot be cut so that the ring holds it.
        """
        ...

    def settle(self) -> None:
        """Returns when every check so far held.

        Raises:
            IntegrityError: 5701 otherwise, now and at every later call.
        """
        ...

    def prepare(self, passes: int) -> int:
        """Makes ahead what so many passes like the last one need; returns how many products were made."""
        ...

    @property
    def rounding(self) -> RoundingState:
        """Where the stochastic rounding stands, for a checkpoint; may be set."""
        ...

    @rounding.setter
    def rounding(self, state: RoundingState) -> None: ...

    def tally(self) -> Tally:
        """What was counted so far."""
        ...

    def clear(self) -> None:
        """Begins to count anew."""
        ...

    def close(self) -> None:
        """Ends it; workers forget everything."""
        ...


class ProductsHere:
    """Products by one mode's arithmetic, hidden and checked in this process.

    Args:
        arithmetic: The mode at work.
        bits: Of every operand.
        meter: Where times and bytes go.
        verdict: Where failed checks go.
        rounding: Where the stochastic rounding's bytes begin; drawn from torch's generator when left out, so that
            ``torch.manual_seed`` before the conversion makes a run repeatable.
        ahead: How much keystream may wait, with that of others.
    """

    def __init__(
        self,
        arithmetic: Arithmetic,
        *,
        bits: int,
        meter: Meter,
        verdict: Verdict,
        rounding: RoundingState | None = None,
        ahead: StreamAhead | None = None,
    ) -> None:
        self.one_product = arithmetic.one_product
        self.verdict = verdict
        self._arithmetic = arithmetic
        self._bits = bits
        self._meter = meter
        self._ahead = ahead
        self._rounding = (
            RoundingStream.seeded(ahead=ahead) if rounding is None else RoundingStream(rounding, ahead=ahead)
        )
        self._drawn: list[int] = []  # bytes of rounding in this pass, to be made ahead in the next
        self._step = 0

    def begin(self, *, training: bool, again: bool) -> None:
        """See :class:`Products`."""
        if not again:
            self.verdict.settle()
            self._step += 1
        self._arithmetic.begin(training=training)
        drawn, self._drawn = self._drawn, []
        if training:
            self._rounding.prefetch(*drawn)

    def hide(
        self, layer: str, stream: StreamOf, values: Tensor, *, product: Product, axis: int | None, stochastic: bool,
        public: bool, exponent: int | None = None,
    ) -> Operand:  # fmt: skip
        """See :class:`Products`."""
        how = Quantising(self._bits, axis, self._rounding if stochastic else None, exponent)
        with self._meter.stage(layer, "hide") as use:
            operand = self._arithmetic.operand(stream, values, how, public=public, product=product)
            use.clipped += operand.quantised.clipped
        if stochastic:
            self._drawn.append(values.numel())
        return operand

    def ask(self, layer: str, product: Product, left: Operand, right: Operand) -> Pending:
        """See :class:`Products`."""
        bits = left.quantised.bits, right.quantised.bits
        cuts = parts(product, left_bits=bits[0], right_bits=bits[1], limit=self._arithmetic.limit, layer=layer)
        with self._meter.stage(layer, "ask"):
            self._meter.product(layer, product, max(bits))
            asked = [
                (part, self._arithmetic.ask(part, left, right, product=product, index=index, whole=len(cuts) == 1))
                for index, part in enumerate(cuts)
            ]
        return Pending(
            layer, product, left, right, asked, self._arithmetic.checked, self._step, self._meter, self.verdict
        )

    def settle(self) -> None:
        """See :class:`Products`."""
        self.verdict.settle()

    def prepare(self, passes: int) -> int:
        """See :class:`Products`."""
        return self._arithmetic.prepare(passes)

    @property
    def rounding(self) -> RoundingState:
        """See :class:`Products`."""
        return self._rounding.state

    @rounding.setter
    def rounding(self, state: RoundingState) -> None:
        self._rounding.forget()
        self._rounding = RoundingStream(state, ahead=self._ahead)

    def tally(self) -> Tally:
        """See :class:`Products`."""
        return Tally(self._meter.uses, self._meter.error, self._arithmetic.late)

    def clear(self) -> None:
        """See :class:`Products`."""
        self._meter.clear()

    def close(self) -> None:
        """See :class:`Products`."""
        self._rounding.forget()
        self._arithmetic.close()
