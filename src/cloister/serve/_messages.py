"""What a client and a service say to each other; numbers travel as raw bytes, since signed JSON has no floats."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.attest import Evidence, SessionClaims
from cloister.wire import B64, Digest, Envelope, Message, Name, Timestamp, canonical

__all__ = [
    "ANSWER_LABEL",
    "CLIENT_LABEL",
    "RECEIPT_LABEL",
    "REQUEST_LABEL",
    "Answer",
    "ClientProof",
    "EvidenceAnswer",
    "EvidenceRequest",
    "InferenceReceipt",
    "InferenceRequest",
    "ModelCard",
    "SealedAnswer",
    "SealedRequest",
    "Tensor",
    "TensorSpec",
    "context",
]

REQUEST_LABEL = "cloister/inference-request/v1"
ANSWER_LABEL = "cloister/inference-answer/v1"
RECEIPT_LABEL = "cloister/inference-receipt/v1"
CLIENT_LABEL = "cloister/inference-client/v1"

Datatype = Literal["FP32", "FP64", "INT64", "INT32", "UINT8", "BOOL"]
"""Open Inference Protocol v2 names."""


class Tensor(Message):
    """A named tensor: Open Inference Protocol v2 name, datatype and shape; ``data`` is C-ordered, little-endian."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    datatype: Datatype
    shape: tuple[Annotated[int, Field(ge=0, le=1 << 31)], ...] = Field(max_length=8)
    data: B64


class TensorSpec(Message):
    """What a model takes: -1 stands for a free dimension."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class ModelCard(Message):
    """What a client must know to ask: inputs, and the model's own names for columns and classes, where it has them."""

    inputs: tuple[TensorSpec, ...]
    features: tuple[str, ...] | None = Field(default=None, max_length=1 << 16)
    classes: tuple[str, ...] | None = Field(default=None, max_length=1 << 16)


class EvidenceRequest(Message):
    """Asks a service for evidence over the client's own 32-byte nonce."""

    nonce: B64


class EvidenceAnswer(Message):
    """The service's session claims and the evidence whose report data is their digest."""

    claims: SessionClaims
    evidence: Evidence


class ClientProof(Message):
    """Where a manifest names a service's clients: the party's signature over this request's one-time reply key."""

    party: Name
    signature: B64


class InferenceRequest(Message):
    """The plaintext of a request; without inputs it asks for the model's card.

    ``reply`` is a one-time HPKE key: nobody but its maker can read the answer.
    """

    version: Literal[1] = 1
    inputs: tuple[Tensor, ...] = Field(max_length=64)
    reply: str
    client: ClientProof | None = None


class SealedRequest(Message):
    """A request on the wire: HPKE to the key in the evidence, ``info`` over the claims that the client verified."""

    claims: Digest
    sealed: B64


class InferenceReceipt(Message):
    """What the service signs for each answer, with the key in its evidence."""

    version: Literal[1] = 1
    manifest: Digest
    run: str
    service: Name
    attempt: int
    model: Digest
    claims: Digest
    request: Digest
    outputs: Digest
    at: Timestamp
    assurance: Literal["hardware", "simulated"]


class Answer(Message):
    """The plaintext of an answer: outputs (or the card) and a receipt, or what was wrong with the request."""

    outputs: tuple[Tensor, ...] = ()
    card: ModelCard | None = None
    receipt: Envelope | None = None
    code: int | None = None
    what: str | None = None


class SealedAnswer(Message):
    """An answer on the wire: HPKE to the request's reply key, ``info`` over the request's digest."""

    sealed: B64


def context(label: str, digest: str) -> bytes:
    """HPKE ``info``: the label and the digest of what the message belongs to."""
    return canonical({"digest": digest, "label": label})
