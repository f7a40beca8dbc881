"""Which products of a model leave the enclave, under which name, and what is said of the others.

Rules:

* The answer depends on the model's structure, on shapes and on what the caller chose, never on a value.
* What stays is recorded with its reason; what has no offloaded form is warned of at its first call.
* Where weights are public, only those parameters are that were the model's, and frozen, when it was converted. A
  trainable one is refused (8707), and so is every forward while an adapter is merged into its base. Anything else, an
  activation, a buffer, an adapter, whatever was attached later, is private and stays in the enclave.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cloister.errors import UnsupportedError
from cloister.offload._layers import Layer, Multiplier, WeightIs
from cloister.offload._records import Place, Records, UnreachedWarning
from cloister.ring import MatMul, Product

if TYPE_CHECKING:
    from types import FrameType

    from cloister.ring import Operator

__all__ = [
    "ROOT",
    "Caller",
    "Planner",
    "Public",
    "Route",
    "Router",
    "matches",
    "plain",
    "weight_name",
    "weight_of",
    "where",
]

Planner = Callable[[Layer, Product], bool]
"""Says whether a layer's product of these shapes is offloaded (True) or made in the enclave (False)."""

ROOT = "(root)"
"""How the converted model itself is called where a path is asked for."""

_NAMES_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Route:
    """Where one product is made.

    Attributes:
        layer: The layer it belongs to.
        reason: Why it stays in the enclave; None when it is offloaded.
    """

    layer: Layer
    reason: str | None


@dataclass(frozen=True, slots=True)
class Public:
    """What of a model may be shown to workers.

    Attributes:
        names: Layers whose weights were frozen when the model was converted.
        tuners: Modules that may merge what they trained into their bases, by path.
    """

    names: frozenset[str]
    tuners: Mapping[str, nn.Module]

    def refuse_merged(self) -> None:
        """Raises :class:`UnsupportedError` 8707 when an adapter is merged into a weight that workers would see."""
        for path, tuner in self.tuners.items():
            if getattr(tuner, "merged_adapters", None):
                raise UnsupportedError(
                    8707, f"{path}: an adapter is merged into its base, and a worker would see it", hint=UNMERGE
                )


UNMERGE = "call unmerge_adapter() first, or use the mode shared3"
"""What to do about it."""


