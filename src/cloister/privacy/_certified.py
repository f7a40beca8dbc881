"""A module that is a certified graph with its tensors: the names are the model's, nothing else of it is here.

Parameters may be a model's own, so that an optimizer, a checkpoint and an engine see that model as ever, or come from a
file (:mod:`cloister.privacy._program`), and then no code of the model's is needed. Constants are held to the
certificate's digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cloister.errors import InputError, IntegrityError
from cloister.privacy._forward_loss import ForwardLoss, Loss, leaves
from cloister.privacy._graph import Constant, Graph, Spec
from cloister.privacy._reader import bytes_of
from cloister.privacy._replay import Calls, require_spec

__all__ = ["CertifiedLoss", "certified_loss", "plain_name"]


class CertifiedLoss(nn.Module):
    """The computation of a graph: from a batch to one loss a row.

    It computes what was certified, in the mode in which that was: ``eval()`` turns no dropout off.

    Args:
        graph: Already checked: :func:`~cloister.privacy.bind` does.
        parameters: By the graph's names, those of tied ones included, in the order that they are to have here.
        buffers: Likewise; those that are constants of the graph.

    Raises:
        IntegrityError: 5832 when a parameter or constant is not as the graph says.
        InputError: 2832 when the graph's names cannot be those of modules.
    """

    def __init__(self, graph: Graph, parameters: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self._calls = Calls(graph)
        whose = [(name, parameter) for parameter in graph.parameters for name in (parameter.name, *parameter.also)]
        first = dict(whose)
        if len(first) != len(whose):
            raise InputError(2832, "two parameters have one name")
        for name, parameter in whose:
            found = parameters.get(name)
            if found is None or _spec_of(found) != _plain(parameter) or found.requires_grad != parameter.trained:
                raise IntegrityError(5832, f"{name} is not as certified", got=str(found is not None))
            if found is not parameters[parameter.name]:
                raise IntegrityError(5832, f"{name} is not tied to {parameter.name}, as it was certified")
        # in the order in which they are given, which is the model's own: so are an engine's rows and its noise
        placed = {name: self._place(name, found) for name, found in parameters.items() if name in first}
        self._places = [placed[parameter.name] for parameter in graph.parameters]
        device = next((each.device for each in self.parameters()), None)
        for number, constant in enumerate(graph.constants):
            held = _constant(constant, buffers)
            if constant.data is None:
                self._places.append(self._place(constant.name, held))
            else:  # in the certificate already, so in no file of weights
                self._places.append(self._place(f"model.constant {number}", held.to(device)))
                self._non_persistent_buffers_set.add(f"constant {number}")

    def forward(self, batch: Any) -> Tensor:
        """One loss a row.

        Args:
            batch: Structured like the one that was certified, ``B`` rows; taken to where the parameters are.

        Raises:
            InputError: 2831 when it is structured otherwise.
            IntegrityError: 5832 when a result has another shape than the graph says.
            UnsupportedError: What a watch says of a call, with its number in the certificate.
        """
        rows = leaves(batch)
        if list(rows) != [row.name for row in self.graph.batch]:
            raise InputError(2831, "the batch is not structured as certified", got=str(list(rows))[:200])
        for row in self.graph.batch:
            require_spec(rows[row.name], row, len(rows[row.name]), row.name)
        values: list[Any] = self.tensors()
        device = values[0].device if values else next(iter(rows.values())).device
        return self._calls.run([*values, *(each.to(device) for each in rows.values())], device)

    def stay_within(self) -> None:
        """From now on no record makes a call fail by what it points at; see :mod:`cloister.privacy._within`."""
        self._calls.within = True

    def tensors(self) -> list[Tensor]:
        """Parameters, then constants, in the graph's order."""
        return [names[name] for names, name in self._places]

    def wide(self, rows: list[Tensor]) -> Tensor:
        """The same in float64 on the processor, for who looks at the last bits.

        Args:
            rows: The batch's tensors, in the graph's order.
        """
        values = [each.detach() for each in self.tensors()]
        return self._calls.run([_double(each) for each in (*values, *rows)], torch.device("cpu"), wide=True)

    def _place(self, name: str, tensor: Tensor) -> tuple[dict[str, Any], str]:
        """Puts a tensor under its name into modules that are nothing but names.

        What a module of the model is called may be what a method is called here, so nothing is set as an attribute.
        """
        *path, last = plain_name(name).split(".")
        module: nn.Module = self
        for part in path:
            if part in module._parameters or part in module._buffers:
                raise InputError(2832, f"{name[:80]!r} goes through a tensor")
            module = module._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        if any(last in names for names in (module._modules, module._parameters, module._buffers)):
            raise InputError(2832, f"{name[:80]!r} is named twice")
        names: dict[str, Any] = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
        names[last] = tensor
        return names, last


def plain_name(name: str) -> str:
    """A graph's name as the model says it: ``model.layer.weight`` is ``layer.weight``; a loss's keeps its ``loss.``.

    Raises:
        InputError: 2832 when it is neither's.
    """
    whose, _, rest = name.partition(".")
    if whose not in ("model", "loss") or not all(rest.split(".")):
        raise InputError(2832, f"{name[:80]!r} is no tensor of a model or a loss")
    return rest if whose == "model" else name


def certified_loss(graph: Graph, model: nn.Module, loss: Loss) -> CertifiedLoss:
    """A graph on a model's own tensors.

    Args:
        graph: Already checked.
        model: Holds the parameters and buffers by the graph's names.
        loss: Likewise, when it is a module.

    Raises:
        IntegrityError: 5832 when they are not what the graph says, or something is trained that it does not name.
    """
    whole = ForwardLoss(model, loss)
    given = dict(whole.named_parameters(remove_duplicate=False))
    made = CertifiedLoss(graph, given, dict(whole.named_buffers(remove_duplicate=False)))
    certified = {id(tensor) for tensor in made.parameters()}
    trained = [name for name, tensor in given.items() if tensor.requires_grad and id(tensor) not in certified]
    if trained:
        raise IntegrityError(5832, f"{trained[0]} is trained and not in the certificate")
    return made


def _plain(spec: Spec) -> Spec:
    return Spec(dtype=spec.dtype, shape=spec.shape)


def _spec_of(tensor: Tensor) -> Spec:
    return Spec(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


def _constant(constant: Constant, buffers: Mapping[str, Tensor]) -> Tensor:
    """A constant, by its bytes or by its name, held to its digest."""
    if constant.data is None:
        found = buffers.get(constant.name)
        data = b"" if found is None else bytes_of(found)
    else:
        found, data = None, constant.data
    if hashlib.sha256(data).hexdigest() != constant.sha256:
        raise IntegrityError(5832, f"{constant.name} is not as certified")
    if found is None:
        dtype = getattr(torch, constant.dtype, None)
        shape = [size for size in constant.shape if isinstance(size, int)]
        if not isinstance(dtype, torch.dtype) or torch.Size(shape).numel() * dtype.itemsize != len(data):
            raise InputError(2832, f"{constant.name}: its bytes are not its shape")
        found = (
            torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
        )
    if _spec_of(found) != _plain(constant):
        raise IntegrityError(5832, f"{constant.name} is not as certified")
    return found


def _double(tensor: Tensor) -> Tensor:
    return tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu()
