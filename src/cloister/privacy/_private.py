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
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from cloister.errors import InputError
from cloister.ledger import (
    Account,
    Event,
    Relation,
    SampledGaussian,
    Spent,
    Unaccounted,
    amount,
    calibrate,
    exact,
    noise_slack,
    ratio,
    significant_up,
)
from cloister.privacy._clipping import Clipping, Flat, Quantile
from cloister.privacy._engine import Engine, Reduction
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._kernels import row_kernels
from cloister.privacy._loader import PrivateLoader
from cloister.privacy._noise import DangerousFloatNoise, NoiseSource, ResumableNoise
from cloister.privacy._optimizer import PrivateOptimizer
from cloister.privacy._run_key import RunKey, StreamState
from cloister.ring import RoundingState, RoundingStream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloister.privacy._grid import Real
    from cloister.privacy._groups import Groups

__all__ = ["Privacy", "make_private"]

_ARENA_BYTES = 1 << 30
_ROUNDING = b"rounding"

Model = TypeVar("Model", bound=nn.Module)


@dataclass(slots=True)
class Privacy:
    """What a private training spends.

    Attributes:
        delta: The δ at which ε is told.
        unit: Whose presence is hidden.
        relation: When two data sets are neighbours.
        noise_multiplier: As text.
        engine: Makes the gradients.
        loader: Draws the batches.
        steps: Batches whose sum was released, in this and earlier parts of the run.
    """

    delta: str
    unit: str
    relation: Relation
    noise_multiplier: str
    engine: Engine
    loader: PrivateLoader
    steps: int = 0
    _key: RunKey | None = None
    _context: bytes = b""
    _spent: dict[int, Spent] = field(default_factory=dict)

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened so far; nothing when nothing was released."""
        return self.events_of(self.steps)

    def events_of(self, steps: int) -> tuple[Event, ...]:
        """What so many steps are."""
        if steps == 0:
            return ()
        distance = self.engine.noise.distance
        if distance is None:
            reason = "noise in floating point, from a generator that is not secure"
            return (Unaccounted(unit=self.unit, relation=self.relation, reason=reason),)
        sampler = self.loader.sampler
        return (
            SampledGaussian(
                unit=self.unit,
                relation=self.relation,
                sampling_probability=ratio(sampler.probability),
                noise_multiplier=self.noise_multiplier,
                count=steps,
                slack=_slack(steps, self.engine.draws, distance, sampler.overflow),
            ),
        )

    def spent(self, steps: int | None = None) -> Spent | None:
        """The guarantee after so many steps, those made when left out; None before the first.

        Raises:
            InputError: 2006 without the extra ``privacy``.
        """
        steps = self.steps if steps is None else steps
        if steps and steps not in self._spent:
            self._spent = {steps: Account(self.events_of(steps)).epsilon(self.delta)}
        return self._spent.get(steps)

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint, after a step: how many there were, and where sampling and noise stand. No secret.

        With a key that the caller keeps, a run that goes on from it makes the very steps that it would have made. One
        without goes on with fresh randomness.

        Raises:
            InputError: 2857 in the midst of a batch.
        """
        if self.engine.halfway:
            raise InputError(2857)
        noise = self.engine.noise if isinstance(self.engine.noise, ResumableNoise) else None
        rounded = None if self._key is None else _rounded(self.engine.rounding.state.counter, self._key, self._context)
        return {
            "steps": self.steps,
            "norm": self.engine.clipping.norm,
            "loader": None if noise is None else list(self.loader.state),
            "noise": None if noise is None else list(noise.state),
            "rounding": None if rounded is None else list(rounded),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on at a saved state.

        Raises:
            InputError: 2812 when it is no state.
            IntegrityError: 5810 when it was saved under another key or other terms, or was changed.
        """
        try:
            names = ("steps", "norm", "loader", "noise", "rounding")
            steps, norm, loader, noise, rounding = (state[name] for name in names)
        except (KeyError, TypeError):
            raise InputError(2812) from None
        if self._key is not None:
            self.engine.noise = ResumableNoise(self._key, GRID_SIGMA, context=self._context, state=noise)
            self.loader.resume(loader)
            position = StreamState.read(rounding, self._key, _ROUNDING, self._context)
            self.engine.rounding = _rounding_of(self._key, self._context, position)
        if isinstance(self.engine.clipping, Quantile):
            self.engine.clipping.norm = norm
        self.steps = steps

    def gather(self) -> bool:
        """Sums a micro-batch; True after the last one of a batch, when every parameter has its gradient.

        Raises:
            RefusedError: 3851 when it was summed already.
            UnsupportedError: As :meth:`cloister.privacy._engine.Engine.gather`.
        """
        place = self.loader.place
        self.loader.turns.take()
        if place.micro_batch == 0:
            self.engine.begin()
        self.engine.gather(self.loader.owners)
        if place.is_last:
            self.engine.release()
            self.steps += 1
        return place.is_last


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
        key: Kept by the caller, it lets a checkpoint go on as if nothing had happened. See :class:`RunKey`.
        arena_bytes: Most memory for gradients an example; layers beyond are computed twice.
        kernels: ``cpu`` or ``torch``; the fastest that is there when left out.
        dangerous_visible_size: The time of a step, and the number of batches, say how many were drawn.
        dangerous_float_noise: Noise that costs nothing and guarantees nothing; ε is unknown.

    Raises:
        InputError: 2850 to 2856; 2810, 2811, 2813 for what is out of range; 2801, 2804 when no noise is enough.
        RefusedError: 3810 for a loader that cannot be analysed.
        UnsupportedError: 8850, 8851.
    """
    if (noise_multiplier is None) == (epsilon is None) or (epsilon is not None and epochs is None):
        raise InputError(2855)
    _require_same_parameters(model, optimizer)
    clipping: Clipping = Flat(clip) if isinstance(clip, (int, float)) else clip
    kept = key is not None
    key = key or RunKey()
    private_loader = PrivateLoader(
        loader,
        key=key,
        groups=groups,
        expected_batch=expected_batch,
        micro_batch=micro_batch,
        dangerous_visible_size=dangerous_visible_size,
    )
    delta_text = _text(delta)
    if dangerous_float_noise:
        noise: Any = DangerousFloatNoise(GRID_SIGMA)
    elif kept:
        context = repr(
            (private_loader.sampler.probability, private_loader.sampler.count, unit, relation.value)
        ).encode()
        noise = ResumableNoise(key, GRID_SIGMA, context=context)
    else:
        noise = NoiseSource(GRID_SIGMA)
    if epsilon is None:
        multiplier = _text(noise_multiplier)
    else:
        steps = (epochs or 0) * private_loader.epoch_steps
        size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) + 1
        multiplier = calibrate(
            epsilon=_text(epsilon),
            delta=delta_text,
            sampling_probability=ratio(private_loader.sampler.probability),
            steps=steps,
            unit=unit,
            relation=relation,
            slack=_slack(steps, size, noise.distance or Fraction(0), private_loader.sampler.overflow),
        ).event.noise_multiplier
    engine = Engine(
        model,
        clipping,
        noise_multiplier=clipping.gradient_noise(float(multiplier)) if isinstance(clipping, Quantile) else multiplier,
        noise=noise,
        kernels=row_kernels(next(iter(model.parameters())).device, prefer=kernels),
        expected=float(private_loader.sampler.expected),
        reduction=loss_reduction,
        arena_bytes=arena_bytes,
        grouped=private_loader.most_rows > 1,
        rounding=_rounding_of(key, context, 0) if kept else RoundingStream(),
    )
    privacy = Privacy(delta_text, unit, relation, multiplier, engine, private_loader)
    if kept:
        privacy._key, privacy._context = key, context
    _watch_over(model, engine, private_loader)
    return model, PrivateOptimizer(optimizer, privacy), private_loader


