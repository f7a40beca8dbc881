"""An administrator's side: give a share of the state key to a locked service, once its evidence is verified."""

from __future__ import annotations

import secrets as secretlib
from datetime import datetime

from cloister.attest import check_session
from cloister.errors import IntegrityError, RefusedError
from cloister.keys._binding import administrator_info, unlock_info
from cloister.keys._client import KeyManagerClient
from cloister.keys._messages import AdministratorShare, UnlockProgress, UnlockRequest, open_signed
from cloister.keys._service import NONCE_NAME
from cloister.keys._tee import appraise_tee, require_tee
from cloister.manifest import Tee
from cloister.party import Identity
from cloister.wire import Envelope, SealingKey, VerifyKey

__all__ = ["unlock"]


def unlock(
    client: KeyManagerClient,
    share: Envelope,
    *,
    tee: Tee,
    identity: Identity,
    at: datetime,
    allow_simulated: bool = False,
) -> UnlockProgress:
    """Delivers the administrator's share, sealed to the enclave that ``tee`` describes and to nobody else.

    Args:
        client: The service, by the key manager's own signing key.
        share: The envelope that was made for this administrator at init.
        tee: The enclave that the key manager must run in.
        identity: The administrator.
        at: Now.
        allow_simulated: Accept SIMULATED evidence.

    Raises:
        IntegrityError: 5001 the share or the answer is not signed as it must be; 5410 the share is of another store
            or administrator; 5002 it does not open with this identity.
        AttestationError: the service's evidence is not of such an enclave.
        RefusedError: 3434 the service is open; 3435 SIMULATED without consent.
    """
    mine = open_signed(AdministratorShare, share, client.key)
    nonce = secretlib.token_bytes(32)
    _, said = client.locked_evidence(nonce)
    verdict = appraise_tee(tee, said.evidence, at=at)
    require_tee(tee, said.evidence, verdict)
    check_session(verdict, said.claims, purpose="key-manager", nonce_name=NONCE_NAME, nonce=nonce)
    if verdict.simulated and not allow_simulated:
        raise RefusedError(3435)
    if said.locked is None:
        raise RefusedError(3434)
    if said.locked.store != mine.store or mine.administrator != identity.name:
        raise IntegrityError(5410, expected=f"store {said.locked.store}", got=f"store {mine.store}")
    info = administrator_info(store=mine.store, administrator=identity.name)
    piece = identity.opening_key.open(mine.sealed, info=info)
    claims = said.claims.digest()
    sealed = SealingKey.parse(said.claims.hpke).seal(
        piece, info=unlock_info(administrator=identity.name, claims=claims)
    )
    request = UnlockRequest(administrator=identity.name, claims=claims, sealed=sealed)
    return client.unlock(request, boot=VerifyKey.parse(said.claims.sign))
