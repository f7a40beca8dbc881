"""The ledger of one run: an append-only chain of events.

Each line's digest covers the one before, the line's place, and the event; the first covers the run, the unit and the
relation. So a line that is changed, dropped, repeated, moved, or taken from another run's ledger breaks the chain. A
chain that is cut short at its end is whole in itself: only someone who knows the *head* sees that something is missing.
Whoever reads a ledger therefore says which head it must have, and the head is signed into the run's receipt.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Annotated, Literal

from pydantic import Field

from cloister.errors import InputError, IntegrityError
from cloister.ledger._chain import begin, follow, require_same
from cloister.ledger._events import Event
from cloister.ledger._relation import Relation
from cloister.wire import Digest, Message, Name, parse_json, parse_message, require_format

__all__ = ["MAX_LEDGER_BYTES", "Ledger", "Line", "begin_ledger", "merge_ledgers", "read_ledger", "require_whole"]

_FORMAT = "cloister-privacy-ledger/v1"
_MOST_LINES = 4096
MAX_LEDGER_BYTES = 4 * 1024 * 1024


class Line(Message):
    """One event and the digest of the chain up to it."""

    event: Event
    link: Digest


class Ledger(Message):
    """What one run did to one unit's privacy, in order.

    Attributes:
        run: The run's id.
        unit: Of every event.
        relation: Of every event.
        lines: At most 4096.
    """

    format: Literal["cloister-privacy-ledger/v1"]
    run: Digest
    unit: Name
    relation: Relation
    lines: Annotated[tuple[Line, ...], Field(max_length=_MOST_LINES)]

    @property
    def head(self) -> str:
        """The digest of the whole ledger: what a receipt signs."""
        return self.lines[-1].link if self.lines else _first(self.run, self.unit, self.relation)

    @property
    def events(self) -> tuple[Event, ...]:
        """The events, in order."""
        return tuple(line.event for line in self.lines)

    def append(self, event: Event) -> Ledger:
        """A ledger with one more line; this one stays as it is.

        Raises:
            InputError: 2802 when the event is of another unit or relation; 2803 when the ledger is full.
        """
        if (event.unit, event.relation) != (self.unit, self.relation):
            got = f"{event.unit} ({event.relation.value})"
            raise InputError(2802, expected=f"{self.unit} ({self.relation.value})", got=got)
        if len(self.lines) >= _MOST_LINES:
            raise InputError(2803, "the ledger is full", expected=f"at most {_MOST_LINES} events")
        line = Line(event=event, link=follow(_FORMAT, self.head, len(self.lines), event.as_json()))
        return self.model_copy(update={"lines": (*self.lines, line)})

    def require_extends(self, earlier: Ledger) -> None:
        """Returns when ``earlier`` is this ledger or the beginning of it: a resumed run has forgotten nothing.

        Raises:
            IntegrityError: 5801 when it is not.
        """
        same = (self.format, self.run, self.unit, self.relation) == (
            earlier.format,
            earlier.run,
            earlier.unit,
            earlier.relation,
        )
        if not same or self.lines[: len(earlier.lines)] != earlier.lines:
            raise IntegrityError(5801, "this ledger does not continue the earlier one", got=self.head)


def begin_ledger(*, run: str, unit: str, relation: Relation) -> Ledger:
    """An empty ledger of a run.

    >>> begin_ledger(run="0" * 64, unit="patient", relation=Relation.ADD_OR_REMOVE_ONE).events
    ()
    """
    return Ledger(format=_FORMAT, run=run, unit=unit, relation=relation, lines=())


def read_ledger(data: bytes, *, head: str | None) -> Ledger:
    """A ledger from its JSON, with every link checked.

    Args:
        data: The bytes; nothing about them is trusted.
        head: The head that it must have, from a signed receipt. With None the ledger is only shown to be consistent
            in itself: whoever wrote it may have left out its end, or all of it.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2004 another format; 2005 not of its shape; 2801 a number
            is not in its one form; 2802 a line of another unit or relation.
        IntegrityError: 5801 when a link or the head is another.
    """
    value = parse_json(data, what="privacy ledger", max_bytes=MAX_LEDGER_BYTES)
    require_format(value, _FORMAT, what="privacy ledger")
    found = parse_message(Ledger, value, what="privacy ledger")
    require_whole(found)
    if head is not None:
        require_same(head, found.head, what="the ledger does not end where it should")
    return found


def require_whole(ledger: Ledger) -> None:
    """Returns when every link of a ledger is the one that its lines have.

    Raises:
        InputError: 2802 for a line of another unit or relation.
        IntegrityError: 5801 when a link is another.
    """
    first = begin_ledger(run=ledger.run, unit=ledger.unit, relation=ledger.relation)
    whole = reduce(Ledger.append, ledger.events, first)
    for index, (line, right) in enumerate(zip(ledger.lines, whole.lines, strict=True)):
        require_same(right.link, line.link, what=f"line {index} is not the one that was written")


def merge_ledgers(ledgers: Iterable[Ledger]) -> tuple[Event, ...]:
    """All events of several runs, each run once.

    Raises:
        InputError: 2802 when units or relations differ.
        IntegrityError: 5802 when a run is there twice, with the same events or with others.
    """
    seen: dict[str, Ledger] = {}
    for ledger in ledgers:
        if ledger.run in seen:
            raise IntegrityError(5802, got=ledger.run)
        seen[ledger.run] = ledger
    if len({(ledger.unit, ledger.relation) for ledger in seen.values()}) > 1:
        raise InputError(2802, "ledgers of different units or relations cannot be merged")
    return tuple(event for ledger in seen.values() for event in ledger.events)


def _first(run: str, unit: str, relation: Relation) -> str:
    return begin(_FORMAT, {"run": run, "unit": unit, "relation": relation.value})
