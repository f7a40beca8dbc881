"""The second line of defence: a graph is run, and rows are looked at that must not notice each other.

A proof is as good as its rules. Before a certificate is issued its graph is run in float64 on rows made from the
example, and these must hold to the last bit:

* a row's loss is the same whatever stands in another row, ``NaN`` and infinity included;
* the derivative of a row's loss by another row's inputs is zero.

Where nothing is random, a row's loss does not depend on its place or on how many rows there are, up to rounding. And
the model's own code, run once, must agree with its graph in losses and gradients: it shows a backward that no graph
has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cloister.errors import InputError, IntegrityError, UnsupportedError
from cloister.privacy._certified import CertifiedLoss, certified_loss
from cloister.privacy._export import quiet
from cloister.privacy._foreign import foreign
from cloister.privacy._forward_loss import ForwardLoss, Loss, leaves, resized
from cloister.privacy._graph import Graph
from cloister.privacy._rules import rules

__all__ = ["compare", "probe", "watch"]

ROWS = 4
_SEED = 20
_MODULES_OWN = frozenset(vars(nn.Module())) | {"_forward_hooks_with_kwargs", "_is_full_backward_hook"}
_ROUNDING = 1e-9  # of float64, relative; a batch of another size is multiplied in other blocks


def watch(model: nn.Module, loss: Loss, batch: Any) -> None:
    """Runs the model's own code once, and refuses what its graph would not show.

    Raises:
        InputError: 2831 when the model does not run on the batch.
        UnsupportedError: 8833 when it changes attributes of modules; 8834 when it does not give losses; 8837 for custom
            autograd functions and hooks.
    """
    whole = ForwardLoss(model, loss)
    _refuse_hooks(whole)
    before = _attributes(whole)
    with _aside(), _HookWatch(), foreign(_does_not_run), quiet():
        losses = _called(whole, resized(batch, ROWS))
    after = _attributes(whole)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            raise UnsupportedError(8833, f"{name.removeprefix('model.')}: the forward pass changes it")
    if not isinstance(losses, Tensor):
        raise UnsupportedError(8834, "the loss returns something else than one tensor", got=type(losses).__name__)
    for node in _backward(losses):
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            raise UnsupportedError(8837, f"{name} is an autograd function of the model's own")


def _does_not_run(error: Exception) -> InputError:
    what = f"the model does not run on the example batch: {type(error).__name__}"
    return InputError(2831, what, got=str(error)[:200])


def _attributes(whole: nn.Module) -> dict[str, object]:
    """What modules hold besides tensors that torch knows: plain values, identities of others, containers' contents."""
    found: dict[str, object] = {}
    for path, module in whole.named_modules():
        for name, value in vars(module).items():
            if name not in _MODULES_OWN:
                found[f"{path}.{name}".lstrip(".")] = _frozen(value)
    return found


