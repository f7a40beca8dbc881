"""What a conversion would do to a model, before it is done.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 2))
>>> found = check(model, torch.zeros(1, 3, 8, 8))
>>> [(each.name, each.operator, each.multiplications) for each in found.offloaded]
[('0', 'conv2d', 7776), ('3', 'matmul', 576)]
>>> [(each.name, each.kind) for each in found.resident], found.kept, found.problems
([('1', 'BatchNorm2d'), ('2', 'Flatten')], (), ())
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from cloister.errors import UnsupportedError
from cloister.offload._convert import convert, restore, router_for
from cloister.offload._layers import Layer, WeightIs
from cloister.offload._problems import Problem, layer_weights, problem_of, problems
from cloister.offload._records import Kept, UnreachedWarning
from cloister.offload._router import ROOT, Planner, Router, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Candidate", "Check", "Resident", "check"]

_NO_FORM = (nn.RNNBase, nn.RNNCellBase, nn.Conv3d, nn.modules.conv._ConvTransposeNd, nn.Bilinear)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer that would be offloaded.

    Attributes:
        name: As workers' errors and reports will call it.
        operator: What it is to a worker.
        weight: What its second operand is.
        w: Shape of the second operand; None where the model computes it.
        x: Shape of the first, for the example inputs.
        calls: How often the example inputs use it; None without example inputs.
        multiplications: Of all these calls.
    """

    name: str
    operator: Literal["matmul", "conv2d"]
    weight: WeightIs
    w: tuple[int, ...] | None
    x: tuple[int, ...] | None = None
    calls: int | None = None
    multiplications: int | None = None


