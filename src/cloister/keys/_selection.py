"""Which entries of the log concern what: the question for them, the rule that decides, and where they stand.

Anybody can cause refusals, and runs and attempts of their own, under any manifest whose id they know. So an audit asks
for a run's *account*: every entry of the manifest that can change what the run got or may get, which strangers cannot
lengthen, and no entry that they can. The rule leaves out by name; an entry of a kind that is not named here counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cloister.keys._entries import AttemptEntry, CheckpointEntry, RefusalEntry, RunEntry, RunId
from cloister.wire import Digest, Message

__all__ = ["MAX_PAGE_ENTRIES", "Filing", "LogQuery", "Selection", "selects"]

MAX_PAGE_ENTRIES = 500

Selection = Literal["all", "account", "refusals"]
"""What is asked for.

* ``all``: every entry of the manifest; with a run, those that name it.
* ``account``: every entry of the manifest but refusals, and but the runs and attempts granted and the checkpoints saved
  in other runs. Releases, registrations and collections of other runs belong to it, since uses are the manifest's.
* ``refusals``: the refusals of the manifest; with a run, those that name it.
"""


class LogQuery(Message):
    """A question for entries: at most ``count``, from the ``start``-th on, of a selection of the log's first ``size``.

    The same question has the same answer for ever: a log only grows, and ``size`` says up to where it is asked.
    """

    manifest: Digest
    run: RunId | None = None
    selection: Selection = "all"
    size: int = Field(ge=1)
    start: int = Field(default=0, ge=0)
    count: int = Field(default=MAX_PAGE_ENTRIES, ge=0, le=MAX_PAGE_ENTRIES)

    @model_validator(mode="after")
    def _account_of_a_run(self) -> LogQuery:
        if self.selection == "account" and self.run is None:
            raise ValueError("an account is of a run")
        return self


def selects(query: LogQuery, entry: Any) -> bool:
    """Whether an entry belongs to what is asked for, wherever it stands."""
    if getattr(entry, "manifest", None) != query.manifest:
        return False
    of_run = query.run in (None, getattr(entry, "run", None))
    match query.selection, _drawer(entry):
        case "account", drawer:
            return drawer == "standing" or (drawer == "grants" and of_run)
        case "refusals", drawer:
            return drawer == "refusals" and of_run
        case _:
            return of_run


def _drawer(entry: Any) -> Literal["refusals", "grants", "standing"]:
    if isinstance(entry, RefusalEntry):
        return "refusals"
    return "grants" if isinstance(entry, RunEntry | AttemptEntry | CheckpointEntry) else "standing"


class Filing:
    """Where the entries of each selection stand, so that an answer costs what it shows and not what the log holds."""

    __slots__ = ("_files",)

    def __init__(self) -> None:
        self._files: defaultdict[tuple[str, str, str | None], list[int]] = defaultdict(list)

    def add(self, place: int, entry: Any) -> None:
        """Files an entry; ``place`` is its index in the log, larger than all before."""
        manifest: str | None = getattr(entry, "manifest", None)
        if manifest is None:
            return
        for drawer in ("all", _drawer(entry)):
            for run in {None, getattr(entry, "run", None)}:
                self._files[drawer, manifest, run].append(place)

    def places(self, query: LogQuery) -> Sequence[int]:
        """The indices of everything that ``query`` selects, in order; its ``start`` and ``count`` are not looked at."""
        if query.selection != "account":
            return self._below(query, query.selection, query.run)
        return sorted([*self._below(query, "standing", None), *self._below(query, "grants", query.run)])

    def _below(self, query: LogQuery, drawer: str, run: str | None) -> list[int]:
        found = self._files.get((drawer, query.manifest, run), [])
        return found[: bisect_left(found, query.size)]
