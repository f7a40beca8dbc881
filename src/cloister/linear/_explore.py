"""An agreement tried as it was written, on rows that lie in one place, before anybody signs: bounds, convergence.

* A trial follows the agreement's own plan: its bounds, its numbers of rows, a session's arithmetic on the emulator.
  Only where rows break a bound it goes on with the bounds that they need, and says so.
* Sums are multiplied to the agreed number of rows. One file stands for every party's rows, so what is found holds for
  parties that are like it; those that differ need other bounds.
* With privacy terms each party's noise is drawn as a session draws it. Nothing is released, so no budget is charged;
  needed bounds and scores are of the rows themselves.
* Rows are gone through in chunks. Of each row two numbers are kept, and only for the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Context
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloister.errors import CloisterError, InputError, RefusedError
from cloister.linear._agreed_rows import CLASSES, rows_of
from cloister.linear._agreement import Agreement
from cloister.linear._budget import budget_of
from cloister.linear._compare import score
from cloister.linear._gram import RowFactor
from cloister.linear._local import fit_factors, reduced
from cloister.linear._logistic import LogisticRegression, first_point
from cloister.linear._newton import newton, weighted, within
from cloister.linear._noise import Privacy, clip_rows, lift_of, noised
from cloister.linear._plan import ITERATE_BITS, Plan, exact
from cloister.linear._rows import Part
from cloister.linear._sound import privacy_of
from cloister.linear._terms import LogisticTerms, StatisticsTerms

__all__ = ["Explored", "Limits", "Trial", "explored"]

_T = TypeVar("_T")
_ROOM = 1 + 2.0**-12  # that rounding a factor to integers may take
_DIGITS = Context(prec=3, rounding=ROUND_CEILING)

_ONE_FILE = "one file stands for every party's rows: parties whose rows differ from it need other bounds"
_WITHOUT_NOISE = (
    "needed bounds and scores come from the rows themselves, and no budget counts them: "
    "bounds that are taken from here into an agreement tell something about the rows"
)
_MARGIN = (
    "what is needed has 2ν in it, ν = σ(2√D + 6): ν that every party adds, and ν for the noise itself, "
    "whose norm is greater with a chance below 1/4000 a party"  # 2·exp(-6²/4), for √2σ-Lipschitz norms around 2σ√D
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One penalty: what came of it.

    Attributes:
        penalty: As it was written.
        bounds: ``agreed``, or ``needed`` where rows break the agreed ones.
        problem: Why there is no model.
        nonzero: Coefficients that are not 0.
        score: R², of a logistic model the AUC, on the same rows; None where it is not defined.
    """

    penalty: str
    bounds: Literal["agreed", "needed"]
    problem: CloisterError | None
    nonzero: int = 0
    score: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        found = {"penalty": self.penalty, "bounds": self.bounds, "nonzero": self.nonzero, "score": self.score}
        return found | {"problem": self.problem and self.problem.as_json()}


@dataclass(frozen=True, slots=True)
class Limits:
    """The greatest curvature of each party, and the greatest mean square of each column, as agreements write them."""

    curvatures: dict[str, str]
    mean_squares: dict[str, str]


@dataclass(frozen=True, slots=True)
class Explored:
    """What was found.

    Attributes:
        agreement: Its id.
        rows: Of each file.
        agreed_rows: The same, as they were agreed; of one file those of all parties.
        measure: What a score is.
        agreed: Bounds.
        needed: Bounds.
        beyond: What rows break: 2902 a column, 2903 a party, 2907 a party that has a file of its own.
        trials: One a penalty; none of statistics.
        notes: What a reader has to know besides.
    """

    agreement: str
    rows: tuple[int, ...]
    agreed_rows: tuple[int, ...]
    measure: str
    agreed: Limits
    needed: Limits
    beyond: tuple[InputError, ...]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]

    @property
    def good(self) -> bool:
        """No bound is broken, and a trial converged where there are any."""
        return not self.beyond and (not self.trials or any(trial.problem is None for trial in self.trials))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "agreement": self.agreement,
            "rows": list(self.rows),
            "agreed_rows": list(self.agreed_rows),
            "measure": self.measure,
            "agreed": asdict(self.agreed),
            "needed": asdict(self.needed),
            "beyond": [problem.as_json() for problem in self.beyond],
            "trials": [trial.as_json() for trial in self.trials],
            "notes": list(self.notes),
        }


