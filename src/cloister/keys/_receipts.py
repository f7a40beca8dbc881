"""Checking what a key manager signed about its log."""

from __future__ import annotations

from typing import Any

from cloister.errors import IntegrityError
from cloister.keys._log import verify_consistency, verify_inclusion
from cloister.keys._messages import ConsistencyProof, LogReceipt, TreeHead, open_signed
from cloister.wire import Envelope, VerifyKey

__all__ = ["open_head", "require_extends", "require_receipt"]


def open_head(envelope: Envelope, key: VerifyKey) -> TreeHead:
    """The tree head inside.

    Raises:
        IntegrityError: 5001 when ``key`` did not sign it; 5407 when it names another key manager.
    """
    head = open_signed(TreeHead, envelope, key)
    if head.key_manager != str(key):
        raise IntegrityError(5407, "tree head names another key manager", expected=str(key), got=head.key_manager)
    return head


def require_receipt(receipt: LogReceipt, key: VerifyKey) -> TreeHead:
    """The head under which the receipt's entry is in the log of ``key``'s key manager.

    Raises:
        IntegrityError: 5001, 5407 for the head; 5003 when the proof does not lead from the entry to it.
    """
    head = open_head(receipt.head, key)
    _require_included(receipt.entry, receipt.index, receipt.proof, head)
    return head


def require_extends(*, kept: TreeHead, proof: ConsistencyProof, key: VerifyKey) -> TreeHead:
    """The newer head, once it is shown to extend the one that was ``kept``.

    Raises:
        IntegrityError: 5406 when the log was rolled back, forked or rewritten since; 5001, 5407 for the new head.
    """
    head = open_head(proof.head, key)
    if (proof.first, proof.second) != (kept.size, head.size) or kept.key_manager != head.key_manager:
        raise IntegrityError(
            5406, "the proof is not from the head that was kept", expected=f"{kept.size} entries", got=f"{proof.first}"
        )
    try:
        verify_consistency(
            first=kept.size,
            first_root=bytes.fromhex(kept.root),
            second=head.size,
            second_root=bytes.fromhex(head.root),
            proof=[bytes.fromhex(step) for step in proof.proof],
        )
    except IntegrityError as error:
        raise IntegrityError(5406, expected=f"a log with root {kept.root} at {kept.size}", got=error.what) from None
    if head.at < kept.at:
        raise IntegrityError(5406, "the newer head is older", expected=f"at or after {kept.at}", got=head.at)
    return head


def _require_included(entry: Any, index: int, proof: tuple[str, ...], head: TreeHead) -> None:
    verify_inclusion(
        entry.canonical(),
        index=index,
        size=head.size,
        proof=[bytes.fromhex(step) for step in proof],
        root=bytes.fromhex(head.root),
    )