class Router:
    """What one conversion decides and counts.

    Args:
        multiplier: Who makes the products that leave.
        public: The mode shows weights to workers, and these are the ones; None when weights are private.
        only: Patterns of layers that leave; empty for all.
        skip: Patterns of layers that stay.
        planner: Asked about whatever is left.
        kept: Reasons by module path, for the module and all below it; None lets a path leave below one that stays.
    """

    def __init__(
        self,
        multiplier: Multiplier,
        *,
        public: Public | None = None,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
        planner: Planner | None = None,
        kept: Mapping[str, str | None] | None = None,
    ) -> None:
        self.multiplier = multiplier
        self.public = public
        self.records = Records()
        self._only = tuple(only)
        self._skip = tuple(skip)
        self._planner = planner
        self._kept = dict(kept or {})
        self._kinds: set[object] = set()
        self._reasons: dict[str, str | None] = {}
        self._layers: dict[tuple[str, Operator, WeightIs], Layer] = {}
        self._sites: dict[tuple[str, str], list[tuple[object, int]]] = {}
        self._names: dict[tuple[str, int], tuple[weakref.ref[Tensor], str]] = {}

    def route(self, operator: Operator, x: Sequence[int], w: Tensor, *, caller: Caller, what: str) -> Route:
        """Decides on one product.

        Args:
            operator: Its geometry.
            x: Shape of the left operand.
            w: The right operand: a parameter, a view of one, or an activation.
            caller: Who asks for it.
            what: What it is there, for layers without a module of their own.

        Raises:
            UnsupportedError: 8707 for a trainable weight where weights are public.
        """
        weight = weight_of(w)
        kind: WeightIs = "activation" if weight is None else "parameter" if weight.requires_grad else "frozen"
        name = self._name(caller, weight, what)
        layer = self._layers.get((name, operator, kind))
        if layer is None:
            layer = self._layers[name, operator, kind] = Layer(name, operator, kind)
        return Route(layer, self._reason(layer, tuple(x), tuple(w.shape)))

    def multiply(self, route: Route, x: Tensor, w: Tensor) -> Tensor:
        """Has an offloaded product made."""
        self.records.add_offloaded(route.layer, x.shape, w.shape)
        return self.multiplier.multiply(route.layer, x, w)

    def keep(self, name: str, what: str, where: str, reason: str, *, reached: bool = True) -> Place:
        """Records a call that stays in the enclave, and warns when it is the first of one that could not be reached."""
        place, first = self.records.add_kept(name, what, where, reason, reached=reached)
        if first and not reached:
            warnings.warn(f"{name}: {what} at {where} stays in the enclave: {reason}", UnreachedWarning, stacklevel=2)
        return place

    def first(self, kind: object) -> bool:
        """Whether a forward of this kind is the first one."""
        if kind in self._kinds:
            return False
        self._kinds.add(kind)
        return True

    def reason_for(self, name: str) -> str | None:
        """Why a layer of this name stays in the enclave, whatever its shape; None when it may leave."""
        if name not in self._reasons:
            self._reasons[name] = self._reason_by_path(name)
        return self._reasons[name]

    def _reason(self, layer: Layer, x: tuple[int, ...], w: tuple[int, ...]) -> str | None:
        reason = self.reason_for(layer.name)
        if reason is None and self.public is not None:
            if layer.weight == "parameter":
                raise UnsupportedError(8707, f"{layer.name}: a weight that is trained would be shown to a worker")
            if layer.weight == "activation":
                reason = "neither operand is a public weight"
            elif layer.name not in self.public.names:
                reason = "its weight is none of those that were public when the model was converted"
        if reason is None and self._planner is not None:
            product = Product(layer.operator, "forward", x=x, w=w)
            reason = None if self._planner(layer, product) else "the plan keeps it here"
        return reason

    def _reason_by_path(self, name: str) -> str | None:
        for path in _prefixes(name):
            if path in self._kept:
                if self._kept[path] is not None:
                    return self._kept[path]
                break
        for pattern in self._skip:
            if matches(pattern, name):
                return f"left out by skip={pattern!r}"
        if self._only and not any(matches(pattern, name) for pattern in self._only):
            return "not among only=…"
        return None

    def _name(self, caller: Caller, weight: nn.Parameter | None, what: str) -> str:
        """A weight's own path where it has one; otherwise the caller's path and a number for each source line."""
        if weight is not None:
            key = (caller.path, id(weight))
            known = self._names.get(key)
            if known is not None and known[0]() is weight:
                return known[1]
            name = _own_name(caller, weight)
            if name is not None:
                if len(self._names) >= _NAMES_KEPT:
                    self._names.clear()
                self._names[key] = (weakref.ref(weight), name)
                return name
        elif what in _LAYER_FUNCTIONS and isinstance(caller.module, _LAYER_MODULES):
            return caller.path  # its weight is computed: a parametrization, a weight norm, fake quantisation
        sites = self._sites.setdefault((caller.path, what), [])
        site = (caller.frame.f_code, caller.frame.f_lasti)
        if site not in sites:
            sites.append(site)
        number = sites.index(site)
        return f"{caller.path}:{what}" if number == 0 else f"{caller.path}:{what}.{number + 1}"


_LAYER_FUNCTIONS = ("linear", "conv1d", "conv2d")
_LAYER_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called a function: the innermost converted module, its path, and the Python frame."""

    module: nn.Module
    path: str
    frame: FrameType

    @property
    def where(self) -> str:
        """The source line."""
        return where(self.frame)


def where(frame: FrameType) -> str:
    """The source line at which a frame stands: Python module and number, without the machine's folders."""
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}"


def weight_of(w: Tensor) -> nn.Parameter | None:
    """The parameter that a tensor is, or is a view of; None for anything computed."""
    base = w if w._base is None else w._base
    return base if isinstance(base, nn.Parameter) else None


def plain(operator: Operator, x: Tensor, w: Tensor) -> Tensor:
    """The same forward product in the enclave's own float arithmetic.

    Shapes: As the operator says.
    """
    if isinstance(operator, MatMul):
        return torch.matmul(x, w.mT)
    return torch.nn.functional.conv2d(x, w, None, operator.stride, operator.padding, operator.dilation, operator.groups)


def matches(pattern: str, name: str) -> bool:
    """Whether a shell pattern fits a layer's name or the path of a module above it; ``*`` crosses dots."""
    return any(fnmatchcase(path, pattern) for path in _prefixes(name))


def _prefixes(name: str) -> list[str]:
    """The name, then the modules above it, nearest first: ``a.b:c`` gives ``a.b:c``, ``a.b``, ``a``."""
    path, colon, _ = name.partition(":")
    parts = path.split(".")
    above = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return [name, *above] if colon else above


def weight_name(path: str, parameter: str) -> str:
    """A layer's name: path of the module that owns its parameter, and after a colon the parameter unless 'weight'.

    Args:
        path: Of a module.
        parameter: The parameter's name below it, with dots.
    """
    owner, _, leaf = parameter.rpartition(".")
    if owner:
        path = owner if path == ROOT else f"{path}.{owner}"
    return path if leaf == "weight" else f"{path}:{leaf}"


def _own_name(caller: Caller, weight: nn.Parameter) -> str | None:
    for name, parameter in caller.module.named_parameters():
        if parameter is weight:
            return weight_name(caller.path, name)
    return None
