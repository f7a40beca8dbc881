"""The key managers' logs inside a bundle: signed head, signed index, inclusion of every entry, completeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cloister.audit._check import AuditReport
from cloister.errors import CloisterError, IntegrityError
from cloister.keys import (
    ConsistencyProof,
    LogEntries,
    LogIndex,
    LogReceipt,
    TreeHead,
    open_signed,
    verify_consistency,
    verify_inclusion,
)
from cloister.receipt import Bundle
from cloister.wire import Envelope, VerifyKey

__all__ = ["KeyManagerLog", "read_logs"]


@dataclass(frozen=True, slots=True)
class KeyManagerLog:
    """One key manager's entries about the run, each shown to be in the tree under ``head``."""

    name: str
    key: VerifyKey
    head: TreeHead
    entries: tuple[Any, ...]
    leaves: dict[int, bytes] = field(repr=False)

    def require(self, receipt: LogReceipt) -> Any:
        """The entry of a receipt, once it is shown to stand in this very log.

        Raises:
            IntegrityError: 5003 when its proof does not hold; 5363 when the log has another entry there.
        """
        head = open_signed(TreeHead, receipt.head, self.key)
        leaf = receipt.entry.canonical()
        verify_inclusion(
            leaf,
            index=receipt.index,
            size=head.size,
            proof=[bytes.fromhex(step) for step in receipt.proof],
            root=bytes.fromhex(head.root),
        )
        if self.leaves.get(receipt.index) != leaf:
            raise IntegrityError(5363, f"the log of '{self.name}' has no such entry at {receipt.index}")
        return receipt.entry


def read_logs(bundle: Bundle, report: AuditReport, heads: Sequence[Envelope]) -> dict[str, KeyManagerLog]:
    """The logs that verify, with their checks added to ``report``."""
    logs: dict[str, KeyManagerLog] = {}
    manifest = bundle.signed.manifest
    for name, record in sorted(bundle.key_managers.items()):
        if name not in manifest.key_managers:
            continue
        key = VerifyKey.parse(manifest.key_managers[name].sign)
        with report.checking("log", name, "head and index signed, every entry in the tree") as notes:
            logs[name] = log = _read(name, key, record.entries, manifest.id)
            notes.append(f"{len(log.entries)} entries of {log.head.size}")
        if name in logs:
            _completeness(logs[name], heads, report)
    return logs


def _read(name: str, key: VerifyKey, envelope: Envelope, manifest: str) -> KeyManagerLog:
    said = open_signed(LogEntries, envelope, key)
    head = open_signed(TreeHead, said.head, key)
    index = open_signed(LogIndex, said.index, key)
    if (index.size, index.root) != (head.size, head.root):
        raise IntegrityError(5363, "the index is of another tree", expected=head.root, got=index.root)
    if index.manifest != manifest:
        raise IntegrityError(5361, "the index is of another manifest", expected=manifest, got=index.manifest)
    if tuple(item.index for item in said.entries) != index.indices:
        raise IntegrityError(5363, f"the log of '{name}' is not whole", expected=f"{len(index.indices)} entries")
    leaves: dict[int, bytes] = {}
    for item in said.entries:
        leaves[item.index] = leaf = item.entry.canonical()
        proof = [bytes.fromhex(step) for step in item.proof]
        verify_inclusion(leaf, index=item.index, size=head.size, proof=proof, root=bytes.fromhex(head.root))
    return KeyManagerLog(name, key, head, tuple(item.entry for item in said.entries), leaves)


def _completeness(log: KeyManagerLog, heads: Sequence[Envelope], report: AuditReport) -> None:
    """Whether the entries are all there are: only a head that did not come from the runner can say."""
    what = "the log is complete: nothing was released that is not shown here"
    mine: list[TreeHead] = []
    for envelope in heads:
        try:
            if envelope.payloadType == ConsistencyProof.LABEL:
                proof = open_signed(ConsistencyProof, envelope, log.key)
                head = open_signed(TreeHead, proof.head, log.key)
            else:
                head, proof = open_signed(TreeHead, envelope, log.key), None
        except CloisterError:
            continue  # another key manager's
        mine.append(head)
        with report.checking("log", log.name, f"agrees with the head of size {head.size} that the auditor holds"):
            _agree(log.head, head, proof)
    if not mine:
        reason = "no head from the key manager itself: get one with 'cloister keys head' and pass --head"
        report.unknown("log", log.name, what, reason)
        return
    newest = max(mine, key=lambda head: head.size)
    if newest.size == log.head.size and newest.root == log.head.root:
        report.asserted("log", log.name, what, f"the auditor's head is of the same tree, {newest.at}", required=False)
    elif newest.size > log.head.size:
        grown = newest.size - log.head.size
        report.unknown("log", log.name, what, f"the log has {grown} newer entries: make a new bundle")
    else:
        report.unknown("log", log.name, what, f"the auditor's head is older ({newest.at}): get a fresh one")


def _agree(ours: TreeHead, theirs: TreeHead, proof: ConsistencyProof | None) -> None:
    if ours.size == theirs.size:
        if ours.root != theirs.root:
            raise IntegrityError(5367, expected=theirs.root, got=ours.root)
        return
    if proof is None or {proof.first, proof.second} != {ours.size, theirs.size}:
        return  # different sizes and no proof between them: nothing is shown, and completeness stays unknown
    first, second = sorted((ours, theirs), key=lambda head: head.size)
    verify_consistency(
        first=first.size,
        first_root=bytes.fromhex(first.root),
        second=second.size,
        second_root=bytes.fromhex(second.root),
        proof=[bytes.fromhex(step) for step in proof.proof],
    )
