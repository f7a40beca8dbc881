"""Parameters that are trained privately, numbered; each has its columns in the arena and its clipping group.

A *source* is a tensor in a forward that holds parameters: one of them itself, or what was computed from parameters
and constants alone (a transposed or standardised weight, a slice of a packed one). Its gradient an example is turned
into the parameters' by the derivative of that computation, which is the same for all examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cloister.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

__all__ = ["Slot", "Source", "slots_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A trained parameter.

    Attributes:
        number: Its place, in the order of ``named_parameters``.
        names: Its paths in the model; more than one where it is tied.
        parameter: Itself.
        offset: Its first column in a row of all parameters.
        group: Number of its clipping group.
    """

    number: int
    names: tuple[str, ...]
    parameter: nn.Parameter
    offset: int
    group: int

    @property
    def size(self) -> int:
        """Its elements."""
        return self.parameter.numel()

    @property
    def columns(self) -> slice:
        """Where it lies in a row of all parameters."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A tensor that holds parameters.

    Attributes:
        tensor: Itself, with the graph that made it.
        slots: The parameters in it.
        direct: Whether it is a parameter itself.
    """

    tensor: Tensor
    slots: tuple[Slot, ...]
    direct: bool


def slots_of(model: nn.Module, groups: Mapping[str, int]) -> Sequence[Slot]:
    """The trained parameters of a model, in groups that follow each other.

    Args:
        model: The model.
        groups: Group number by the first name of each trained parameter.

    Raises:
        UnsupportedError: 8850 when there is none; 8851 for one that is not dense float32, or on another device.
    """
    names: dict[int, list[str]] = {}
    found: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
            found[id(parameter)] = parameter
    if not found:
        raise UnsupportedError(8850, expected="a model with a parameter that requires a gradient")
    device = next(iter(found.values())).device
    for key, parameter in found.items():
        if parameter.dtype != torch.float32 or parameter.layout != torch.strided or parameter.device != device:
            said = f"{parameter.dtype} on {parameter.device}".removeprefix("torch.")
            raise UnsupportedError(8851, expected=f"dense float32 on {device}", got=f"{names[key][0]}: {said}")
    order = sorted(found, key=lambda key: groups[names[key][0]])  # stable: within a group, the model's own order
    slots: list[Slot] = []
    offset = 0
    for number, key in enumerate(order):
        slots.append(Slot(number, tuple(names[key]), found[key], offset, groups[names[key][0]]))
        offset += found[key].numel()
    return tuple(slots)
