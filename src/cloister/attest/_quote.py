"""The bytes of a DCAP quote, taken apart; nothing in here is checked beyond its shape.

Source: Intel SGX ECDSA QuoteGenReference (quote v3), Intel TDX DCAP Quoting Library API, appendix 3 (v4, v5).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cloister.attest._evidence import MAX_QUOTE_BYTES
from cloister.errors import AttestationError

__all__ = ["EnclaveReport", "Quote", "TdReport", "parse_quote"]

HEADER_BYTES = 48
SGX_TEE, TDX_TEE = 0x00000000, 0x00000081
ECDSA_P256 = 2
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
QE_REPORT_CERTIFICATION, PCK_CHAIN_CERTIFICATION = 6, 5
ENCLAVE_REPORT_BYTES, TD_REPORT_10_BYTES, TD_REPORT_15_BYTES = 384, 584, 648
_V5_BODIES = {1: ENCLAVE_REPORT_BYTES, 2: TD_REPORT_10_BYTES, 3: TD_REPORT_15_BYTES}


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """An SGX report: of an application's enclave, or of the quoting enclave itself."""

    cpu_svn: bytes
    misc_select: bytes
    ext_prod_id: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    prod_id: int
    svn: int
    config_svn: int
    family_id: bytes
    report_data: bytes


@dataclass(frozen=True, slots=True)
class TdReport:
    """A TD report; the last two fields are of version 1.5 and None in version 1.0."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None
    mr_service_td: bytes | None


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote's parts.

    Attributes:
        version: 3, 4 or 5.
        tee: ``sgx`` or ``tdx``.
        body: The report that the quote is about.
        signed: Header and body as the quoting enclave signed them.
        signature: Over ``signed``, ``r ‖ s``, by ``attestation_key``.
        attestation_key: P-256 point, ``x ‖ y``.
        qe_report: The quoting enclave's own report, raw.
        qe_report_signature: Over ``qe_report`` by the platform's PCK.
        qe_auth_data: Bound, with the attestation key, by the QE's report data.
        certification_type: 5 when ``certification`` is a PEM chain.
        certification: What leads to the PCK.
        padding_bytes: How many zero bytes followed the quote.
    """

    version: int
    tee: str
    body: EnclaveReport | TdReport
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification: bytes
    padding_bytes: int


