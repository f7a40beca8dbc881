"""The service's decisions, without IO: evidence for a nonce, one sealed request in, one sealed answer out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cloister.attest import Attester, SessionClaims
from cloister.errors import CloisterError, InputError, IntegrityError, RefusedError
from cloister.serve._messages import (
    ANSWER_LABEL,
    CLIENT_LABEL,
    RECEIPT_LABEL,
    REQUEST_LABEL,
    Answer,
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
    parse_message,
    sign_envelope,
)

__all__ = ["Identity", "ServiceCore"]

EPOCH = timedelta(hours=1)
OVERLAP = timedelta(minutes=10)  # a client may use evidence fetched just before the keys rolled
MAX_SEEN = 1 << 18  # replay memory per epoch: 64 bytes each, 16 MiB; a full memory refuses, it never forgets
MAX_REQUEST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """What this service is: fixed at its start by the key managers' release."""

    manifest: str
    run: str
    service: str
    attempt: int
    model: str
    clients: dict[str, VerifyKey]


@dataclass(slots=True)
class _Epoch:
    ends: datetime
    opening: OpeningKey = field(default_factory=OpeningKey.generate)
    seen: set[bytes] = field(default_factory=set)


class ServiceCore:
    """Answers requests for one model.

    Args:
        identity: Manifest, run, service, attempt, model and permitted clients.
        attester: Makes evidence over report data.
        signing: The key that signs receipts; it is in the evidence.
        predict: Inputs to outputs; raises ``CloisterError`` for inputs that do not fit.
        card: What the model takes, told to whoever may ask.

    Security: keys roll every hour; a request is accepted once per key, whatever it claims; what is wrong with a
    request is told only inside the sealed answer, so that the host does not learn it.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        attester: Attester,
        signing: SigningKey,
        predict: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
        card: ModelCard,
    ) -> None:
        self.identity = identity
        self._attester = attester
        self._signing = signing
        self._predict = predict
        self._card = card
        self._epochs: list[_Epoch] = []

    def evidence(self, request: EvidenceRequest, now: datetime) -> EvidenceAnswer:
        """Evidence over the client's nonce and the newest keys.

        Raises:
            InputError: 2605 when the nonce is not 32 bytes.
        """
        if len(request.nonce) != 32:
            raise InputError(2605, "a nonce has 32 bytes", got=f"{len(request.nonce)} bytes")
        epoch = self._current(now)
        claims = SessionClaims(
            version=1,
            purpose="service",
            nonces={"client": request.nonce},
            hpke=str(epoch.opening.public),
            sign=str(self._signing.public),
            manifest=self.identity.manifest,
            run=self.identity.run,
            stage=self.identity.service,
            attempt=self.identity.attempt,
            image=self.identity.model,
            not_after=(epoch.ends + OVERLAP).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        return EvidenceAnswer(claims=claims, evidence=self._attester.attest(claims.report_data()))

    def answer(self, request: SealedRequest, now: datetime) -> SealedAnswer:
        """Opens a request, runs the model, seals the answer to the request's own reply key.

        Raises:
            IntegrityError: 5002 when the request was not sealed to a living key of this service.
            RefusedError: 3602 when this very request was answered before.
        """
        epoch, plaintext = self._open(request, now)
        mark = bytes.fromhex(digest(request.sealed))
        if mark in epoch.seen:
            raise RefusedError(3602)
        question, reply = _parsed(plaintext)
        try:
            self._admit(question, request.claims)
            if len(epoch.seen) >= MAX_SEEN:  # only who may ask fills the memory
                raise RefusedError(3603)
            epoch.seen.add(mark)
            outputs = self._predict(question.inputs) if question.inputs else ()
            card = None if question.inputs else self._card
            answer = Answer(outputs=outputs, card=card, receipt=self._receipt(request, outputs, now))
        except CloisterError as error:
            answer = Answer(code=error.code, what=error.what)
        return SealedAnswer(sealed=reply.seal(answer.canonical(), info=context(ANSWER_LABEL, digest(request.sealed))))

    def _current(self, now: datetime) -> _Epoch:
        self._epochs = [epoch for epoch in self._epochs if now < epoch.ends + OVERLAP]
        if not self._epochs or now >= self._epochs[-1].ends:
            self._epochs.append(_Epoch(ends=now + EPOCH))
        return self._epochs[-1]

    def _open(self, request: SealedRequest, now: datetime) -> tuple[_Epoch, bytes]:
        self._current(now)
        info = context(REQUEST_LABEL, request.claims)
        for epoch in reversed(self._epochs):
            try:
                return epoch, epoch.opening.open(request.sealed, info=info)
            except IntegrityError:
                continue
        raise IntegrityError(5002, "the request was not sealed to a living key of this service")

    def _admit(self, question: InferenceRequest, claims: str) -> None:
        if not self.identity.clients:
            return
        proof = question.client
        key = self.identity.clients.get(proof.party) if proof else None
        if proof is None or key is None:
            raise RefusedError(3601, expected=sorted(self.identity.clients), got=proof.party if proof else "nobody")
        try:
            key.verify(CLIENT_LABEL, canonical({"claims": claims, "reply": question.reply}), proof.signature)
        except IntegrityError:
            raise RefusedError(3601, f"the request is not signed by '{proof.party}'") from None

    def _receipt(self, request: SealedRequest, outputs: tuple[Tensor, ...], now: datetime) -> Envelope:
        me = self.identity
        receipt = InferenceReceipt(
            manifest=me.manifest,
            run=me.run,
            service=me.service,
            attempt=me.attempt,
            model=me.model,
            claims=request.claims,
            request=digest(request.sealed),
            outputs=digest(canonical([tensor.as_json() for tensor in outputs])),
            at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            assurance="simulated" if self._attester.simulated else "hardware",
        )
        return sign_envelope(RECEIPT_LABEL, receipt.as_json(), self._signing)


def _parsed(plaintext: bytes) -> tuple[InferenceRequest, SealingKey]:
    """The request and where its answer goes. Without a reply key there is nobody to tell what was wrong in private.

    Raises:
        InputError: 2605, and no more, when it is not a request.
    """
    try:
        question = parse_message(
            InferenceRequest, plaintext, what="inference request", max_bytes=MAX_REQUEST_BYTES, secret=True
        )
        return question, SealingKey.parse(question.reply)
    except CloisterError:
        raise InputError(2605, "the sealed request is not an inference request") from None
