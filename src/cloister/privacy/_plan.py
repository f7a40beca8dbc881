"""Where each use of parameters has its examples, found by trial and then held to.

A layer sees a tensor; which of its axes counts examples is nowhere written. So the first private forward is preceded
by five small ones:

* with 3 and with 5 examples: the axis whose size follows their number is the axis of the examples. Where examples were
  folded with another axis (``(B·T, C)`` or ``(T·B, C)``), its size is a multiple of it.
* with 3 twice more: nothing may differ, or there is randomness that examples do not have for themselves.
* with one of the 3 exchanged: only that example's part of each use's input, and of the gradient that comes back to it,
  may change, bit for bit. That also tells how a folded axis was folded. Where another's part changes however one
  counts, the model mixes examples and is refused.

That is a test, on one input, and no proof; the proof is a certificate (:mod:`cloister.privacy._certificate`). It
catches what goes wrong by accident: a batch norm, sequences first, a mean over the batch.

The rows of a trial are nobody's (:mod:`cloister.privacy._trial_rows`). What a trial finds decides whether a run goes
on, which others see; of records it would tell what was drawn, and no noise hides that. Where they tell nothing
(whatever is looked at is no number, or a fold can be counted in two ways) rows of other ranges are tried too. Only a
model whose own code fails on all of them, since some word must be there, is tried on its batch's first rows; a
certified graph that stays within its tables (:mod:`cloister.privacy._within`) takes any.

Later forwards must make the same uses in the same order.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cloister.errors import CloisterError, UnsupportedError
from cloister.privacy._kernels import row_kernels
from cloister.privacy._site import Site
from cloister.privacy._trial_rows import EXCHANGED, FEW, MADE_UP, MORE, Batch, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cloister.privacy._kernels import RowKernels
    from cloister.privacy._slots import Source

__all__ = ["Plan", "Site", "Trial", "plan_for"]

_KEPT = [row for row in range(FEW) if row != EXCHANGED]
_FIRST_ONLY = frozenset(("conv1d", "conv2d", "convolution", "group_norm"))
_NOT_LAST = frozenset(("linear", "matmul"))


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
    across: tuple[int, ...] = ()


class Trial:
    """Records the uses of a trial forward, and contributes nothing; see :class:`cloister.privacy._watch.Uses`.

    Args:
        examples: How many there are in it.
        ways: Of each use, as far as it is known: its axis, and how many rows along it are an example's.
    """

    def __init__(self, examples: int, ways: Sequence[Site] = ()) -> None:
        self.examples = examples
        self.seen: list[_Seen] = []
        self.outputs: list[Tensor] = []
        self._ways = ways

    def begin(self, function: str, sources: Sequence[Source], data: Tensor) -> Trial._Use:
        """Records a use."""
        slots = tuple(tuple(slot.number for slot in source.slots) for source in sources)
        way = self._ways[len(self.seen)] if len(self.seen) < len(self._ways) else None
        self.seen.append(_Seen(function, slots, tuple(source.direct for source in sources), data.detach().clone()))
        return Trial._Use(self.seen[-1], self.examples, way)

    class _Use:
        """A use that only remembers what comes back to it."""

        def __init__(self, seen: _Seen, examples: int, way: Site | None) -> None:
            self._seen, self.examples, self._way = seen, examples, way

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
            """Everything as one example's: how the axis counts them is not known yet."""
            return tensor[None, None]

        def as_data(self, tensor: Tensor) -> Tensor:
            """The way back."""
            return tensor[0, 0]

        def spread(self, parameter: Tensor, across: tuple[int, ...]) -> Tensor:
            """The parameter as it is, until the axis is known."""
            self._seen.across = across
            if self._way is None:
                return parameter.view_as(parameter)
            return self._way.spread(parameter, self.examples, across)


