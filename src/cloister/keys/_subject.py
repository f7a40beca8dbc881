"""What a refused request was about, as far as it can be read. None of it is trusted: it only files the entry."""

from __future__ import annotations

from typing import Any

from cloister.errors import CloisterError
from cloister.keys._context import Prepared, Subject
from cloister.keys._messages import (
    AttemptGrant,
    AttemptRequest,
    ChallengeRequest,
    Checkpoint,
    CollectChallengeRequest,
    CollectRequest,
    KeyInstall,
    Registration,
    RegistrationRequest,
    ReleaseRequest,
    Revocation,
    RunGrant,
    RunRequest,
    Suspension,
)
from cloister.manifest import SignedManifest
from cloister.wire import Envelope, parse_message

__all__ = ["subject_of"]

_INSIDE = {
    cls.LABEL: cls
    for cls in (KeyInstall, Suspension, Revocation, CollectRequest, Registration, Checkpoint, AttemptGrant, RunGrant)
}


def subject_of(prepared: Prepared[Any]) -> Subject:
    """Manifest, run, name and attempt of the request, where it says them."""
    body = prepared.body
    match body:
        case SignedManifest():
            return Subject(manifest=body.manifest.id)
        case RunRequest():
            return Subject(manifest=body.manifest)
        case AttemptRequest():
            inside = _inside(body.run)
            return Subject(manifest=inside.manifest, run=inside.run, name=body.consumer)
        case ChallengeRequest() | ReleaseRequest():
            return _inside(body.grant)
        case RegistrationRequest():
            return _inside(body.registration)
        case CollectChallengeRequest():
            return Subject(manifest=body.manifest, run=body.run, name=body.output)
        case Envelope():
            return _inside(body)
        case _:
            return Subject()


def _inside(envelope: Envelope) -> Subject:
    cls = _INSIDE.get(envelope.payloadType)
    if cls is None:
        return Subject()
    try:
        claimed: Any = parse_message(cls, envelope.payload, what=cls.LABEL, max_bytes=1 << 20)
    except CloisterError:
        return Subject()
    names = ("consumer", "stage", "output", "image", "party")
    name = next((getattr(claimed, each) for each in names if hasattr(claimed, each)), None)
    return Subject(claimed.manifest, getattr(claimed, "run", None), name, getattr(claimed, "attempt", None))
