"""What a private training spends: counted where it is released, told from the events, kept across checkpoints.

* A step is charged before its sum is released, under the terms that hold then. What was charged is never given back:
  not by an earlier checkpoint, which a process may go on from, and not by other terms.
* A run that is gone on from under other terms has another event. Where its noise follows from an ε, what is still to be
  done gets the noise that all steps together leave it, or is refused (7801).
* The noise that is accounted is the one that is added: who changes it under way is refused (3854).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloister.errors import BudgetError, InputError, RefusedError
from cloister.ledger import Account, amount, calibrate, exact
from cloister.privacy._clipping import Quantile
from cloister.privacy._grid import GRID_SIGMA
from cloister.privacy._noise import DangerousFloatNoise, ResumableNoise
from cloister.privacy._parts import Part, Saved, Terms, all_parts, events_of
from cloister.ring import RoundingState, RoundingStream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloister.ledger import Event, Relation, Spent
    from cloister.privacy._clipping import Clipping
    from cloister.privacy._engine import Engine
    from cloister.privacy._grid import Real
    from cloister.privacy._loader import PrivateLoader
    from cloister.privacy._noise import Noise
    from cloister.privacy._parts import Target
    from cloister.privacy._run_key import RunKey

__all__ = ["Privacy", "gradient_noise", "least_noise", "terms_of"]

_MOST_TIMES = 4
"""So many times the noise that all steps would have had from the start: more would teach nothing, and what is left of
an ε that was spent before buys nothing else."""


class Privacy:
    """What a private training spends.

    Args:
        engine: Makes the gradients.
        loader: Draws the batches.
        delta: The δ at which ε is told.
        unit: Whose presence is hidden.
        relation: When two data sets are neighbours.
        noise_multiplier: Of all that a step releases, as text.
        target: What it was chosen for, if for an ε.
        key: The run's, where the caller keeps it.
    """

    __slots__ = (
        "_accounted", "_clipping", "_delta", "_engine", "_first_multiplier", "_key", "_loader", "_multiplier", "_open",
        "_parts", "_relation", "_spent", "_target", "_terms", "_unit",
    )  # fmt: skip

    def __init__(
        self,
        engine: Engine,
        loader: PrivateLoader,
        *,
        delta: str,
        unit: str,
        relation: Relation,
        noise_multiplier: str,
        target: Target | None = None,
        key: RunKey | None = None,
    ) -> None:
        self._engine, self._loader, self._delta, self._unit, self._relation = engine, loader, delta, unit, relation
        self._multiplier = self._first_multiplier = noise_multiplier
        self._target, self._key = target, key
        self._clipping = _described(engine.clipping)
        self._accounted = _noises(engine)
        self._parts, self._open = list[Part](), False
        self._terms: tuple[tuple[Any, ...], Terms] | None = None
        self._spent: tuple[tuple[Event, ...], Spent] | None = None
        if key is not None:
            self._go_on(key, noise=0, rounding=0)

    @property
    def engine(self) -> Engine:
        """Makes the gradients."""
        return self._engine

    @property
    def loader(self) -> PrivateLoader:
        """Draws the batches."""
        return self._loader

    @property
    def delta(self) -> str:
        """The δ at which ε is told."""
        return self._delta

    @property
    def unit(self) -> str:
        """Whose presence is hidden."""
        return self._unit

    @property
    def relation(self) -> Relation:
        """When two data sets are neighbours."""
        return self._relation

    @property
    def noise_multiplier(self) -> str:
        """Of the steps that are made now, as text."""
        return self._multiplier

    @property
    def steps(self) -> int:
        """Batches whose sum was released, in this and earlier parts of the run. It never falls."""
        return sum(part.steps for part in self._parts)

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened so far; nothing when nothing was released."""
        return events_of(self._parts)

    def events_of(self, steps: int) -> tuple[Event, ...]:
        """What the first so many steps are; those that were not made yet are as they would be made now."""
        parts, left = list[Part](), steps
        for part in self._parts:
            if left > 0:
                parts.append(part.model_copy(update={"steps": min(left, part.steps)}))
                left -= part.steps
        if left > 0:
            parts.append(Part.begun(self._terms_now()).model_copy(update={"steps": left}))
        return events_of(parts)

    def spent(self, steps: int | None = None) -> Spent | None:
        """The guarantee after so many steps, those made when left out; None before the first.

        Raises:
            InputError: 2006 without the extra ``privacy``.
        """
        events = self.events if steps is None else self.events_of(steps)
        if not events:
            return None
        if self._spent is None or self._spent[0] != events:
            self._spent = events, Account(events).epsilon(self._delta)
        return self._spent[1]

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> dict[str, Any]:
        """For a checkpoint, after a step: what was done, and where sampling and noise stand. No secret.

        With a key that the caller keeps it is proven, and a run that goes on from it under the same settings makes the
        very steps that it would have made. One without goes on with fresh randomness, and whoever keeps the state keeps
        it from being changed.

        Raises:
            InputError: 2857 in the midst of a batch.
        """
        if self._engine.halfway:
            raise InputError(2857)
        norm = float(self._engine.clipping.norm).hex()
        if self._key is None:
            return Saved(parts=tuple(self._parts), target=self._target, norm=norm).as_json()
        position, proof = self._loader.state
        saved = Saved(
            parts=tuple(self._parts),
            target=self._target,
            norm=norm,
            loader=(position, proof),
            noise=self._releases,
            rounding=self._engine.rounding.state.counter,
        )
        return saved.proven(self._key).as_json()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on at a saved state.

        What was done before is charged under the terms that it was done under. What is done from here on has the terms
        of :func:`cloister.privacy.make_private`; where these were to keep an ε, the noise is chosen anew for the steps
        that are left, so that all together keep it. What this object released itself stays charged, and its randomness
        is not gone back to.

        Raises:
            InputError: 2812 when it is no state; 2802 when it is of another unit or relation.
            IntegrityError: 5810 when it was saved under another key or another sampling, or was changed.
            BudgetError: 7801 when what was spent leaves too little of the ε; 7802 when nobody knows what it cost.
        """
        saved = Saved.read(state)
        if self._key is not None:
            saved.require(self._key)
        for part in saved.parts:
            if (part.terms.unit, part.terms.relation) != (self._unit, self._relation):
                raise InputError(2802, expected=f"{self._unit} ({self._relation.value})", got=part.terms.unit)
        parts = all_parts(saved.parts, self._parts)
        multiplier = self._affordable(parts, saved.target)
        if self._key is None:
            self._loader.leave()
        else:
            self._loader.resume(saved.loader)
        if multiplier != self._multiplier:
            self._set_noise(multiplier)
        if self._key is not None:
            rounding = max(saved.rounding or 0, self._engine.rounding.state.counter)
            self._go_on(self._key, noise=max(saved.noise or 0, self._releases), rounding=rounding)
        if isinstance(self._engine.clipping, Quantile):
            self._engine.clipping.norm = float.fromhex(saved.norm)
        self._parts, self._open = parts, False

    def _affordable(self, parts: Sequence[Part], chosen_for: Target | None) -> str:
        """The noise multiplier of what is still to be done."""
        target = self._target
        if target is None or not parts:
            return self._multiplier
        last = parts[-1].terms
        if chosen_for == target and last == self._terms_now(last.noise_multiplier):
            return last.noise_multiplier  # what it was chosen for is what is wanted: the steps go on as they were
        before, left = events_of(parts), target.steps - sum(part.steps for part in parts)
        refused = BudgetError(
            7801,
            "what was spent before leaves too little",
            expected=f"epsilon {target.epsilon} at delta {target.delta}",
            got=f"{max(0, left)} steps more",
            hint="allow more epsilon, or go on for fewer steps; what was spent is never given back",
        )
        terms = self._terms_now(amount(_MOST_TIMES * exact(self._first_multiplier)))
        account = Account([*before, *([terms.event(left)] if left > 0 else [])])
        if account.unknown:
            raise BudgetError(7802, got=account.unknown[0])
        least = account.epsilon(target.delta).epsilon
        if least is None or exact(least) > exact(target.epsilon):
            raise refused
        if left <= 0:
            return self._multiplier
        return least_noise(terms, left, epsilon=target.epsilon, delta=target.delta, besides=before)

    def _set_noise(self, multiplier: str) -> None:
        engine = self._engine
        engine.forget()
        engine._contributions = None  # its bounds are in steps of the old noise
        engine.noise_multiplier = gradient_noise(engine.clipping, multiplier)
        self._multiplier, self._accounted = multiplier, _noises(engine)

    def _go_on(self, key: RunKey, *, noise: int, rounding: int) -> None:
        """Randomness of the key, from these numbers on; under other settings it is other randomness."""
        sampler, engine = self._loader.sampler, self._engine
        settings = sampler.probability, sampler.count, self._unit, self._relation.value, self._multiplier
        context = repr((*settings, *self._clipping, engine.size)).encode()
        if not isinstance(engine.noise, DangerousFloatNoise):
            engine.noise = ResumableNoise(key, GRID_SIGMA, context=context, first=noise)
        engine.rounding = RoundingStream(RoundingState(key.derive("rounding", context).reveal().hex(), rounding))

    @property
    def _releases(self) -> int:
        """The number of the next release, where it matters."""
        return self._engine.noise.state.position if isinstance(self._engine.noise, ResumableNoise) else 0

    # ---- steps ------------------------------------------------------------------------------------------------------

    def gather(self) -> bool:
        """Sums a micro-batch; True after the last one of a batch, when every parameter has its gradient.

        Raises:
            RefusedError: 3851 when it was summed already; 3854 when the noise is not the one that is accounted.
            UnsupportedError: As :meth:`cloister.privacy._engine.Engine.gather`.
        """
        place = self._loader.place
        self._loader.turns.take()
        if _noises(self._engine) != self._accounted:
            raise RefusedError(3854, expected=f"a noise multiplier of {self._multiplier}")
        if place.micro_batch == 0:
            self._engine.begin()
        self._engine.gather(self._loader.owners)
        if place.is_last:
            self._charge()
            self._engine.release()
        return place.is_last

    def _charge(self) -> None:
        """A step, before anybody sees what it releases."""
        terms = self._terms_now()
        if self._open and self._parts[-1].terms == terms:
            self._parts[-1] = self._parts[-1].longer()
        else:
            self._parts.append(Part.begun(terms))
            self._open = True

    def _terms_now(self, multiplier: str | None = None) -> Terms:
        """Of a step that is made now, or would be with another noise multiplier."""
        sampler, engine = self._loader.sampler, self._engine
        facts = multiplier or self._multiplier, sampler, engine.draws, engine.noise.distance
        if self._terms is None or self._terms[0] != facts:
            self._terms = (
                facts,
                terms_of(
                    self._loader,
                    engine.noise,
                    unit=self._unit,
                    relation=self._relation,
                    draws=engine.draws,
                    noise_multiplier=facts[0],
                ),
            )
        return self._terms[1]


def terms_of(
    loader: PrivateLoader,
    noise: Noise,
    *,
    unit: str,
    relation: Relation,
    draws: int,
    noise_multiplier: str = "1",
) -> Terms:
    """Of steps with batches of this loader and so many draws of this noise."""
    sampler = loader.sampler
    return Terms.of(
        unit=unit,
        relation=relation,
        units=sampler.count,
        most_rows=loader.most_rows,
        probability=sampler.probability,
        noise_multiplier=noise_multiplier,
        draws=draws,
        distance=noise.distance,
        overflow=sampler.overflow,
    )


def least_noise(terms: Terms, steps: int, *, epsilon: str, delta: str, besides: Sequence[Event] = ()) -> str:
    """The least noise multiplier with which so many steps, and what was besides, keep an ε.

    Raises:
        InputError: As :func:`cloister.ledger.calibrate`.
    """
    return calibrate(
        epsilon=epsilon,
        delta=delta,
        sampling_probability=terms.sampling_probability,
        steps=steps,
        unit=terms.unit,
        relation=terms.relation,
        slack=terms.slack(steps) if steps > 0 else "0",
        besides=besides,
    ).event.noise_multiplier


def gradient_noise(clipping: Clipping, multiplier: str) -> Real:
    """Of the gradient alone, so that all that a step releases has this noise multiplier."""
    return clipping.gradient_noise(multiplier) if isinstance(clipping, Quantile) else multiplier


def _noises(engine: Engine) -> tuple[Any, ...]:
    """All that says how much noise is added."""
    return engine.noise_multiplier, getattr(engine.clipping, "noise", None)


def _described(clipping: Clipping) -> tuple[str, ...]:
    """A way of clipping, alike in every process."""
    names = sorted({*getattr(type(clipping), "__slots__", ())} - {"norm"})
    return type(clipping).__name__, repr(float(clipping.norm)), *(repr(getattr(clipping, name)) for name in names)
