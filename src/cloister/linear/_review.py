"""What signing a linear agreement means, in plain words: what is computed, who learns what, what a cheater can do.

Every sentence follows from the agreement. Text that the proposer chose is quoted, so that it cannot pass for ours.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cloister.errors import InputError
from cloister.linear._agreement import Agreement, Feature, Response
from cloister.linear._budget import Budget
from cloister.linear._plan import exact
from cloister.linear._sound import price_of_privacy, require_sound
from cloister.linear._terms import ElasticNetTerms, LassoTerms, LogisticTerms, RidgeTerms, StatisticsTerms
from cloister.manifest import Section

__all__ = ["Review", "review"]

_INDENT, _WIDTH = 14, 110
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


@dataclass(frozen=True, slots=True)
class Review:
    """An agreement in plain words, as one party sees it.

    Attributes:
        agreement: The agreement.
        party: Whose view it is; None for nobody's in particular.
        sections: COMPUTED, COLUMNS, DATA, LEARNED, CHEATERS, NOT PROTECTED and more.
    """

    agreement: Agreement
    party: str | None
    sections: tuple[Section, ...]

    def text(self) -> str:
        """For a terminal: a line a statement, its section on the left."""
        return "\n\n".join(_headed(section) for section in self.sections)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        sections = {section.title: list(section.lines) for section in self.sections}
        return {"agreement": self.agreement.id, "party": self.party, "sections": sections}


def review(agreement: Agreement, *, party: str | None = None) -> Review:
    """What ``agreement`` means to ``party``.

    Raises:
        CloisterError: as :func:`cloister.linear._sound.require_sound`: what is broken has no one meaning.
        InputError: 2013 when ``party`` is not one of its parties.
    """
    budget = require_sound(agreement)
    if party is not None and agreement.number_of(party) is None:
        names = ", ".join(one.name for one in agreement.parties)
        raise InputError(2013, f"'{party}' is no party of this agreement", expected=names)
    view = _View(agreement, party, budget)
    sections = (Section(title, tuple(lines(view))) for title, lines in _SECTIONS)
    return Review(agreement, party, tuple(section for section in sections if section.lines))


@dataclass(frozen=True, slots=True)
class _View:
    agreement: Agreement
    party: str | None
    budget: Budget

    def who(self, name: str) -> str:
        return f"you ({name})" if name == self.party else name


def _agreed(view: _View) -> Iterator[str]:
    agreement = view.agreement
    yield f"'{agreement.name}', id {agreement.id}"
    yield f"in force from {agreement.valid.not_before} to {agreement.valid.not_after}"
    if agreement.purpose:
        yield f"purpose, in the proposer's words: {json.dumps(agreement.purpose, ensure_ascii=False)}"
    for party in agreement.parties:
        yield f"{view.who(party.name)}: {party.rows} rows, at {party.address}, key {party.key}"
    yield "nothing runs before all of them have signed"


def _weaker(view: _View) -> Iterator[str]:
    if not view.agreement.malicious:
        yield "!! SEMI-HONEST: no tags, no proofs. A party that leaves the program can read the others' sums !!"


def _computed(view: _View) -> Iterator[str]:
    agreement, model = view.agreement, view.agreement.model
    columns = f"{len(agreement.columns)} columns of {len(agreement.features)} features"
    if isinstance(model, StatisticsTerms):
        yield f"{', '.join(model.open)} of {columns} and of {_quoted(agreement.response.name)}, over all rows together"
    else:
        kind = {
            RidgeTerms: "a ridge regression",
            LassoTerms: "a LASSO",
            ElasticNetTerms: "an elastic net",
            LogisticTerms: "a logistic regression",
        }[type(model)]
        yield f"{kind} of {_quoted(agreement.response.name)} on {columns}, over all rows together"
        terms = model.as_json()
        yield ", ".join(f"{key} {value}" for key, value in terms.items() if key != "type")
        if isinstance(model, LogisticTerms) and model.method == "quadratic":
            yield "by quadratic statistics: it ranks as logistic regression does; coefficients may be off by 6 to 39 %"
        yield "penalties act on the columns after the agreed centre and scale; the intercept is not penalised"
        yield f"a model is released only if its certificate holds: a gradient within {agreement.tolerance}"


def _columns(view: _View) -> Iterator[str]:
    agreement = view.agreement
    for feature in agreement.features:
        each = f", a column each for {', '.join(map(_quoted, feature.categories))}" if feature.categories else ""
        yield f"{_quoted(feature.name)}{_affine(agreement, feature)}{each}"
    response = agreement.response
    labels = response.labels
    kinds = f", {_quoted(labels[1])} (against {_quoted(labels[0])})" if labels else ""
    yield f"response {_quoted(response.name)}{_affine(agreement, response)}{kinds}"


def _affine(agreement: Agreement, column: Feature | Response) -> str:
    moved = f" less {column.centre}" if exact(column.centre) else ""
    scaled = f" over {column.scale}" if exact(column.scale) != 1 else ""
    return f"{moved}{scaled}, of mean square at most {column.mean_square or agreement.mean_square}"


def _data(view: _View) -> Iterator[str]:
    agreement = view.agreement
    whose = "your rows" if view.party else "each party's rows"
    yield f"{whose} are read once and reduced to one triangle of {len(agreement.columns) + 2} columns; rows never leave"
    for party in agreement.parties:
        if view.party in (None, party.name):
            bound = party.curvature or agreement.curvature
            yield f"{view.who(party.name)} must have exactly {party.rows} rows, of curvature at most {bound}"
    yield "data that break a bound are refused at home before anything is sent; the others see that you do not come"


def _learned(view: _View) -> Iterator[str]:
    agreement, model = view.agreement, view.agreement.model
    every = ", ".join(view.who(party.name) for party in agreement.parties)
    if isinstance(model, StatisticsTerms):
        yield f"{every}: {', '.join(model.open)} of all rows together"
        yield "all others of a party together, or the only other one, so learn what it put in"
        if {"covariance", "correlation"} & set(model.open):
            yield "so also sums, means and variances, and every ridge or LASSO model of these columns, at every penalty"
        elif "variances" in model.open:
            yield "so also sums and means"
    else:
        yield f"{every}: the coefficients and the intercept of all rows together"
        if agreement.fits > 1:
            yield f"{every}: each of the {agreement.fits - 1} models on the way, too"
        yield f"{every}: whether the model is near its optimum, also when it is not and no model is released"
    yield "everything in this document: names of columns, categories, scales, numbers of rows, bounds"
    yield "at which step a party stopped, if one does"


def _cheaters(view: _View) -> Iterator[str]:
    agreement, others = view.agreement, len(view.agreement.parties) - 1
    if not agreement.malicious:
        yield "a party that deviates can learn the others' data and choose the result; nothing notices"
        return
    yield f"up to {others} of {others + 1} parties may deviate in any way, together, and learn no more than above"
    yield "they may stop the session at any step, and may have the model first and keep it from the others"
    yield "they may put false data in, within the bounds that are proven: mean squares, curvature, number of rows"
    yield (
        "each attempt that comes to the fit can tell them one bit about the others' data, and each model more: after "
        "either the same agreement runs again only when its owner consents (3901)"
    )
    if agreement.fits > 1:
        yield "they may put other data into each round, having seen the model before it"
    yield f"statistical distance to an ideal session: at most 2^{view.budget.distance:.1f}"


def _unprotected(view: _View) -> Iterator[str]:
    yield "what the result itself says about the rows" + ("" if view.agreement.privacy else ": there is no noise in it")
    yield "who takes part, when, how many bytes: all on the network see that"
    yield "a party's own machine: whoever controls it has its rows"


def _privacy(view: _View) -> Iterator[str]:
    terms = view.agreement.privacy
    if terms is None:
        yield "none: the result is exact"
        return
    cost = price_of_privacy(view.agreement).epsilon
    yield f"of a record: ε {cost} at δ {terms.delta} by Rényi divergence, agreed at most {terms.epsilon}"
    yield "a record is told from one of zeros, not from none: how many rows there are is public"
    yield f"noise multiplier {terms.noise_multiplier}; records are clipped to the norm {terms.clip} (after scaling)"
    yield "each party adds all of the noise itself: its guarantee holds even if all others cheat together"
    if exact(terms.delta) > exact("1e-5"):
        yield f"δ {terms.delta} is large: with that probability a record may be shown whole"


_SECTIONS: tuple[tuple[str, Callable[[_View], Iterator[str]]], ...] = (
    ("AGREEMENT", _agreed),
    ("WEAKER", _weaker),
    ("COMPUTED", _computed),
    ("COLUMNS", _columns),
    ("DATA", _data),
    ("LEARNED", _learned),
    ("CHEATERS", _cheaters),
    ("UNPROTECTED", _unprotected),
    ("PRIVACY", _privacy),
)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _headed(section: Section) -> str:
    lines: list[str] = []
    for line in section.lines:
        rest = " " * (_INDENT + 2)
        lines += textwrap.wrap(line, _WIDTH, initial_indent=" " * _INDENT, subsequent_indent=rest, **_WHOLE_WORDS)
    return section.title + lines[0][len(section.title) :] + "".join(f"\n{line}" for line in lines[1:])
