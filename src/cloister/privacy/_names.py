"""What a function that a mode is handed is called: one word, whichever of its many identities it came as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch._ops import OpOverload, OpOverloadPacket

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["name_of"]


def name_of(func: Callable[..., Any]) -> str:
    """``add`` for ``torch.add``, ``Tensor.add`` and ATen's ``add.Tensor``.

    An operator of another library keeps its library's name, ``mylib::add``: that it is called like one of torch's does
    not mean that it does the same.
    """
    if isinstance(func, OpOverload | OpOverloadPacket):
        library, _, name = (func.name() if isinstance(func, OpOverload) else func._qualified_op_name).partition("::")
        return name.partition(".")[0] if library == "aten" else f"{library}::{name}"
    return func.__name__
