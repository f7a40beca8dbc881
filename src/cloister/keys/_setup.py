"""Making a key manager's store, and opening it again: the state key and where it comes from."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import Field

from cloister.attest import Attester
from cloister.errors import InputError, IntegrityError
from cloister.keys._binding import administrator_info
from cloister.keys._core import genesis
from cloister.keys._log import MerkleLog
from cloister.keys._messages import AdministratorShare, TreeHead, sign_message
from cloister.keys._shamir import combine, split
from cloister.keys._store import Commit, KeyStore, require_schema
from cloister.keys._vault import Vault
from cloister.wire import (
    Digest,
    Envelope,
    Message,
    Name,
    OpeningKey,
    SealingKey,
    Secret,
    SigningKey,
    labelled_digest,
    parse_message,
)

__all__ = [
    "Initialised",
    "OpenedStore",
    "UnlockTerms",
    "initialise",
    "open_store",
    "read_terms",
    "recover_root",
    "require_share",
    "sealing_root",
]

SEALING_LABEL = "cloister/keys/state/v1"
_SIGN, _HPKE = "self/sign", "self/hpke"
MAX_ADMINISTRATORS = 255


class Commitment(Message):
    """What an administrator's share must hash to: a wrong one is turned away by itself."""

    number: int = Field(ge=1, le=MAX_ADMINISTRATORS)
    commitment: Digest


class UnlockTerms(Message):
    """Where the state key comes from. Kept in the clear beside the store: the host may break it, and gains nothing."""

    kind: Literal["sealing", "shares"]
    threshold: int = Field(default=1, ge=1, le=MAX_ADMINISTRATORS)
    administrators: dict[Name, Commitment] = Field(default_factory=dict[str, Commitment], max_length=MAX_ADMINISTRATORS)


@dataclass(frozen=True, slots=True)
class Initialised:
    """A new key manager, as the world may know it.

    Attributes:
        store: The store's id.
        sign: Public signing key, for manifests.
        hpke: Public HPKE key.
        shares: An administrator's name → the envelope with the share, which only that administrator opens.
    """

    store: str
    sign: str
    hpke: str
    shares: Mapping[str, Envelope]


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A store whose state key is known."""

    id: str
    vault: Vault
    sign: SigningKey
    opening: OpeningKey


def initialise(
    store: KeyStore,
    *,
    now: datetime,
    attester: Attester | None = None,
    administrators: Mapping[str, SealingKey] | None = None,
    threshold: int = 1,
) -> Initialised:
    """Makes a key manager in an empty store.

    Args:
        store: Where.
        now: Time of the log's first entry.
        attester: The TEE whose sealing keeps the state key, when there are no administrators.
        administrators: HPKE keys of those who shall unlock it; any ``threshold`` of them can.
        threshold: How many.

    Raises:
        InputError: 2403 the store holds one already; 2404 the threshold does not fit, or there is neither a TEE that
            seals nor an administrator.
    """
    store_id = secrets.token_hex(32)
    sign, opening = SigningKey.generate(), OpeningKey.generate()
    shares: dict[str, Envelope] = {}
    if administrators:
        root = Secret.random(32)
        pieces = split(root, threshold=threshold, count=len(administrators))
        numbered = dict(zip(sorted(administrators), pieces.items(), strict=True))
        commitments = {
            name: Commitment(number=number, commitment=_commitment(store_id, number, piece))
            for name, (number, piece) in numbered.items()
        }
        terms = UnlockTerms(kind="shares", threshold=threshold, administrators=commitments)
        for name, (number, piece) in numbered.items():
            info = administrator_info(store=store_id, administrator=name)
            share = AdministratorShare(
                key_manager=str(sign.public),
                store=store_id,
                number=number,
                administrator=name,
                threshold=threshold,
                sealed=administrators[name].seal(piece.reveal(), info=info),
            )
            shares[name] = sign_message(share, sign)
    else:
        root, terms = sealing_root(attester), UnlockTerms(kind="sealing")
    vault = Vault(root, store=store_id)
    first, log = genesis(sign=sign, opening=opening, now=now), MerkleLog()
    log.append(first.canonical())
    head = TreeHead(key_manager=str(sign.public), size=1, root=log.root().hex(), at=first.at)
    put = {_SIGN: vault.seal(_SIGN, sign.seed()), _HPKE: vault.seal(_HPKE, opening.seed())}
    meta = {"store": store_id.encode(), "unlock": terms.canonical()}
    store.create(meta, Commit((first.canonical(),), sign_message(head, sign).canonical(), put))
    return Initialised(store_id, str(sign.public), str(opening.public), shares)


def sealing_root(attester: Attester | None) -> Secret:
    """The secret that the TEE keeps for this code.

    Raises:
        InputError: 2404 when there is no TEE, or it has no sealing.
    """
    root = None if attester is None else attester.sealing_key(SEALING_LABEL)
    if root is None:
        raise InputError(2404, "this TEE has no sealing: the state key needs administrators", hint="pass --admin")
    return root


def read_terms(store: KeyStore) -> tuple[str, UnlockTerms]:
    """The store's id, and where its state key comes from.

    Raises:
        InputError: 2403 the store is not made; 2402 of another schema.
        IntegrityError: 5403 its meta data is not readable.
    """
    meta = store.meta()
    require_schema(meta)
    try:
        return meta["store"].decode(), parse_message(UnlockTerms, meta["unlock"], what="unlock terms")
    except (KeyError, UnicodeDecodeError, InputError):
        raise IntegrityError(5403, "the store's meta data is not readable") from None


def recover_root(terms: UnlockTerms, shares: Mapping[str, Secret]) -> Secret:
    """The state key's root, of enough administrators' shares.

    Raises:
        InputError: 2404 when they are too few.
    """
    if len(shares) < terms.threshold:
        raise InputError(2404, expected=f"{terms.threshold} shares", got=len(shares))
    numbered = {terms.administrators[name].number: share for name, share in shares.items()}
    chosen = dict(sorted(numbered.items())[: terms.threshold])
    return combine(chosen)


def require_share(store_id: str, terms: UnlockTerms, administrator: str, share: Secret) -> None:
    """Returns when this is the share that was made for the administrator.

    Raises:
        IntegrityError: 5410 otherwise.
    """
    made = terms.administrators.get(administrator)
    if made is None or not hmac.compare_digest(_commitment(store_id, made.number, share), made.commitment):
        raise IntegrityError(5410, f"this is not the share of {administrator!r} for this store")


def open_store(store: KeyStore, root: Secret) -> OpenedStore:
    """The store's own keys.

    Raises:
        InputError: 2402, 2403 as :func:`read_terms`.
        IntegrityError: 5403 when the root is another store's or another enclave's, or the store was damaged.
    """
    store_id, _ = read_terms(store)
    try:
        vault = Vault(root, store=store_id)
    except ValueError:
        raise IntegrityError(5403, "the store's meta data is not readable") from None
    boxes = store.boxes((_SIGN, _HPKE))
    sign = SigningKey(vault.open(_SIGN, boxes.get(_SIGN, b"")))
    return OpenedStore(store_id, vault, sign, OpeningKey(vault.open(_HPKE, boxes.get(_HPKE, b""))))


def _commitment(store_id: str, number: int, share: Secret) -> str:
    # a share has 256 bits of entropy, so its digest gives nothing away
    return labelled_digest(
        "cloister/share-commitment/v1", {"store": store_id, "number": number, "share": share.reveal().hex()}
    )
