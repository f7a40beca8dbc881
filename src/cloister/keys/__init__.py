"""Keys: how an owner's key reaches exactly the enclave that the manifest names, and nobody else.

A key manager holds owners' keys and the rules they came with, and runs in an enclave itself. The protocol is
docs/key-release.md; the host that carries every message is the adversary.

Rules:

* Nothing is released but by the steps of ``_release.py``, in order: manifest, grant, session, evidence, binding,
  attempt, consent, uses, inputs. Each refusal has its own code.
* Every decision is an entry of an append-only log, refusals with their trace too, committed *before* the answer
  leaves. The state is the fold of the log: what is not in the log did not happen.
* The core has no clock, socket, file or lock; the desk drives it over a store, many requests to a transaction.
* Every answer is signed. Every release carries a receipt: entry, inclusion proof, signed tree head. A rollback of the
  store shows to whoever kept a head, and to nobody else.
* An output's key needs a part of every contributing key manager and of the launcher; a second attempt has another.
* A checkpoint's key is one for all attempts of a stage in a run, and dies with the stage. Which checkpoint is the last
  is in the log, and only the newest attempt that got keys adds to it.
* Time is the host's clock, never below the newest entry's: uses and expiry are not enforced against the key manager's
  own host beyond what kept heads show.

>>> from datetime import UTC, datetime
>>> from cloister.keys import MemoryStore, initialise
>>> from cloister.wire import OpeningKey
>>> administrators = {name: OpeningKey.generate(post_quantum=False).public for name in ("ada", "bob", "eve")}
>>> made = initialise(
...     MemoryStore(), now=datetime(2026, 11, 20, tzinfo=UTC), administrators=administrators, threshold=2
... )
>>> made.sign.startswith("ed25519:"), sorted(made.shares)
(True, ['ada', 'bob', 'eve'])
"""

from cloister.keys._claimant import (
    Checkpoints,
    Granted,
    Obtained,
    StageSession,
    combine_checkpoints,
    combine_parts,
    obtain,
)
from cloister.keys._client import KeyManagerClient
from cloister.keys._context import Settings
from cloister.keys._core import KeyManager
from cloister.keys._desk import Desk
from cloister.keys._entries import (
    AttemptEntry,
    CheckpointEntry,
    CollectEntry,
    Entry,
    GenesisEntry,
    KeyEntry,
    KeyRule,
    ManifestEntry,
    RefusalEntry,
    RegistrationEntry,
    ReleaseEntry,
    RevocationEntry,
    RunEntry,
    SuspensionEntry,
    TraceStep,
    parse_entry,
)
from cloister.keys._http import create_app
from cloister.keys._listen import listen as listen_at
from cloister.keys._local import LocalTransport
from cloister.keys._log import MerkleLog, leaf_hash, verify_consistency, verify_inclusion, verify_joint_inclusion
from cloister.keys._messages import (
    Acknowledged,
    AdministratorShare,
    AttemptGrant,
    AttemptRequest,
    Challenge,
    ChallengeRequest,
    Checkpoint,
    CheckpointReceipt,
    CheckpointRecord,
    CollectChallengeRequest,
    Collected,
    CollectRequest,
    ConsistencyProof,
    EvidenceRequest,
    KeyInstall,
    KeyRelease,
    LogReceipt,
    Refusal,
    Registration,
    RegistrationReceipt,
    RegistrationRequest,
    ReleasedCheckpoint,
    ReleasedInput,
    ReleasedKeys,
    ReleaseRequest,
    Revocation,
    RunGrant,
    RunRequest,
    ServiceEvidence,
    Signed,
    Suspension,
    TreeHead,
    UnlockProgress,
    UnlockRequest,
    open_signed,
    sign_message,
)
from cloister.keys._owner import (
    CollectedOutput,
    KeptHeads,
    VerifiedService,
    collect_output,
    install_key,
    revoke_image,
    suspend_manifest,
    verify_service,
)
from cloister.keys._pages import IndexedEntry, LogPage, require_page, verify_pages
from cloister.keys._receipts import open_head, require_extends, require_receipt
from cloister.keys._selection import LogQuery, Selection
from cloister.keys._service import Service
from cloister.keys._setup import Initialised, initialise, open_store, read_terms
from cloister.keys._store import Commit, KeyStore, MemoryStore, StoreMoved, store_at
from cloister.keys._tee import appraise_tee, require_tee
from cloister.keys._trace import Trace
from cloister.keys._unlock import unlock

__all__ = [
    "Acknowledged",
    "AdministratorShare",
    "AttemptEntry",
    "AttemptGrant",
    "AttemptRequest",
    "Challenge",
    "ChallengeRequest",
    "Checkpoint",
    "CheckpointEntry",
    "CheckpointReceipt",
    "CheckpointRecord",
    "Checkpoints",
    "CollectChallengeRequest",
    "CollectEntry",
    "CollectRequest",
    "Collected",
    "CollectedOutput",
    "Commit",
    "ConsistencyProof",
    "Desk",
    "Entry",
    "EvidenceRequest",
    "GenesisEntry",
    "Granted",
    "IndexedEntry",
    "Initialised",
    "KeptHeads",
    "KeyEntry",
    "KeyInstall",
    "KeyManager",
    "KeyManagerClient",
    "KeyRelease",
    "KeyRule",
    "KeyStore",
    "LocalTransport",
    "LogPage",
    "LogQuery",
    "LogReceipt",
    "ManifestEntry",
    "MemoryStore",
    "MerkleLog",
    "Obtained",
    "Refusal",
    "RefusalEntry",
    "Registration",
    "RegistrationEntry",
    "RegistrationReceipt",
    "RegistrationRequest",
    "ReleaseEntry",
    "ReleaseRequest",
    "ReleasedCheckpoint",
    "ReleasedInput",
    "ReleasedKeys",
    "Revocation",
    "RevocationEntry",
    "RunEntry",
    "RunGrant",
    "RunRequest",
    "Selection",
    "Service",
    "ServiceEvidence",
    "Settings",
    "Signed",
    "StageSession",
    "StoreMoved",
    "Suspension",
    "SuspensionEntry",
    "Trace",
    "TraceStep",
    "TreeHead",
    "UnlockProgress",
    "UnlockRequest",
    "VerifiedService",
    "appraise_tee",
    "collect_output",
    "combine_checkpoints",
    "combine_parts",
    "create_app",
    "initialise",
    "install_key",
    "leaf_hash",
    "listen_at",
    "obtain",
    "open_head",
    "open_signed",
    "open_store",
    "parse_entry",
    "read_terms",
    "require_extends",
    "require_page",
    "require_receipt",
    "require_tee",
    "revoke_image",
    "sign_message",
    "store_at",
    "suspend_manifest",
    "unlock",
    "verify_consistency",
    "verify_inclusion",
    "verify_joint_inclusion",
    "verify_pages",
    "verify_service",
]