def _rounding_of(key: RunKey, context: bytes, position: int) -> RoundingStream:
    """Bytes for stochastic rounding, of a key that is kept."""
    return RoundingStream(RoundingState(key.derive("rounding", context).reveal().hex(), position))


def _rounded(position: int, key: RunKey, context: bytes) -> StreamState:
    return StreamState.make(position, key, _ROUNDING, context)


def _slack(steps: int, draws: int, distance: Fraction, overflow: Fraction) -> str:
    """What the steps' noise, and batches that had too little room, lack to ideal ones."""
    noise = noise_slack(sigma=GRID_SIGMA, draws=steps * draws, sampler_distance=distance)
    return significant_up(exact(noise) + steps * overflow)


def _text(value: Any) -> str:
    """The one decimal text of a number; of a float the shortest one that reads as it."""
    return amount(repr(value) if isinstance(value, float) else str(value))


def _require_same_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    if isinstance(optimizer, PrivateOptimizer):
        raise InputError(2856, "the optimizer is private already")
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
    if model in _WATCHED:
        raise InputError(2856, "the model is private already")
    kind = type(model)
    if kind not in _CLASSES:
        _CLASSES[kind] = type(kind.__name__, (_Private, kind), {"__module__": kind.__module__})
    model.__class__ = _CLASSES[kind]
    loader.turns.held = True
    _WATCHED[model] = _Watched(engine, loader)
