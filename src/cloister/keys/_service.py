"""A key manager as a service, before any HTTP: its own evidence, locked or open, then the desk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cloister.attest import Attester, SessionClaims
from cloister.errors import RefusedError
from cloister.keys._binding import unlock_info
from cloister.keys._context import Settings
from cloister.keys._desk import Desk
from cloister.keys._messages import (
    EvidenceRequest,
    ServiceEvidence,
    UnlockProgress,
    UnlockRequest,
    sign_message,
)
from cloister.keys._setup import open_store, read_terms, recover_root, require_share, sealing_root
from cloister.keys._store import KeyStore
from cloister.wire import Envelope, OpeningKey, Secret, SigningKey

__all__ = ["NONCE_NAME", "Service"]

NONCE_NAME = "relying-party"
"""The name under which whoever verifies the service puts their nonce."""

MAX_QUESTIONS = 4096  # digests of claims that one locked start remembers


@dataclass(frozen=True, slots=True)
class _Boot:
    """The keys of one start. While the service is locked they are all it has."""

    sign: SigningKey
    opening: OpeningKey
    claims: set[str]  # digests of the claims that were attested: shares are sealed to one of them


class Service:
    """One start of a key manager.

    Args:
        store: Where the state lies.
        attester: The TEE it runs in.
        clock: The host's clock.
        settings: Bounds.

    Raises:
        InputError: 2402, 2403 the store is not one of this release; 2404 it needs a TEE that seals.
        IntegrityError: 5403, 5404, 5405 the store is damaged.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        attester: Attester,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        settings: Settings | None = None,
    ) -> None:
        self._store, self._attester, self._clock, self._settings = store, attester, clock, settings
        self._boot = _Boot(SigningKey.generate(), OpeningKey.generate(), set())
        self._shares: dict[str, Secret] = {}
        self._lock = threading.Lock()
        self._desk: Desk | None = None
        self._store_id, self._terms = read_terms(store)
        if self._terms.kind == "sealing":
            self._open(sealing_root(attester))

    @property
    def locked(self) -> bool:
        """Whether administrators must unlock it first."""
        return self._desk is None

    @property
    def desk(self) -> Desk:
        """The open key manager.

        Raises:
            RefusedError: 3433 while it is locked.
        """
        if self._desk is None:
            raise RefusedError(3433, expected=f"{self._terms.threshold} shares", got=f"{len(self._shares)} shares")
        return self._desk

    def evidence(self, request: EvidenceRequest) -> Envelope:
        """The service's evidence over a nonce, and over the keys that it speaks with."""
        desk = self._desk
        if desk is not None:
            claims = self._claims(request, hpke=desk.core.hpke, sign=desk.core.name)
            return desk.core.sign(self._attest(claims, None))
        claims = self._claims(request, hpke=str(self._boot.opening.public), sign=str(self._boot.sign.public))
        with self._lock:
            if len(self._boot.claims) >= MAX_QUESTIONS:
                raise RefusedError(3425, expected=f"at most {MAX_QUESTIONS} questions while locked")
            self._boot.claims.add(claims.digest())
        return sign_message(self._attest(claims, self._progress()), self._boot.sign)

    def unlock(self, request: UnlockRequest) -> Envelope:
        """Takes one administrator's share; with enough of them the state opens.

        Raises:
            RefusedError: 3434 when it is open already.
            IntegrityError: 5002 the share was not sealed to this start; 5410 it is not the one that was made.
        """
        with self._lock:
            if self._desk is not None:
                raise RefusedError(3434)
            info = unlock_info(administrator=request.administrator, claims=request.claims)
            if request.claims not in self._boot.claims:
                raise RefusedError(3421, "the share answers no evidence of this start", got=request.claims)
            share = Secret(self._boot.opening.open(request.sealed, info=info))
            require_share(self._store_id, self._terms, request.administrator, share)
            self._shares[request.administrator] = share
            progress = self._progress()
            if len(self._shares) >= self._terms.threshold:
                self._open(recover_root(self._terms, self._shares))
                self._shares.clear()
            return sign_message(progress, self._boot.sign)

    def close(self) -> None:
        """Ends the desk."""
        if self._desk is not None:
            self._desk.close()
        self._store.close()

    def _open(self, root: Secret) -> None:
        opened = open_store(self._store, root)
        self._desk = Desk(
            self._store,
            opened.vault,
            sign=opened.sign,
            opening=opened.opening,
            clock=self._clock,
            settings=self._settings,
        )

    def _claims(self, request: EvidenceRequest, *, hpke: str, sign: str) -> SessionClaims:
        return SessionClaims(purpose="key-manager", nonces={NONCE_NAME: request.nonce}, hpke=hpke, sign=sign)

    def _attest(self, claims: SessionClaims, locked: UnlockProgress | None) -> ServiceEvidence:
        return ServiceEvidence(claims=claims, evidence=self._attester.attest(claims.report_data()), locked=locked)

    def _progress(self) -> UnlockProgress:
        return UnlockProgress(store=self._store_id, threshold=self._terms.threshold, received=len(self._shares))