def plan_for(run: Callable[[Any, Trial], Any], arguments: Any, examples: int) -> Plan:
    """Finds the plan of a model's forward.

    Args:
        run: Makes a forward with these arguments, a watch and a trial; gives the outputs.
        arguments: The forward's own, a tree; tensors whose first axis has ``examples`` rows are the batch, of which
            shapes and element types count.
        examples: How many there are.

    Raises:
        UnsupportedError: 8855 for a parameter beside the examples, along their axis; 8857 when examples are mixed, 8858
            when a use has no axis of examples, 8859 when the forward does other things with other rows, 8860 for
            randomness that examples share.
    """
    found: _Found | None = None
    for kind in MADE_UP:
        try:
            one = _find(run, Batch(arguments, examples, kind))
        except CloisterError:
            raise
        except Exception:  # noqa: S112 - users' code, which need not take what it was not made for
            continue
        found = one if found is None else found.narrowed(one)
        if found.tells:
            break
    found = found or _find(run, Batch(arguments, examples))
    for seen, sites in zip(found.seen, found.sites, strict=True):
        if len(sites) > 1:
            got = f"{seen.function} of {tuple(seen.data.shape)}, in which nothing tells examples apart"
            raise UnsupportedError(8858, got=got)
    uses = Counter(slot for seen in found.seen for slots in seen.slots for slot in slots)
    indirect = {
        slot
        for seen in found.seen
        for slots, direct in zip(seen.slots, seen.direct, strict=True)
        for slot in slots
        if not direct
    }
    shared = frozenset(indirect | {slot for slot, number in uses.items() if number > 1})
    return Plan(tuple(site for (site,) in found.sites), shared)


class _Found(NamedTuple):
    """What trials on rows of one kind found.

    Attributes:
        seen: The uses.
        sites: Of each, every way of counting its examples in which none depends on another.
        clear: Whether numbers were compared, and none that is no number.
    """

    seen: list[_Seen]
    sites: list[list[Site]]
    clear: bool

    @property
    def tells(self) -> bool:
        return self.clear and all(len(sites) == 1 for sites in self.sites)

    def narrowed(self, other: _Found) -> _Found:
        """What other rows allow too."""
        _require_same_uses(self.seen, other.seen)
        sites = [
            _some([site for site in first if site in second], seen.function)
            for seen, first, second in zip(self.seen, self.sites, other.sites, strict=True)
        ]
        return _Found(self.seen, sites, self.clear or other.clear)


def _find(run: Callable[[Any, Trial], Any], batch: Batch) -> _Found:
    """Makes the trials on rows of one kind."""
    few, more = (_tried(run, batch, Trial(number)) for number in (FEW, MORE))
    _require_same_uses(few.seen, more.seen)
    ways = [_way(*seen) for seen in zip(few.seen, more.seen, strict=True)]
    one, again, other = (
        _tried(run, batch, Trial(FEW, ways), exchange, backward=True) for exchange in (None, None, Exchange())
    )
    for trial in (one, again, other):
        _require_same_uses(few.seen, trial.seen)
    if len({len(trial.outputs) for trial in (few, more, one, again, other)}) > 1:
        raise UnsupportedError(8859)
    for first, second in zip(one.seen, again.seen, strict=True):
        if not (_same(first.data, second.data) and _same(first.gradient, second.gradient)):
            raise UnsupportedError(8860, got=first.function)
    sites = [_some(_sites(*each), each[0].function) for each in zip(ways, one.seen, other.seen, strict=True)]
    for outputs in zip(few.outputs, more.outputs, one.outputs, other.outputs, strict=True):
        _require_unmixed(*outputs)
    if any(output.numel() == 1 for output in one.outputs):
        for exchange in batch.left_out():
            _require_a_mean(run, batch, exchange, ways, one)
    return _Found(one.seen, sites, not any(map(_hides, one.seen)))


def _tried(
    run: Callable[[Any, Trial], Any],
    batch: Batch,
    trial: Trial,
    exchange: Exchange | None = None,
    *,
    backward: bool = False,
) -> Trial:
    """A forward, and a backward from every output; random numbers are the same in each trial."""
    with torch.random.fork_rng(devices=[]), batch.watched():
        torch.manual_seed(0)
        leaves = list(_tensors(run(batch.of(trial.examples, exchange), trial)))
        # one number is the mean of all rows' losses: squared, it would multiply each gradient by the others' losses
        losses = [leaf.sum() if leaf.numel() == 1 else leaf.square().sum() for leaf in leaves if leaf.requires_grad]
        if backward and losses:
            torch.autograd.backward(losses)
    trial.outputs = [leaf.detach() for leaf in leaves]
    return trial


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Those of a forward's outputs, those of dataclasses among them."""
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf):
            yield from _tensors([getattr(leaf, each.name) for each in dataclasses.fields(leaf)])