def explored(agreement: Agreement, paths: Sequence[Path], *, penalties: Sequence[str]) -> Explored:
    """What these rows need and give.

    Args:
        agreement: To be tried.
        paths: One file, or one a party.
        penalties: ``alpha`` (of a logistic model ``C``) to try; none tries the agreed one.

    Raises:
        InputError: when the rows cannot be read; 2019 for a penalty that is none; 2902 when squares are beyond all
            numbers; 2907 when files are neither one nor one a party.
    """
    variants = _variants(agreement, penalties)
    data, alone = _Data.read(agreement, paths), len(paths) == 1
    each, counts = [party.rows for party in agreement.parties], [factor.count for factor in data.factors]
    agreed, needed = _agreed(agreement), data.needed()
    broken = list(_broken(agreed, needed))
    return Explored(
        agreement=agreement.id,
        rows=tuple(counts),
        agreed_rows=(sum(each),) if alone else tuple(each),
        measure="AUC" if agreement.response.labels else "R²",
        agreed=agreed,
        needed=needed,
        beyond=(*(() if alone else _miscounted(agreement, counts)), *broken),
        trials=tuple(data.tried(variants, needed if broken else None)) if variants else (),
        notes=((_ONE_FILE,) if alone else ()) + ((_MARGIN, _WITHOUT_NOISE) if agreement.privacy else ()),
    )


def _variants(agreement: Agreement, penalties: Sequence[str]) -> dict[str, Agreement]:
    """The agreement with each penalty; none of statistics."""
    if isinstance(agreement.model, StatisticsTerms):
        if penalties:
            raise InputError(2019, "statistics have no penalty", got=penalties[0][:40])
        return {}
    field = "C" if isinstance(agreement.model, LogisticTerms) else "alpha"
    found = {} if penalties else {getattr(agreement.model, field): agreement}
    for penalty in penalties:
        wanted = agreement.model.model_copy(update={field: penalty})
        try:
            model = type(agreement.model).model_validate_json(wanted.model_dump_json())
        except ValueError:
            raise InputError(2019, f"not a penalty: {penalty[:40]!r}", expected="a decimal number") from None
        found[penalty] = agreement.model_copy(update={"model": model})
    return found


def _agreed(agreement: Agreement) -> Limits:
    columns = [(name, feature.mean_square) for feature in agreement.features for name in feature.columns]
    return Limits(
        {party.name: party.curvature or agreement.curvature for party in agreement.parties},
        {
            name: own or agreement.mean_square
            for name, own in (*columns, (agreement.response.name, agreement.response.mean_square))
        },
    )


def _broken(agreed: Limits, needed: Limits) -> Iterator[InputError]:
    for code, what, most, least in (
        (2902, "column '{}' needs a greater mean square", agreed.mean_squares, needed.mean_squares),
        (2903, "'{}' needs a greater curvature", agreed.curvatures, needed.curvatures),
    ):
        for name, need in least.items():
            if exact(need) > exact(most[name]):
                yield InputError(code, what.format(name), expected=f"at most {most[name]}", got=need)


def _miscounted(agreement: Agreement, counts: Sequence[int]) -> list[InputError]:
    return [
        InputError(2907, f"'{party.name}' has another number of rows", expected=party.rows, got=count)
        for party, count in zip(agreement.parties, counts, strict=True)
        if party.rows != count
    ]


@dataclass(frozen=True, kw_only=True)
class _Thinned(Privacy):
    """Noise for sums that are divided by ``share`` afterwards."""

    share: Fraction

    @property
    def sigma(self) -> Fraction:
        return super().sigma * self.share


