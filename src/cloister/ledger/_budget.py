"""Budgets: what an owner lets be spent on one kind of unit, ever, and the book of what was charged to it.

Later runs are chosen after seeing earlier results, so their parameters are *adaptive*, and adding up one tight account
over all of them would prove nothing. A budget is therefore held by two rules whose totals may be compared with a cap
at any time (privacy filters), whoever chose the next run and why:

* the sum of the charges' own ε and of their own δ (basic composition), within ε and δ/2;
* at one of the eight orders, the sum of the divergences, within the cap at which that order shows ε at δ/32, with all
  slack within δ/4.

A charge is admitted while at least one rule holds afterwards. For every event A, P(A) splits by the first rule that
holds at the end; on each part the transcript is one of a mechanism that this rule alone would have stopped, so
P(A) ≤ e^ε Q(A) + δ/2 + 8·δ/32 + δ/4.

Rules:

* Charge, store, then open. What crashes in between stays spent.
* Nothing is ever given back: not for a run that failed, stopped early, or was refunded its money.
* The same charge twice is one charge: an answer that was lost, or an attempt whose result nobody gets, can be asked
  for again. Its id with other contents is refused.
* A charge names the head that it was decided on, so that of two decided at once only one is stored.

Sources: Rogers, Roth, Ullman and Vadhan (2016) for filters and basic composition; Feldman and Zrnic (2021) for the
Rényi filter at a fixed order, Lécuyer (2021) for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from cloister.errors import BudgetError, InputError, IntegrityError, RefusedError
from cloister.ledger._account import Account
from cloister.ledger._chain import begin, follow, require_same, same
from cloister.ledger._events import Event, Unaccounted
from cloister.ledger._numbers import Amount, amount, exact, round_down, round_up
from cloister.ledger._relation import Method, Relation
from cloister.ledger._slack import with_slack
from cloister.ledger._vector import ORDERS, Vector, cap_at, total_of, vector_of
from cloister.wire import Digest, Message, Name, parse_json, parse_message, require_format

__all__ = ["Book", "Budget", "Charge", "Posting", "Price", "open_book", "price_of", "read_book"]

_FORMAT = "cloister-privacy-book/v1"
_MOST_POSTINGS = 8192
_MOST_EVENTS = 256
_MOST_BYTES = 16 * 1024 * 1024


class Budget(Message):
    """What may be spent, for ever.

    Attributes:
        owner: Whose data.
        unit: Whose presence is hidden.
        relation: When two datasets are neighbours.
        epsilon: The cap, above 0.
        delta: The cap, above 0 and below 1. Half of it goes to each rule, so one charge may ask for at most half.
    """

    owner: Name
    unit: Name
    relation: Relation
    epsilon: Amount
    delta: Amount

    def model_post_init(self, _: object) -> None:
        """Refuses caps that cap nothing: 2801."""
        if not 0 < exact(self.epsilon) <= 500 or not 0 < exact(self.delta) < 1:
            raise InputError(2801, "a budget is out of range", expected="epsilon above 0, at most 500; delta in (0, 1)")

    @property
    def caps(self) -> tuple[int, ...]:
        """The cap at each of :data:`cloister.ledger.ORDERS`, in units of 2^-20 nats; negative where nothing fits."""
        share = exact(self.delta) / (4 * len(ORDERS))
        return tuple(cap_at(order, epsilon=self.epsilon, delta=share) for order in ORDERS)


class Price(Message):
    """What events cost: in one ε at their own δ, and additively.

    Attributes:
        epsilon: At ``delta``; None when none was found, and then only the vector counts.
        delta: The δ that was asked for.
        vector: The additive cost.
        by: Which method ``epsilon`` is of.
    """

    epsilon: Amount | None = None
    delta: Amount
    vector: Vector
    by: Method


class Charge(Message):
    """A request to spend, made before data is opened.

    Attributes:
        id: Unique to one release of what was learned: a digest over manifest, run and stage.
        owner: Whose budget.
        unit: The events' unit.
        relation: The events' relation.
        events: What will be done: the terms agreed, not what is left of them.
        delta: The δ at which ε is stated.
    """

    id: Digest
    owner: Name
    unit: Name
    relation: Relation
    events: Annotated[tuple[Event, ...], Field(min_length=1, max_length=_MOST_EVENTS)]
    delta: Amount


class Posting(Message):
    """One charge in a book.

    Attributes:
        charge: The charge's id.
        contents: Digest of the whole charge.
        price: What it cost.
        link: Digest of the chain up to it.
    """

    charge: Digest
    contents: Digest
    price: Price
    link: Digest


def price_of(events: Sequence[Event], *, delta: str, by: Method) -> Price:
    """What ``events`` cost.

    Args:
        events: Of one unit and relation, all accounted for.
        delta: At which ε is stated.
        by: ``Method.PLD`` needs the extra ``privacy``; ``Method.RDP`` needs nothing and costs more.

    Raises:
        InputError: 2801, 2802, 2803, 2006 as for :class:`cloister.ledger.Account`.
        BudgetError: 7802 when an event has no guarantee; 7803 when the slack alone is more than ``delta``.
        IntegrityError: 5803 when the accountants contradict each other.
    """
    return _price(tuple(events), delta, by)


@lru_cache(maxsize=512)
def _price(events: tuple[Event, ...], delta: str, by: Method) -> Price:
    """Kept, since a book that is read from a log asks for the same few prices again and again."""
    void = [event.reason for event in events if isinstance(event, Unaccounted)]
    if void:
        raise BudgetError(7802, got=void[0])
    spent = Account(events, by=by).epsilon(delta)
    vector = total_of(vector_of(event) for event in events)
    return Price(epsilon=spent.epsilon, delta=amount(delta), vector=vector, by=spent.by)


class Book(Message):
    """A budget and all that was ever charged to it: an append-only chain, like a run's ledger.

    A value: :meth:`charge` returns another one. Whoever keeps it stores the new book, comparing the head that is
    stored with the one that the charge was decided on, before any key is released.
    """

    format: Literal["cloister-privacy-book/v1"]
    budget: Budget
    postings: Annotated[tuple[Posting, ...], Field(max_length=_MOST_POSTINGS)]

    @property
    def head(self) -> str:
        """The digest of the whole book."""
        return self.postings[-1].link if self.postings else begin(_FORMAT, self.budget.as_json())

    @property
    def spent(self) -> Vector:
        """Everything charged so far, additively."""
        return total_of(posting.price.vector for posting in self.postings)

    def epsilon_spent(self) -> str | None:
        """The ε that the charges so far add up to at the budget's δ; None when no rule can say.

        For people to read: what holds whatever is chosen next is the cap.
        """
        bounds = [rule for rule in (_basic(self.budget, self.postings), _renyi(self.budget, self.spent)) if rule]
        return min(bounds, key=exact, default=None)

    def charge(self, charge: Charge, *, after: str, by: Method) -> Book:
        """The book with one more charge; the same book when it is there already.

        Args:
            charge: What is asked.
            after: The head that the caller read: the charge is decided on this book and no other.
            by: How the charge's ε is found.

        Raises:
            InputError: 2802 when the charge is of another owner, unit or relation than the budget; 2803 when the book
                is full; 2006 without the extra ``privacy`` that ``Method.PLD`` needs.
            IntegrityError: 5804 when the id was charged with other contents.
            RefusedError: 3801 when the book has moved on since ``after``.
            BudgetError: 7801 when the budget would be exceeded; 7802, 7803 as in :func:`price_of`.
        """
        budget = self.budget
        # (1) The right budget.
        for kind in (_kind(charge), *((budget.owner, event.unit, event.relation.value) for event in charge.events)):
            if kind != _kind(budget):
                raise InputError(2802, expected=" ".join(_kind(budget)), got=" ".join(kind))
        # (2) A charge that is there already was decided then, and is not decided again.
        contents = charge.digest()
        for posting in self.postings:
            if posting.charge == charge.id:
                if not same(posting.contents, contents):
                    raise IntegrityError(5804, expected=posting.contents, got=contents)
                return self
        # (3) The book that the caller saw.
        if not same(after, self.head):
            raise RefusedError(3801, expected=self.head, got=after)
        if len(self.postings) >= _MOST_POSTINGS:
            raise InputError(2803, "the book is full", expected=f"at most {_MOST_POSTINGS} charges")
        # (4) The price, from the events and from nothing that the asker says about them.
        price = price_of(charge.events, delta=charge.delta, by=by)
        link = _link(self.head, len(self.postings), charge.id, contents, price)
        after_it = (*self.postings, Posting(charge=charge.id, contents=contents, price=price, link=link))
        # (5) One rule must hold.
        if not _holds(budget, after_it, self.spent + price.vector):
            raise BudgetError(
                7801,
                f"the privacy budget of '{budget.owner}' for each {budget.unit} would be exceeded",
                expected=f"epsilon at most {budget.epsilon} at delta {budget.delta} ({budget.relation.value})",
                got=f"spent {_shown(self.epsilon_spent())}, asked {_shown(price.epsilon)} at delta {price.delta}",
            )
        return self.model_copy(update={"postings": after_it})


def open_book(budget: Budget) -> Book:
    """A book in which nothing is charged yet."""
    return Book(format=_FORMAT, budget=budget, postings=())


def read_book(data: bytes, *, head: str) -> Book:
    """A book from its JSON, with every link checked.

    Args:
        data: The bytes.
        head: The head that it must have, kept where whoever keeps the bytes cannot change it: an older book is whole
            in itself, and forgets what was spent since.

    Raises:
        InputError: 2002, 2003, 2004, 2005 or 2801 when it is not a book.
        IntegrityError: 5801 when a link or the head is another; 5802 when a charge stands twice.
    """
    value = parse_json(data, what="privacy book", max_bytes=_MOST_BYTES)
    require_format(value, _FORMAT, what="privacy book")
    book = parse_message(Book, value, what="privacy book")
    previous = begin(_FORMAT, book.budget.as_json())
    for index, row in enumerate(book.postings):
        right = _link(previous, index, row.charge, row.contents, row.price)
        require_same(right, row.link, what=f"posting {index} is not the one that was written")
        previous = row.link
    require_same(head, book.head, what="the book does not end where it should")
    if len({row.charge for row in book.postings}) != len(book.postings):
        raise IntegrityError(5802, "a charge stands twice in a book", got=book.head)
    return book


def _holds(budget: Budget, postings: Sequence[Posting], spent: Vector) -> bool:
    basic, epsilon, delta = _sums(postings)
    if basic and epsilon <= exact(budget.epsilon) and delta <= exact(budget.delta) / 2:
        return True
    if not _slack_fits(budget, spent, exact(budget.epsilon)):
        return False
    return any(entry <= cap for entry, cap in zip(spent.rdp, budget.caps, strict=True))


def _sums(postings: Sequence[Posting]) -> tuple[bool, Fraction, Fraction]:
    """Whether every charge has an ε of its own, and their sums."""
    prices = [posting.price for posting in postings]
    epsilons = [exact(price.epsilon) for price in prices if price.epsilon is not None]
    deltas = [exact(price.delta) for price in prices]
    return len(epsilons) == len(prices), sum(epsilons, Fraction(0)), sum(deltas, Fraction(0))


def _slack_fits(budget: Budget, spent: Vector, epsilon: Fraction) -> bool:
    slack = exact(spent.slack)
    return Fraction(with_slack(epsilon=epsilon, delta=0.0, slack=slack)) <= exact(budget.delta) / 4


def _basic(budget: Budget, postings: Sequence[Posting]) -> str | None:
    basic, epsilon, delta = _sums(postings)
    return round_up(epsilon, 6) if basic and delta <= exact(budget.delta) / 2 else None


def _renyi(budget: Budget, spent: Vector) -> str | None:
    share = exact(budget.delta) / (4 * len(ORDERS))
    shown = Vector(rdp=spent.rdp, slack="0").epsilon(round_down(share, 64))
    return shown if shown is not None and _slack_fits(budget, spent, exact(shown)) else None


def _kind(of: Budget | Charge) -> tuple[str, str, str]:
    return of.owner, of.unit, of.relation.value


def _shown(epsilon: str | None) -> str:
    return "more than can be stated" if epsilon is None else f"epsilon {epsilon}"


def _link(previous: str, index: int, charge: str, contents: str, price: Price) -> str:
    body = {"charge": charge, "contents": contents, "price": price.as_json()}
    return follow(_FORMAT, previous, index, body)
