"""The model user's side: evidence first, then one sealed request, then an answer that only this request can open."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from cloister.attest import SessionClaims, Verdict, check_session
from cloister.errors import IntegrityError, RefusedError, error_for
from cloister.keys import appraise_tee, require_tee
from cloister.manifest import Manifest
from cloister.serve._messages import (
    ANSWER_LABEL,
    CLIENT_LABEL,
    RECEIPT_LABEL,
    REQUEST_LABEL,
    Answer,
    ClientProof,
    EvidenceAnswer,
    EvidenceRequest,
    InferenceReceipt,
    InferenceRequest,
    ModelCard,
    SealedAnswer,
    SealedRequest,
    Tensor,
    context,
)
from cloister.wire import (
    Envelope,
    OpeningKey,
    SealingKey,
    SigningKey,
    VerifyKey,
    canonical,
    digest,
    open_envelope,
    parse_message,
)

__all__ = ["InferenceClient", "Prediction", "Signer"]


@dataclass(frozen=True, slots=True)
class Signer:
    """The party that asks, where the manifest names a service's clients."""

    name: str
    key: SigningKey


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer whose receipt was checked: outputs or card, the receipt, and the verdict on the service's evidence."""

    outputs: tuple[Tensor, ...]
    card: ModelCard | None
    receipt: InferenceReceipt
    envelope: Envelope
    verdict: Verdict


class InferenceClient:
    """One verified session with a service. Sans-IO: bytes to send come out, bytes received go in.

    The order is fixed: :meth:`hello`, :meth:`verify`, then any number of :meth:`ask` and :meth:`read`. Nothing about
    the input exists outside this object until the evidence was accepted.

    Args:
        manifest: The agreement, whose signatures the caller has checked.
        service: The service's name in it.
        model: The image id that the service must serve, if the caller knows it.
        signer: Who asks, where the manifest limits that.
    """

    def __init__(
        self, manifest: Manifest, service: str, *, model: str | None = None, signer: Signer | None = None
    ) -> None:
        if service not in manifest.services:
            raise RefusedError(3604, expected=sorted(manifest.services), got=service)
        self._manifest = manifest
        self._service = service
        self._model = model
        self._signer = signer
        self._nonce = secrets.token_bytes(32)
        self._claims: SessionClaims | None = None
        self._verdict: Verdict | None = None

    def hello(self) -> EvidenceRequest:
        """The evidence request, with this session's nonce."""
        return EvidenceRequest(nonce=self._nonce)

    def verify(self, answer: EvidenceAnswer, at: datetime) -> Verdict:
        """Accepts the service or raises.

        Raises:
            AttestationError: 41xx when the evidence, its binding to these claims or to this nonce does not hold.
            RefusedError: 3605 when the service serves another model than the one asked for.
        """
        claims = answer.claims
        tee = self._manifest.tees[self._manifest.services[self._service].tee]
        verdict = appraise_tee(tee, answer.evidence, at=at)
        require_tee(tee, answer.evidence, verdict)
        check_session(
            verdict,
            claims,
            purpose="service",
            nonce_name="client",
            nonce=self._nonce,
            at=at,
            manifest=self._manifest.id,
            stage=self._service,
        )
        if self._model is not None and claims.image != self._model:
            raise RefusedError(3605, expected=self._model, got=claims.image)
        self._claims, self._verdict = claims, verdict
        return verdict

    def ask(self, inputs: tuple[Tensor, ...]) -> tuple[SealedRequest, OpeningKey]:
        """A sealed request and the one-time key that opens its answer."""
        claims, _ = self._session()
        reply = OpeningKey.generate()
        proof = None
        if self._signer is not None:
            said = canonical({"claims": claims.digest(), "reply": str(reply.public)})
            proof = ClientProof(party=self._signer.name, signature=self._signer.key.sign(CLIENT_LABEL, said))
        request = InferenceRequest(inputs=inputs, reply=str(reply.public), client=proof)
        sealed = SealingKey.parse(claims.hpke).seal(request.canonical(), info=context(REQUEST_LABEL, claims.digest()))
        return SealedRequest(claims=claims.digest(), sealed=sealed), reply

    def read(self, answer: SealedAnswer, request: SealedRequest, reply: OpeningKey) -> Prediction:
        """Opens an answer and checks its receipt.

        Raises:
            IntegrityError: 5002 when it is not the answer to this request; 5601 when its receipt is not about it.
            CloisterError: what the service found wrong with the request.
        """
        claims, verdict = self._session()
        plaintext = reply.open(answer.sealed, info=context(ANSWER_LABEL, digest(request.sealed)))
        said = parse_message(Answer, plaintext, what="inference answer", max_bytes=256 << 20)
        if said.code is not None:
            raise error_for(said.code, f"the service refused: {said.what}")
        if said.receipt is None:
            raise IntegrityError(5601, "the answer carries no receipt")
        facts = open_envelope(said.receipt, RECEIPT_LABEL, VerifyKey.parse(claims.sign))
        receipt = parse_message(InferenceReceipt, facts, what="inference receipt")
        outputs = digest(canonical([tensor.as_json() for tensor in said.outputs]))
        expected = (claims.manifest, self._service, claims.image, claims.digest(), digest(request.sealed), outputs)
        got = (receipt.manifest, receipt.service, receipt.model, receipt.claims, receipt.request, receipt.outputs)
        if not hmac.compare_digest(repr(expected).encode(), repr(got).encode()):
            raise IntegrityError(5601)
        return Prediction(said.outputs, said.card, receipt, said.receipt, verdict)

    def _session(self) -> tuple[SessionClaims, Verdict]:
        if self._claims is None or self._verdict is None:
            raise RefusedError(3606)
        return self._claims, self._verdict
