"""Certificates: a model's graph, what the rules derive of it, and their version, as bytes that anybody rechecks.

A certificate says of one graph that each row's loss is a function of that row's example, of parameters and constants,
and of randomness that only this row has. It is evidence because it carries the graph: :func:`recheck` derives the
statement again. Whether a model *is* that graph it cannot say; :func:`bind` makes it so, by running the graph itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cloister import wire
from cloister.errors import IntegrityError, RefusedError
from cloister.privacy._graph import Graph
from cloister.privacy._independence import kinds
from cloister.privacy._rules import RULES_VERSION

if TYPE_CHECKING:
    from torch import nn

    from cloister.privacy._certified import CertifiedLoss
    from cloister.privacy._forward_loss import Loss

__all__ = ["CERTIFICATE_FORMAT", "MAX_CERTIFICATE_BYTES", "Certificate", "bind", "check_model", "recheck"]

CERTIFICATE_FORMAT = "cloister/privacy-certificate/v1"
MAX_CERTIFICATE_BYTES = 16 * 1024 * 1024


class Certificate(wire.Message):
    """What was checked, and what follows.

    Attributes:
        format: The format's name and version.
        rules: Version of the transfer rules.
        verdict: Always ``independent``: what is not gets no certificate.
        graph_digest: The graph's id.
        graph: Forward and loss.
        kinds: What is known of each value, in the graph's order.
    """

    format: Literal["cloister/privacy-certificate/v1"] = CERTIFICATE_FORMAT
    rules: int
    verdict: Literal["independent"]
    graph_digest: wire.Digest
    graph: Graph
    kinds: tuple[str, ...]


def check_model(model: nn.Module, loss: Loss, example_batch: Any) -> Certificate:
    """Proves that a model's training treats each example by itself.

    The model is traced with a batch of any size, in the mode that it is in; every operator must have a rule by which
    examples stay apart. Then the traced graph is run and probed (:mod:`cloister.privacy._probe`).

    Args:
        model: In the mode in which it will be trained; its parameters that are trained have ``requires_grad``.
        loss: ``loss(model, batch) -> (B,)``, floating: one loss for each example, not averaged.
        example_batch: A batch in the form in which the engine will give it: tensors with the batch first, in tuples,
            lists or dicts; two different rows or more.

    Returns:
        The certificate.

    Raises:
        InputError: 2831 when the batch is none, or the model does not run on it.
        UnsupportedError: 8830 to 8841, with the module's path and the line: see ``cloister explain``.
        IntegrityError: 5833 when a row noticed another though the rules say that it cannot.
    """
    from cloister.privacy._export import export_graph
    from cloister.privacy._probe import compare, probe, watch

    watch(model, loss, example_batch)
    exported = export_graph(model, loss, example_batch)
    found = kinds(exported.graph, exported.places)
    compare(exported.graph, model, loss, example_batch)
    probe(exported.graph, model, loss, example_batch)
    return Certificate(
        rules=RULES_VERSION,
        verdict="independent",
        graph_digest=exported.graph.graph_digest(),
        graph=exported.graph,
        kinds=tuple(str(kind) for kind in found),
    )


def recheck(certificate: Certificate | bytes) -> Certificate:
    """Derives a certificate's statement again, without torch and without the model.

    Args:
        certificate: The message, or its canonical JSON.

    Returns:
        The certificate.

    Raises:
        InputError: 2002 to 2005 for bytes that are none; 2832 for a graph that is none.
        RefusedError: 3830 when it is of another version of the rules.
        IntegrityError: 5830 when its digest is not the graph's; 5831 when it says something else than the rules.
        UnsupportedError: 8830 to 8835 and 8841 when the graph mixes examples.
    """
    if isinstance(certificate, bytes):
        value = wire.parse_json(certificate, what="privacy certificate", max_bytes=MAX_CERTIFICATE_BYTES)
        wire.require_format(value, CERTIFICATE_FORMAT, what="privacy certificate")
        certificate = wire.parse_message(Certificate, value, what="privacy certificate")
    if certificate.rules != RULES_VERSION:
        raise RefusedError(3830, expected=RULES_VERSION, got=certificate.rules)
    if certificate.graph.graph_digest() != certificate.graph_digest:
        raise IntegrityError(5830, expected=certificate.graph_digest)
    if certificate.kinds != tuple(str(kind) for kind in kinds(certificate.graph)):
        raise IntegrityError(5831)
    return certificate


def bind(certificate: Certificate, model: nn.Module, loss: Loss) -> CertifiedLoss:
    """A module that runs a certificate's graph on a model's parameters, and nothing of the model's code.

    Args:
        certificate: Rechecked here.
        model: Holds the parameters and buffers; its ``forward`` is not called.
        loss: Likewise; only a module's parameters and buffers are used.

    Returns:
        From a batch to one loss a row, ``(B,)``. It has the model's own parameters under the model's names, and can be
        trained in the model's place: :func:`make_private` takes it as it takes a model.

    Raises:
        IntegrityError: 5832 when the graph's shapes are not what its calls give, or the model's tensors are others.
        CloisterError: As :func:`recheck`.
    """
    from cloister.privacy._certified import certified_loss
    from cloister.privacy._replay import rehearse

    recheck(certificate)
    rehearse(certificate.graph)
    return certified_loss(certificate.graph, model, loss)