class _Reader:
    """Takes bytes off the front; every read is bounded."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, size_bytes: int, part: str) -> bytes:
        end = self._at + size_bytes
        if end > len(self._data):
            left = len(self._data) - self._at
            raise AttestationError(
                4101, f"{self._what} is cut short at {part}", expected=f"{size_bytes} bytes", got=f"{left} bytes"
            )
        piece, self._at = self._data[self._at : end], end
        return piece

    def u16(self, part: str) -> int:
        return int.from_bytes(self.take(2, part), "little")

    def u32(self, part: str) -> int:
        return int.from_bytes(self.take(4, part), "little")

    @property
    def at(self) -> int:
        return self._at

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at, "the end")

    def finish(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise AttestationError(4101, f"{self._what} is longer than its parts", got=f"{left} bytes too many")


def parse_quote(data: bytes) -> Quote:
    """A quote's parts.

    Trailing zero bytes are tolerated, because hosts hand out padded buffers and nothing can be said in zeros.

    Raises:
        AttestationError: 4101 malformed or cut short; 4102 unsupported version, TEE, body or key type; 4103 too
            large; 4104 bytes other than zero follow the quote.
    """
    if len(data) > MAX_QUOTE_BYTES:
        raise AttestationError(4103, expected=f"at most {MAX_QUOTE_BYTES} bytes", got=f"{len(data)} bytes")
    reader = _Reader(data, "quote")
    version, tee = _read_header(reader)
    body = _read_body(reader, version, tee)
    signed = data[: reader.at]
    auth = _Reader(reader.take(reader.u32("signature size"), "signature data"), "signature data")
    signature = auth.take(64, "quote signature")
    key = auth.take(64, "attestation key")
    if version > 3:
        kind = auth.u16("certification type")
        if kind != QE_REPORT_CERTIFICATION:
            raise AttestationError(
                4102, "certification data of a v4 or v5 quote", expected="type 6", got=f"type {kind}"
            )
        inner = _Reader(auth.take(auth.u32("certification size"), "certification data"), "certification data")
        auth.finish()
        auth = inner
    qe_report = auth.take(ENCLAVE_REPORT_BYTES, "QE report")
    qe_signature = auth.take(64, "QE report signature")
    qe_auth_data = auth.take(auth.u16("QE authentication data size"), "QE authentication data")
    certification_type = auth.u16("certification type")
    certification = auth.take(auth.u32("certification size"), "certification data")
    auth.finish()
    padding = reader.rest()
    if padding.strip(b"\0"):
        raise AttestationError(4104, expected="zero bytes or none", got=f"{len(padding)} bytes that are not all zero")
    return Quote(
        version=version,
        tee=tee,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        qe_auth_data=qe_auth_data,
        certification_type=certification_type,
        certification=certification,
        padding_bytes=len(padding),
    )


def _read_header(reader: _Reader) -> tuple[int, str]:
    header = reader.take(HEADER_BYTES, "header")
    version, key_type, tee_type = struct.unpack_from("<HHI", header)
    if version not in (3, 4, 5):
        raise AttestationError(4102, "quote version", expected="3, 4 or 5", got=version)
    if key_type != ECDSA_P256:
        raise AttestationError(4102, "attestation key type", expected="2 (ECDSA P-256)", got=key_type)
    tees = {SGX_TEE: "sgx"} if version == 3 else {SGX_TEE: "sgx", TDX_TEE: "tdx"}
    if tee_type not in tees:
        raise AttestationError(
            4102, f"TEE type of a v{version} quote", expected=" or ".join(tees.values()), got=hex(tee_type)
        )
    if header[12:28] != INTEL_QE_VENDOR:
        raise AttestationError(4102, "quoting enclave vendor", expected=INTEL_QE_VENDOR.hex(), got=header[12:28].hex())
    return version, tees[tee_type]


def _read_body(reader: _Reader, version: int, tee: str) -> EnclaveReport | TdReport:
    size = ENCLAVE_REPORT_BYTES if tee == "sgx" else TD_REPORT_10_BYTES
    if version == 5:
        kind, announced = reader.u16("body type"), reader.u32("body size")
        if kind not in _V5_BODIES or (kind == 1) != (tee == "sgx"):
            raise AttestationError(
                4102, f"body type of a v5 {tee} quote", expected="1 for SGX, 2 or 3 for TDX", got=kind
            )
        size = _V5_BODIES[kind]
        if announced != size:
            raise AttestationError(
                4101, f"size of body type {kind}", expected=f"{size} bytes", got=f"{announced} bytes"
            )
    body = reader.take(size, "body")
    return parse_enclave_report(body) if tee == "sgx" else _parse_td_report(body)


def parse_enclave_report(body: bytes) -> EnclaveReport:
    """The fields of 384 bytes."""
    prod_id, svn, config_svn = struct.unpack_from("<HHH", body, 256)
    return EnclaveReport(
        cpu_svn=body[0:16],
        misc_select=body[16:20],
        ext_prod_id=body[32:48],
        attributes=body[48:64],
        mr_enclave=body[64:96],
        mr_signer=body[128:160],
        config_id=body[192:256],
        prod_id=prod_id,
        svn=svn,
        config_svn=config_svn,
        family_id=body[304:320],
        report_data=body[320:384],
    )


def _parse_td_report(body: bytes) -> TdReport:
    reader = _Reader(body, "TD report")
    fixed = {name: reader.take(size, name) for name, size in _TD_FIELDS}
    rtmr = (reader.take(48, "RTMR0"), reader.take(48, "RTMR1"), reader.take(48, "RTMR2"), reader.take(48, "RTMR3"))
    report_data = reader.take(64, "report data")
    is_15 = len(body) == TD_REPORT_15_BYTES
    svn2 = reader.take(16, "TEE TCB SVN 2") if is_15 else None
    service_td = reader.take(48, "MRSERVICETD") if is_15 else None
    reader.finish()
    return TdReport(**fixed, rtmr=rtmr, report_data=report_data, tee_tcb_svn2=svn2, mr_service_td=service_td)


_TD_FIELDS = (
    ("tee_tcb_svn", 16),
    ("mr_seam", 48),
    ("mr_signer_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
)
