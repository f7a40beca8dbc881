"""Gathers a run's bundle: what the runner kept, and what the key managers say now.

Rules:

* Of each log it takes the run's *account*, which holds no entry that a stranger can cause, and the first refusals. So
  nobody but who may use the manifest's keys can make a bundle larger, and only as often as the owners agreed.
* All of it is proven in one tree, whose head is asked for first: the log may grow meanwhile.
* What an audit could not read is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cloister.errors import CloisterError, InputError
from cloister.keys import ConsistencyProof, KeyManagerClient, ServiceEvidence, TreeHead, open_head, open_signed
from cloister.receipt import MAX_BUNDLE_BYTES, Bundle, Collaterals, KeyManagerRecord
from cloister.run._state import RunFolder
from cloister.wire import Envelope, VerifyKey, digest

__all__ = ["make_bundle"]

REFUSALS_SHOWN = 100  # of one run, by one key manager: anybody can cause any number
REFUSALS_BYTES = 8 << 20  # of all refusals in a bundle, as they stand in it


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
        InputError: 2557 when the bundle would be larger than an audit reads.
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
        head, proof = _newest(clients[name], heads)
        tree, asked = open_head(head, clients[name].key), {"manifest": signed.manifest.id, "run": state.run}
        managers[name] = KeyManagerRecord(
            evidence=envelope,
            collateral=mark,
            head=head,
            account=_account(clients[name], tree, **asked),
            refusals=_refusals(clients[name], tree, REFUSALS_BYTES // len(signed.manifest.key_managers), **asked),
            consistency=proof,
        )
    bundle = Bundle(
        made_at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        signed=signed,
        run=state.grant,
        attempts=state.attempts,
        key_managers=managers,
        collaterals=collaterals,
        inference=(*state.inference, *inference),
    )
    _require_readable(len(bundle.canonical()))
    return bundle


def _newest(client: KeyManagerClient, heads: Sequence[Envelope]) -> tuple[Envelope, Envelope | None]:
    """The log's newest head and, where a party holds an older one, the proof that it continues the newest of those."""
    head = client.head()
    held = max(filter(None, (_head(client, each) for each in heads)), key=_size, default=None)
    if held is None or held.size >= open_head(head, client.key).size:
        return head, None  # a party's head that says more than this log does: nothing to prove from here
    proof = client.consistency(held)
    return open_signed(ConsistencyProof, proof, client.key).head, proof


def _account(client: KeyManagerClient, tree: TreeHead, *, manifest: str, run: str) -> tuple[Envelope, ...]:
    """Of the whole manifest, not of the run alone: keys, suspensions and uses by other runs belong to no run."""
    found: list[Envelope] = []
    size_bytes = 0
    for envelope, _ in client.pages(tree, manifest=manifest, run=run, selection="account"):
        size_bytes += len(envelope.payload)
        _require_readable(size_bytes)
        found.append(envelope)
    return tuple(found)


def _refusals(client: KeyManagerClient, tree: TreeHead, room_bytes: int, *, manifest: str, run: str) -> Envelope:
    """The first refusals, of large ones fewer, down to none: a page that holds none still says how many there are."""
    count = REFUSALS_SHOWN
    while True:
        envelope, _ = next(client.pages(tree, manifest=manifest, run=run, selection="refusals", count=count))
        if count == 0 or len(envelope.canonical()) <= room_bytes:
            return envelope
        count //= 2


def _require_readable(size_bytes: int) -> None:
    if size_bytes > MAX_BUNDLE_BYTES:
        raise InputError(2557, expected=f"at most {MAX_BUNDLE_BYTES} bytes", got=f"{size_bytes} bytes or more")


def _head(client: KeyManagerClient, envelope: Envelope) -> TreeHead | None:
    try:
        return open_head(envelope, client.key)
    except CloisterError:
        return None  # another key manager's, or a proof


def _size(head: TreeHead) -> int:
    return head.size
