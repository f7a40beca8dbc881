"""The key managers' logs inside a bundle: signed head, a whole account, every entry in the tree, completeness.

A log holds more than an audit can read: other manifests, and whatever strangers had refused. A bundle shows the run's
*account* of it, and completeness rests on two things that the runner can neither make nor choose:

* the key manager's signed word for how many entries the account has, without which no page passes for the last; it
  comes from the enclave that let the keys go, and one that lied here could have let them go without any entry;
* a tree head that the auditor got without the runner: an old log is complete too, as of then.

Hashes in place of the entries left out would add nothing to either: they do not say what they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cloister.audit._check import AuditReport
from cloister.errors import CloisterError, IntegrityError
from cloister.keys import (
    ConsistencyProof,
    LogPage,
    LogQuery,
    LogReceipt,
    RefusalEntry,
    Selection,
    TreeHead,
    open_head,
    open_signed,
    require_extends,
    require_page,
    require_receipt,
    verify_pages,
)
from cloister.receipt import Bundle, KeyManagerRecord
from cloister.wire import Envelope, VerifyKey

__all__ = ["KeyManagerLog", "read_logs"]

_COMPLETE = "the log is complete: nothing was released that is not shown here"
_ENFORCED = "use counts and expiry were enforced against the key manager's own host"


@dataclass(frozen=True, slots=True)
class KeyManagerLog:
    """One key manager's account of the run, each entry of it shown to be in the tree under ``head``.

    Attributes:
        name: What the manifest calls the key manager.
        key: Its signing key.
        head: Of the tree that the entries were proven in.
        entries: Index and entry, in order; what the manifest's other runs got included, since uses and stops are the
            manifest's.
        refusals: The first that name the run.
        refused: How many name it.
        roots: The root of every size for which a signed head was seen.
    """

    name: str
    key: VerifyKey
    head: TreeHead
    entries: tuple[tuple[int, Any], ...]
    refusals: tuple[RefusalEntry, ...]
    refused: int
    roots: dict[int, str] = field(repr=False)
    _leaves: dict[int, bytes] = field(repr=False)

    def require(self, receipt: LogReceipt) -> Any:
        """The entry of a receipt, once it is shown to stand in this very log.

        Raises:
            IntegrityError: 5001, 5003, 5407 when the receipt itself does not hold; 5363 when the log has another
                entry there, or is older than the receipt; 5367 when it is forked.
        """
        head = require_receipt(receipt, self.key)
        if self._leaves.get(receipt.index) != receipt.entry.canonical():
            raise IntegrityError(5363, f"the log of '{self.name}' has no such entry at {receipt.index}")
        if head.size > self.head.size:
            raise IntegrityError(
                5363, f"the log of '{self.name}' is older than its own receipt", expected=head.size, got=self.head.size
            )
        self.agree(head)
        return receipt.entry

    def agree(self, head: TreeHead) -> None:
        """Returns when no other tree of this size was signed.

        Raises:
            IntegrityError: 5367 when one was: the key manager showed two histories.
        """
        if self.roots.setdefault(head.size, head.root) != head.root:
            raise IntegrityError(5367, expected=self.roots[head.size], got=head.root)


def read_logs(bundle: Bundle, report: AuditReport, *, run: str, heads: Sequence[Envelope]) -> dict[str, KeyManagerLog]:
    """The logs that verify, with their checks added to ``report``."""
    logs: dict[str, KeyManagerLog] = {}
    manifest = bundle.signed.manifest
    for name, record in sorted(bundle.key_managers.items()):
        if name not in manifest.key_managers:
            continue  # refused where its evidence is judged
        key = VerifyKey.parse(manifest.key_managers[name].sign)
        with report.checking("log", name, "head and account signed, every entry in the tree, none missing") as notes:
            logs[name] = log = _read(name, key, record, manifest.id, run)
            notes.append(
                f"{len(log.entries)} of {log.head.size} entries count here; on the key manager's word the rest are "
                "other manifests', refusals, and grants in other runs"
            )
        if name in logs:
            _completeness(logs[name], report, run=run, heads=heads, proof=record.consistency)
    return logs


def _read(name: str, key: VerifyKey, record: KeyManagerRecord, manifest: str, run: str) -> KeyManagerLog:
    head = open_head(record.head, key)
    account = [open_signed(LogPage, each, key) for each in record.account]
    found = verify_pages(account, _asked(account, head, "account", manifest, run), head=head)
    refusals = open_signed(LogPage, record.refusals, key)
    few = _asked([refusals], head, "refusals", manifest, run).model_copy(update={"count": refusals.asked.count})
    require_page(refusals, few, head=head)
    refused = tuple(item.entry for item in refusals.entries if isinstance(item.entry, RefusalEntry))
    entries = tuple((item.index, item.entry) for item in found)
    leaves = {index: entry.canonical() for index, entry in entries}
    return KeyManagerLog(name, key, head, entries, refused, refusals.total, {head.size: head.root}, leaves)


def _asked(pages: Sequence[LogPage], head: TreeHead, selection: Selection, manifest: str, run: str) -> LogQuery:
    """The question that the pages must answer: it is the auditor who says what is asked, not the runner.

    Raises:
        IntegrityError: 5361 when they answer another. Of the whole manifest an account is, not of its run alone: keys
            and stops belong to no run.
    """
    wanted = (selection, manifest, run)
    for page in pages:
        got = (page.asked.selection, page.asked.manifest, page.asked.run)
        if got != wanted:
            raise IntegrityError(5361, "a page of the log is about something else", expected=wanted, got=got)
    return LogQuery(manifest=manifest, run=run, selection=selection, size=head.size)


def _completeness(
    log: KeyManagerLog, report: AuditReport, *, run: str, heads: Sequence[Envelope], proof: Envelope | None
) -> None:
    """Whether the entries are all there are: only a head that did not come from the runner can say."""
    auditors, proofs = _mine(log, heads), _proofs(log, [*heads, *([] if proof is None else [proof])])
    agreeing: list[TreeHead] = []
    for head in auditors:
        what = f"agrees with the head of {head.size} entries that the auditor holds"
        if head.size != log.head.size and frozenset((head.size, log.head.size)) not in proofs:
            report.unknown("log", log.name, what, "no proof connects it with the bundle's log")
            continue
        with report.checking("log", log.name, what) as notes:
            _require_one_history(log, head, proofs.get(frozenset((head.size, log.head.size))))
            notes.append(head.at)
            agreeing.append(head)
    last = max((index for index, entry in log.entries if getattr(entry, "run", None) == run), default=0)
    covering = [head for head in agreeing if last < head.size <= log.head.size]
    if covering:
        newest = max(covering, key=lambda head: head.size)
        reason = f"as of {newest.at}, by the auditor's own head and the key manager's signed account"
        report.asserted("log", log.name, _COMPLETE, reason, required=False)
        return
    newer = max((head.size for head in agreeing), default=0) - log.head.size
    if newer > 0:
        reason = f"the log has {newer} newer entries: make a new bundle"
    elif agreeing:
        reason = "the auditor's head is from before the run's end: get a fresh one, and make a new bundle with it"
    elif auditors:
        reason = "no proof connects the auditor's head with it: make a new bundle with 'run bundle --head'"
    else:
        reason = "no head from the key manager itself: get one with 'cloister keys head' and pass --head"
    report.unknown("log", log.name, _COMPLETE, reason)
    reason = "not enforced as far as this shows: a host that puts an older store back gets its uses and its time again"
    report.unknown("terms", log.name, _ENFORCED, reason)


def _mine(log: KeyManagerLog, envelopes: Sequence[Envelope]) -> list[TreeHead]:
    """This key manager's heads among the auditor's, each once, in order of size."""
    found: dict[tuple[int, str], TreeHead] = {}
    for envelope in envelopes:
        try:
            if envelope.payloadType == ConsistencyProof.LABEL:
                envelope = open_signed(ConsistencyProof, envelope, log.key).head
            head = open_head(envelope, log.key)
        except CloisterError:
            continue  # another key manager's
        found[head.size, head.root] = head
    return [found[place] for place in sorted(found)]


def _proofs(log: KeyManagerLog, envelopes: Sequence[Envelope]) -> dict[frozenset[int], ConsistencyProof]:
    """This key manager's consistency proofs, by the two sizes. Whoever brings one does not matter: it is signed."""
    found: dict[frozenset[int], ConsistencyProof] = {}
    for envelope in envelopes:
        try:
            proof = open_signed(ConsistencyProof, envelope, log.key)
        except CloisterError:
            continue  # a head, or another key manager's
        found[frozenset((proof.first, proof.second))] = proof
    return found


def _require_one_history(log: KeyManagerLog, head: TreeHead, proof: ConsistencyProof | None) -> None:
    log.agree(head)
    if proof is None:
        return  # of one size, and of one root
    older, newer = sorted((log.head, head), key=lambda each: each.size)
    shown = require_extends(kept=older, proof=proof, key=log.key)
    if shown.root != newer.root:
        raise IntegrityError(5367, expected=newer.root, got=shown.root)
