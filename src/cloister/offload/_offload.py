"""The five lines that an ML engineer changes.

>>> import torch
>>> from cloister.offload import offload, report
>>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2))
>>> model = offload(model, mode="shared3", workers="inline")
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> torch.nn.functional.cross_entropy(model(torch.randn(64, 20)), torch.zeros(64, dtype=torch.long)).backward()
>>> optimizer.step()
>>> found = report(model)
>>> found.products, found.checks, found.soundness_bits
(5, 5, 60)
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch.nn import Module

from cloister.errors import InputError
from cloister.offload._arithmetic import Simulation
from cloister.offload._blinding import Blinding
from cloister.offload._brokered import Brokered
from cloister.offload._convert import convert, convert_all, restore
from cloister.offload._costs import Costs
from cloister.offload._engine import Engine
from cloister.offload._exchange import Exchange
from cloister.offload._meter import Meter
from cloister.offload._modules import convert_module, is_converted, restore_module, router_of
from cloister.offload._operands import Numerics
from cloister.offload._products import ProductsHere
from cloister.offload._report import Report, made_report, plain_report
from cloister.offload._schemes import SCHEMES, Mode
from cloister.offload._stage import stage_terms
from cloister.offload._verdict import Verdict
from cloister.offload._workers import InlineWorker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from cloister.offload._blinding import Stored
    from cloister.offload._convert import Conversion
    from cloister.offload._layers import Layer
    from cloister.offload._products import Products
    from cloister.offload._router import Planner
    from cloister.offload._schemes import Scheme
    from cloister.offload._workers import Worker
    from cloister.ring import Product
    from cloister.wire import SealingKey

__all__ = [
    "Execution",
    "ModeName",
    "Offloading",
    "is_offloaded",
    "offload",
    "offloading",
    "onload",
    "plain",
    "precompute",
    "report",
    "share",
]

Execution = Literal["execute", "simulate"]
ModeName = Mode | Literal["enclave"]

_MODES: tuple[str, ...] = ("enclave", *SCHEMES)
_STAND_IN = SCHEMES["verify"]


@dataclass(slots=True, eq=False)
class Offloading:
    """A converted model's workings.

    Attributes:
        mode: Its mode.
        execution: Whether workers multiply, or this process.
        engine: Makes the products.
        conversion: What became of each linear call.
        costs: The planner's, where there is one.
    """

    mode: ModeName
    execution: Execution
    engine: Engine
    conversion: Conversion
    workers: tuple[str, ...]
    costs: Costs | None = None


_offloadings: weakref.WeakKeyDictionary[nn.Module, Offloading] = weakref.WeakKeyDictionary()
_left_alone: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def offload(
    model: nn.Module,
    *,
    mode: ModeName | None = None,
    workers: Sequence[Worker] | Literal["inline"] | None = None,
    execution: Execution = "execute",
    bits: int = 8,
    scales: Literal["tensor", "channel", "static"] = "tensor",
    rounding: Literal["stochastic", "nearest"] = "stochastic",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    plan: Literal["all", "auto"] | Planner = "all",
    parties: Mapping[str, SealingKey] | None = None,
    evidence: Path | None = None,
    stored: Stored | None = None,
) -> nn.Module:
    """Has a model's linear layers multiplied by workers that nobody trusts, in place.

    The model stays what it was: its parameters, ``state_dict`` keys, hooks, autograd and training loop. Inputs and
    parameters are float32 on the CPU. Every product of every mode is checked with an error below 2^-58; after a check
    that failed, the optimizer's next step raises 5701, as does the end of a forward pass without gradients.

    Args:
        model: Any module; :func:`cloister.offload.check` says beforehand what would be offloaded.
        mode: What is hidden from whom; see :mod:`cloister.offload`. ``enclave`` multiplies 8-bit integers in this
            process, as a baseline. Left out, it is what the manifest's stage says; outside a stage with offload terms
            the model stays as it is, so that one script serves both.
        workers: As many as the mode has, not yet started; ``inline`` makes them in this process, where they protect
            nothing, for notebooks and tests. None where nobody is needed.
        execution: ``simulate`` makes the same integer products in this process, without masks, workers or checks: the
            same bits, faster, with breakpoints. It protects nothing.
        bits: Of every operand, 2 to 8.
        scales: One a tensor, or one an output channel of each weight, that follow from the values; or ``static``, one a
            tensor that the first pass fixes, beyond which values are clipped, and counted in the report.
        rounding: Stochastic while gradients are recorded, or always to the nearest.
        only: Shell patterns of layers that are offloaded; all others stay.
        skip: Patterns of layers that stay.
        plan: ``all`` offloads every linear layer; ``auto`` those that a measured cost model says are cheaper there;
            or a function that decides by layer and shapes.
        parties: Keys that failed checks are sealed to.
        evidence: Folder for them.
        stored: Where mode ``blind`` keeps, sealed, what it makes ahead.

    Returns:
        The model.

    Raises:
        InputError: 2713 for an unknown mode, execution or plan; 2726 when a stage's script wants another mode, or what
            is its launcher's to give; 2714 when there are more or fewer workers than the mode
            has; 2720, 2721, 2725 as :func:`cloister.offload.convert`.
        UnsupportedError: 8702 to 8710, naming the module and the remedy; nothing is changed.
        PeerError: 67xx when a worker cannot be reached.
    """
    stage = stage_terms()
    if mode is None and stage is None:
        if not isinstance(model, Module):
            raise InputError(2725, got=type(model).__name__)
        _left_alone.add(model)
        return model
    if stage is not None:
        own = {"mode": mode not in (None, stage.mode), "workers": workers is not None, "parties": parties is not None}
        own |= {"evidence": evidence is not None, "stored": stored is not None}
        if any(own.values()):
            raise InputError(2726, got=", ".join(name for name, given in own.items() if given))
        mode = stage.mode
    assert mode is not None  # noqa: S101 - given, or the stage's
    scheme = _scheme(mode, execution, plan)
    numerics = Numerics(bits, scales, rounding)
    public = mode in ("blind", "blind2")
    costs = None
    names: tuple[str, ...] = ()
    if stage is not None and scheme is not None and execution == "execute":
        products: Products[Any] = (brokered := Brokered(stage, bits=bits))
        names = stage.workers
        costs = brokered.costs() if plan == "auto" else None
    else:
        meter = Meter()
        if scheme is None or execution == "simulate":
            arithmetic = Simulation()
        else:
            if workers is None:
                raise InputError(2714, expected=f"{scheme.workers} workers for mode '{mode}'", got="none")
            made = _inline(scheme) if workers == "inline" else list(workers)
            blinding = Blinding(stored) if scheme.precomputed else None
            arithmetic = Exchange(scheme, made, blinding=blinding, meter=meter)
            names = arithmetic.names
            costs = Costs.measure(made, scheme, meter=meter) if plan == "auto" else None
        verdict = Verdict(parties=parties, evidence=evidence)
        products = ProductsHere(arithmetic, bits=bits, meter=meter, verdict=verdict)
    engine = Engine(products, numerics=numerics, public_weights=public)
    planner = plan if callable(plan) else None if costs is None else _planner(costs, scheme or _STAND_IN)
    try:
        conversion = convert(model, engine, public_weights=public, only=only, skip=skip, planner=planner)
    except BaseException:
        engine.close()
        raise
    products.verdict.bind(model)
    _offloadings[model] = Offloading(mode, execution, engine, conversion, names, costs)
    return model


def offloading(model: nn.Module) -> Offloading:
    """The workings of a model that :func:`offload` converted.

    Raises:
        InputError: 2722 for another model.
    """
    found = _offloadings.get(model)
    if found is None:
        raise InputError(2722, got=type(model).__name__)
    return found


def is_offloaded(model: nn.Module) -> bool:
    """Whether :func:`offload` converted a model."""
    return model in _offloadings


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """A model with its own classes for as long as this lasts, for who traces it; an offloaded one is so again after."""
    routers = {module: router_of(module) for module in model.modules() if is_converted(module)}
    paths = {module: path for path, module in model.named_modules()}
    try:
        for module in routers:
            restore_module(module)
        yield
    finally:
        for module, router in routers.items():
            convert_module(module, paths[module], router)


def share(model: nn.Module, other: nn.Module) -> nn.Module:
    """Offloads another module as a model is: the same workers, choices and report.

    Args:
        model: Offloaded.
        other: Computes with the model's parameters, under the model's names: a certified graph of it
            (:func:`cloister.privacy.bind`).

    Returns:
        The other module.

    Raises:
        InputError: 2720 when it is converted already; 2722 for a model that was not offloaded.
    """
    found = offloading(model)
    router = found.conversion.router
    if any(is_converted(module) for module in other.modules()):
        raise InputError(2720, got=type(other).__name__)
    convert_all(other, router)
    _offloadings[other] = found
    return other


def precompute(model: nn.Module, passes: int = 1) -> int:
    """Makes ahead what mode ``blind`` subtracts from its worker's answers, while nobody waits.

    What a pass needs is known from the one before, so run the model once first.

    Args:
        model: Offloaded in mode ``blind``.
        passes: For how many passes of the same shapes.

    Returns:
        How many products were made; 0 in the other modes, which need none.

    Raises:
        InputError: 2722 for a model that was not offloaded.
    """
    if model in _left_alone:
        return 0
    return offloading(model).engine.products.prepare(passes)


def onload(model: nn.Module) -> nn.Module:
    """Undoes :func:`offload`: the model's own classes again, and the workers' sessions ended.

    Raises:
        InputError: 2722 for a model that was not offloaded.
        IntegrityError: 5701 when a check failed.
    """
    if model in _left_alone:
        _left_alone.discard(model)
        return model
    found = offloading(model)
    restore(model)
    del _offloadings[model]
    found.engine.close()
    found.engine.products.settle()
    return model


def report(model: nn.Module) -> Report:
    """What was offloaded so far, how it was hidden and checked, and what it took.

    Raises:
        InputError: 2722 for a model that was not offloaded.
    """
    return plain_report() if model in _left_alone else made_report(offloading(model))


def _scheme(mode: str, execution: str, plan: object) -> Scheme | None:
    if mode not in _MODES:
        raise InputError(2713, expected=f"mode {', '.join(_MODES)}", got=mode)
    if execution not in get_args(Execution):
        raise InputError(2713, expected=f"execution {' or '.join(get_args(Execution))}", got=execution)
    if plan not in ("all", "auto") and not callable(plan):
        raise InputError(2713, expected="plan 'all', 'auto' or a function", got=plan)
    return None if mode == "enclave" else SCHEMES[mode]  # pyright: ignore[reportArgumentType]


def _inline(scheme: Scheme) -> list[Worker]:
    return [InlineWorker(f"inline-{index}") for index in range(scheme.workers)]


def _planner(costs: Costs, scheme: Scheme) -> Planner:
    def worthwhile(layer: Layer, product: Product) -> bool:
        estimate = costs.estimate(product, scheme, training=layer.weight != "frozen")
        return estimate.offloaded < estimate.resident

    return worthwhile
