"""Modules of a converted model: the same objects, of a class that says when their forwards run.

Rules:

* A module keeps its parameters, buffers, hooks, names and ``state_dict``: only its ``__class__`` is exchanged for a
  subclass of itself, made once for each class, with the same name and the forward's own signature.
* The outermost forward opens a :class:`Pass` and closes it, also when it ends in an exception.
* A copy of a converted module is converted, and multiplies through the same multiplier. A pickle of it is refused.
* A forward that was patched on an instance is reached when the module is called.
"""

from __future__ import annotations

import copy
import functools
import types
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from cloister.errors import InputError, UnsupportedError
from cloister.offload._attention import ATTENTION
from cloister.offload._functional import FUNCTIONS
from cloister.offload._passes import PASSES, Pass
from cloister.offload._router import ROOT, Router
from cloister.offload._watch import Watch, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Converted", "Member", "convert_module", "is_converted", "restore_module", "router_of"]

_HANDLERS = {**FUNCTIONS, **ATTENTION}


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A module's part in a conversion.

    Attributes:
        path: Where it stands in the model.
        router: Decides and counts, the same for all modules of the model.
    """

    path: str
    router: Router

    def __copy__(self) -> Member:
        return self

    def __deepcopy__(self, memo: object) -> Member:
        return self

    def run(
        self, module: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Runs a forward of the module, within the pass that is open, or one of its own.

        Raises:
            UnsupportedError: 8702 inside a compiler or tracer; 8707 where an adapter would be shown in its base; 8708
            under autocast.
        """
        stack = PASSES.stack
        if not stack or stack[-1].router is not self.router:
            return self._open(module, forward, args, kwargs)
        modules = stack[-1].modules
        if modules[-1][0] is module:  # __call__ has come to forward
            return forward(*args, **kwargs)
        modules.append((module, self.path))
        try:
            return forward(*args, **kwargs)
        finally:
            modules.pop()

    def _open(
        self, module: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        self._refuse_surroundings(module)
        router, stack = self.router, PASSES.stack
        outermost = all(each.router is not router for each in stack)
        opened = Pass(router, _HANDLERS, module, self.path)
        if outermost:
            router.multiplier.enter()
        try:
            with ExitStack() as modes:
                stack.append(opened)
                modes.callback(stack.pop)
                if router.first(kind_of(module, args, kwargs)):
                    modes.enter_context(Watch(opened))
                modes.enter_context(opened)
                return forward(*args, **kwargs)
        finally:
            if outermost:
                router.multiplier.leave(training=torch.is_grad_enabled())

    def _refuse_surroundings(self, module: nn.Module) -> None:
        if self.router.public is not None:
            self.router.public.refuse_merged()
        if torch.is_autocast_enabled("cpu"):
            raise UnsupportedError(8708, f"{self.path}: autocast is active")
        if (
            module._compiled_call_impl is not None
            or torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
        ):
            raise UnsupportedError(8702, f"{self.path}: an offloaded forward cannot be compiled or traced")


class Converted:
    """What the subclasses have in common; stands before the original class.

    It has no ``__slots__``: a class whose first base has none of its own is laid out like its original, and only then
    does Python exchange the two.
    """

    def __init_subclass__(cls) -> None:
        """Lets the original make of its subclass what it likes: some wrap the forward of each, to checkpoint it.

        One that wants to be told more, or wants no other subclass, is passed over.
        """
        with suppress(Exception):
            super().__init_subclass__()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(self, nn.Module)  # noqa: S101 - every subclass is one
        above: Any = super()
        return _member(self).run(self, above.__call__, args, kwargs)

    def __copy__(self) -> Any:
        return _copied(self, lambda state: dict(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _copied(self, lambda state: copy.deepcopy(state, memo), memo)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise InputError(2724, got=f"{_member(self).path}, a {type(self).__name__}")


def _member(module: Any) -> Member:
    return module.__dict__["_cloister"]


def _copied(module: Any, state_of: Callable[[Any], Any], memo: dict[int, Any] | None = None) -> Any:
    """As ``copy`` does it, through the module's own ``__getstate__`` and ``__setstate__``."""
    kind: Any = type(module)
    new = kind.__new__(kind)
    if memo is not None:
        memo[id(module)] = new
    new.__setstate__(state_of(module.__getstate__()))
    return new


def _own_copy(original: type[nn.Module], copied: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A class's own way to copy, which may look at the class: it sees the original."""

    def copied_as_original(self: Any, *memo: Any) -> nn.Module:
        kind, member = type(self), _member(self)
        self.__class__ = original
        try:
            new = copied(self, *memo)
        finally:
            self.__class__ = kind
        if not is_converted(new):
            new.__class__ = _subclass_of(type(new))
        new.__dict__["_cloister"] = member
        return new

    return copied_as_original


def is_converted(module: nn.Module) -> bool:
    """Whether a module belongs to a converted model."""
    return isinstance(module, Converted)


def convert_module(module: nn.Module, path: str, router: Router) -> None:
    """Makes a module part of a conversion.

    Raises:
        UnsupportedError: 8710 when its class cannot be exchanged.
    """
    try:
        object.__setattr__(module, "__class__", _subclass_of(type(module)))
    except TypeError as error:
        raise UnsupportedError(8710, f"{path or ROOT}: {type(module).__name__} takes no subclass", got=error) from error
    module.__dict__["_cloister"] = Member(path or ROOT, router)


def router_of(module: nn.Module) -> Router:
    """What decides for a converted module."""
    return _member(module).router


def restore_module(module: nn.Module) -> None:
    """Gives a module its own class back."""
    if isinstance(module, Converted):
        kinds = type(module).__mro__
        module.__class__ = kinds[kinds.index(Converted) + 1]  # before it whatever was put around the conversion
        del module.__dict__["_cloister"]


@functools.cache
def _subclass_of(original: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        above: Any = super(kind, self)
        return _member(self).run(self, above.forward, args, kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = original.__module__
        namespace["__doc__"] = original.__doc__
        # whoever asks for the forward's parameters, to know which inputs a model takes, must see the original's
        namespace["forward"] = functools.wraps(original.forward)(forward)
        for name in ("__copy__", "__deepcopy__"):
            if hasattr(original, name):
                namespace[name] = _own_copy(original, getattr(original, name))

    # while it is made it has a name of its own: a class that keeps its subclasses by name must not lose the original
    kind = types.new_class(f"Offloaded{original.__name__}", (Converted, original), exec_body=fill)
    kind.__name__, kind.__qualname__ = original.__name__, original.__qualname__
    return kind
