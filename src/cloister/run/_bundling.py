"""Gathers a run's bundle: what the runner kept, and what the key managers say now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cloister.keys import KeyManagerClient, ServiceEvidence, open_signed
from cloister.receipt import Bundle, Collaterals, KeyManagerRecord
from cloister.run._state import RunFolder
from cloister.wire import Envelope, VerifyKey, digest

__all__ = ["make_bundle"]


def make_bundle(
    folder: RunFolder,
    clients: Mapping[str, KeyManagerClient],
    *,
    now: datetime,
    inference: Sequence[Envelope] = (),
) -> Bundle:
    """The bundle of the run in ``folder``.

    Args:
        folder: The run.
        clients: Each key manager of the manifest, by name.
        now: Only a label; the auditor judges by a time of their own.
        inference: Receipts of predictions to include.

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
        entries = clients[name].entries(signed.manifest.id, run=state.run)
        managers[name] = KeyManagerRecord(evidence=envelope, collateral=mark, entries=entries)
    return Bundle(
        made_at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        signed=signed,
        run=state.grant,
        attempts=state.attempts,
        key_managers=managers,
        collaterals=collaterals,
        inference=(*state.inference, *inference),
    )
