"""Receipt: what a stage did, signed by the key that its evidence binds.

A receipt is an in-toto Statement (its subjects are the sealed outputs, by image id) in a DSSE envelope, so that
supply-chain tools read it unchanged. Its predicate says what was read, under which evidence, in which sandbox.

Rules:

* Only a launcher signs one, once, after the script ended with status 0 and every output is sealed.
* The subjects are exactly the outputs; a receipt that says one thing twice and differently is refused.
* Of layers that left it says how many products there were and how many were checked. A stage that agreed on that
  says so, and no other one does.
* ``assurance: simulated`` and ``UNSANDBOXED`` are said in the receipt itself, and a manifest that names no
  simulated root fits no such receipt.
* Verifying needs bytes only: no file, no socket, no clock.

>>> from cloister.receipt import StageFacts, sign_receipt, verify_receipt
>>> from cloister.wire import SigningKey
>>> key = SigningKey.generate()
>>> facts = StageFacts(
...     manifest="a" * 64, run="r1", stage="train", attempt=1, inputs={"code": "b" * 64}, outputs={},
...     claims="c" * 64, evidence="d" * 64, assurance="simulated", sandbox="bubblewrap", exit_status=0,
...     started_at="2026-01-01T00:00:00Z", ended_at="2026-01-01T00:01:00Z",
... )
>>> verify_receipt(sign_receipt(facts, key=key), key=key.public) == facts
True
"""

from cloister.receipt._bundle import (
    MAX_BUNDLE_BYTES,
    AttemptRecord,
    Bundle,
    Collaterals,
    KeyManagerRecord,
    parse_bundle,
)
from cloister.receipt._statement import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Assurance,
    OffloadFacts,
    Resumed,
    Sandbox,
    SealedOutput,
    StageFacts,
    StageReceipt,
    Subject,
    SubjectDigest,
    sign_receipt,
    verify_receipt,
)

__all__ = [
    "MAX_BUNDLE_BYTES",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "Assurance",
    "AttemptRecord",
    "Bundle",
    "Collaterals",
    "KeyManagerRecord",
    "OffloadFacts",
    "Resumed",
    "Sandbox",
    "SealedOutput",
    "StageFacts",
    "StageReceipt",
    "Subject",
    "SubjectDigest",
    "parse_bundle",
    "sign_receipt",
    "verify_receipt",
]
