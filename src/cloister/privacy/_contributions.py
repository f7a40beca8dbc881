"""What each example of a micro-batch contributes to the gradient: rows, their norms, and the clipped sum.

A row is one example's gradient of all parameters. Four ways of having it, a use of a parameter each:

* *kept*: written once, in backward, into the arena, where its norm is taken while it is hot; read once for the sum.
* *thin*: a Linear with one position an example, whose row is an outer product, or an embedding, whose row is mostly
  zeros. Norm and clipped, rounded sum need no row.
* *twice*: a layer whose rows do not fit the arena. Its norm is taken and the row forgotten; for the sum it is made
  again, a few examples at a time.
* *outsourced*: a layer whose sum an offloading's workers make (:mod:`cloister.privacy._outsourced`).

A parameter that is used more than once has kept rows, to which each use adds. A *source* that is not a parameter itself
has rows of its own, which are turned into the parameters' after backward.

Rounding: a row is scaled by its example's factor and rounded to the grid before anything is summed, so what one example
can change in the sum is an integer vector whose norm is bounded (:class:`cloister.privacy._grid.Grid`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cloister.privacy._outsourced import Outsourced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cloister.offload import Apart
    from cloister.privacy._kernels import RowKernels
    from cloister.privacy._outsourced import Entries
    from cloister.privacy._slots import Slot, Source

__all__ = ["Add", "Contributions", "Make", "Place", "Turned"]

Make = Callable[[Tensor, Tensor | None, bool, slice], None]
"""Writes rows: into ``(b, size)`` float32, their squared norms added to ``(b,)`` float64 if given, added to what is
there or not, for a range of examples."""


Add = Callable[[Tensor, Tensor], None]
"""Adds scaled, rounded rows: by factors ``(examples,)`` float64, to a sum ``(size,)`` int64."""


class Place(NamedTuple):
    """Where a use's rows go, where they are all that goes there.

    Attributes:
        rows: ``(examples, size)`` float32, to be overwritten.
        squares: ``(examples,)`` float64, to be added to.
    """

    rows: Tensor
    squares: Tensor


@dataclass(frozen=True, slots=True)
class Turned:
    """Rows whose columns are in another order than the parameter's, because they are made faster so.

    Attributes:
        make: Makes them.
        back: Of a row, ``(size,)``, or a sum of such: a view of the parameter's shape.
    """

    make: Make
    back: Callable[[Tensor], Tensor]


@dataclass(slots=True, repr=False)
class _Twice:
    slot: Slot
    make: Make


@dataclass(slots=True, repr=False)
class _Derived:
    source: Source
    rows: Tensor


@dataclass(slots=True, repr=False)
class Contributions:
    """One micro-batch's; used again for the next.

    Attributes:
        slots: The trained parameters, in the order of their columns.
        examples: Rows: the micro-batch's size.
        shared: Parameters that more than one use, or one that is no parameter itself, contributes to.
        twice: Parameters whose rows are not kept.
        kernels: What makes and sums rows.
        radii: Of each clipping group, in steps: the norm beyond which nothing is summed.
        turned: Of each parameter whose rows, and whose part of a sum, are in another order: the way back.
        forward: Number of the forward whose rows may come.
    """

    slots: Sequence[Slot]
    examples: int
    shared: frozenset[int]
    twice: frozenset[int]
    kernels: RowKernels
    radii: Sequence[float] = ()
    turned: dict[int, Callable[[Tensor], Tensor]] = field(init=False, default_factory=dict)
    forward: int = field(init=False, default=0)
    _arena: Tensor = field(init=False)
    _places: dict[int, slice] = field(init=False)
    _squares: Tensor = field(init=False)
    _written: set[int] = field(init=False, default_factory=set)
    _thin: list[tuple[Slot, Add]] = field(init=False, default_factory=list)
    _twices: list[_Twice] = field(init=False, default_factory=list)
    _derived: dict[int, _Derived] = field(init=False, default_factory=dict)
    _outsourced: list[tuple[Slot, Outsourced]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        device = self.slots[0].parameter.device
        self._places, width = {}, 0
        for slot in self.slots:
            if slot.number not in self.twice:
                self._places[slot.number] = slice(width, width + slot.size)
                width += slot.size
        self._arena = torch.empty(self.examples, width, device=device)
        self._squares = torch.zeros(len(self.slots), self.examples, dtype=torch.float64, device=device)

    def clear(self) -> None:
        """Forgets the micro-batch, whose forward may contribute no more; the memory is kept."""
        self.forward += 1
        self._squares.zero_()
        for each in (self._written, self._thin, self._twices, self._derived, self._outsourced):
            each.clear()

    @property
    def any(self) -> bool:
        """Whether anything was contributed."""
        return bool(self._written or self._thin or self._twices or self._derived or self._outsourced)

    # ---- in backward --------------------------------------------------------------------------------------------

    def give(self, source: Source, make: Make, turned: Turned | None = None) -> None:
        """A use's gradients an example.

        Args:
            source: Whose they are.
            make: Makes them.
            turned: The same in another order; taken where nobody else adds to them.
        """
        everything = slice(0, self.examples)
        if not source.direct:
            found = self._derived.get(id(source))
            if found is None:
                rows = torch.empty(self.examples, source.tensor.numel(), device=self._arena.device)
                self._derived[id(source)] = _Derived(source, rows)
                make(rows, None, False, everything)
            else:
                make(found.rows, None, True, everything)
            return
        (slot,) = source.slots
        if turned is not None and slot.number not in self.shared:
            make, self.turned[slot.number] = turned.make, turned.back
        if slot.number in self.twice:
            self._norms_only(slot, make)
            self._twices.append(_Twice(slot, make))
            return
        squares = None if slot.number in self.shared else self._squares[slot.number]
        make(self._rows(slot), squares, slot.number in self._written, everything)
        self._written.add(slot.number)

    def places(self, *sources: Source, turned: Callable[[Tensor], Tensor] | None = None) -> list[Place] | None:
        """Where rows of several parameters go that whoever asks makes at once; None where they have to be given.

        Args:
            sources: Whose they are.
            turned: The way back, where those of the first are in another order; see :class:`Turned`.
        """
        for source in sources:
            if not source.direct or source.slots[0].number in self.shared | self.twice | self._written:
                return None
        numbers = [source.slots[0].number for source in sources]
        if turned is not None:
            self.turned[numbers[0]] = turned
        self._written.update(numbers)
        return [Place(self._rows(source.slots[0]), self._squares[source.slots[0].number]) for source in sources]

    def give_thin(self, source: Source, square: Callable[[Tensor], None], add: Add) -> bool:
        """The same for rows that need not be made; False where they have to be.

        Args:
            source: Whose they are.
            square: Adds their squared norms to ``(examples,)`` float64.
            add: Adds them to a sum.
        """
        if not self.is_alone(source):
            return False
        (slot,) = source.slots
        square(self._squares[slot.number])
        self._thin.append((slot, add))
        return True

    def is_alone(self, source: Source) -> bool:
        """Whether a source is a parameter that nothing else contributes to."""
        return source.direct and source.slots[0].number not in self.shared

    def give_outsourced(self, source: Source, apart: Apart, dy: Tensor, entries: Entries) -> None:
        """The same of a parameter whose sum workers make; it contributes alone.

        Args:
            source: Whose they are.
            apart: Made the forward.
            dy: Gradient of the layer's output, entries first.
            entries: How they have their examples.
        """
        (slot,) = source.slots
        made = Outsourced(apart, dy, entries, self.radii[slot.group])
        self._squares[slot.number] += made.squares()
        self._outsourced.append((slot, made))

    # ---- after backward -----------------------------------------------------------------------------------------

    def join(self, owners: Tensor) -> None:
        """Makes one row of all rows of an owner, the owner's number its place; only where all parameters are shared.

        Args:
            owners: ``(examples,)`` int64, each below ``examples``; a row with a negative one is dropped.
        """
        self._turn_all()
        joined = torch.zeros_like(self._arena)
        real = owners >= 0
        self._arena = joined.index_add_(0, owners[real], self._arena[real])

    def squared_norms(self, groups: int) -> Tensor:
        """``(groups, examples)`` float64: each example's squared norm in each clipping group."""
        self._turn_all()
        for number in self.shared & self._written:
            self.kernels.square_rows(self._rows(self.slots[number]), self._squares[number])
        found = torch.zeros(groups, self.examples, dtype=torch.float64, device=self._squares.device)
        numbers = torch.tensor([slot.group for slot in self.slots], device=found.device)
        return found.index_add_(0, numbers, self._squares)

    def bound(self, factors: Tensor, least: float) -> Tensor:
        """Rounds what workers sum, and holds each example to its radius as it is then.

        Args:
            factors: ``(groups, examples)`` float64: what a row is multiplied by; 0 for a row that is padding.
            least: The norm that a row's may be taken for at the least: a shorter one may be lost in float32.

        Returns:
            The same, made smaller where they must be; 0 where that was not enough.
        """
        if not self._outsourced:
            return factors
        groups = torch.tensor([slot.group for slot in self.slots], device=factors.device)
        inside = self._squares.clone()
        inside[[slot.number for slot, _ in self._outsourced]] = 0.0
        squares = torch.zeros_like(factors).index_add_(0, groups, inside).clamp(min=least**2)
        held = torch.zeros(len(factors), 1, dtype=torch.bool, device=factors.device)
        held[[slot.group for slot, _ in self._outsourced]] = True  # all others have their factors' bound
        # where there is no finite norm the factor is 0 already: no product with it may become no number
        squares = torch.where(held & (factors > 0), squares, 0.0)
        for slot, made in self._outsourced:
            factors[slot.group] = torch.minimum(factors[slot.group], made.most())
        radii = torch.tensor(self.radii, dtype=torch.float64, device=factors.device).unsqueeze(1)
        factors, found = self._shortened(factors, squares, radii)
        factors, found = self._shortened(factors, squares, radii, found)
        return torch.where(found <= radii**2, factors, 0.0)

    def _shortened(
        self, factors: Tensor, inside: Tensor, radii: Tensor, found: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Factors, shortened by what was found, and the squared norms of all that is then summed."""
        if found is not None:
            beyond = radii / found.sqrt() * (1 - _MARGIN)
            factors = torch.where(found > radii**2, factors * beyond, factors)
        found = factors**2 * inside
        for slot, made in self._outsourced:
            found[slot.group] += made.round(factors[slot.group])
        return factors, found

    def add_to(self, total: Tensor, factors: Tensor) -> None:
        """Adds the scaled, rounded rows to a sum.

        Args:
            total: ``(all parameters,)`` int64, in steps of the grid.
            factors: ``(groups, examples)`` float64, after :meth:`bound`: what a row is multiplied by; 0 for a row that
                is padding.
        """
        for slot, made in self._outsourced:
            made.ask(factors[slot.group] > 0)
        for first, last in self._runs():
            columns = slice(self._places[first.number].start, self._places[last.number].stop)
            here = total[first.offset : last.columns.stop]
            self.kernels.sum_rounded(self._arena[:, columns], factors[first.group], here)
        for slot, add in self._thin:
            add(factors[slot.group], total[slot.columns])
        for twice in self._twices:
            for some, rows in self._again(twice):
                self.kernels.sum_rounded(rows, factors[twice.slot.group, some], total[twice.slot.columns])
        for slot, made in self._outsourced:
            made.add_to(total[slot.columns])

    def _rows(self, slot: Slot) -> Tensor:
        return self._arena[:, self._places[slot.number]]

    def _runs(self) -> list[tuple[Slot, Slot]]:
        """Slots that were written and lie side by side, in the arena and in the sum, in one group."""
        runs: list[tuple[Slot, Slot]] = []
        for slot in self.slots:
            if slot.number not in self._written:
                continue
            last = runs[-1][1] if runs else None
            if last is not None and last.number == slot.number - 1 and last.group == slot.group:
                runs[-1] = (runs[-1][0], slot)
            else:
                runs.append((slot, slot))
        return runs

    def _turn_all(self) -> None:
        for derived in self._derived.values():
            self._turn(derived)
        self._derived.clear()

    def _turn(self, derived: _Derived) -> None:
        """Rows of a source into rows of its parameters: one derivative, applied to each example's gradient."""
        tensor, slots = derived.source.tensor, derived.source.slots
        gradients = torch.autograd.grad(
            tensor,
            [slot.parameter for slot in slots],
            derived.rows.reshape(self.examples, *tensor.shape),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        for slot, gradient in zip(slots, gradients, strict=True):
            if gradient is None:
                continue
            rows = self._rows(slot)
            flat = gradient.reshape(self.examples, -1)
            if slot.number in self._written:
                rows += flat
            else:
                rows.copy_(flat)
            self._written.add(slot.number)

    def _norms_only(self, slot: Slot, make: Make) -> None:
        for some in self._chunks(slot):
            rows = torch.empty(some.stop - some.start, slot.size, device=self._arena.device)
            make(rows, self._squares[slot.number, some], False, some)

    def _again(self, twice: _Twice) -> Iterator[tuple[slice, Tensor]]:
        for some in self._chunks(twice.slot):
            rows = torch.empty(some.stop - some.start, twice.slot.size, device=self._arena.device)
            twice.make(rows, None, False, some)
            yield some, rows

    def _chunks(self, slot: Slot) -> list[slice]:
        count = max(1, _CHUNK_ELEMENTS // max(1, slot.size))
        return [slice(start, min(start + count, self.examples)) for start in range(0, self.examples, count)]


_MARGIN = 2.0**-8  # rounding again moves a norm by less, but for one of next to no numbers
_CHUNK_ELEMENTS = 1 << 22  # 16 MiB of rows at a time, where they are made and forgotten
