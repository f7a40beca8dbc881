"""Conversion of a model in place, and back.

>>> import torch
>>> class Plain:
...     def enter(self): ...
...     def leave(self, *, training): ...
...     def multiply(self, layer, x, w):
...         print(layer.name, layer.weight, tuple(x.shape), tuple(w.shape))
...         return x @ w.mT
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
>>> conversion = convert(model, Plain(), skip=["2"])
>>> model(torch.ones(5, 4)).shape
0 parameter (5, 4) (3, 4)
torch.Size([5, 2])
>>> [(kept.name, kept.reason) for kept in conversion.kept]
[('2', "left out by skip='2'")]
>>> restore(model)
>>> type(model[0]) is torch.nn.Linear
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from cloister.errors import InputError
from cloister.offload._modules import convert_module, is_converted, restore_module
from cloister.offload._problems import adapters, problems, tuners
from cloister.offload._router import ROOT, Planner, Public, Router, matches, weight_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.offload._layers import Multiplier
    from cloister.offload._records import Kept, Offloaded

__all__ = ["Conversion", "convert", "convert_all", "restore", "router_for"]

_NAMES = (
    "activation batchnorm channelshuffle distance dropout flatten fold instancenorm loss normalization padding "
    "pixelshuffle pooling sparse upsampling"
)
_ELEMENTWISE = tuple(f"torch.nn.modules.{name}" for name in _NAMES.split())
"""Where torch's own modules without a linear product are defined; they keep their classes."""


class Conversion:
    """A model whose linear products are made by a multiplier, and what became of each of its linear calls.

    Args:
        router: Decides and counts.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    @property
    def router(self) -> Router:
        """What decides and counts."""
        return self._router

    @property
    def multiplier(self) -> Multiplier:
        """Who makes the products."""
        return self._router.multiplier

    @property
    def offloaded(self) -> tuple[Offloaded, ...]:
        """Layers whose products the multiplier made so far, in the order of their first product."""
        return self._router.records.offloaded

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Linear calls that were made in the enclave so far, each with its reason."""
        return self._router.records.kept

    def clear(self) -> None:
        """Begins to count anew."""
        self._router.records.clear()


def convert(
    model: nn.Module,
    multiplier: Multiplier,
    *,
    public_weights: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    planner: Planner | None = None,
) -> Conversion:
    """Lets a multiplier make a model's linear products, forward and backward, in place.

    The model keeps its parameters, its ``state_dict``, its hooks and its training loop; :func:`restore` undoes it.

    Args:
        model: ``float32``, on the CPU, not wrapped or compiled. Trained or not; converted only once.
        multiplier: Makes the products.
        public_weights: The multiplier shows weights to workers. Parameters that are frozen now are then public; a
            trainable one is refused; adapters of Hugging Face PEFT, products of two activations, and weights that
            the model is given later stay in the enclave.
        only: Shell patterns of layer names, or of modules above them; all others stay in the enclave.
        skip: Patterns of layers that stay in the enclave.
        planner: Asked about each product that is left, by layer and shapes, and answers whether it is offloaded.

    Returns:
        What is offloaded and what is not, counted as the model runs.

    Raises:
        InputError: 2720 when the model, or a part of it, is converted already; 2721 for a pattern that fits no module;
            2725 for something that is not a module.
        UnsupportedError: 8702 to 8710, naming the module and the remedy; the model is unchanged.
    """
    router = router_for(model, multiplier, public_weights=public_weights, only=only, skip=skip, planner=planner)
    found = list(problems(model, router))
    if found:
        raise found[0].error()
    try:
        convert_all(model, router)
    except BaseException:
        for module in model.modules():
            restore_module(module)
        raise
    return Conversion(router)


def convert_all(model: nn.Module, router: Router) -> None:
    """Makes every module of a model that may multiply part of a conversion."""
    for path, module in list(model.named_modules()):
        if _may_multiply(module):
            convert_module(module, path, router)


def router_for(
    model: nn.Module,
    multiplier: Multiplier,
    *,
    public_weights: bool,
    only: Sequence[str],
    skip: Sequence[str],
    planner: Planner | None,
) -> Router:
    """What decides for a model, with the choices of :func:`convert`; nothing is changed yet.

    Raises:
        InputError: 2720, 2721 and 2725, as there.
    """
    if not isinstance(model, nn.Module):
        raise InputError(2725, got=type(model).__name__)
    for path, module in model.named_modules():
        if is_converted(module):
            raise InputError(2720, f"{path or ROOT} is converted already")
    _require_matches(model, (*only, *skip))
    kept = {**_parametrizations(model), **(adapters(model) if public_weights else {})}
    public = _public(model) if public_weights else None
    return Router(multiplier, public=public, only=only, skip=skip, planner=planner, kept=kept)


def restore(model: nn.Module) -> None:
    """Undoes a conversion; what was trained stays trained.

    Raises:
        InputError: 2722 when the model is not a converted one.
    """
    if not isinstance(model, nn.Module) or not any(is_converted(module) for module in model.modules()):
        raise InputError(2722, got=type(model).__name__)
    for module in model.modules():
        restore_module(module)


def _public(model: nn.Module) -> Public:
    parameters = model.named_parameters(remove_duplicate=False)
    frozen = frozenset(weight_name(ROOT, name) for name, parameter in parameters if not parameter.requires_grad)
    return Public(frozen, tuners(model))


def _may_multiply(module: nn.Module) -> bool:
    kind = type(module)
    if kind.forward is nn.Module.forward:  # a list of modules, never called itself
        return "forward" in module.__dict__
    return kind.__module__ not in _ELEMENTWISE or next(module.children(), None) is not None


def _parametrizations(model: nn.Module) -> dict[str, str | None]:
    """A parametrization computes a weight from others: in eight bits it would not be what it is meant to be."""
    return {
        path: "a parametrization computes a weight here"
        for path, module in model.named_modules()
        if isinstance(module, nn.utils.parametrize.ParametrizationList)
    }


def _require_matches(model: nn.Module, patterns: Sequence[str]) -> None:
    paths = [path or ROOT for path, _ in model.named_modules()]
    for pattern in patterns:
        if not any(matches(pattern.partition(":")[0], path) for path in paths):
            raise InputError(2721, got=pattern)
