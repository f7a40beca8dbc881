"""Pages of the log: entries that were asked for, shown to be in the tree, and nothing skipped between them.

*Which* entries of the tree are what was asked for, and how many, is the key manager's signed word. That each of them is
in the tree, and is such an entry, is not: whoever reads a page checks it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from cloister.errors import IntegrityError
from cloister.keys._entries import Entry, KeyText
from cloister.keys._log import verify_joint_inclusion
from cloister.keys._messages import Signed, TreeHead
from cloister.keys._selection import MAX_PAGE_ENTRIES, LogQuery, selects
from cloister.wire import Digest, Message

__all__ = ["MAX_PAGE_BYTES", "IndexedEntry", "LogPage", "require_page", "verify_pages"]

MAX_PAGE_BYTES = 4 << 20  # of entries; with their proof, in base64, at most half of the largest answer


class IndexedEntry(Message):
    """An entry with its place in the log."""

    index: int = Field(ge=0)
    entry: Entry


class LogPage(Signed):
    """The answer to a question for entries.

    Attributes:
        key_manager: Whose log.
        asked: The question.
        root: Of the tree of ``asked.size`` entries.
        total: How many entries the question selects, however many of them are shown here.
        entries: Those from ``asked.start`` on: at most ``asked.count``, fewer when they are large, at least one.
        proof: That the tree holds them, all at once: :meth:`MerkleLog.joint_inclusion`.
    """

    LABEL = "cloister/keys/log-page/v1"

    key_manager: KeyText
    asked: LogQuery
    root: Digest
    total: int = Field(ge=0)
    entries: tuple[IndexedEntry, ...] = Field(max_length=MAX_PAGE_ENTRIES)
    proof: tuple[Digest, ...] = Field(max_length=64 * MAX_PAGE_ENTRIES)


def require_page(page: LogPage, asked: LogQuery, *, head: TreeHead, before: LogPage | None = None) -> None:
    """Returns when ``page``, whose signature was verified, answers ``asked`` truly as far as its reader can tell.

    Args:
        page: The answer.
        asked: The question.
        head: The tree head that the reader goes by; ``asked.size`` is its size.
        before: The page that was read before this one.

    Raises:
        IntegrityError: 5407 it answers another question, is of another tree, or holds an entry that was not asked for;
            5412 it skips, repeats or holds back entries; 5003 an entry is not in the tree.
    """
    same = page.asked.model_copy(update={"start": asked.start}) == asked and asked.size == head.size
    if not same or (page.key_manager, page.root) != (head.key_manager, head.root):
        raise IntegrityError(
            5407, "the page of the log is about something else", expected=_text(asked), got=_text(page.asked)
        )
    if page.asked.start != asked.start:
        raise IntegrityError(5412, "the page starts elsewhere", expected=asked.start, got=page.asked.start)
    if before is not None and before.total != page.total:
        raise IntegrityError(5412, "two pages of one tree count differently", expected=before.total, got=page.total)
    most = min(asked.count, max(0, page.total - asked.start))
    if not min(1, most) <= len(page.entries) <= most:
        raise IntegrityError(5412, "the page has too few entries or too many", expected=most, got=len(page.entries))
    last = before.entries[-1].index if before is not None and before.entries else -1
    for item in page.entries:
        if item.index <= last:
            raise IntegrityError(5412, f"entry {item.index} is shown after entry {last}")
        if not selects(asked, item.entry):
            raise IntegrityError(5407, f"entry {item.index} is none of those that were asked for")
        last = item.index
    verify_joint_inclusion(
        [(item.index, item.entry.canonical()) for item in page.entries],
        size=head.size,
        proof=[bytes.fromhex(step) for step in page.proof],
        root=bytes.fromhex(head.root),
    )


def verify_pages(pages: Sequence[LogPage], asked: LogQuery, *, head: TreeHead) -> tuple[IndexedEntry, ...]:
    """All entries that ``asked`` selects from its start on: pages whose signatures were verified make up the whole.

    Whoever hands over the pages chooses how they are cut, and nothing else.

    Raises:
        IntegrityError: 5407, 5412, 5003 as :func:`require_page`; 5412 also when a page is missing or one too many.
    """
    found: list[IndexedEntry] = []
    before: LogPage | None = None
    for page in pages:
        due = asked.model_copy(update={"start": asked.start + len(found), "count": page.asked.count})
        require_page(page, due, head=head, before=before)
        found += page.entries
        before = page
        if not page.entries and len(pages) > 1:
            raise IntegrityError(5412, "an empty page among others")
    if before is None or asked.start + len(found) < before.total:
        raise IntegrityError(
            5412, "pages are missing", expected="all of them" if before is None else before.total, got=len(found)
        )
    return tuple(found)


def _text(query: LogQuery) -> str:
    return query.canonical().decode()