@dataclass(frozen=True, slots=True)
class Resident:
    """A module that stays in the enclave as a whole.

    Attributes:
        name: Its path.
        kind: Its class.
        reason: Why.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """What would be offloaded, what would stay, and what stands in the way.

    Attributes:
        offloaded: Layers that would be offloaded; with example inputs also attention's products, and all with shapes.
        resident: Modules that stay in the enclave.
        kept: Linear calls of the example inputs' forward that stay in the enclave, with function and source line.
        problems: Why the model cannot be converted as it is; empty when it can.
        example: Whether example inputs were run.
    """

    offloaded: tuple[Candidate, ...]
    resident: tuple[Resident, ...]
    kept: tuple[Kept, ...]
    problems: tuple[Problem, ...]
    example: bool

    @property
    def ok(self) -> bool:
        """Whether the model can be converted as it is."""
        return not self.problems

    @property
    def share(self) -> float | None:
        """Offloaded multiplications over all that were counted, 0 to 1; None without example inputs."""
        leaving = sum(each.multiplications or 0 for each in self.offloaded)
        total = leaving + sum(each.calls * (each.multiplications or 0) for each in self.kept)
        return leaving / total if self.example and total else None

    def as_json(self) -> dict[str, Any]:
        """The same facts as strings, numbers and lists."""
        return {
            "offloaded": [asdict(each) for each in self.offloaded],
            "resident": [asdict(each) for each in self.resident],
            "kept": [asdict(each) for each in self.kept],
            "problems": [asdict(each) for each in self.problems],
            "share": self.share,
        }

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return text.getvalue()

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        def table(title: str, *columns: str) -> Table:
            made = Table(title=title, title_justify="left", box=None, pad_edge=False)
            for column in columns:
                made.add_column(column, overflow="fold")
            return made

        parts: list[RenderableType] = []
        if self.problems:
            found = table("cannot be converted", "code", "where", "what", "what to do")
            for problem in self.problems:
                found.add_row(str(problem.code), problem.name, problem.what, problem.remedy)
            parts.append(found)
        share = "" if self.share is None else f", {self.share:.1%} of the multiplications"
        leaving = table(
            f"offloaded: {len(self.offloaded)} layers{share}", "layer", "operator", "weight", "x", "w", "calls"
        )
        leaving.add_column("multiplications", justify="right")
        for each in self.offloaded:
            row = (each.name, each.operator, each.weight, _shape(each.x), _shape(each.w), _number(each.calls))
            leaving.add_row(*row, _number(each.multiplications))
        parts.append(leaving)
        if self.kept:
            kept = table("linear calls in the enclave", "module", "function", "source", "reason", "calls")
            for call in self.kept:
                kept.add_row(call.name, call.what, call.where, call.reason, _number(call.calls))
            parts.append(kept)
        if self.resident:
            counts = Counter((each.kind, each.reason) for each in self.resident)
            staying = table("modules in the enclave", "class", "how many", "reason")
            for (kind, reason), count in counts.items():
                staying.add_row(kind, _number(count), reason)
            parts.append(staying)
        if not self.example:
            parts.append("products of activations (attention) are found when example inputs are given")
        return Group(*parts)


def check(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    public_weights: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    planner: Planner | None = None,
) -> Check:
    """Says what :func:`convert` would do with the same choices; the model is as before afterwards.

    Args:
        model: The model.
        example_inputs: One forward's arguments: a tensor, a sequence of arguments, or a mapping of named ones. They are
            run once, in evaluation mode, without gradients, on this CPU and without any worker.
        public_weights: As in :func:`convert`, like all that follows.
        only: See there.
        skip: See there.
        planner: See there.

    Raises:
        InputError: 2720, 2721 and 2725, as in :func:`convert`. What the model itself raises for the example inputs is
            not caught.
    """
    router = router_for(model, _InPlace(), public_weights=public_weights, only=only, skip=skip, planner=planner)
    found = list(problems(model, router))
    candidates = {each.name: each for each in _candidates(model, router)}
    kept: tuple[Kept, ...] = ()
    run = example_inputs is not None and not found
    if not found:
        try:
            conversion = convert(
                model, _InPlace(), public_weights=public_weights, only=only, skip=skip, planner=planner
            )
            try:
                if run:
                    _run(model, example_inputs)
            finally:
                restore(model)
            if run:
                kept = conversion.kept
                idle = {name: _used(each, None, 0, 0) for name, each in candidates.items()}
                left_out = {each.name for each in kept}
                candidates = {name: each for name, each in idle.items() if name not in left_out}
                for layer in conversion.offloaded:
                    each = _candidate(layer.layer, layer.w)
                    candidates[each.name] = _used(each, layer.x, layer.calls, layer.multiplications)
        except UnsupportedError as error:
            found.append(problem_of(error))
            run = False
    return Check(
        offloaded=tuple(candidates.values()),
        resident=tuple(_residents(model, router, candidates)),
        kept=kept,
        problems=tuple(found),
        example=run,
    )


class _InPlace:
    """A multiplier that multiplies, and no more."""

    def enter(self) -> None:
        pass

    def leave(self, *, training: bool) -> None:
        pass

    def multiply(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        return plain(layer.operator, x, w)


def _run(model: nn.Module, inputs: Any) -> None:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreachedWarning)  # the result lists them all
            if isinstance(inputs, Mapping):
                model(**inputs)
            elif isinstance(inputs, Tensor):
                model(inputs)
            else:
                model(*inputs)
    finally:
        for module, training in modes.items():
            module.training = training


def _candidates(model: nn.Module, router: Router) -> Iterator[Candidate]:
    for layer, weight in layer_weights(model):
        private = router.public is not None and layer.name not in router.public.names
        if router.reason_for(layer.name) is None and not private:
            yield _candidate(layer, weight)


def _candidate(layer: Layer, w: Sequence[int] | None) -> Candidate:
    operator = type(layer.operator).__name__.lower()
    assert operator in ("matmul", "conv2d")  # noqa: S101 - the two that there are
    return Candidate(layer.name, operator, layer.weight, None if w is None else tuple(w))


def _used(each: Candidate, x: Sequence[int] | None, calls: int, multiplications: int) -> Candidate:
    shape = None if x is None else tuple(x)
    return Candidate(each.name, each.operator, each.weight, each.w, shape, calls, multiplications)


def _residents(model: nn.Module, router: Router, leaving: Mapping[str, Candidate]) -> Iterator[Resident]:
    linear = {layer.name for layer, _ in layer_weights(model)}
    for path, module in model.named_modules():
        name = path or ROOT
        if name in leaving or next(module.children(), None) is not None:
            continue
        if name in linear:
            reason = router.reason_for(name) or "see the linear calls in the enclave"
        elif isinstance(module, _NO_FORM):
            reason = "it has no offloaded form"
        else:
            reason = "no linear layer"
        yield Resident(name, type(module).__name__, reason)


def _shape(sizes: Sequence[int] | None) -> str:
    return "" if sizes is None else "×".join(map(str, sizes))


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}".replace(",", " ")
