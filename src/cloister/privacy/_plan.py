"""Where each use of parameters has its examples, found by trial and then held to.

A layer sees a tensor; which of its axes counts examples is nowhere written. So the first private forward is preceded
by four small ones, on a few of its own examples:

* with 3 and with 5 of them: the axis whose size follows their number is the axis of the examples. Where examples were
  folded with another axis (``(B·T, C)`` or ``(T·B, C)``), its size is a multiple of it.
* with 3 again: nothing may differ, or there is randomness that examples do not have for themselves.
* with one of the 3 exchanged: only that example's part of each use's input, and of the gradient that comes back to it,
  may change, bit for bit. That also tells how a folded axis was folded. Where another's part changes however one
  counts, the model mixes examples and is refused.

That is a test, on one input, and no proof; the proof is a certificate (:mod:`cloister.privacy._certificate`). It
catches what goes wrong by accident: a batch norm, sequences first, a mean over the batch.

Later forwards must make the same uses in the same order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cloister.errors import UnsupportedError
from cloister.privacy._kernels import row_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.privacy._kernels import RowKernels
    from cloister.privacy._slots import Source

__all__ = ["Plan", "Site", "Trial", "plan_for"]

FEW, MORE = 3, 5
_EXCHANGED = 1  # neither the first nor the last of FEW


@dataclass(frozen=True, slots=True)
class Site:
    """A use of parameters, every time the same.

    Attributes:
        function: What it calls.
        slots: Numbers of the parameters, a tuple for each source.
        axis: Where its data has the examples.
        outer: What that axis counts before examples: 1 where nothing is folded into it, ``T`` in ``(T·B, C)``.
        inner: What it counts within an example: 1, or ``T`` in ``(B·T, C)``.
    """

    function: str
    slots: tuple[tuple[int, ...], ...]
    axis: int
    outer: int
    inner: int

    @property
    def each(self) -> int:
        """Rows of an example along the axis."""
        return self.outer * self.inner

    def by_example(self, tensor: Tensor, examples: int) -> Tensor:
        """``(examples, each, …)``, from a tensor that has its examples as the use's data do."""
        if self.axis:
            tensor = tensor.movedim(self.axis, 0)
        rest = tensor.shape[1:]
        if self.outer == 1:
            return tensor.reshape(examples, self.inner, *rest)
        folded = tensor.reshape(self.outer, examples, self.inner, *rest).movedim(1, 0)
        return folded.reshape(examples, self.each, *rest)

    def as_data(self, tensor: Tensor, examples: int) -> Tensor:
        """Where the data have their examples, from what :meth:`by_example` gives."""
        rest = tensor.shape[2:]
        if self.outer != 1:
            tensor = tensor.reshape(examples, self.outer, self.inner, *rest).movedim(0, 1)
        tensor = tensor.reshape(self.each * examples, *rest)
        return tensor.movedim(0, self.axis) if self.axis else tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """All uses of a forward, in their order.

    Attributes:
        sites: One each.
        shared: Parameters that are used more than once, or as part of another source.
    """

    sites: tuple[Site, ...]
    shared: frozenset[int]

    @property
    def used(self) -> frozenset[int]:
        """Numbers of all parameters that are used."""
        return frozenset(slot for site in self.sites for slots in site.slots for slot in slots)


@dataclass(slots=True)
class _Seen:
    function: str
    slots: tuple[tuple[int, ...], ...]
    direct: tuple[bool, ...]
    data: Tensor
    gradient: Tensor | None = None


class Trial:
    """Records the uses of a trial forward, and contributes nothing; see :class:`cloister.privacy._watch.Uses`.

    Args:
        examples: How many there are in it.
    """

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.seen: list[_Seen] = []
        self.outputs: list[Tensor] = []

    def begin(self, function: str, sources: Sequence[Source], data: Tensor) -> Trial._Use:
        """Records a use."""
        slots = tuple(tuple(slot.number for slot in source.slots) for source in sources)
        self.seen.append(_Seen(function, slots, tuple(source.direct for source in sources), data.detach().clone()))
        return Trial._Use(self.seen[-1], self.examples)

    class _Use:
        """A use that only remembers what comes back to it."""

        def __init__(self, seen: _Seen, examples: int) -> None:
            self._seen, self.examples = seen, examples

        @property
        def whole(self) -> bool:
            """Whether each entry along the first axis can be of one example."""
            return len(self._seen.data) % self.examples == 0

        def contributes_alone(self, source: Source) -> bool:
            """Never: nothing is contributed."""
            return False

        def returned(self, dy: Tensor) -> bool:
            """Remembers the gradient of the result; nothing is contributed."""
            self._seen.gradient = dy.detach().clone()
            return False

        @property
        def kernels(self) -> RowKernels:
            """Torch's own."""
            return row_kernels(self._seen.data.device, prefer="torch")

        def by_example(self, tensor: Tensor) -> Tensor:
            """Everything as one example's: which axis has them is not known yet."""
            return tensor[None, None]

        def as_data(self, tensor: Tensor) -> Tensor:
            """The way back."""
            return tensor[0, 0]

        def spread(self, parameter: Tensor) -> Tensor:
            """The parameter as it is."""
            return parameter.view_as(parameter)


