"""Attest: evidence in, claims out.

What a confidential machine says about itself is bytes that its owner's worst enemy may have handed over. This room
turns them into *claims*, each with a status (``asserted``, ``refuted`` or ``unknown``), a source and a reason, and
lets a policy decide over the asserted ones.

Rules:

* Nothing here returns a bare boolean. A :class:`Verdict` has no truth value; ``require()`` returns or raises.
* ``unknown`` is never acceptance. What could not be examined (no collateral, no certificate chain, no matching TCB
  level) is refused as surely as what is false, under its own code.
* A verdict is a function of evidence, collateral, policy, roots and *time*. There is no clock, no network and no
  cache of results; parsed certificates are remembered by their bytes, never whether they hold.
* Roots are pinned by public key. A chain is built by issuer, never by position.
* Debug, service TDs, advisories and every attribute are claims: the verifier reports, the policy refuses.
* A simulated site speaks the real TDX and SGX formats under a development root of its own. One verifier serves both;
  ``VENDOR_ROOTS`` never accepts a development root, and whoever adds one gets verdicts whose ``assurance`` is
  ``"simulated"``.
* Bytes after a quote are refused unless all are zero: hosts hand out padded buffers, and zeros say nothing.

>>> from datetime import UTC, datetime
>>> from cloister import attest
>>> evidence = attest.Evidence(type="tdx", quote=b"not a quote")
>>> verdict = attest.appraise(evidence, None, attest.DEFAULT_POLICY, datetime(2026, 11, 20, tzinfo=UTC))
>>> verdict.outcome
'refuted'
>>> verdict.claim("evidence.format").reason
'quote is cut short at header; expected 48 bytes; got 11 bytes'
"""

from cloister.attest._appraise import VERIFIERS, Verifier, appraise
from cloister.attest._attester import Attester
from cloister.attest._claims import Claim, ClaimStatus, ClaimValue, Verdict
from cloister.attest._evidence import (
    MAX_COLLATERAL_BYTES,
    MAX_QUOTE_BYTES,
    Collateral,
    Evidence,
    EvidenceType,
    parse_collateral,
    parse_evidence,
)
from cloister.attest._policy import (
    DANGEROUS_DEVELOPMENT_POLICY,
    DEFAULT_POLICY,
    MAX_POLICY_BYTES,
    Policy,
    PolicyTrace,
    parse_policy,
)
from cloister.attest._roots import VENDOR_ROOTS, Root, TrustRoots
from cloister.attest._session import NONCE_BYTES, Purpose, SessionClaims, check_session
from cloister.attest._simulated import SimulatedAttester, SimulatedSite
from cloister.attest._simulated_quote import CollateralKnobs, TdKnobs
from cloister.attest._times import parse_time
from cloister.attest._tsm import ConfigfsTsmAttester, find_attester

__all__ = [
    "DANGEROUS_DEVELOPMENT_POLICY",
    "DEFAULT_POLICY",
    "MAX_COLLATERAL_BYTES",
    "MAX_POLICY_BYTES",
    "MAX_QUOTE_BYTES",
    "NONCE_BYTES",
    "VENDOR_ROOTS",
    "VERIFIERS",
    "Attester",
    "Claim",
    "ClaimStatus",
    "ClaimValue",
    "Collateral",
    "CollateralKnobs",
    "ConfigfsTsmAttester",
    "Evidence",
    "EvidenceType",
    "Policy",
    "PolicyTrace",
    "Purpose",
    "Root",
    "SessionClaims",
    "SimulatedAttester",
    "SimulatedSite",
    "TdKnobs",
    "TrustRoots",
    "Verdict",
    "Verifier",
    "appraise",
    "check_session",
    "find_attester",
    "parse_collateral",
    "parse_evidence",
    "parse_policy",
    "parse_time",
]
