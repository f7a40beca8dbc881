"""Manifest: what the parties agreed, as one signed document.

Rules:

* A person writes YAML; what is signed is the RFC 8785 JSON of the whole manifest, every default written out. Its id
  is the SHA-256 of those bytes, and any change is another manifest.
* The reader refuses what it does not know: unknown and duplicate keys, floats, aliases, tags, names that look alike.
* :func:`require_sound` holds the parts together: one producer an output, every output released somewhere or
  explicitly to nobody, every name defined, no cycle, no key shared.
* :func:`require_signed` is the question to ask before acting on a manifest: sound, and signed by the owner of
  everything that is read. A signature covers a label and the id, and nothing else.
* :func:`review` says what signing means, and :func:`leaks_of` who can finally learn what from whose data.

>>> from cloister import manifest
>>> manifest.load_manifest(b"{cloister: 1, nam: demo}", what="demo.yaml")
Traceback (most recent call last):
    ...
cloister.errors._tree.InputError: error[CLOISTER-2308]: demo.yaml:1:15: unknown key 'nam', did you mean 'name'?
"""

from cloister.manifest._checks import check, require_sound
from cloister.manifest._environment import check_environment
from cloister.manifest._finding import Finding
from cloister.manifest._graph import (
    consumers_of,
    contributors_of,
    inputs_of,
    producer_of,
    reachable_images,
    readers_of_findings,
    required_signers,
    stage_order,
)
from cloister.manifest._leaks import ANYONE, COLLUSION, MODE_LEAKS, Leak, leaks_of
from cloister.manifest._load import Draft, load_draft, load_manifest
from cloister.manifest._model import (
    MANIFEST_LABEL,
    OFFLOAD_WORKERS,
    PRIVATE_TRAINING,
    CheckpointTerms,
    Image,
    KeyManager,
    Limits,
    LinkUrl,
    Manifest,
    OffloadMode,
    OffloadTerms,
    Output,
    Party,
    PrivacyBudget,
    PrivacyTerms,
    Release,
    Service,
    SignedManifest,
    Stage,
    Tee,
    Validity,
    Worker,
)
from cloister.manifest._privacy import Reach, order_of, price_of_terms, private_stages, reaches_of
from cloister.manifest._review import Review, Section, changes, review
from cloister.manifest._schema import reference, schema
from cloister.manifest._signatures import (
    MAX_SIGNED_BYTES,
    load_signed,
    merge,
    propose,
    require_pinned,
    require_signed,
    sign,
    verify_signatures,
)
from cloister.manifest._template import template
from cloister.manifest._units import size_bytes

__all__ = [
    "ANYONE",
    "COLLUSION",
    "MANIFEST_LABEL",
    "MAX_SIGNED_BYTES",
    "MODE_LEAKS",
    "OFFLOAD_WORKERS",
    "PRIVATE_TRAINING",
    "CheckpointTerms",
    "Draft",
    "Finding",
    "Image",
    "KeyManager",
    "Leak",
    "Limits",
    "LinkUrl",
    "Manifest",
    "OffloadMode",
    "OffloadTerms",
    "Output",
    "Party",
    "PrivacyBudget",
    "PrivacyTerms",
    "Reach",
    "Release",
    "Review",
    "Section",
    "Service",
    "SignedManifest",
    "Stage",
    "Tee",
    "Validity",
    "Worker",
    "changes",
    "check",
    "check_environment",
    "consumers_of",
    "contributors_of",
    "inputs_of",
    "leaks_of",
    "load_draft",
    "load_manifest",
    "load_signed",
    "merge",
    "order_of",
    "price_of_terms",
    "private_stages",
    "producer_of",
    "propose",
    "reachable_images",
    "reaches_of",
    "readers_of_findings",
    "reference",
    "require_pinned",
    "require_signed",
    "require_sound",
    "required_signers",
    "review",
    "schema",
    "sign",
    "size_bytes",
    "stage_order",
    "template",
    "verify_signatures",
]