def _require_same_uses(one: Sequence[_Seen], other: Sequence[_Seen]) -> None:
    if [(seen.function, seen.slots) for seen in one] != [(seen.function, seen.slots) for seen in other]:
        raise UnsupportedError(8859)


def _way(one: _Seen, larger: _Seen) -> Site:
    """The axis of the examples, and rows an example along it; how it counts them is not known yet."""
    small, large = one.data.shape, larger.data.shape
    axis, *others = _grown(small, large) or (None,)
    taken = (axis and one.function in _FIRST_ONLY) or (axis == len(small) - 1 and one.function in _NOT_LAST)
    if axis is None or others or taken:
        raise UnsupportedError(8858, got=f"{one.function} of {tuple(small)} and, with more examples, {tuple(large)}")
    way = Site(one.function, one.slots, axis, 1, small[axis] // FEW)
    way.require_beside(one.across)
    return way


def _grown(small: torch.Size, large: torch.Size) -> list[int]:
    """Axes that follow the number of examples; none where an axis follows something else."""
    if len(small) != len(large):
        return []
    found = [axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    return found if all(small[axis] * MORE == large[axis] * FEW for axis in found) else []


def _sites(way: Site, one: _Seen, other: _Seen) -> list[Site]:
    """All ways of counting, in which nothing of an example changed but of that which was exchanged."""
    compared = [(one.data, other.data)]
    if one.gradient is not None and other.gradient is not None:
        compared.append((one.gradient, other.gradient))
    elif one.gradient is not other.gradient:
        raise UnsupportedError(8859)
    for before, after in compared:
        if before.shape != after.shape:
            raise UnsupportedError(8859)
        if before.dim() <= way.axis or before.shape[way.axis] != FEW * way.each:
            got = f"{one.function} of {tuple(one.data.shape)}, with a result whose gradient is {tuple(before.shape)}"
            raise UnsupportedError(8858, got=got)
    return [
        site
        for site in (replace(way, outer=outer, inner=way.each // outer) for outer in range(1, way.each + 1))
        if site.each == way.each and all(_apart(site, *pair) for pair in compared)
    ]


def _apart(site: Site, before: Tensor, after: Tensor) -> bool:
    return _same(*(site.by_example(each, FEW)[_KEPT] for each in (before, after)))


def _some(sites: list[Site], function: str) -> list[Site]:
    if not sites:
        raise UnsupportedError(8857, got=function)
    return sites


def _require_unmixed(few: Tensor, more: Tensor, one: Tensor, other: Tensor) -> None:
    """Returns unless an output that has examples mixes them; of one whose size depends on data nothing is known."""
    axes = _grown(few.shape, more.shape)
    if not axes or one.shape != other.shape:
        return
    way = Site("an output", (), axes[0], 1, few.shape[axes[0]] // FEW)
    if len(axes) > 1 or not _sites(way, _Seen("", (), (), one), _Seen("", (), (), other)):
        raise UnsupportedError(8857, got="an output")


def _require_a_mean(
    run: Callable[[Any, Trial], Any], batch: Batch, exchange: Exchange, ways: Sequence[Site], one: Trial
) -> None:
    """Returns unless a loss that is one number is divided by how many it left nothing out of."""
    try:
        other = _tried(run, batch, Trial(FEW, ways), exchange, backward=True)
    except CloisterError:
        raise
    except Exception:  # users' code, which need not take what it was not made for
        return
    _require_same_uses(one.seen, other.seen)
    if not all(_sites(*each) for each in zip(ways, one.seen, other.seen, strict=True)):
        hint = "give the loss one number a row, divided by what that row counts"
        raise UnsupportedError(8857, got="a loss that is divided by how much of the batch counts", hint=hint)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Bit for bit, but that all that is no number is alike."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _hides(seen: _Seen) -> bool:
    """Whether something that was looked at is no number: what would have changed there, nobody knows."""
    return any(each is not None and bool((each != each).any()) for each in (seen.data, seen.gradient))
