"""The uses of parameters in a private forward, as its backward meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cloister.errors import UnsupportedError
from cloister.privacy._contributions import Add, Contributions, Make, Place, Turned
from cloister.privacy._plan import Plan, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.offload import Apart
    from cloister.privacy._kernels import RowKernels
    from cloister.privacy._outsourced import Entries
    from cloister.privacy._slots import Source

__all__ = ["Run", "Use"]


class Use:
    """One use in one forward.

    Attributes:
        kernels: What makes rows.
    """

    __slots__ = ("_contributions", "_done", "_forward", "_site", "kernels")

    def __init__(self, site: Site, contributions: Contributions) -> None:
        self._site, self._contributions = site, contributions
        self._done, self._forward = False, contributions.forward
        self.kernels: RowKernels = contributions.kernels

    @property
    def examples(self) -> int:
        """Of the micro-batch."""
        return self._contributions.examples

    @property
    def each(self) -> int:
        """Rows of an example along the axis that has the examples."""
        return self._site.each

    @property
    def whole(self) -> bool:
        """Whether that is the first axis, so that each entry along it is of one example."""
        return self._site.axis == 0

    def returned(self, dy: Tensor) -> bool:
        """Is told that backward came to it; whether it contributes.

        Raises:
            UnsupportedError: 8862 when it comes a second time, 8868 when another forward was made since.
        """
        if self._done:
            raise UnsupportedError(8862, got=f"a second backward through {self._site.function}")
        if self._forward != self._contributions.forward:
            raise UnsupportedError(8868, got=f"a backward through {self._site.function} of a forward before")
        self._done = True
        return True

    def by_example(self, tensor: Tensor) -> Tensor:
        """``(examples, rows an example, …)``, from a tensor that has its examples where the use's data had them."""
        return self._site.by_example(tensor, self.examples)

    def as_data(self, tensor: Tensor) -> Tensor:
        """The way back from :meth:`by_example`."""
        return self._site.as_data(tensor, self.examples)

    def spread(self, parameter: Tensor, across: tuple[int, ...]) -> Tensor:
        """A parameter with an axis of examples, where the use's data have theirs; see :meth:`Site.spread`."""
        return self._site.spread(parameter, self.examples, across)

    def give(self, source: Source, make: Make, turned: Turned | None = None) -> None:
        """Contributes rows; see :meth:`Contributions.give`."""
        self._contributions.give(source, make, turned)

    def places(self, *sources: Source, turned: Callable[[Tensor], Tensor] | None = None) -> list[Place] | None:
        """Where rows made at once go; see :meth:`Contributions.places`. None, too, where an example has several."""
        return self._contributions.places(*sources, turned=turned) if self.each == 1 else None

    def contributes_alone(self, source: Source) -> bool:
        """Whether a source is a parameter that nothing else contributes to."""
        return self._contributions.is_alone(source)

    def give_outsourced(self, source: Source, apart: Apart, dy: Tensor, entries: Entries) -> None:
        """Contributes what workers will sum; see :meth:`Contributions.give_outsourced`."""
        self._contributions.give_outsourced(source, apart, dy, entries)

    def give_thin(self, source: Source, square: Callable[[Tensor], None], add: Add) -> bool:
        """Contributes rows that need not be made; see :meth:`Contributions.give_thin`."""
        return self._contributions.give_thin(source, square, add)


class Run:
    """The uses of one forward, held to the plan.

    Args:
        plan: What they must be.
        contributions: Where they go.

    Attributes:
        examples: Of the micro-batch.
    """

    def __init__(self, plan: Plan, contributions: Contributions) -> None:
        self._plan, self._contributions = plan, contributions
        self._next = 0
        self.examples = contributions.examples

    def begin(self, function: str, sources: Sequence[Source], data: Tensor) -> Use:
        """The next use; see :class:`cloister.privacy._watch.Uses`."""
        if self._next == len(self._plan.sites):
            raise UnsupportedError(8856, expected=f"{self._next} uses of parameters", got=f"one more, {function}")
        site = self._plan.sites[self._next]
        self._next += 1
        slots = tuple(tuple(slot.number for slot in source.slots) for source in sources)
        if (site.function, site.slots) != (function, slots):
            raise UnsupportedError(8856, expected=site.function, got=function)
        rows = data.shape[site.axis] if site.axis < data.dim() else 0
        if rows != site.each * self._contributions.examples:
            expected = f"{site.each} × {self._contributions.examples} rows along axis {site.axis}"
            raise UnsupportedError(8856, expected=expected, got=f"{function} of {tuple(data.shape)}")
        return Use(site, self._contributions)

    def end(self) -> None:
        """All uses were made.

        Raises:
            UnsupportedError: 8856 when some were not.
        """
        if self._next != len(self._plan.sites):
            raise UnsupportedError(8856, expected=f"{len(self._plan.sites)} uses of parameters", got=str(self._next))
