"""What a key manager knows: the fold of its log. What is not in the log did not happen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cloister.attest import Policy, parse_policy
from cloister.errors import IntegrityError
from cloister.keys._budgets import charged, opened
from cloister.keys._entries import (
    AttemptEntry,
    CheckpointEntry,
    CollectEntry,
    GenesisEntry,
    KeyEntry,
    KeyRule,
    ManifestEntry,
    RegistrationEntry,
    ReleaseEntry,
    RevocationEntry,
    RunEntry,
    SuspensionEntry,
)
from cloister.keys._plan import Agreement
from cloister.keys._selection import Filing
from cloister.ledger import Book

__all__ = ["InstalledKey", "State", "checkpoint_id", "contribution_id", "key_id", "secret_ids", "share_id"]


@dataclass(frozen=True, slots=True)
class InstalledKey:
    """An owner's key and the owner's terms for it."""

    owner: str
    rule: KeyRule
    policy: Policy | None
    index: int
    entry: KeyEntry


@dataclass(slots=True)
class State:
    """The fold. Changed by :meth:`apply` alone.

    Everything about a run is kept by manifest *and* run: run ids are a registrar's choice, and a stranger may name a
    registrar of their own in a manifest of their own.

    Attributes:
        size: Entries so far.
        at: Time of the newest entry.
        agreements: By manifest id.
        manifest_entries: Manifest id → index and entry.
        statements: Digest of a signed stop → index and entry, so that a repeated one is answered alike.
        installed: By (manifest, image).
        revoked: (manifest, image).
        suspended: Manifest id → who.
        runs: Run id → manifest id; at the registrar.
        attempts: (manifest, run, consumer) → the newest attempt; at the registrar.
        released: (manifest, run, consumer, attempt) → the entry.
        newest: (manifest, run, consumer) → the newest attempt that got keys here.
        registered: (manifest, run, stage) → index and entry.
        checkpoints: (manifest, run, stage) → index and entry of the last one.
        checkpoint_counts: (manifest, run, stage, attempt) → how many it saved.
        image_uses: (manifest, image) → releases so far.
        term_uses: (manifest, output, recipient) → releases so far.
        books: (owner's key, image id) → its privacy budget, and what was charged to it.
        filing: Which entries concern what.
    """

    genesis: GenesisEntry | None = None
    size: int = 0
    at: str = ""
    agreements: dict[str, Agreement] = field(default_factory=dict[str, Agreement])
    manifest_entries: dict[str, tuple[int, ManifestEntry]] = field(default_factory=dict[str, tuple[int, ManifestEntry]])
    statements: dict[str, tuple[int, SuspensionEntry | RevocationEntry]] = field(
        default_factory=dict[str, tuple[int, SuspensionEntry | RevocationEntry]]
    )
    installed: dict[tuple[str, str], InstalledKey] = field(default_factory=dict[tuple[str, str], InstalledKey])
    revoked: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    suspended: dict[str, str] = field(default_factory=dict[str, str])
    runs: dict[str, str] = field(default_factory=dict[str, str])
    attempts: dict[tuple[str, str, str], int] = field(default_factory=dict[tuple[str, str, str], int])
    released: dict[tuple[str, str, str, int], ReleaseEntry] = field(
        default_factory=dict[tuple[str, str, str, int], ReleaseEntry]
    )
    registered: dict[tuple[str, str, str], tuple[int, RegistrationEntry]] = field(
        default_factory=dict[tuple[str, str, str], tuple[int, RegistrationEntry]]
    )
    newest: dict[tuple[str, str, str], int] = field(default_factory=dict[tuple[str, str, str], int])
    checkpoints: dict[tuple[str, str, str], tuple[int, CheckpointEntry]] = field(
        default_factory=dict[tuple[str, str, str], tuple[int, CheckpointEntry]]
    )
    checkpoint_counts: Counter[tuple[str, str, str, int]] = field(default_factory=Counter[tuple[str, str, str, int]])
    image_uses: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    term_uses: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    books: dict[tuple[str, str], Book] = field(default_factory=dict[tuple[str, str], Book])
    filing: Filing = field(default_factory=Filing)

    def apply(self, entry: Any) -> None:
        """Adds one entry.

        Raises:
            IntegrityError: 5405 when the entry cannot follow what came before: the log was written by something else.
        """
        index = self.size
        if (index == 0) != isinstance(entry, GenesisEntry) or entry.at < self.at:
            raise IntegrityError(
                5405, f"log entry {index} cannot follow entry {index - 1}", got=f"{entry.kind} at {entry.at}"
            )
        match entry:
            case GenesisEntry():
                self.genesis = entry
            case ManifestEntry():
                self.manifest_entries[entry.manifest] = (index, entry)
                self.agreements[entry.manifest] = Agreement.of(entry.signed.manifest, name=entry.name)
            case KeyEntry():
                self.installed[entry.manifest, entry.image] = _installed(index, entry)
                self._open_book(entry)
            case RunEntry():
                self.runs[entry.run] = entry.manifest
            case AttemptEntry():
                self.attempts[entry.manifest, entry.run, entry.consumer] = entry.attempt
            case ReleaseEntry():
                self.released[entry.manifest, entry.run, entry.consumer, entry.attempt] = entry
                place = (entry.manifest, entry.run, entry.consumer)
                self.newest[place] = max(entry.attempt, self.newest.get(place, 0))
                self.image_uses.update((entry.manifest, image) for image in entry.images)
                self.term_uses.update((entry.manifest, output, entry.consumer) for output in entry.inputs)
                self._charge(entry)
            case RegistrationEntry():
                self.registered[entry.manifest, entry.run, entry.stage] = (index, entry)
            case CheckpointEntry():
                self.checkpoints[entry.manifest, entry.run, entry.stage] = (index, entry)
                self.checkpoint_counts[entry.manifest, entry.run, entry.stage, entry.attempt] += 1
            case CollectEntry():
                self.term_uses[entry.manifest, entry.output, f"party:{entry.party}"] += 1
            case SuspensionEntry():
                self.statements[entry.statement] = (index, entry)
                self.suspended.setdefault(entry.manifest, entry.party)
            case RevocationEntry():
                self.statements[entry.statement] = (index, entry)
                self.revoked.add((entry.manifest, entry.image))
            case _:  # a refusal changes nothing but the log
                pass
        self.size, self.at = index + 1, entry.at
        self.filing.add(index, entry)

    def _open_book(self, entry: KeyEntry) -> None:
        self.books |= opened(self.books, self.agreements[entry.manifest].manifest, entry.image)

    def _charge(self, entry: ReleaseEntry) -> None:
        manifest = self.agreements[entry.manifest].manifest
        for image in entry.images:
            self.books |= charged(self.books, manifest, image, run=entry.run, stage=entry.consumer)


def _installed(index: int, entry: KeyEntry) -> InstalledKey:
    policy = None if entry.rule.policy is None else parse_policy(entry.rule.policy)
    return InstalledKey(entry.owner, entry.rule, policy, index, entry)


def key_id(manifest: str, image: str) -> str:
    """Under which id an owner's key lies in the vault."""
    return f"key/{manifest}/{image}"


def contribution_id(manifest: str, run: str, stage: str, attempt: int) -> str:
    """Under which id this key manager's contribution to an attempt lies in the vault."""
    return f"contribution/{manifest}/{run}/{stage}/{attempt}"


def share_id(manifest: str, run: str, stage: str) -> str:
    """Under which id the launcher's share of the registered attempt lies in the vault."""
    return f"share/{manifest}/{run}/{stage}"


def checkpoint_id(manifest: str, run: str, stage: str) -> str:
    """Under which id this key manager's contribution to a stage's checkpoints lies in the vault, until it ends."""
    return f"checkpoint/{manifest}/{run}/{stage}"


def secret_ids(state: State) -> frozenset[str]:
    """The ids of all secrets that were acknowledged: every one must be in the vault, or the store was damaged."""
    keys = {key_id(*place) for place in state.installed if place not in state.revoked}
    contributions = {
        contribution_id(*place)
        for place, entry in state.released.items()
        if not state.agreements[entry.manifest].consumers[place[2]].is_service
    }
    saving = {
        checkpoint_id(*place)
        for place in state.newest
        if state.agreements[place[0]].saves(place[2]) and place not in state.registered
    }
    return frozenset(keys | contributions | saving | {share_id(*place) for place in state.registered})
