"""A model as two files, its certificate and its weights: who trains it needs none of its code.

``certificate.json`` is the graph of forward and loss with what follows from it; ``weights.safetensors`` are the
parameters, and those constants that the certificate names and does not hold, by the model's own names. A tied weight
is there once. After training, ``weights_of(program)`` is what goes back into the model that the program was made of:
``model.load_state_dict(…)``, with ``strict=False`` where weights are tied.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cloister import wire
from cloister.errors import InputError, IntegrityError
from cloister.privacy._certificate import MAX_CERTIFICATE_BYTES, Certificate, bind, recheck
from cloister.privacy._certified import CertifiedLoss, plain_name
from cloister.privacy._replay import rehearse
from cloister.privacy._weights import read_weights, weights_limit, write_weights

if TYPE_CHECKING:
    from cloister.privacy._forward_loss import Loss
    from cloister.privacy._graph import Graph, Spec
    from cloister.privacy._recipe import Recipe

__all__ = [
    "CERTIFICATE_FILE",
    "RECIPE_FILE",
    "WEIGHTS_FILE",
    "load_program",
    "read_program",
    "save_program",
    "weights_of",
]

CERTIFICATE_FILE, WEIGHTS_FILE, RECIPE_FILE = "certificate.json", "weights.safetensors", "training.json"


def load_program(certificate: Certificate | bytes, weights: bytes) -> CertifiedLoss:
    """A certified computation with its tensors, of nothing but data.

    Args:
        certificate: The message, or its canonical JSON; rechecked here.
        weights: A safetensors file of its parameters and named constants, by the model's names.

    Returns:
        From a batch to one loss a row, ``(B,)``; :func:`make_private` takes it as it takes a model. Its parameters are
        trained where the certificate says so. On the processor.

    Raises:
        InputError: 2832, 2858 for a graph or a file that is none; those of :func:`recheck`.
        IntegrityError: 5832 when the weights are not those of the graph, or its shapes not what its calls give.
        CloisterError: As :func:`recheck`.
    """
    graph = _proven(certificate).graph
    tied = {name: parameter.name for parameter in graph.parameters for name in (parameter.name, *parameter.also)}
    found = read_weights(weights, _expected(graph))
    parameters = {
        each.name: nn.Parameter(found[plain_name(each.name)], requires_grad=each.trained) for each in graph.parameters
    }
    buffers = {each.name: found[plain_name(each.name)] for each in graph.constants if each.data is None}
    return CertifiedLoss(graph, {name: parameters[first] for name, first in tied.items()}, buffers)


def weights_of(program: CertifiedLoss) -> dict[str, Tensor]:
    """Its parameters and named constants by the model's names, tied ones by their first."""
    own = program.state_dict()
    return {name: own[name] for name in _expected(program.graph)}


def save_program(
    certificate: Certificate,
    model: nn.Module,
    folder: Path | str,
    *,
    loss: Loss | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Writes a program's files, each whole or not at all, the certificate last.

    Args:
        certificate: Rechecked here.
        model: The one that was certified, or a :class:`CertifiedLoss` of it.
        folder: Made where it is not there.
        loss: What was certified with the model; needed when it is a module that holds tensors.
        recipe: How it is trained, where nobody's script says so: in a stage with privacy terms.

    Raises:
        IntegrityError: 5832 when the model is not the certified one.
        CloisterError: As :func:`recheck`.
    """
    if isinstance(model, CertifiedLoss):
        if model.graph.graph_digest() != _proven(certificate).graph_digest:
            raise IntegrityError(5832, "the program is of another certificate")
        program = model
    else:
        program = bind(certificate, model, loss or _no_loss)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    wire.write_atomic(target / WEIGHTS_FILE, write_weights(weights_of(program)))
    if recipe is not None:
        wire.write_atomic(target / RECIPE_FILE, recipe.canonical())
    wire.write_atomic(target / CERTIFICATE_FILE, certificate.canonical())


def read_program(folder: Path | str) -> CertifiedLoss:
    """What :func:`save_program` wrote.

    Raises:
        InputError: 2001, 2003 when a file cannot be read, or is larger than it may be.
        CloisterError: As :func:`load_program`.
    """
    where = Path(folder)
    data = wire.read_bounded(where / CERTIFICATE_FILE, max_bytes=MAX_CERTIFICATE_BYTES, what="privacy certificate")
    certificate = recheck(data)
    limit = weights_limit(_expected(certificate.graph))
    return load_program(certificate, wire.read_bounded(where / WEIGHTS_FILE, max_bytes=limit, what="weights"))


def _proven(certificate: Certificate | bytes) -> Certificate:
    certificate = recheck(certificate)
    rehearse(certificate.graph)
    return certificate


def _expected(graph: Graph) -> dict[str, Spec]:
    """What a file of weights holds, by the model's names."""
    found: dict[str, Spec] = {}
    for each in (*graph.parameters, *(constant for constant in graph.constants if constant.data is None)):
        if (name := plain_name(each.name)) in found:
            raise InputError(2832, f"{name[:80]!r} is named twice")
        found[name] = each
    return found


def _no_loss(model: nn.Module, batch: object) -> Tensor:
    raise AssertionError("a certified graph calls no loss")
