"""One private step: a forward that is watched, rows that are bounded and rounded, noise, a gradient.

Order, a micro-batch: the loader says which rows are examples and which padding → the model's forward is watched → the
loss's backward leaves contributions → :meth:`Engine.gather` bounds and sums them. After the last micro-batch of a
batch, :meth:`Engine.release` adds noise and writes ``grad`` of every parameter. Anything out of order is refused: a
gradient that was not gathered would be lost, and one gathered twice would be counted twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from cloister.errors import UnsupportedError
from cloister.offload import in_pass, privately
from cloister.privacy._clipping import Quantile
from cloister.privacy._contributions import Contributions
from cloister.privacy._forms import FORMS, NAMED
from cloister.privacy._grid import GRID_SIGMA, Grid
from cloister.privacy._offloaded import PrivatePass
from cloister.privacy._plan import Plan, plan_for
from cloister.privacy._slots import Slot, slots_of
from cloister.privacy._state import State
from cloister.privacy._threads import idle
from cloister.privacy._uses import Run
from cloister.privacy._watch import Watch
from cloister.ring import RoundingStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloister.offload._engine import Engine as Multiplying
    from cloister.privacy._clipping import Clipping
    from cloister.privacy._grid import Real
    from cloister.privacy._kernels import RowKernels
    from cloister.privacy._noise import Noise
    from cloister.privacy._plan import Trial
    from cloister.ring import RoundingState

__all__ = ["Engine", "Reduction"]

Reduction = Literal["mean", "sum"]

_LEAST_NORM = 2.0**-28  # a shorter row's square may be lost in float32; it counts as if it were so long


@dataclass(slots=True, repr=False)
class Engine:
    """The private gradient of one model.

    Attributes:
        model: The model.
        clipping: How rows are bounded.
        noise_multiplier: Of the gradient: the noise's standard deviation over the clipping norm.
        noise: What is added to their sum, in steps of the grid.
        kernels: What makes rows.
        expected: Examples of a batch, as expected: what the sum is divided by.
        reduction: What the loss is of the losses of a micro-batch's rows, padding included.
        arena_bytes: Most memory for rows that are kept.
        grouped: Whether several rows may be one owner's: they count as one.
        rounding: Bytes for stochastic rounding, where an offloading makes products: secret, and drawn fresh.
    """

    model: nn.Module
    clipping: Clipping
    noise_multiplier: Real
    noise: Noise
    kernels: RowKernels
    expected: float
    reduction: Reduction
    arena_bytes: int
    grouped: bool = False
    rounding: RoundingStream = field(default_factory=RoundingStream)
    slots: tuple[Slot, ...] = field(init=False)
    plan: Plan | None = field(init=False, default=None)
    _by_identity: dict[int, Slot] = field(init=False)
    _contributions: Contributions | None = field(init=False, default=None)
    _total: Tensor = field(init=False)
    _groups: int = field(init=False)
    _watching: bool = field(init=False, default=False)
    _forwarded: bool = field(init=False, default=False)
    _halfway: bool = field(init=False, default=False)
    _shorter: float = field(init=False, default=0.0)
    _multipliers: tuple[Multiplying, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        numbers = self.clipping.groups(names)
        self._groups = len(set(numbers))
        self.slots = tuple(slots_of(self.model, dict(zip(names, numbers, strict=True))))
        self._by_identity = {id(slot.parameter): slot for slot in self.slots}
        self._total = torch.zeros(self.size, dtype=torch.int64, device=self.slots[0].parameter.device)

    @property
    def size(self) -> int:
        """Trained numbers."""
        return self.slots[-1].columns.stop

    @property
    def releases(self) -> tuple[int, ...]:
        """Of a batch, how many numbers each has."""
        return (self.size, 1) if isinstance(self.clipping, Quantile) else (self.size,)

    @property
    def draws(self) -> int:
        """Of noise, a batch: one a number that is released."""
        return sum(self.releases)

    # ---- forward ------------------------------------------------------------------------------------------------

    def forward(
        self, call: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]], examples: int
    ) -> Any:
        """A watched forward.

        Args:
            call: The model's own.
            arguments: Positional and by keyword.
            examples: Rows of the micro-batch.
        """
        if self._watching:  # a model that calls itself
            return call(*arguments[0], **arguments[1])
        if self._contributions is not None and self._contributions.any:
            raise UnsupportedError(8864)
        if in_pass():
            raise UnsupportedError(8867)
        if torch.is_autocast_enabled(self.slots[0].parameter.device.type):
            raise UnsupportedError(8863)
        if self.plan is None:
            self.plan = self._planned(call, arguments, examples)
        if self._contributions is None or self._contributions.examples != examples:
            self.forget()  # the uses of its forwards may contribute no more
            self._contributions = self._arena(self.plan, examples)
        self._contributions.clear()
        run = Run(self.plan, self._contributions)
        outputs = self._watched(call, arguments, run)
        run.end()
        self._forwarded = True
        return outputs

    def _watched(self, call: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]], uses: Any) -> Any:
        state, constants = State(self.model), dict[int, Tensor]()
        for module in self.model.modules():
            for each in (*module._parameters.values(), *module._buffers.values()):
                if each is not None and id(each) not in self._by_identity:
                    constants[id(each)] = each
        watch = Watch(uses, slots=self._by_identity, constants=constants, forms=FORMS, named=NAMED)
        passes = PrivatePass(watch, uses.examples, self.rounding)
        self._watching = True
        try:
            with privately(passes), watch:
                outputs = call(*arguments[0], **arguments[1])
            state.require(watch)
            return outputs
        finally:
            self._watching = False
            self._multipliers = tuple(passes.multipliers)

    def _planned(
        self, call: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]], examples: int
    ) -> Plan:
        before, state = [slot.parameter.grad for slot in self.slots], State(self.model, copied=True)
        try:
            for slot in self.slots:
                slot.parameter.grad = None
            rounding = self.rounding.state
            plan = plan_for(lambda some, trial: self._tried(call, some, trial, rounding), arguments, examples)
            self._require_no_gradients()
        finally:
            state.restore()
            self.rounding = RoundingStream(rounding)
            for slot, gradient in zip(self.slots, before, strict=True):
                slot.parameter.grad = gradient
        return plan

    def _tried(self, call: Callable[..., Any], arguments: Any, trial: Trial, rounding: RoundingState) -> Any:
        """A trial's forward; every trial is rounded alike."""
        self.rounding = RoundingStream(rounding)
        return self._watched(call, arguments, trial)

    def _arena(self, plan: Plan, examples: int) -> Contributions:
        """Keeps the rows of as many parameters as fit, the smallest first: those cost least to keep."""
        shared = frozenset(slot.number for slot in self.slots) if self.grouped else plan.shared
        left, twice = self.arena_bytes // (4 * examples), []
        for slot in sorted(self.slots, key=lambda slot: slot.size):
            left -= slot.size
            if left < 0 and slot.number not in shared:
                twice.append(slot.number)
        return Contributions(self.slots, examples, shared, frozenset(twice), self.kernels, self.radii(self.grid))

    # ---- after backward -----------------------------------------------------------------------------------------

    @property
    def halfway(self) -> bool:
        """Whether some of a batch is summed, and not released."""
        return self._halfway

    def begin(self) -> None:
        """A new batch: what was summed of one that was left halfway is dropped, and its noise may be begun."""
        if idle() or self._total.device.type != "cpu":
            self.noise.prefetch(*self.releases)
        self._total.zero_()
        self._shorter = 0.0

    def forget(self) -> None:
        """Drops what a micro-batch left that was not summed: a loop was left halfway, and begins anew."""
        self._forwarded = False
        if self._contributions is not None:
            self._contributions.clear()

    def gather(self, owners: Tensor) -> None:
        """Bounds, rounds and sums what a micro-batch's backward left.

        Args:
            owners: ``(rows,)`` int64: whose each row is, from zero; negative for a row that is padding.

        Raises:
            UnsupportedError: 8861 when a parameter has a gradient that is nobody's, 8865 without a forward.
            IntegrityError: 5701 when a worker of an offloading answered wrongly: nothing is released, nothing spent.
        """
        self._require_no_gradients()
        contributions = self._contributions
        if contributions is None or not self._forwarded or len(owners) != contributions.examples:
            raise UnsupportedError(8865)
        if not contributions.any:
            raise UnsupportedError(8865, got="a forward without a backward to any parameter")
        self._forwarded, self._halfway = False, True
        owners = owners.to(self._total.device)
        if self.grouped:
            contributions.join(owners)
            owned = torch.zeros_like(owners, dtype=torch.bool)
            owned[owners[owners >= 0]] = True
        else:
            owned = owners >= 0
        scale = contributions.examples if self.reduction == "mean" else 1
        squares = contributions.squared_norms(self._groups) * scale**2
        # a row that is not finite contributes nothing: its sum would be no number, whatever the others are
        real = owned & squares.isfinite().all(0)
        squares = torch.where(real, squares, 1.0).clamp(min=(scale * _LEAST_NORM) ** 2)
        grid = self.grid
        factors = self.clipping.factors(squares, radii=self.radii(grid), whole=float(1 / grid.step)) * scale
        factors = contributions.bound(torch.where(real, factors, 0.0), _LEAST_NORM)
        contributions.add_to(self._total, factors)
        if isinstance(self.clipping, Quantile):
            self._shorter += ((squares[0].sqrt() <= self.clipping.norm).double() - 0.5)[real].sum().item()
        contributions.clear()
        for multiplier in self._multipliers:
            multiplier.settle()

    def release(self) -> None:
        """Adds noise to the sum of a batch and writes the gradients; the sum begins anew."""
        self.noise.add_to(self._total)
        released = torch.empty(self.size, device=self._total.device)
        self.kernels.release(self._total, float(self.grid.step) / self.expected, released)
        turned = {} if self._contributions is None else self._contributions.turned
        for slot in self.slots:
            flat, parameter = released[slot.columns], slot.parameter
            back = turned.get(slot.number)
            gradient = flat.view(parameter.shape) if back is None else back(flat)
            # laid out as the parameter is, as autograd's own would be: optimizers are slower on mixed layouts
            same = gradient.stride() == parameter.stride()
            parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)
        self._halfway = False
        if isinstance(self.clipping, Quantile):
            self.clipping.follow(self._noisy(self._shorter, self.clipping.noise), self.expected)
            self._shorter = 0.0

    def _noisy(self, halves: float, deviation: float) -> float:
        """A sum of halves, to which each example gave one, with noise of this standard deviation."""
        steps = int(GRID_SIGMA / Fraction(deviation)) // 2  # of the grid, that are a half: rounded down is more noise
        total = torch.tensor([round(2 * halves) * steps], dtype=torch.int64)
        self.noise.add_to(total)
        return int(total) / (2 * steps)

    @property
    def grid(self) -> Grid:
        """What rows are rounded to, with the bound as it is now."""
        return Grid(clip=self.clipping.norm, dimension=self.size, noise_multiplier=self.noise_multiplier)

    def radii(self, grid: Grid) -> list[float]:
        """Of each group, its share of the norm being the same."""
        share = Fraction(math.isqrt((1 << 60) // self._groups), 1 << 30)
        sizes = [0] * self._groups
        for slot in self.slots:
            sizes[slot.group] += slot.size
        return [grid.radius(dimension=size, share=share) for size in sizes]

    def _require_no_gradients(self) -> None:
        for slot in self.slots:
            if slot.parameter.grad is not None:
                raise UnsupportedError(8861, got=slot.names[0])