def plan_for(run: Callable[[Any, Trial], Any], arguments: Any, examples: int) -> Plan:
    """Finds the plan of a model's forward.

    Args:
        run: Makes a forward with these arguments, a watch and a trial; gives the outputs.
        arguments: The forward's own, a tree; tensors whose first axis has ``examples`` rows are the batch.
        examples: How many there are.

    Raises:
        UnsupportedError: 8857 when examples are mixed, 8858 when a use has no axis of examples, 8859 when the forward
            does other things with other numbers of examples, 8860 for randomness that examples share.
    """
    few, again, exchanged, more = (
        _trial(run, _some(arguments, examples, count, exchange=exchange), count)
        for count, exchange in ((FEW, False), (FEW, False), (FEW, True), (MORE, False))
    )
    kinds = [[(seen.function, seen.slots) for seen in trial.seen] for trial in (few, again, exchanged, more)]
    counts = {len(trial.outputs) for trial in (few, again, exchanged, more)}
    if any(kind != kinds[0] for kind in kinds) or len(counts) > 1:
        raise UnsupportedError(8859)
    sites = [_site(*seen) for seen in zip(few.seen, again.seen, exchanged.seen, more.seen, strict=True)]
    kept = [row for row in range(FEW) if row != _EXCHANGED]
    for one, other in zip(few.outputs, exchanged.outputs, strict=True):
        if one.dim() and len(one) == FEW and not torch.equal(one[kept], other[kept]):
            raise UnsupportedError(8857, got="an output")
    uses = Counter(slot for seen in few.seen for slots in seen.slots for slot in slots)
    indirect = {
        slot
        for seen in few.seen
        for slots, direct in zip(seen.slots, seen.direct, strict=True)
        for slot in slots
        if not direct
    }
    return Plan(tuple(sites), frozenset(indirect | {slot for slot, count in uses.items() if count > 1}))


def _trial(run: Callable[[Any, Trial], Any], arguments: Any, examples: int) -> Trial:
    """A forward and a backward from every output; random numbers are the same in each trial."""
    trial = Trial(examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = [leaf for leaf in pytree.tree_leaves(run(arguments, trial)) if isinstance(leaf, Tensor)]
        losses = [leaf.square().sum() for leaf in leaves if leaf.requires_grad]
        if losses:
            torch.autograd.backward(losses)
    trial.outputs = [leaf.detach() for leaf in leaves]
    return trial


def _some(arguments: Any, examples: int, count: int, *, exchange: bool) -> Any:
    """The arguments with so many examples; where there are fewer, some come twice."""
    rows = [row % examples for row in range(count)]

    def leaf(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.dim() and len(value) == examples):
            return value
        some = value.detach()[rows]
        if exchange:
            other = some[_EXCHANGED]
            # noise and not another example: examples of one batch can be alike, where they are padding even all of them
            some[_EXCHANGED] = other + _noise_like(other) if other.is_floating_point() else _turned(other)
        return some

    return pytree.tree_map(leaf, arguments)


def _noise_like(values: Tensor) -> Tensor:
    """From a generator of its own: a trial draws nothing from the run's."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(values.shape, generator=generator, dtype=values.dtype).to(values.device)


def _turned(values: Tensor) -> Tensor:
    """Other values of the same range."""
    low, high = values.min(), values.max()
    return torch.where(values == low, high, low) if values.dtype == torch.bool else low + high - values


def _site(one: _Seen, again: _Seen, exchanged: _Seen, larger: _Seen) -> Site:
    """How the data of a use has its examples: the only way of counting them in which none depends on another."""
    axis, each = _axis(one, larger)
    for name in ("data", "gradient"):
        first, second = getattr(one, name), getattr(again, name)
        if first is not None and not (second is not None and torch.equal(first, second)):
            raise UnsupportedError(8860, got=one.function)
    splits = [
        Site(one.function, one.slots, axis, outer, each // outer) for outer in range(1, each + 1) if each % outer == 0
    ]
    found = [site for site in splits if _apart(site, one, exchanged)]
    if not found:
        raise UnsupportedError(8857, got=one.function)
    if len(found) > 1:
        raise UnsupportedError(
            8858, got=f"{one.function} of {tuple(one.data.shape)}, in which nothing tells examples apart"
        )
    return found[0]


def _apart(site: Site, one: _Seen, exchanged: _Seen) -> bool:
    """Whether, counted so, nothing of an example changed but of that which was exchanged."""
    for before, after in ((one.data, exchanged.data), (one.gradient, exchanged.gradient)):
        if before is None or after is None or before.dim() <= site.axis or before.shape[site.axis] != FEW * site.each:
            continue
        kept = [row for row in range(FEW) if row != _EXCHANGED]
        if not torch.equal(site.by_example(before, FEW)[kept], site.by_example(after, FEW)[kept]):
            return False
    return True


def _axis(one: _Seen, larger: _Seen) -> tuple[int, int]:
    """The axis of the examples, and rows an example along it."""
    small, large = one.data.shape, larger.data.shape
    if len(small) == len(large):
        found = [
            axis
            for axis, (a, b) in enumerate(zip(small, large, strict=True))
            if a != b and a % FEW == 0 and b == a // FEW * MORE
        ]
        if len(found) == 1:
            return found[0], small[found[0]] // FEW
    raise UnsupportedError(8858, got=f"{one.function} of {tuple(small)} and, with more examples, {tuple(large)}")
