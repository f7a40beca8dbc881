"""A private forward: every function that torch is asked for on the way, held against what it does with parameters.

A :class:`Watch` is a ``TorchFunctionMode``, so it does not matter whether a module calls ``F.linear``, computes its
weight first, or a model calls a function with another module's parameter: the call is the same call. It is handed
ATen's operators too, so a certified graph (:mod:`cloister.privacy._replay`) is watched as a model's code is.

Rules:

* What is computed from parameters and constants alone is a *source*, as a parameter is.
* Where a source meets data there must be a form that gives gradients an example (``FORMS``); without one the model is
  refused, by parameter, function and remedy. Nothing is guessed.
* The uses of a forward follow its :class:`~cloister.privacy._plan.Plan`, which says where each has its examples.
* What torch does with a parameter unseen by the mode ends in ``parameter.grad``, and the optimizer refuses that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from cloister.errors import UnsupportedError
from cloister.privacy._names import name_of
from cloister.privacy._slots import Source
from cloister.privacy._state import storage_of, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloister.privacy._slots import Slot
    from cloister.privacy._uses import Use

__all__ = ["Form", "Uses", "Watch", "tensors_of"]

MIXERS = {
    "batch_norm": "exchange it for nn.GroupNorm: cloister.privacy.fix(model) does",
    "_batch_norm_impl_index": "exchange it for nn.GroupNorm: cloister.privacy.fix(model) does",
    "native_batch_norm": "exchange it for nn.GroupNorm: cloister.privacy.fix(model) does",
    "cudnn_batch_norm": "exchange it for nn.GroupNorm: cloister.privacy.fix(model) does",
}
"""Functions that mix the examples of a batch while it trains, with the remedy."""


class Form(Protocol):
    """A function's private form: of the watch, the function and its own arguments."""

    def __call__(self, watch: Watch, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The same result, whose backward gives gradients an example."""
        ...


class Uses(Protocol):
    """Where the uses of a forward are told.

    Attributes:
        examples: Rows of its micro-batch.
    """

    examples: int

    def begin(self, function: str, sources: Sequence[Source], data: Tensor) -> Use:
        """The next use.

        Args:
            function: Its name.
            sources: What of the parameters it takes.
            data: The tensor that has the examples.

        Raises:
            UnsupportedError: 8856 when the forward does not follow its plan.
        """
        ...


class Watch(TorchFunctionMode):
    """One private forward.

    Args:
        uses: Is told of every use of parameters.
        slots: The trained parameters, by identity.
        constants: Tensors that hold no data, by identity: buffers and frozen parameters.
        forms: Private forms, by function as torch hands it over.
        named: The same, by the function's name: what has many identities (``+`` has nine).

    Attributes:
        anchor: Wants a gradient and gets none; see :mod:`cloister.privacy._forms`.
    """

    def __init__(
        self,
        uses: Uses,
        *,
        slots: Mapping[int, Slot],
        constants: Mapping[int, Tensor],
        forms: Mapping[Any, Form],
        named: Mapping[str, Form],
    ) -> None:
        super().__init__()
        self.uses = uses
        self.anchor = torch.zeros((), requires_grad=True)
        self._slots = slots
        self._forms, self._named = forms, named
        self._sources: dict[int, Source] = {}
        self._constants: dict[int, Tensor] = dict(constants)  # held: an identity is one object's as long as it lives
        self._written: dict[int, int] = {}  # by storage, which views share with their versions: at the last seen write

    def source(self, tensor: Any) -> Source | None:
        """What a tensor holds of the trained parameters; None when nothing."""
        found = self._sources.get(id(tensor))
        if found is None and (slot := self._slots.get(id(tensor))) is not None:
            found = self._sources[id(tensor)] = Source(tensor, (slot,), True)
        return found

    def is_data(self, tensor: Tensor) -> bool:
        """Whether it may hold data: it is no source and no constant."""
        return id(tensor) not in self._constants and self.source(tensor) is None

    def wrote(self, tensor: Tensor) -> bool:
        """Whether what a tensor holds was written where it was seen, and by nothing that may hold data."""
        return self._written.get(storage_of(tensor)) == version_of(tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        sources: list[Source] = []
        data = False
        for tensor in tensors_of(args, kwargs):
            source = self.source(tensor)
            if source is not None:
                sources.append(source)
            elif id(tensor) not in self._constants:
                data = True
        name = name_of(func)
        if data and name in MIXERS and _trains(func, args, kwargs):
            raise UnsupportedError(8852, got=f"{name} in training", hint=MIXERS[name])
        written = _written(name, args, kwargs)
        if data:
            self._require_no_data(name, written)
            return self._meet(func, name, sources, args, kwargs) if sources else func(*args, **kwargs)
        if sources and written:
            raise UnsupportedError(8854, got=_said(name, sources), hint="compute a new tensor instead")
        made = self._derived(func(*args, **kwargs), sources)
        self._written |= {storage_of(tensor): version_of(tensor) for tensor in written}
        return made

    def again(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a function of Python's that a form consists of, with this watch on it."""
        with self:
            return function(*args, **kwargs)

    def _meet(self, func: Any, name: str, sources: list[Source], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled() or not any(source.tensor.requires_grad for source in sources):
            return func(*args, **kwargs)
        if _top_saved_tensors_default_hooks(True) is not None:
            # what is saved for backward would be something else then: made again, by a forward that nobody watches
            raise UnsupportedError(8866, got=_said(name, sources))
        form = self._forms.get(func) or self._named.get(name)
        if form is None:
            raise UnsupportedError(8855, got=_said(name, sources))
        return form(self, func, *args, **kwargs)

    def _derived(self, result: Any, sources: list[Source]) -> Any:
        slots = tuple(dict.fromkeys(slot for source in sources for slot in source.slots))
        for tensor in tensors_of((result,), {}):
            if self.source(tensor) is not None:
                continue
            if slots and tensor.requires_grad:
                self._sources[id(tensor)] = Source(tensor, slots, False)
            else:
                self._constants[id(tensor)] = tensor
        return result

    def _require_no_data(self, name: str, written: Sequence[Tensor]) -> None:
        """Returns unless data would be written into a tensor that held none."""
        for tensor in written:
            source = self.source(tensor)
            if source is not None:
                raise UnsupportedError(8854, got=_said(name, [source]), hint="compute a new tensor instead")
            if id(tensor) in self._constants:
                raise UnsupportedError(8853, got=f"{name} writes data into a tensor that held none")


def tensors_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """All tensors among a call's arguments, however deep in tuples, lists and dicts."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_of(value, {})
        elif isinstance(value, dict):
            yield from tensors_of(tuple(value.values()), {})


def _written(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Tensor]:
    """The tensors that a call says it writes."""
    found: list[Tensor] = []
    if kwargs.get("out") is not None:
        found += tensors_of((kwargs["out"],), {})
    if _writes(name):
        found += tensors_of(args[:1], {})
    elif name in _RENORMS and any(type(limit) in (int, float) for limit in (*args[3:4], kwargs.get("max_norm"))):
        found += tensors_of((*args[1:2], kwargs.get("weight")), {})  # ATen's own has a flag there, and no limit
    return found


_RENORMS = frozenset(("embedding", "embedding_bag"))
"""Of words that are read, vectors longer than ``max_norm`` are shortened where they lie."""


def _writes(name: str) -> bool:
    """Whether a function changes its first argument: ``add_``, ``_foreach_add_``, ``__iadd__``, ``__setitem__``."""
    if name.endswith("__"):
        return name in ("__setitem__", "__set__") or (
            name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")
        )
    return name.endswith("_")


def _trains(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a batch norm takes its statistics from the batch: any flag among its arguments that says so."""
    if isinstance(func, OpOverload):  # has other flags beside
        names = [each.name for each in func._schema.arguments]
        return {**dict(zip(names, args, strict=False)), **kwargs}.get("training", True)
    return kwargs.get("training", kwargs.get("train", any(value is True for value in args)))


def _said(name: str, sources: Sequence[Source]) -> str:
    names = sorted({slot.names[0] for source in sources for slot in source.slots})
    return f"{name} of {', '.join(names)}"
