"""The quotes and the collateral of a simulated site: the vendor's formats, byte for byte."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attest._evidence import Collateral, EvidenceType
from cloister.attest._quote import INTEL_QE_VENDOR, SGX_TEE, TDX_TEE
from cloister.attest._simulated_pki import CPU_SVN, PCE_ID, PCE_SVN, Certificates, Keys, issue_crl, pem_chain
from cloister.attest._tcb import TcbStatus
from cloister.attest._times import stamp

__all__ = ["CollateralKnobs", "TdKnobs", "build_collateral", "build_sgx_quote", "build_tdx_quote"]

_QE_SIGNER = {
    "sgx": hashlib.sha256(b"cloister simulated QE").digest(),
    "tdx": hashlib.sha256(b"cloister simulated TD QE").digest(),
}
_QE_PROD_ID, _QE_SVN = {"sgx": 1, "tdx": 2}, 4
_QE_ATTRIBUTES = bytes([0x11]) + bytes(15)
_QE_AUTH_DATA = bytes(range(32))
_MODULE_SVN = 5
_TEE_TCB_SVN = bytes([_MODULE_SVN, 1, 2]) + bytes(13)
_TDX_COMPONENTS = (_MODULE_SVN, 0, 2, *(0,) * 13)
_SEPT_VE_DISABLE, _TD_DEBUG, _SGX_DEBUG = 1 << 28, 1, 2
_SGX_INIT_MODE64 = 0x05
_XFAM = bytes.fromhex("e702060000000000")
_LIFETIME = timedelta(days=30)
_BACKDATED = timedelta(hours=1)  # a verifier whose clock runs a little behind still accepts what was just issued


@dataclass(frozen=True, slots=True)
class TdKnobs:
    """What a simulated TD may say about itself beyond its measurement; the defaults are a good TD's.

    Attributes:
        version: Quote version, 4 or 5; 5 carries the TD report 1.5.
        debug: Debuggable by the host.
        service_td: MRSERVICETD, needs version 5; all zero when None.
        sept_ve_disable: The guest is not interrupted by #VE on its private pages.
        migratable: The TD may be migrated.
        tee_tcb_svn: Versions of the TDX module at launch.
        tee_tcb_svn2: Versions of the module that is loaded; as ``tee_tcb_svn`` when None.
        rtmr: The four run-time measurement registers.
    """

    version: Literal[4, 5] = 4
    debug: bool = False
    service_td: bytes | None = None
    sept_ve_disable: bool = True
    migratable: bool = False
    tee_tcb_svn: bytes = _TEE_TCB_SVN
    tee_tcb_svn2: bytes | None = None
    rtmr: tuple[bytes, bytes, bytes, bytes] = (bytes(48), bytes(48), bytes(48), bytes(48))

    def attributes(self) -> bytes:
        """TDATTRIBUTES."""
        bits = (_TD_DEBUG if self.debug else 0) | (_SEPT_VE_DISABLE if self.sept_ve_disable else 0)
        return (bits | (1 << 29 if self.migratable else 0)).to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class CollateralKnobs:
    """What the site's collateral may say about its platform; the defaults are a good platform's.

    Attributes:
        status: Of the platform's TCB level.
        advisories: Of that level.
        qe_status: Of the quoting enclave's level.
        qe_advisories: Of that level.
        module_status: Of the TDX module's level.
        module_svn: Lowest version of that level.
        fmspc: The platform that it is about; the site's own when None.
        evaluation: tcbEvaluationDataNumber.
        lifetime: From issue to next update.
        revoked: Certificates that the CRLs name: any of ``pck``, ``authority``, ``signing``.
        unmatched: No TCB level matches.
    """

    status: TcbStatus = "UpToDate"
    advisories: tuple[str, ...] = ()
    qe_status: TcbStatus = "UpToDate"
    qe_advisories: tuple[str, ...] = ()
    module_status: TcbStatus = "UpToDate"
    module_svn: int = _MODULE_SVN
    fmspc: bytes | None = None
    evaluation: int = 17
    lifetime: timedelta = _LIFETIME
    revoked: frozenset[Literal["pck", "authority", "signing"]] = frozenset()
    unmatched: bool = False


# ---- quotes ------------------------------------------------------------------------------------------------------


def build_tdx_quote(
    keys: Keys, certificates: Certificates, *, measurement: bytes, config_id: bytes, report_data: bytes, knobs: TdKnobs
) -> bytes:
    """A TDX quote v4 (TD report 1.0) or v5 (TD report 1.5)."""
    body = b"".join(
        (
            knobs.tee_tcb_svn,
            hashlib.sha384(b"cloister simulated TDX module").digest(),
            bytes(48),
            bytes(8),
            knobs.attributes(),
            _XFAM,
            measurement,
            config_id,
            bytes(96),
            *knobs.rtmr,
            report_data,
        )
    )
    if knobs.version == 5:
        body += (knobs.tee_tcb_svn2 or knobs.tee_tcb_svn) + (knobs.service_td or bytes(48))
        body = struct.pack("<HI", 3, len(body)) + body
    signed = _header(knobs.version, TDX_TEE) + body
    inner = _qe_part(keys, certificates, "tdx")
    auth = _sign(keys.attestation, signed) + _point(keys.attestation) + struct.pack("<HI", 6, len(inner)) + inner
    return signed + struct.pack("<I", len(auth)) + auth


def build_sgx_quote(
    keys: Keys,
    certificates: Certificates,
    *,
    measurement: bytes,
    signer: bytes,
    config_id: bytes,
    report_data: bytes,
    debug: bool,
) -> bytes:
    """An SGX quote v3."""
    attributes = bytes([_SGX_INIT_MODE64 | (_SGX_DEBUG if debug else 0)]) + bytes(7) + _XFAM
    body = _enclave_report(attributes, measurement, signer, config_id, prod_id=0, svn=1, report_data=report_data)
    signed = _header(3, SGX_TEE) + body
    auth = _sign(keys.attestation, signed) + _point(keys.attestation) + _qe_part(keys, certificates, "sgx")
    return signed + struct.pack("<I", len(auth)) + auth


def _header(version: int, tee: int) -> bytes:
    return struct.pack("<HHIHH", version, 2, tee, 0, 0) + INTEL_QE_VENDOR + bytes(20)


def _enclave_report(
    attributes: bytes,
    mr_enclave: bytes,
    mr_signer: bytes,
    config_id: bytes,
    *,
    prod_id: int,
    svn: int,
    report_data: bytes,
) -> bytes:
    return b"".join(
        (
            bytes(CPU_SVN),
            bytes(32),
            attributes,
            mr_enclave,
            bytes(32),
            mr_signer,
            bytes(32),
            config_id,
            struct.pack("<HHH", prod_id, svn, 0),
            bytes(58),
            report_data,
        )
    )


def _qe_part(keys: Keys, certificates: Certificates, tee: EvidenceType) -> bytes:
    bound = hashlib.sha256(_point(keys.attestation) + _QE_AUTH_DATA).digest() + bytes(32)
    mr_enclave = hashlib.sha256(b"cloister simulated quoting enclave").digest()
    signer, prod_id = _QE_SIGNER[tee], _QE_PROD_ID[tee]
    report = _enclave_report(
        _QE_ATTRIBUTES, mr_enclave, signer, bytes(64), prod_id=prod_id, svn=_QE_SVN, report_data=bound
    )
    chain = pem_chain(certificates.pck, certificates.authority, certificates.root).encode() + b"\0"
    return b"".join(
        (
            report,
            _sign(keys.pck, report),
            struct.pack("<H", len(_QE_AUTH_DATA)),
            _QE_AUTH_DATA,
            struct.pack("<HI", 5, len(chain)),
            chain,
        )
    )


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


# ---- collateral --------------------------------------------------------------------------------------------------


def build_collateral(
    keys: Keys,
    certificates: Certificates,
    *,
    tee: EvidenceType,
    fmspc: bytes,
    at: datetime,
    not_before: datetime,
    knobs: CollateralKnobs,
) -> Collateral:
    """Collateral issued just before ``at``, never before ``not_before``."""
    issued = max(at - _BACKDATED, not_before).replace(microsecond=0)
    until = issued + knobs.lifetime
    tcb_info = _compact(_tcb_info(tee, knobs.fmspc or fmspc, issued, until, knobs))
    identity = _compact(_qe_identity(tee, issued, until, knobs))
    signers = pem_chain(certificates.signing, certificates.root)
    by_root = [getattr(certificates, name) for name in ("authority", "signing") if name in knobs.revoked]
    by_authority = [certificates.pck] if "pck" in knobs.revoked else []
    return Collateral(
        pck_crl_issuer_chain=pem_chain(certificates.authority, certificates.root),
        root_ca_crl=issue_crl(certificates.root, keys.root, by_root, issued=issued, next_update=until).hex(),
        pck_crl=issue_crl(certificates.authority, keys.authority, by_authority, issued=issued, next_update=until).hex(),
        tcb_info_issuer_chain=signers,
        tcb_info=tcb_info,
        tcb_info_signature=_sign(keys.signing, tcb_info.encode()).hex(),
        qe_identity_issuer_chain=signers,
        qe_identity=identity,
        qe_identity_signature=_sign(keys.signing, identity.encode()).hex(),
    )


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _dated(identifier: str, version: int, issued: datetime, until: datetime, knobs: CollateralKnobs) -> dict[str, Any]:
    window = {"issueDate": stamp(issued), "nextUpdate": stamp(until)}
    return {"id": identifier, "version": version, **window, "tcbEvaluationDataNumber": knobs.evaluation}


def _level(tcb: dict[str, Any], issued: datetime, status: str, advisories: tuple[str, ...]) -> dict[str, Any]:
    date = stamp(issued.replace(hour=0, minute=0, second=0))
    level: dict[str, Any] = {"tcb": tcb, "tcbDate": date, "tcbStatus": status}
    if advisories:
        level["advisoryIDs"] = list(advisories)
    return level


def _tcb_info(
    tee: EvidenceType, fmspc: bytes, issued: datetime, until: datetime, knobs: CollateralKnobs
) -> dict[str, Any]:
    info = _dated(tee.upper(), 3, issued, until, knobs)
    info |= {"fmspc": fmspc.hex().upper(), "pceId": PCE_ID.hex(), "tcbType": 0}
    pce_svn = PCE_SVN + 1 if knobs.unmatched else PCE_SVN
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn} for svn in CPU_SVN], "pcesvn": pce_svn}
    if tee == "tdx":
        module = {"mrsigner": bytes(48).hex(), "attributes": bytes(8).hex(), "attributesMask": "FF" * 8}
        levels = [_level({"isvsvn": knobs.module_svn}, issued, knobs.module_status, ())]
        if knobs.module_status != "UpToDate":
            levels.insert(0, _level({"isvsvn": knobs.module_svn + 1}, issued, "UpToDate", ()))
        info |= {"tdxModule": module, "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": levels}]}
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in _TDX_COMPONENTS]
    return info | {"tcbLevels": [_level(tcb, issued, knobs.status, knobs.advisories)]}


def _qe_identity(tee: EvidenceType, issued: datetime, until: datetime, knobs: CollateralKnobs) -> dict[str, Any]:
    return _dated("QE" if tee == "sgx" else "TD_QE", 2, issued, until, knobs) | {
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": _QE_ATTRIBUTES.hex().upper(),
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": _QE_SIGNER[tee].hex().upper(),
        "isvprodid": _QE_PROD_ID[tee],
        "tcbLevels": [_level({"isvsvn": _QE_SVN}, issued, knobs.qe_status, knobs.qe_advisories)],
    }
