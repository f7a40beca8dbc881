"""What of a model cannot be converted, why, and what to do: found before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cloister.errors import CloisterError, UnsupportedError, explain
from cloister.offload._layers import Layer
from cloister.offload._router import ROOT, Router
from cloister.ring import Conv2d, MatMul, Operator

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Problem", "adapters", "layer_weights", "problem_of", "problems", "tuners"]

_BEFORE_QUANTISED = "convert the model before it is quantised; workers multiply 8-bit integers anyway"
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "convert model._orig_mod; an offloaded forward is not compiled",
    "torch.jit._script.ScriptModule": "convert the module it was scripted from",
    "torch.nn.parallel.data_parallel.DataParallel": "convert model.module; several workers serve one model already",
    "torch.nn.parallel.distributed.DistributedDataParallel": "convert model.module before it is wrapped",
    "torch.distributed": "convert the model before it is distributed",
    "torch.ao.nn.quantized": _BEFORE_QUANTISED,
    "torch.ao.nn.intrinsic.quantized": _BEFORE_QUANTISED,
}
"""Classes that stand in a model's place, by the beginning of their full names, with the remedy."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a model cannot be converted as it is.

    Attributes:
        code: 8702 to 8710.
        name: Path of the module, or of the parameter.
        what: What is the matter with it.
        remedy: What to do.
    """

    code: int
    name: str
    what: str
    remedy: str

    def error(self) -> CloisterError:
        """The same as an error."""
        return UnsupportedError(self.code, f"{self.name}: {self.what}", hint=self.remedy)

    def as_json(self) -> dict[str, Any]:
        """The same facts as strings and numbers."""
        return {name: getattr(self, name) for name in self.__slots__}


def problems(model: nn.Module, router: Router) -> Iterator[Problem]:
    """Everything that stands in the way, in the order of the model's modules.

    Args:
        model: The model.
        router: Says what would leave the enclave.
    """
    for path, module in model.named_modules():
        yield from _of_class(path or ROOT, module)
        for name, parameter in module.named_parameters(recurse=False):
            yield from _of_parameter(f"{path}.{name}" if path else name, parameter)
    if router.public is not None:
        for layer, _ in layer_weights(model):
            if layer.weight == "parameter" and router.reason_for(layer.name) is None:
                yield _problem(8707, layer.name, "its weight is trained, and a worker would see it")
        try:
            router.public.refuse_merged()
        except UnsupportedError as error:
            yield problem_of(error)


def layer_weights(model: nn.Module) -> Iterator[tuple[Layer, tuple[int, ...] | None]]:
    """Layers that a model's modules declare, with the shape of each weight as the product takes it.

    The shape is None where the weight is computed by the module.
    """
    for path, module in model.named_modules():
        name = path or ROOT
        if isinstance(module, nn.MultiheadAttention):
            for weight in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if getattr(module, weight) is not None:
                    yield _layer(f"{name}:{weight}", MatMul(), getattr(module, weight))
        elif isinstance(module, nn.Linear):
            yield _layer(name, MatMul(), module._parameters.get("weight"))
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            yield _layer(name, Conv2d(groups=module.groups), module._parameters.get("weight"))
        elif is_transposed_linear(module):
            layer, shape = _layer(name, MatMul(), module._parameters.get("weight"))
            yield layer, None if shape is None else shape[::-1]


def _layer(name: str, operator: Operator, weight: torch.Tensor | None) -> tuple[Layer, tuple[int, ...] | None]:
    if weight is None or isinstance(weight, UninitializedParameter):
        return Layer(name, operator, "activation"), None
    return Layer(name, operator, "parameter" if weight.requires_grad else "frozen"), tuple(weight.shape)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is Hugging Face's ``Conv1D``, a linear layer with its weight the other way round."""
    return _is_a(module, "transformers.pytorch_utils.Conv1D")


def adapters(model: nn.Module) -> dict[str, str | None]:
    """Paths of Hugging Face PEFT's modules, which hold what was trained, and of the bases inside them, which do not.

    Returns:
        A reason by path; None for what may leave below one that stays.
    """
    found: dict[str, str | None] = {}
    for path, module in tuners(model).items():
        found[path] = "an adapter holds what was trained, and its weights would be public"
        for kind, base in _PEFT.items():
            if _is_a(module, kind):
                found[base if path == ROOT else f"{path}.{base}"] = None
    return found


def tuners(model: nn.Module) -> Mapping[str, nn.Module]:
    """Hugging Face PEFT's modules of a model, by path: each holds adapters beside a base."""
    modules = model.named_modules()
    return {path or ROOT: module for path, module in modules if any(_is_a(module, kind) for kind in _PEFT)}


_PEFT = {
    "peft.tuners.tuners_utils.BaseTunerLayer": "base_layer",
    "peft.utils.other.AuxiliaryTrainingWrapper": "original_module",
}


def _of_class(name: str, module: nn.Module) -> Iterator[Problem]:
    for kind in type(module).__mro__:
        for wrapper, remedy in _WRAPPERS.items():
            if _full_name(kind).startswith(wrapper):
                code = 8706 if "quantized" in wrapper else 8702
                yield Problem(code, name, f"it is a {type(module).__name__}", remedy)
                return
    if module._compiled_call_impl is not None:
        yield Problem(8702, name, "its call was compiled", "convert the model without module.compile()")


def _of_parameter(name: str, parameter: nn.Parameter) -> Iterator[Problem]:
    if isinstance(parameter, UninitializedParameter | UninitializedBuffer):
        yield _problem(8705, name, "it has no shape yet")
    elif type(parameter) is not nn.Parameter or type(parameter.data) is not torch.Tensor:
        yield _problem(8709, name, f"it is a {type(parameter.data).__name__}")
    elif parameter.device.type != "cpu":
        yield _problem(8704, name, f"it is on {parameter.device}")
    elif parameter.is_floating_point() and parameter.dtype != torch.float32:
        yield _problem(8703, name, f"it is {str(parameter.dtype).removeprefix('torch.')}")


def _problem(code: int, name: str, what: str) -> Problem:
    page = explain(code)
    return Problem(code, name, what, "" if page is None else page.remedy)


def problem_of(error: CloisterError) -> Problem:
    """What an error said of a module whose path its message begins with."""
    name, _, what = error.what.partition(": ")
    return Problem(error.code, name, what, error.hint)


def _is_a(module: nn.Module, kind: str) -> bool:
    """Whether a module is of a class of this full name: its library need not be there to ask."""
    return any(_full_name(each) == kind for each in type(module).__mro__)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
