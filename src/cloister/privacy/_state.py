"""What a model keeps, held against what a forward leaves there: nobody puts noise on it, and it is released.

A forward may count its calls, or normalise a vector of its own; it may not leave what follows from data. What torch's
functions say they write is seen by the watch. What it does not see (a buffer that is exchanged for another tensor,
storage that is exchanged, a function that writes without saying so) shows in the tensors: another object, another
address, another version than after the last write that was seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cloister.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from cloister.privacy._watch import Watch

__all__ = ["State", "storage_of", "version_of"]

_Names = dict[str, Tensor | None]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A tensor in its place, as it was."""

    names: _Names
    name: str
    tensor: Tensor
    address: int
    version: int

    @property
    def is_written(self) -> bool:
        return (_address(self.tensor), version_of(self.tensor)) != (self.address, self.version)


class State:
    """Of a model's parameters and buffers, as they are now.

    Args:
        model: The model.
        copied: Whether the buffers' values are kept too, for :meth:`restore`.
    """

    def __init__(self, model: nn.Module, *, copied: bool = False) -> None:
        self._model = model
        self._kept = [_Kept(names, name, each, _address(each), version_of(each)) for names, name, each in _all(model)]
        self._values = {
            id(each.tensor): each.tensor.detach().clone()
            for module in (model.modules() if copied else ())
            for each in self._kept
            if each.names is module._buffers
        }

    def require(self, watch: Watch) -> None:
        """Returns when all that was written since was seen, and follows from no data; else exchanges nothing.

        Raises:
            UnsupportedError: 8853 when something else was left; what was exchanged is back then.
        """
        left = [each.name for each in self._kept if each.is_written and not watch.wrote(each.tensor)]
        before = {(id(each.names), each.name): each.tensor for each in self._kept}
        exchanged = [
            (names, name)
            for names, name, tensor in _all(self._model)
            if before.get((id(names), name)) is not tensor and watch.is_data(tensor)
        ]
        for names, name in exchanged:
            names[name] = before.get((id(names), name))
        left += [name for _, name in exchanged]
        if left:
            raise UnsupportedError(8853, got=f"the model's {left[0]} after a forward")

    def restore(self) -> None:
        """Puts tensors and the buffers' values back, so that a trial leaves no trace."""
        before = {(id(each.names), each.name) for each in self._kept}
        for names, name, _ in list(_all(self._model)):
            if (id(names), name) not in before:
                del names[name]
        with torch.no_grad():
            for each in self._kept:
                each.names[each.name] = each.tensor
                value = self._values.get(id(each.tensor))
                if value is None or not each.is_written:
                    continue
                if _address(each.tensor) != each.address:
                    each.tensor.data = value
                else:
                    each.tensor.copy_(value)


def _all(model: nn.Module) -> Iterator[tuple[_Names, str, Tensor]]:
    for module in model.modules():
        for names in (module._parameters, module._buffers):
            for name, tensor in names.items():
                if tensor is not None:
                    yield names, name, tensor  # type: ignore[misc]


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def storage_of(tensor: Tensor) -> int:
    """Where its memory begins, which its views share; 0 for what has none of that kind."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def version_of(tensor: Tensor) -> int:
    """How often it was written; what was made in inference mode does not count that."""
    return 0 if tensor.is_inference() else tensor._version
