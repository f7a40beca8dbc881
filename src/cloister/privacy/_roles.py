"""Which of a function's tensors are sources, and which are data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cloister.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.privacy._slots import Source
    from cloister.privacy._watch import Watch

__all__ = ["Roles", "bare", "own", "require_data"]


class Roles:
    """The sources among a layer's weight and bias; None for what is absent or a constant."""

    __slots__ = ("bias", "weight")

    def __init__(self, watch: Watch, weight: Tensor | None, bias: Tensor | None) -> None:
        self.weight, self.bias = watch.source(weight), watch.source(bias)

    @property
    def all(self) -> tuple[Source, ...]:
        """Both, where they are."""
        return tuple(source for source in (self.weight, self.bias) if source is not None)


def bare(*parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Parameters without their graph, which this backward must not walk: it would be used up."""
    return tuple(None if parameter is None else parameter.detach() for parameter in parameters)


def own(result: Tensor) -> Tensor:
    """A result in the memory that it has, and a view of nothing: what a form gives may be written over in place."""
    return torch.ops.aten._unsafe_view.default(result, result.shape) if result._is_view() else result


def require_data(watch: Watch, func: Any, tensor: Tensor, *parameters: Tensor | None) -> None:
    """Returns when a tensor is data, and what it meets is absent, a source or a constant.

    Raises:
        UnsupportedError: 8855 when it is otherwise: a form gives no gradient to a weight that is data.
    """
    if not watch.is_data(tensor) or any(each is not None and watch.is_data(each) for each in parameters):
        raise UnsupportedError(8855, got=f"{func.__name__} with a weight that is data")
