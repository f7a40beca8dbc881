"""Gathers a run's bundle: what the runner kept, and what the key managers say now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cloister.errors import CloisterError
from cloister.keys import (
    ConsistencyProof,
    KeyManagerClient,
    LogEntries,
    ServiceEvidence,
    TreeHead,
    open_head,
    open_signed,
)
from cloister.receipt import Bundle, Collaterals, KeyManagerRecord
from cloister.run._state import RunFolder
from cloister.wire import Envelope, VerifyKey, digest

__all__ = ["make_bundle"]

_TRIES = 5


def make_bundle(
    folder: RunFolder,
    clients: Mapping[str, KeyManagerClient],
    *,
    now: datetime,
    inference: Sequence[Envelope] = (),
    heads: Sequence[Envelope] = (),
) -> Bundle:
    """The bundle of the run in ``folder``.

    Args:
        folder: The run.
        clients: Each key manager of the manifest, by name.
        now: Only a label; the auditor judges by a time of their own.
        inference: Receipts of predictions to include.
        heads: Tree heads that parties hold: the key managers are asked to prove that their logs continue them.

    Raises:
        CloisterError: what a key manager refused, or why it does not answer.
    """
    signed, state = folder.manifest(), folder.state()
    collaterals: Collaterals = dict(state.collaterals)
    managers: dict[str, KeyManagerRecord] = {}
    for name, manager in sorted(signed.manifest.key_managers.items()):
        envelope = clients[name].evidence()
        said = open_signed(ServiceEvidence, envelope, VerifyKey.parse(manager.sign))
        collateral = said.evidence.collateral
        mark = None
        if collateral is not None:
            mark = digest(collateral.canonical())
            collaterals[mark] = collateral
        entries, proof = _entries(clients[name], signed.manifest.id, heads)
        managers[name] = KeyManagerRecord(evidence=envelope, collateral=mark, entries=entries, consistency=proof)
    return Bundle(
        made_at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        signed=signed,
        run=state.grant,
        attempts=state.attempts,
        key_managers=managers,
        collaterals=collaterals,
        inference=(*state.inference, *inference),
    )


def _entries(client: KeyManagerClient, manifest: str, heads: Sequence[Envelope]) -> tuple[Envelope, Envelope | None]:
    """The entries, and the proof that their tree continues the newest head that a party holds.

    Of the whole manifest, not of the run: keys, suspensions and uses by other runs belong to no run. Both answers must
    be about one tree, so they are asked for again while the log grows.
    """
    held = max(filter(None, (_head(client, each) for each in heads)), key=_size, default=None)
    entries, proof = client.entries(manifest), None
    for _ in range(_TRIES if held is not None else 0):
        tree = open_head(open_signed(LogEntries, entries, client.key).head, client.key)
        if held is None or held.size >= tree.size:
            break  # the party's head says more than this log does; nothing to prove from here
        proof = client.consistency(held)
        if open_signed(ConsistencyProof, proof, client.key).second == tree.size:
            break
        entries, proof = client.entries(manifest), None
    return entries, proof


def _head(client: KeyManagerClient, envelope: Envelope) -> TreeHead | None:
    try:
        return open_head(envelope, client.key)
    except CloisterError:
        return None  # another key manager's, or a proof


def _size(head: TreeHead) -> int:
    return head.size
