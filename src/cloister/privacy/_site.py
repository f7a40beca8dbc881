"""A use of parameters, and how its data has the examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloister.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Site"]


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

    def spread(self, parameter: Tensor, examples: int, across: Sequence[int]) -> Tensor:
        """A parameter with an axis of examples, where the data have theirs; of all their dimensions.

        Args:
            parameter: Has one entry along that axis, or one a row of the data.
            examples: How many there are.
            across: Axes along which the function does more than put entry to entry.

        Raises:
            UnsupportedError: 8855 when one of these is the axis, or the parameter has other entries along it.
        """
        self.require_beside(across)
        rows = self.each * examples
        if parameter.shape[self.axis] not in (1, rows):
            got = f"{self.function} of a parameter of {tuple(parameter.shape)} along the axis of the examples"
            raise UnsupportedError(8855, got=got)
        return parameter.expand(*parameter.shape[: self.axis], rows, *parameter.shape[self.axis + 1 :])

    def require_beside(self, across: Sequence[int]) -> None:
        """Returns unless one of these axes has the examples: a parameter's entry there would be no example's.

        Raises:
            UnsupportedError: 8855 when one has.
        """
        if self.axis in across:
            got = f"{self.function} with a parameter along the axis of the examples"
            hint = "expand the parameter to the batch, and keep it beside the data along another axis"
            raise UnsupportedError(8855, got=got, hint=hint)
