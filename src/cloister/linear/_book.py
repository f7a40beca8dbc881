"""A party's privacy book on its own disk: charged and stored before any data are opened.

An older book is whole in itself and forgets what was spent since, so its head is kept apart, in the home folder.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from cloister.errors import InputError
from cloister.ledger import Book, Budget, Charge, Method, Relation, amount, open_book, read_book
from cloister.linear._agreement import Agreement
from cloister.linear._lock import locked
from cloister.linear._plan import exact
from cloister.linear._sound import privacy_event
from cloister.wire import read_bounded, write_private

__all__ = ["charge_book", "open_budget"]

_MAX_BYTES = 16 << 20


def open_budget(path: Path, home: Path, *, owner: str, epsilon: str, delta: str) -> None:
    """Writes a book in which nothing is charged yet; raises 2007 where one is, or was."""
    head = _head(home, owner)
    budget = Budget(
        owner=owner, unit="record", relation=Relation.REPLACE_SPECIAL, epsilon=amount(epsilon), delta=amount(delta)
    )
    with locked(_lock(head), wait=True):
        if path.exists() or head.exists():
            raise InputError(2007, f"a privacy book of '{owner}' is there already: '{path if path.exists() else head}'")
        _store(open_book(budget), path, head)


def charge_book(agreement: Agreement, path: Path, home: Path, *, owner: str) -> Book:
    """The book after one session's charge, stored.

    Every session is charged by itself, also one that fails: its noise was drawn and may have been used. Sessions of
    several agreements at the same time are charged one after the other: none is forgotten.

    Raises:
        InputError: 2001 when there is no book; 2002 to 2005, 2801, 2802 when it is not one that fits.
        IntegrityError: 5801 when it is not the last one that was stored.
        BudgetError: 7801 when the budget would be exceeded; nothing is stored then.
    """
    head = _head(home, owner)
    event = privacy_event(agreement)
    delta = amount(exact(agreement.privacy.delta)) if agreement.privacy else "0"
    charge = Charge(
        id=secrets.token_hex(32), owner=owner, unit=event.unit, relation=event.relation, events=(event,), delta=delta
    )
    with locked(_lock(head), wait=True):
        kept = read_bounded(head, max_bytes=256, what="the head of the privacy book")
        data = read_bounded(path, max_bytes=_MAX_BYTES, what="privacy book")
        book = read_book(data, head=kept.decode("ascii", "replace").strip())
        charged = book.charge(charge, after=book.head, by=Method.RDP)
        _store(charged, path, head)
    return charged


def _store(book: Book, path: Path, head: Path) -> None:
    """The book, then its head: what crashes in between is refused, not forgotten."""
    try:
        head.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, book.canonical() + b"\n")
        write_private(head, book.head.encode() + b"\n")
    except OSError as error:
        raise InputError(2001, f"cannot write the privacy book: {error.strerror}: '{path}'") from error


def _head(home: Path, owner: str) -> Path:
    return home / "linear" / f"{owner}.book-head"


def _lock(head: Path) -> Path:
    return head.with_suffix(".book-lock")