@dataclass(frozen=True, slots=True)
class _Data:
    """Rows of each file, with ±1 as labels, and their factors without noise, clipped where that was agreed."""

    agreement: Agreement
    privacy: Privacy | None
    files: list[Part]
    factors: list[RowFactor]

    @classmethod
    def read(cls, agreement: Agreement, paths: Sequence[Path]) -> _Data:
        if len(paths) not in (1, len(agreement.parties)):
            raise InputError(2907, "neither one file nor one a party", expected=len(agreement.parties), got=len(paths))
        files = [rows_of(agreement, path) for path in paths]
        if agreement.response.labels is not None:
            files = LogisticRegression(classes=CLASSES)._read(files)
        privacy = privacy_of(agreement) if agreement.privacy is not None else None
        scaling, width = agreement.scaling(), len(agreement.columns) + 2
        factors = [reduced(_clipped(scaling.chunks(file), privacy), width, None) for file in files]
        if not all(np.isfinite(factor.mean_squares()).all() for factor in factors):
            hint = "agree on a scaling that fits the data"
            raise InputError(2902, "a column's squares are beyond all numbers", hint=hint)
        return cls(agreement, privacy, files, factors)

    def needed(self) -> Limits:
        """Bounds that each party's rows keep, with the noise; the agreed ones where these are enough."""
        agreed, own = _agreed(self.agreement), self._each(self.factors)
        added = 0.0 if self.privacy is None else 2 * lift_of(self.privacy, own[0].width)
        margins = [added / party.rows for party in self.agreement.parties]
        pairs = list(zip(own, margins, strict=True))
        squares = np.max([factor.mean_squares()[1:] + margin for factor, margin in pairs], axis=0)
        curvatures = [factor.curvature() + margin for factor, margin in pairs]
        return Limits(_needs(agreed.curvatures, curvatures), _needs(agreed.mean_squares, squares))

    def tried(self, variants: Mapping[str, Agreement], wider: Limits | None) -> Iterator[Trial]:
        """A trial of each, all of the same first statistics."""
        own = self._put_in(self.agreement.scaling().chunks) if self.privacy else self._resized(self.factors)
        bounds = "agreed" if wider is None else "needed"
        for penalty, variant in variants.items():
            try:
                model = self._fit(variant, own, wider)
            except (InputError, RefusedError) as problem:
                yield Trial(penalty, bounds, problem)
            else:
                yield Trial(penalty, bounds, None, sum(entry != 0 for entry in model[1:]), self._score(model))

    def _fit(self, variant: Agreement, own: Sequence[RowFactor], wider: Limits | None) -> tuple[int, ...]:
        """The model for scaled columns, in ulp."""
        plan, *again = _plans(variant, wider)
        names, scaling, fits = variant.columns, variant.scaling(), variant.fits
        later = again[0] if again else None
        budget_of(plan, fits=fits, again=later, malicious=variant.malicious).require_room()
        first = fit_factors(plan, own, names)
        if later is None:
            return first

        def fit_once(point: tuple[int, ...]) -> tuple[int, ...]:
            def chunks(file: Part) -> Iterator[NDArray[np.float64]]:
                return weighted(scaling.chunks(file), scaling, point)

            legal = [within(later, i, factor) for i, factor in enumerate(self._put_in(chunks, counted=False))]
            return fit_factors(later, legal, names, offset=point)

        return newton(later, first_point(first, scaling), rounds=fits - 1, fit_once=fit_once)[-1]

    def _put_in(
        self, chunks: Callable[[Part], Iterator[NDArray[np.float64]]], *, counted: bool = True
    ) -> list[RowFactor]:
        """What each party puts in: with noise of its own, and of as many rows as were agreed."""
        width = len(self.agreement.columns) + 2
        if self.privacy is None:
            return self._resized([reduced(chunks(file), width, None, counted=counted) for file in self.files])
        each = zip(self._each(self.files), self._each(self.factors), self.agreement.parties, strict=True)
        noises = [
            (file, _Thinned(**asdict(self.privacy), share=Fraction(factor.count, party.rows)))
            for file, factor, party in each
        ]
        return self._resized([noised(chunks(file), noise, width=width, counted=counted) for file, noise in noises])

    def _resized(self, factors: list[RowFactor]) -> list[RowFactor]:
        """Of each party, of as many rows as were agreed."""
        triangles = [(factor.triangle, factor.count) for factor in self._each(factors)]
        return [
            RowFactor.of(triangle.T @ triangle * (party.rows / count), party.rows)
            for (triangle, count), party in zip(triangles, self.agreement.parties, strict=True)
        ]

    def _each(self, found: list[_T]) -> list[_T]:
        """One a party, of one a file or already one a party."""
        return found * (len(self.agreement.parties) // len(found))

    def _score(self, model: Sequence[int]) -> float | None:
        scaling = self.agreement.scaling()
        weights = np.array([entry / 2**ITERATE_BITS for entry in model])
        tables = (table for file in self.files for table in scaling.chunks(file))
        pairs = np.concatenate([np.column_stack([table[:, :-1] @ weights, table[:, -1]]) for table in tables])
        scores, response = (pairs * scaling.scales[-1] + scaling.centres[-1]).T
        return score(scores, response, logistic=self.agreement.response.labels is not None)


def _plans(agreement: Agreement, wider: Limits | None) -> tuple[Plan, ...]:
    """The agreement's own, or the same with bounds that are nowhere narrower than ``wider``."""
    if wider is None:
        return agreement.plans()
    plan, agreed = agreement.plan(), _agreed(agreement)
    each = tuple(max(exact(agreed.curvatures[name]), exact(need)) for name, need in wider.curvatures.items())
    squares = [max(exact(agreed.mean_squares[name]), exact(need)) for name, need in wider.mean_squares.items()]
    weighed = sum((count * own for count, own in zip(plan.rows, each, strict=True)), Fraction(0))
    plan = replace(plan, curvature=weighed / plan.count, curvatures=each, mean_squares=tuple(squares))
    model = agreement.model
    return (plan, model.newton_plan(plan)) if isinstance(model, LogisticTerms) and agreement.fits > 1 else (plan,)


def _clipped(chunks: Iterable[NDArray[np.float64]], privacy: Privacy | None) -> Iterator[NDArray[np.float64]]:
    for chunk in chunks:
        if privacy is None:
            yield chunk
            continue
        whole = clip_rows(chunk, privacy, counted=True)
        yield whole / whole[:, :1]  # integers in the unit of the first column's 1


def _needs(agreed: Mapping[str, str], values: Iterable[float]) -> dict[str, str]:
    return {name: _need(float(value), most) for (name, most), value in zip(agreed.items(), values, strict=True)}


def _need(value: float, agreed: str) -> str:
    """Three digits, rounded up; what was agreed where that is as good."""
    least = Fraction(value * _ROOM)
    rounded = format(_DIGITS.create_decimal_from_float(value * _ROOM).normalize(), "f")
    return agreed if least <= exact(agreed) < exact(rounded) else rounded
