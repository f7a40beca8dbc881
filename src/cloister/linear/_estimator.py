"""What every estimator of this room does with its parameters, its parts and its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.ledger import Book
from cloister.linear._emulator import CoinTable
from cloister.linear._local import Bounds, Fitted, fit_rows, read_parts
from cloister.linear._noise import Privacy, charge
from cloister.linear._parameters import Parameters
from cloister.linear._plan import Plan, exact
from cloister.linear._rows import Part, read_features, require_columns, unnamed
from cloister.linear._scaling import Scaling
from cloister.linear._terms import ElasticNetTerms, LassoTerms, LogisticTerms, RidgeTerms

if TYPE_CHECKING:
    from cloister.linear._agreement import Agreement
    from cloister.linear._consent import Signed
    from cloister.linear._model import ModelFile
    from cloister.party import Identity

__all__ = ["Estimator", "More"]

_TOLERANCE = 2**-12  # every estimator's default


@dataclass(frozen=True, slots=True)
class More:
    """What a fit goes on with after its first model: rows, noise, and further coins."""

    parts: Sequence[Part]
    privacy: Privacy | None
    coins: Sequence[CoinTable]


class Estimator(Parameters, ABC):
    """What all linear models have in common.

    Attributes:
        coef_: In units of the data.
        intercept_: In units of the response.
        n_iter_: Steps of ridge, rounds of the others: fixed by the plan.
        certificate_: True: the certificate accepted the model. Without it there is none.
        scaling_: The public scaling.
        n_features_in_: Columns.
        feature_names_in_: Their names; absent when there were none.
        plan_: What was fitted, with the bounds that the data had to keep.
        event_: With privacy: what this fit does to each party's records, as a ledger records it.
        books_: With privacy: the books after the charge.
    """

    def __init__(
        self,
        *,
        scaling: Scaling | None,
        curvature: float | None,
        mean_square: float | None,
        tolerance: float,
    ) -> None:
        self.scaling = scaling
        self.curvature = curvature
        self.mean_square = mean_square
        self.tolerance = tolerance

    @abstractmethod
    def _terms(self) -> RidgeTerms | LassoTerms | ElasticNetTerms | LogisticTerms:
        """The parameters, as an agreement has them."""

    @property
    def leakage(self) -> str:
        """What everybody learns of the rows: for the model card."""
        return (
            "Everybody learns the agreement, one bit of the certificate, and the model. A party whose rows break a "
            "bound stays away, which its partners see. Nothing else of the rows is learned."
        )

    def fit_local(
        self,
        parts: Sequence[tuple[Any, Any] | Part],
        *,
        coins: CoinTable | Sequence[CoinTable] | None = None,
        privacy: Privacy | None = None,
        books: Sequence[Book] = (),
        delta: str = "1e-6",
    ) -> Self:
        """Fits the joined rows of 2 to 8 parties that lie in one process, by the arithmetic of a session.

        Args:
            parts: Of each party features (rows, d) and response (rows,), or a file's rows: :func:`read_source`.
            coins: Of all roundings of each fit, for a run that is to be repeated bit for bit; drawn by default.
            privacy: Noise that each party adds to its own statistics; the scaling has to be agreed then.
            books: Budgets that are charged before anything is read; ``books_`` are the books to keep afterwards.
            delta: At which those charges are stated.

        Returns:
            The estimator itself.

        Raises:
            InputError: 2901 when the parameters exceed the proven bounds, or noise comes without an agreed scaling;
                2902 and 2903 when rows break the mean square or the curvature that was agreed; 2904 for missing values,
                2905 for a constant column, 2906 for other columns, 2907 for rows that do not fit together, 2908 for
                text, 2909 for too many columns or parties, 2913 for a file that cannot be read.
            BudgetError: 7801 when a budget would be exceeded; nothing was read then.
            RefusedError: 3902 when the fit did not converge; the estimator then holds no model.
        """
        self._forget()
        self._require_parameters()
        if privacy is not None:
            self._charge(privacy, books, delta)
        tables = [coins] if isinstance(coins, CoinTable) else list(coins or [])
        rows = self._read(read_parts(self._numbered(parts)))
        fitted = fit_rows(
            rows,
            scaling=self.scaling,
            mean_square=self.mean_square,
            curvature=self.curvature,
            plan_of=self._plan,
            coins=tables[0] if tables else None,
            privacy=privacy,
        )
        self._keep(fitted, More(rows, privacy, tables[1:]))
        return self

    def fit(
        self,
        agreement: Signed | str | Path,
        features: Any,
        response: Any,
        *,
        identity: Identity,
        home: Path | None = None,
        consent: bool = False,
        book: Path | None = None,
        listen: str | None = None,
    ) -> Self:
        """Fits together with the other parties of an agreement, who do the same on their own rows at the same time.

        Scaling, curvature, mean square and tolerance are the agreement's: leave them out, or give the same.

        Args:
            agreement: Signed by all, or its file.
            features: (rows, d): the own rows, in the agreed columns; categories are spread out already.
            response: (rows,); of a logistic model 0 and 1, or the agreed labels.
            identity: The own one.
            home: Its folder; by default the user's.
            consent: Whether this agreement may run once more though it has run before.
            book: The own privacy book, charged before anything is sent; needed where the agreement has privacy terms.
            listen: ``HOST:PORT`` instead of the agreed port on all addresses.

        Returns:
            The estimator itself, with ``transcript`` and ``model_file_`` besides what a local fit gives.

        Raises:
            InputError: 2915 when the agreement has other parameters than this estimator; 2019 when a private one comes
                without a book; else as :func:`cloister.linear._fit.fit_agreed`.
            BudgetError: 7801 when the budget would be exceeded; nothing was sent then.
        """
        from cloister.linear._agreed_fit import fit_estimator  # which brings people and networks with it

        self._forget()
        agreed, file = fit_estimator(
            self._terms(),
            agreement,
            features,
            response,
            identity=identity,
            home=home,
            consent=consent,
            book=book,
            listen=listen,
            given=self._given(),
        )
        self._keep_agreed(agreed, file)
        return self

    def _keep_agreed(self, agreement: Agreement, file: ModelFile) -> None:
        self.coef_ = np.array([float(value) for value in file.coefficients])
        self.intercept_ = float(file.intercept or "nan")
        self.plan_ = agreement.plans()[-1]
        self.n_iter_ = self.plan_.steps if self.plan_.method == "ridge" else self.plan_.rounds
        self.certificate_ = True
        self._keep_scaling(agreement.scaling())
        self.model_file_ = file

    @property
    def transcript(self) -> str | None:
        """The hash, in hexadecimal, of what all parties of the session saw alike; None after a local fit."""
        file: ModelFile | None = getattr(self, "model_file_", None)
        return file.transcript if file is not None else None

    def _given(self) -> dict[str, Any]:
        """What an agreement has besides the terms, where it is not the default."""
        given = {name: getattr(self, name) for name in ("scaling", "curvature", "mean_square")}
        given["tolerance"] = None if self.tolerance == _TOLERANCE else self.tolerance
        return {name: value for name, value in given.items() if value is not None}

    def _require_parameters(self) -> None:
        """Raises 2901 for what is wrong with them by themselves: before a book is charged."""
        self._terms().penalties(1, Fraction(1))
        for value in (self.curvature, self.mean_square, self.tolerance):
            if value is not None:
                exact(value)

    def _numbered(self, parts: Sequence[tuple[Any, Any] | Part]) -> Sequence[tuple[Any, Any] | Part]:
        """The parts, with numbers where labels are text."""
        return parts

    def _forget(self) -> None:
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def _charge(self, privacy: Privacy, books: Sequence[Book], delta: str) -> None:
        if self.scaling is None:
            hint = "agree on centres and scales, for instance from statistics that were fitted with noise"
            raise InputError(2901, "noise hides nothing that a scaling taken from the rows tells", hint=hint)
        event = privacy.event(columns=len(self.scaling.names) + 2, releases=self._releases())
        self.books_ = charge(books, event, delta=delta)
        self.event_ = event

    def _releases(self) -> int:
        """How often the rows are summarised."""
        return 1

    def _read(self, parts: list[Part]) -> list[Part]:
        """The rows that are fitted."""
        return parts

    def _plan(self, bounds: Bounds, scaling: Scaling) -> Plan:
        terms = self._terms()
        l1, l2 = terms.penalties(sum(bounds.rows), Fraction(scaling.scales[-1]))
        return Plan(
            rows=bounds.rows,
            curvature=bounds.curvature,
            curvatures=bounds.curvatures,
            mean_squares=bounds.mean_squares,
            l1=l1,
            l2=l2,
            tolerance=exact(self.tolerance),
            **terms.solver(),
        )

    def _keep(self, fitted: Fitted, more: More) -> None:
        self.coef_, self.intercept_ = fitted.scaling.unscale(fitted.model)
        self.n_iter_ = fitted.plan.steps if fitted.plan.method == "ridge" else fitted.plan.rounds
        self.certificate_ = True
        self._keep_scaling(fitted.scaling)
        self.plan_ = fitted.plan

    def _keep_scaling(self, scaling: Scaling) -> None:
        self.scaling_, self.n_features_in_ = scaling, len(scaling.names)
        if scaling.names != unnamed(len(scaling.names)):
            self.feature_names_in_ = np.array(scaling.names, dtype=object)

    def _scores(self, features: Any) -> NDArray[np.float64]:
        if not hasattr(self, "coef_"):
            raise InputError(2916, f"this {type(self).__name__} has not been fitted")
        names, table = read_features(features)
        require_columns(names, self.scaling_.names)
        return table @ np.ravel(self.coef_) + self.intercept_
