"""From a model and a loss to their graph: ``torch.export`` with a batch of any size.

The batch's size is a symbol. For the trace it has a value that occurs nowhere else in the model or the batch, so that
no axis can be taken for the batch by accident, and code that asks for that value fails.

What export would lose silently is refused: state that code keeps between calls (8833), control flow that depends on
data (8836). Custom autograd functions and hooks, whose backward no graph shows, are the probe's (8837).
Code under ``no_grad`` is cut off by ``detach``, since export drops the context and keeps the arithmetic.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import UnsupportedOperatorException
from torch.export.graph_signature import OutputKind
from torch.fx import Node as Traced
from torch.utils import _pytree as pytree

from cloister.errors import CloisterError, UnsupportedError
from cloister.privacy._foreign import foreign
from cloister.privacy._forward_loss import ForwardLoss, Loss, leaves, resized
from cloister.privacy._independence import Place
from cloister.privacy._places import every_line, noted_guards, place_of, raised_at
from cloister.privacy._reader import Exported, Reader
from cloister.privacy._rules_layers import BATCH_NORM_HINT, BATCH_NORMS

__all__ = ["export_graph", "quiet"]


def export_graph(model: nn.Module, loss: Loss, batch: Any) -> Exported:
    """The graph of a model and a loss.

    Args:
        model: In the mode in which it will be trained.
        loss: ``loss(model, batch) -> (B,)``.
        batch: Tensors whose first axis is the batch, in tuples, lists and dicts.

    Raises:
        InputError: 2831 for a batch that is none.
        UnsupportedError: 8830, 8833, 8835, 8836, 8840, as :func:`~cloister.privacy.check_model` says.
    """
    rows = leaves(batch)
    whole = ForwardLoss(model, loss)
    example = resized(batch, _unlike(whole, rows.values()))
    program = _exported(whole, example)
    _join_regions(program.graph_module)
    with foreign(_untraceable), quiet():
        program = program.run_decompositions(_decompositions())
    _refuse_mutation(program)
    return Reader(whole, program, list(rows)).read()


def _unlike(whole: nn.Module, rows: Iterable[Tensor]) -> int:
    """A prime that is no size of the model or the batch."""
    taken = {size for tensor in (*whole.parameters(), *whole.buffers()) for size in tensor.shape}
    taken |= {size for row in rows for size in row.shape[1:]}
    return next(n for n in count(11) if n not in taken and all(n % d for d in range(2, n)))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that export gives of its own code, and the log of traces that fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # export prints what it cannot follow
                yield
        finally:
            logging.disable(before)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Losses by class are taken apart, all else stays whole: a rule for ``layer_norm`` says more than its steps'."""
    apart = ("cross_entropy_loss", "nll_loss_nd", "nll_loss", "nll_loss2d")
    table = torch.export.default_decompositions()
    return {operator: table[operator] for name in apart if (operator := getattr(torch.ops.aten, name).default) in table}


def _exported(whole: ForwardLoss, batch: Any) -> torch.export.ExportedProgram:
    """Traces as Python runs it; where ``len(x)`` made a number of the batch's size, by reading the bytecode."""
    size = torch.export.Dim("batch", min=2)
    shapes = pytree.tree_map(lambda _: {0: size}, batch)
    refused: UnsupportedError | None = None
    for strict in (False, True):
        with noted_guards() as guards:
            try:
                # the order of an einsum's products must not depend on whether a library for it is installed
                with quiet(), every_line(), torch.backends.opt_einsum.flags(enabled=False):
                    return torch.export.export(whole, (batch,), dynamic_shapes=(shapes,), strict=strict)
            except CloisterError:
                raise
            except Exception as error:  # what users' code raises, and dozens of the tracer's own
                if refused is not None or "specialized it to be a constant" not in str(error):
                    raise (refused or _untraceable(error, guards)) from error
                refused = _untraceable(error, guards)
    raise refused or UnsupportedError(8836)


def _untraceable(error: Exception, guards: Sequence[Place] = ()) -> UnsupportedError:
    text = " ".join(str(error).split())
    place = raised_at(error)
    if (
        "mutated in the forward method" in text
        or "assigned during export" in text
        or "fake tensor in the exported" in text
    ):
        return UnsupportedError(8833, f"{place}: a tensor is kept between calls", got=text[:200])
    if "data-dependent" not in text and ("Constraints violated" in text or "specialized" in text):
        place = guards[0] if guards else place
        return UnsupportedError(8832, f"{place}: the code depends on the batch's size", got=text[:200])
    if isinstance(error, NotImplementedError | UnsupportedOperatorException):
        return UnsupportedError(8831, f"{place}: torch.export knows no such operator", got=text[:200])
    return UnsupportedError(8836, f"{place}: torch.export cannot follow it: {type(error).__name__}", got=text[:200])


def _join_regions(module: torch.fx.GraphModule) -> None:
    """Puts code that export keeps apart because it ran without gradients back in its place, its results detached."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled:
            continue
        enabled, held, *given = node.args
        inner = getattr(module, held.target)
        _join_regions(inner)
        results = _copied(inner.graph, graph, given, before=node)
        for user in list(node.users):
            result = results[user.args[1]]
            if enabled is False and isinstance(result, Traced):
                with graph.inserting_before(node):
                    cut = graph.call_function(torch.ops.aten.detach.default, (result,))
                cut.meta = dict(result.meta)
                result = cut
            user.replace_all_uses_with(result)
            graph.erase_node(user)
        graph.erase_node(node)
        if not held.users:
            graph.erase_node(held)
    module.recompile()


def _copied(inner: torch.fx.Graph, outer: torch.fx.Graph, given: Sequence[Any], *, before: Traced) -> Sequence[Any]:
    """Copies a graph's calls into another graph; its results there."""
    known: dict[Traced, Any] = {}
    given = list(given)
    for node in inner.nodes:
        if node.op == "placeholder":
            known[node] = given.pop(0)
        elif node.op == "output":
            return [known.get(each, each) for each in node.args[0]]
        else:
            with outer.inserting_before(before):
                known[node] = outer.node_copy(node, lambda each: known[each])
    return ()


def _refuse_mutation(program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:  # the usual reason for state, and one with a remedy of its own
        if f"aten::{getattr(node.target, '_opname', '')}" in BATCH_NORMS:
            what = f"{place_of(node)}: it normalises with the statistics of the batch"
            raise UnsupportedError(8830, what, hint=BATCH_NORM_HINT)
    for output in program.graph_signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            name = str(output.target or output.arg).removeprefix("model.")
            raise UnsupportedError(8833, f"{name}: the forward pass writes it")
