"""The other end of the wire: asks a key manager, and believes only what it signed."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx

from cloister.errors import CloisterError, InputError, IntegrityError, PeerError, error_for
from cloister.keys._entries import Action
from cloister.keys._messages import (
    MAX_ENVELOPE_BYTES,
    Acknowledged,
    AttemptGrant,
    AttemptRequest,
    Challenge,
    ChallengeRequest,
    CheckpointReceipt,
    CollectChallengeRequest,
    Collected,
    ConsistencyProof,
    EvidenceRequest,
    KeyRelease,
    Refusal,
    RegistrationReceipt,
    RegistrationRequest,
    ReleaseRequest,
    RunGrant,
    RunRequest,
    ServiceEvidence,
    Signed,
    TreeHead,
    UnlockProgress,
    UnlockRequest,
    open_signed,
)
from cloister.keys._pages import LogPage, require_page
from cloister.keys._paths import PATHS
from cloister.keys._receipts import require_extends, require_receipt
from cloister.keys._selection import MAX_PAGE_ENTRIES, LogQuery
from cloister.manifest import SignedManifest
from cloister.wire import Envelope, Message, VerifyKey, parse_json, parse_message

__all__ = ["KeyManagerClient"]

S = TypeVar("S", bound=Signed)

_TIMEOUT_S = 30.0
_JSON = {"content-type": "application/json", "accept-encoding": "identity"}  # no compression: no bomb


class KeyManagerClient:
    """Asks one key manager. Safe for several threads.

    The host carries everything: an answer counts when ``key`` signed it as an answer of the kind that was asked for,
    and a refusal when it is signed too. Redirects are never followed, sizes are bounded.

    Args:
        url: Where it listens; a hint, nothing depends on who answers there.
        key: The signing key that the manifest names.
        transport: Carries requests, for tests; sockets when None.
        timeout_s: For connecting, and between two pieces of an answer.
    """

    def __init__(
        self, url: str, key: VerifyKey, *, transport: httpx.BaseTransport | None = None, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self.url, self.key = url.rstrip("/"), key
        self._http = httpx.Client(transport=transport, timeout=timeout_s, follow_redirects=False, headers=_JSON)
        weakref.finalize(self, self._http.close)  # a client that is dropped leaves no socket behind

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> KeyManagerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the service itself ----------------------------------------------------------------------------------

    def evidence(self, nonce: bytes | None = None) -> Envelope:
        """The service's evidence (:class:`ServiceEvidence`) over ``nonce``, or over a fresh one.

        Raises:
            IntegrityError: 5001 when another key signed it; 5407 when it is over another nonce.
        """
        nonce = nonce or secrets.token_bytes(32)
        envelope = self._post("/v1/evidence", EvidenceRequest(nonce=nonce))
        _require(self._opened(ServiceEvidence, envelope).claims.nonces == {"relying-party": nonce}, "evidence")
        return envelope

    def locked_evidence(self, nonce: bytes) -> tuple[Envelope, ServiceEvidence]:
        """The evidence of a service that is still locked, signed by the key that it attests to.

        Raises:
            IntegrityError: 5001 when that key did not sign it; 5407 when it is over another nonce.
        """
        envelope = self._post("/v1/evidence", EvidenceRequest(nonce=nonce))
        claimed = parse_message(ServiceEvidence, envelope.payload, what="evidence", max_bytes=MAX_ENVELOPE_BYTES)
        said = open_signed(ServiceEvidence, envelope, VerifyKey.parse(claimed.claims.sign))
        _require(said.claims.nonces == {"relying-party": nonce}, "evidence")
        return envelope, said

    def unlock(self, request: UnlockRequest, *, boot: VerifyKey) -> UnlockProgress:
        """Delivers a share; ``boot`` is the key in the locked service's evidence."""
        return open_signed(UnlockProgress, self._post("/v1/unlock", request), boot)

    # ---- parties ---------------------------------------------------------------------------------------------

    def install_manifest(self, signed: SignedManifest) -> Acknowledged:
        """Delivers the agreement."""
        return self._acknowledged("install-manifest", signed, signed.manifest.id)

    def install_key(self, install: Envelope, *, manifest: str) -> Acknowledged:
        """Delivers an owner's signed :class:`KeyInstall`."""
        return self._acknowledged("install-key", install, manifest)

    def suspend(self, suspension: Envelope, *, manifest: str) -> Acknowledged:
        """Delivers a party's signed :class:`Suspension`."""
        return self._acknowledged("suspend", suspension, manifest)

    def revoke(self, revocation: Envelope, *, manifest: str) -> Acknowledged:
        """Delivers an owner's signed :class:`Revocation`."""
        return self._acknowledged("revoke", revocation, manifest)

    def collect_challenge(self, request: CollectChallengeRequest) -> Challenge:
        """A session for collecting an output."""
        return self._opened(Challenge, self._post(PATHS["collect-challenge"], request))

    def collect(self, request: Envelope) -> Collected:
        """Delivers a party's signed :class:`CollectRequest`."""
        collected = self._opened(Collected, self._post(PATHS["collect"], request))
        require_receipt(collected.receipt, self.key)
        return collected

    # ---- runs ------------------------------------------------------------------------------------------------

    def start_run(self, manifest: str) -> Envelope:
        """A new run (:class:`RunGrant`), from the registrar."""
        envelope = self._post(PATHS["run"], RunRequest(manifest=manifest))
        _require(self._opened(RunGrant, envelope).manifest == manifest, "run grant")
        return envelope

    def start_attempt(self, run: Envelope, consumer: str) -> Envelope:
        """The next attempt of a stage, or start of a service (:class:`AttemptGrant`), from the registrar."""
        envelope = self._post(PATHS["attempt"], AttemptRequest(run=run, consumer=consumer))
        grant, whole = self._opened(AttemptGrant, envelope), self._opened(RunGrant, run)
        same = (grant.manifest, grant.run, grant.consumer) == (whole.manifest, whole.run, consumer)
        _require(same, "attempt grant")
        return envelope

    def challenge(self, grant: Envelope) -> Challenge:
        """A session for an attempt."""
        return self._opened(Challenge, self._post(PATHS["challenge"], ChallengeRequest(grant=grant)))

    def release(self, request: ReleaseRequest) -> Envelope:
        """The keys (:class:`KeyRelease`), sealed to the attested key."""
        envelope = self._post(PATHS["release"], request)
        self._opened(KeyRelease, envelope)
        return envelope

    def register(self, request: RegistrationRequest) -> Envelope:
        """The receipt (:class:`RegistrationReceipt`) for a registration."""
        envelope = self._post(PATHS["register"], request)
        receipt = self._opened(RegistrationReceipt, envelope)
        require_receipt(receipt.receipt, self.key)
        return envelope

    def save_checkpoint(self, checkpoint: Envelope) -> CheckpointReceipt:
        """Delivers a launcher's signed :class:`Checkpoint`."""
        receipt = self._opened(CheckpointReceipt, self._post(PATHS["checkpoint"], checkpoint))
        require_receipt(receipt.receipt, self.key)
        return receipt

    # ---- the log ---------------------------------------------------------------------------------------------

    def head(self) -> Envelope:
        """The newest :class:`TreeHead`."""
        envelope = self._get("/v1/log/head")
        self._opened(TreeHead, envelope)
        return envelope

    def consistency(self, kept: TreeHead) -> Envelope:
        """The proof (:class:`ConsistencyProof`) that the log extends a head that was kept; checked.

        Raises:
            IntegrityError: 5406 when it does not: the log was rolled back or forked.
        """
        try:
            envelope = self._get("/v1/log/proof", {"from": str(kept.size)})
        except CloisterError as error:
            if error.code != 3436:
                raise
            raise IntegrityError(5406, "the log is shorter than the head that was kept", expected=kept.size) from None
        require_extends(kept=kept, proof=self._opened(ConsistencyProof, envelope), key=self.key)
        return envelope

    def pages(
        self,
        head: TreeHead,
        *,
        manifest: str,
        run: str | None = None,
        selection: str = "all",
        start: int = 0,
        count: int | None = None,
    ) -> Iterator[tuple[Envelope, LogPage]]:
        """The log's entries under ``head`` that are about a manifest, page by page, each page checked as it comes.

        Args:
            head: What they are proven in; the log may grow meanwhile.
            manifest: Its id.
            run: Only this run, as ``selection`` says.
            selection: Which of them: a :data:`Selection`.
            start: How many of them to leave out at the beginning.
            count: How many to ask for in all; all of them when None.

        Raises:
            InputError: 2005 when that is no question.
            RefusedError: 3436 when the log is shorter than the head.
            IntegrityError: 5407, 5412, 5003 when a page is not what was asked for, skips or repeats.
        """
        question: dict[str, Any] = {"manifest": manifest, "selection": selection, "size": head.size}
        question |= {} if run is None else {"run": run}
        before: LogPage | None = None
        while True:
            few = MAX_PAGE_ENTRIES if count is None else min(MAX_PAGE_ENTRIES, count)
            asked = parse_message(LogQuery, {**question, "start": start, "count": few}, what="question")
            envelope = self._get("/v1/log/entries", {name: str(value) for name, value in asked.as_json().items()})
            page = self._opened(LogPage, envelope)
            require_page(page, asked, head=head, before=before)
            yield envelope, page
            before, start = page, start + len(page.entries)
            count = None if count is None else count - len(page.entries)
            if start >= page.total or count == 0:
                return

    # ---- inside ----------------------------------------------------------------------------------------------

    def _acknowledged(self, action: Action, body: Message, manifest: str) -> Acknowledged:
        said = self._opened(Acknowledged, self._post(PATHS[action], body))
        _require(said.manifest == manifest, "acknowledgement")
        require_receipt(said.receipt, self.key)
        return said

    def _opened(self, cls: type[S], envelope: Envelope) -> S:
        return open_signed(cls, envelope, self.key)

    def _post(self, path: str, body: Message) -> Envelope:
        return self._ask("POST", path, content=body.canonical())

    def _get(self, path: str, query: dict[str, str] | None = None) -> Envelope:
        return self._ask("GET", path, query=query)

    def _ask(self, method: str, path: str, *, content: bytes = b"", query: dict[str, str] | None = None) -> Envelope:
        try:
            with self._http.stream(method, self.url + path, content=content, params=query) as response:
                status, data = response.status_code, _bounded(response)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise PeerError(6401, f"'{self.url}' does not answer: {type(error).__name__}") from None
        if 300 <= status < 400:
            raise PeerError(6404, got=f"status {status}")
        try:
            if status == 200:
                return parse_message(Envelope, data, what="answer", max_bytes=MAX_ENVELOPE_BYTES)
            value = parse_json(data, what="answer", max_bytes=MAX_ENVELOPE_BYTES)
            signed = parse_message(Envelope, value["signed"], what="refusal") if "signed" in value else None
            code = value["error"]["code"]
        except (InputError, KeyError, TypeError) as error:
            raise PeerError(6402, f"status {status}: {type(error).__name__}", got=f"{len(data)} bytes") from None
        if signed is None:
            raise PeerError(6403, got=f"{code}"[:40])
        refusal = open_signed(Refusal, signed, self.key)
        if refusal.receipt is not None:
            require_receipt(refusal.receipt, self.key)
        raise error_for(refusal.code, refusal.what, refusal.expected, refusal.got, refusal.hint)


def _bounded(response: httpx.Response) -> bytes:
    chunks, size = list[bytes](), 0
    for chunk in response.iter_raw():
        size += len(chunk)
        if size > MAX_ENVELOPE_BYTES:
            raise PeerError(6402, "the answer is too large", expected=f"at most {MAX_ENVELOPE_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _require(same: bool, what: str) -> None:
    if not same:
        raise IntegrityError(5407, f"the {what} is about something else than was asked for")
