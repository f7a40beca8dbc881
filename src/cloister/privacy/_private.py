"""The front door: the user's model, optimizer and loader, made private; the loop stays as it is.

    model, optimizer, loader = make_private(model, optimizer, loader, clip=1.0, epsilon="3", delta="1e-5", epochs=10)
    for inputs, labels in loader:
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()

Rules:

* The loss is the mean (or, if said so, the sum) of one loss a row: rows are told apart in the model, and a loss that
  mixes them would mix examples unseen. :func:`cloister.privacy.check_model` proves model and loss together.
* ``optimizer.step()`` after every batch that the loader gives, and before it gives another
  (:mod:`cloister.privacy._turns`). Batches are micro-batches of one shape; the last one of a logical batch makes the
  step.
* A model that :func:`cloister.offload.offload` converted stays so: its workers make the products of a private forward
  too (:mod:`cloister.privacy._offloaded`). The other way round is refused (8867).
* Outside the loop, in ``eval()`` or under ``no_grad``, the model is the one it was.
* :attr:`PrivateOptimizer.privacy` says what was spent, and keeps the events behind it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from cloister.errors import InputError
from cloister.ledger import Relation, amount
from cloister.privacy._clipping import Clipping, Flat
from cloister.privacy._engine import Engine, Reduction
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._kernels import row_kernels
from cloister.privacy._loader import PrivateLoader
from cloister.privacy._noise import DangerousFloatNoise, Noise, NoiseSource
from cloister.privacy._optimizer import PrivateOptimizer
from cloister.privacy._parts import Target
from cloister.privacy._run_key import RunKey
from cloister.privacy._spending import Privacy, gradient_noise, least_noise, terms_of

if TYPE_CHECKING:
    from cloister.privacy._grid import Real
    from cloister.privacy._groups import Groups

__all__ = ["make_private"]

_ARENA_BYTES = 1 << 30

Model = TypeVar("Model", bound=nn.Module)


def make_private(
    model: Model,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    *,
    clip: float | Clipping,
    delta: str | float,
    noise_multiplier: Real | None = None,
    epsilon: str | float | None = None,
    epochs: int | None = None,
    unit: str = "record",
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    groups: Groups | None = None,
    expected_batch: int | None = None,
    micro_batch: int | None = None,
    loss_reduction: Reduction = "mean",
    key: RunKey | None = None,
    arena_bytes: int = _ARENA_BYTES,
    kernels: str | None = None,
    dangerous_visible_size: bool = False,
    dangerous_float_noise: bool = False,
) -> tuple[Model, PrivateOptimizer, PrivateLoader]:
    """Makes a training private.

    Args:
        model: Trained parameters are those that require a gradient. It is changed in place and given back.
        optimizer: Of all trained parameters and no others. Not to be stepped by itself any more.
        loader: Its data set, expected batch and way of fetching are kept, its sampling is replaced.
        clip: The norm that one example's gradient keeps, or a way of clipping.
        delta: Of the guarantee.
        noise_multiplier: The noise's standard deviation over the clipping norm.
        epsilon: In its place: the least noise with which ``epochs`` cost no more.
        epochs: So many, as the loader counts them.
        unit: Whose presence is hidden: ``record``, or what ``groups`` are.
        relation: When two data sets are neighbours.
        groups: Which records belong together; they are drawn, and clipped, as one.
        expected_batch: Records, or groups, of a batch; the loader's batch size when left out.
        micro_batch: Rows at a time, about 64 when left out. Fewer take less memory; more are a little faster.
        loss_reduction: What the loss is of the rows' losses.
        key: Kept by the caller, it lets a checkpoint go on as if nothing had happened; of this run alone. See
            :class:`RunKey`.
        arena_bytes: Most memory for gradients an example; layers beyond are computed twice.
        kernels: ``cpu`` or ``torch``; the fastest that is there when left out.
        dangerous_visible_size: The time of a step, and the number of batches, say how many were drawn.
        dangerous_float_noise: Noise that costs nothing and guarantees nothing; ε is unknown.

    Raises:
        InputError: 2850 to 2856; 2810, 2811, 2813 for what is out of range; 2801, 2804 when no noise is enough.
        RefusedError: 3810 for a loader that cannot be analysed; 3853 for a key that another run has.
        UnsupportedError: 8850, 8851.
    """
    if (noise_multiplier is None) == (epsilon is None) or (epsilon is not None and epochs is None):
        raise InputError(2855)
    _require_same_parameters(model, optimizer)
    clipping: Clipping = Flat(clip) if isinstance(clip, (int, float)) else clip
    private_loader = PrivateLoader(
        loader,
        key=key or RunKey(),
        groups=groups,
        expected_batch=expected_batch,
        micro_batch=micro_batch,
        dangerous_visible_size=dangerous_visible_size,
    )
    noise: Noise = DangerousFloatNoise(GRID_SIGMA) if dangerous_float_noise else NoiseSource(GRID_SIGMA)
    size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) + 1
    terms = terms_of(private_loader, noise, unit=unit, relation=relation, draws=size)
    delta_text, target = _text(delta), None
    if epsilon is None:
        multiplier = _text(noise_multiplier)
    else:
        most, steps = _text(epsilon), (epochs or 0) * private_loader.epoch_steps
        multiplier = least_noise(terms, steps, epsilon=most, delta=delta_text)
        target = Target(epsilon=most, delta=delta_text, steps=steps)
    engine = Engine(
        model,
        clipping,
        noise_multiplier=gradient_noise(clipping, multiplier),
        noise=noise,
        kernels=row_kernels(next(iter(model.parameters())).device, prefer=kernels),
        expected=float(private_loader.sampler.expected),
        reduction=loss_reduction,
        arena_bytes=arena_bytes,
        grouped=private_loader.most_rows > 1,
    )
    if key is not None:
        key.begin()
    privacy = Privacy(
        engine,
        private_loader,
        delta=delta_text,
        unit=unit,
        relation=relation,
        noise_multiplier=multiplier,
        target=target,
        key=key,
    )
    _watch_over(model, engine, private_loader)
    return model, PrivateOptimizer(optimizer, privacy), private_loader


def _text(value: Any) -> str:
    """The one decimal text of a number; of a float the shortest one that reads as it."""
    return amount(repr(value) if isinstance(value, float) else str(value))


def _require_same_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    if isinstance(optimizer, PrivateOptimizer) or model in _WATCHED:
        raise InputError(2856, "the optimizer or the model is private already")
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if trained != stepped:
        got = f"{len(trained - stepped)} that it does not step, {len(stepped - trained)} that are not trained"
        raise InputError(2856, expected="an optimizer of the model's trained parameters", got=got)


# ---- the model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Watched:
    engine: Engine
    loader: PrivateLoader


_WATCHED: weakref.WeakKeyDictionary[nn.Module, _Watched] = weakref.WeakKeyDictionary()


class _Private:
    """What a private model's class has before its own: a call in training is a watched one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        above: Any = super()
        watched = _WATCHED.get(self)  # type: ignore[call-overload]
        if watched is None or not (self.training and torch.is_grad_enabled()):  # type: ignore[attr-defined]
            return above.__call__(*args, **kwargs)
        turns = watched.loader.turns
        turns.require_current((args, kwargs))
        if turns.anew:
            watched.engine.forget()
            turns.anew = False
        return watched.engine.forward(above.__call__, (args, kwargs), watched.loader.micro_batch)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, or what is unpickled, is of the class that it was made from, and private no more."""
        _, _, *state = super().__reduce_ex__(max(2, protocol))
        return _bare, (type(self).__mro__[_ORIGINAL],), *state


_ORIGINAL = 2  # after the subclass and what it has before the original


def _bare(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _watch_over(model: nn.Module, engine: Engine, loader: PrivateLoader) -> None:
    kind = type(model)
    if kind not in _CLASSES:
        _CLASSES[kind] = type(kind.__name__, (_Private, kind), {"__module__": kind.__module__})
    model.__class__ = _CLASSES[kind]
    loader.turns.held = True
    _WATCHED[model] = _Watched(engine, loader)