def _frozen(value: Any, depth: int = 0) -> object:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, list | tuple) and depth < 4:
        return [_frozen(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < 4:
        return [(_frozen(key, depth + 1), _frozen(item, depth + 1)) for key, item in value.items()]
    return _Same(value)


class _Same:
    """Equal to itself only; holds what it is about, so that no later object takes its address."""

    def __init__(self, value: object) -> None:
        self._value = value
        self._size = len(value) if isinstance(value, set | frozenset) else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value and other._size == self._size

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _refuse_hooks(whole: nn.Module) -> None:
    common = torch.nn.modules.module
    if common._global_backward_hooks or common._global_backward_pre_hooks:
        raise UnsupportedError(8837, "there is a backward hook on all modules")
    for path, module in whole.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise UnsupportedError(8837, f"{path.removeprefix('model.')} has a backward hook")
    for name, parameter in whole.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UnsupportedError(8837, f"{name.removeprefix('model.')} has a hook on its gradient")


class _HookWatch(TorchFunctionMode):
    """Refuses hooks on tensors while a forward pass runs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook):
            raise UnsupportedError(8837, "the forward pass puts a hook on a tensor's gradient")
        return func(*args, **(kwargs or {}))


def _backward(losses: Tensor) -> Iterator[Any]:
    stack, seen = [losses.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [before for before, _ in node.next_functions]


def _called(whole: nn.Module, batch: Any) -> Any:
    """Calls the model's code with buffers of its own, so that a forward pass that writes them changes nothing."""
    buffers = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    return torch.func.functional_call(whole, buffers, (batch,), tie_weights=True)


@contextmanager
def _aside() -> Iterator[None]:
    """With random numbers of its own, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


class _Expected(TorchDispatchMode):
    """Puts a Bernoulli draw's expectation in its place, so that dropout changes nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._opname
        if name == "bernoulli_" and func._overloadname == "float":
            return args[0].fill_(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        if name == "bernoulli" and func._overloadname == "p":
            return torch.full_like(args[0], args[1])
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name == "native_dropout_backward":
            return args[0].clone()
        if "dropout_p" in {each.name for each in func._schema.arguments}:
            place = [each.name for each in func._schema.arguments].index("dropout_p")
            args = tuple(0.0 if at == place else value for at, value in enumerate(args))
            kwargs.pop("dropout_p", None)
        return func(*args, **kwargs)


def compare(graph: Graph, model: nn.Module, loss: Loss, batch: Any) -> None:
    """Runs the model's code and its graph on the same rows.

    Raises:
        UnsupportedError: 8838 when losses or a parameter's gradient differ by more than rounding.
    """
    rows = resized(batch, ROWS)
    whole, certified = ForwardLoss(model, loss), certified_loss(graph, model, loss)
    names = [name for name, each in whole.named_parameters() if each.requires_grad]
    tensors = [each for _, each in whole.named_parameters() if each.requires_grad]
    found: list[tuple[Tensor, list[Tensor]]] = []
    for run in (lambda: _called(whole, rows), lambda: certified(rows)):
        with _aside(), _Expected():
            with foreign(_does_not_run_again):
                losses = run()
                slopes = torch.autograd.grad(losses.sum(), tensors, allow_unused=True, materialize_grads=True)
            if losses.shape != (ROWS,):
                raise UnsupportedError(8838, "the model's code returns another shape than its graph")
        found.append((losses.detach(), [slope.detach() for slope in slopes]))
    for name, own, graphs in zip(
        ("its losses", *names), (found[0][0], *found[0][1]), (found[1][0], *found[1][1]), strict=True
    ):
        scale = own.double().norm() + graphs.double().norm()
        if not (own.double() - graphs.double()).norm() <= 1e-3 * scale + 1e-6:
            what = name if name == "its losses" else f"the gradient of {name.removeprefix('model.')}"
            raise UnsupportedError(8838, f"the model's code and its graph differ in {what}")


def _does_not_run_again(error: Exception) -> UnsupportedError:
    what = f"the model's code ran once, and it or its graph not again: {type(error).__name__}"
    return UnsupportedError(8838, what, got=str(error)[:200])


def probe(graph: Graph, model: nn.Module, loss: Loss, batch: Any) -> None:
    """Runs a graph in float64 and looks for a row that notices another.

    Raises:
        IntegrityError: 5833 when one does: a rule is wrong. It must never be seen.
    """
    certified = certified_loss(graph, model, loss)
    draws = torch.Generator().manual_seed(_SEED)
    rows = _shuffled(resized(batch, ROWS), draws)
    base = _wide(certified, rows)
    for row in (0, ROWS // 2):
        for strangers in (_shuffled(rows, draws), _poisoned(rows, torch.nan), _poisoned(rows, torch.inf)):
            changed = pytree.tree_map(lambda old, new, at=row: _keeping(old, new, at), rows, strangers)
            if not torch.equal(_wide(certified, changed)[row].nan_to_num(), base[row].nan_to_num()):
                raise IntegrityError(5833, f"the loss of row {row} changes with other rows")
    _refuse_slopes(certified, rows)
    if not any(rules()[node.op].random for node in graph.nodes if node.op in rules()):
        order = torch.randperm(ROWS, generator=draws)
        moved = _wide(certified, pytree.tree_map(lambda leaf: leaf[order], rows))
        fewer = _wide(certified, pytree.tree_map(lambda leaf: leaf[: ROWS - 1], rows))
        for found, expected in ((moved, base[order]), (fewer, base[:-1])):
            if not torch.allclose(found, expected, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True):
                raise IntegrityError(5833, "a row's loss depends on its place, or on how many rows there are")


def _refuse_slopes(certified: CertifiedLoss, rows: Any) -> None:
    inputs = {name: leaf.double().requires_grad_() for name, leaf in leaves(rows).items() if leaf.is_floating_point()}
    if not inputs:
        return
    losses = _wide(certified, rows, inputs)
    for row in range(ROWS):
        for slope in torch.autograd.grad(losses[row], list(inputs.values()), retain_graph=True, allow_unused=True):
            if slope is not None and slope[torch.arange(ROWS) != row].count_nonzero():
                raise IntegrityError(5833, f"the loss of row {row} has a derivative by another row")


def _wide(certified: CertifiedLoss, rows: Any, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
    """Losses in float64."""
    given = {**leaves(rows), **(inputs or {})}
    with _aside():
        return certified.wide(list(given.values()))


def _shuffled(rows: Any, draws: torch.Generator) -> Any:
    """Rows made of the example's own values, each from the same place of some row; a little noise on floats."""

    def mixed(leaf: Tensor) -> Tensor:
        chosen = torch.randint(len(leaf), leaf.shape, generator=draws)
        made = leaf.cpu().gather(0, chosen)
        if made.is_floating_point():
            made = made + 0.1 * torch.randn(made.shape, generator=draws, dtype=torch.float64).to(made.dtype)
        return made

    return pytree.tree_map(mixed, rows)


def _poisoned(rows: Any, poison: float) -> Any:
    return pytree.tree_map(lambda leaf: torch.full_like(leaf, poison) if leaf.is_floating_point() else leaf, rows)


def _keeping(own: Tensor, others: Tensor, row: int) -> Tensor:
    made = others.clone()
    made[row] = own[row]
    return made
