"""Certificates and revocation lists: parsed, then chained *by issuer*, never by position.

Rules:

* A chain ends at a self-signed certificate whose *key* is pinned; everything on it is P-256 with SHA-256.
* Every certificate that evidence or collateral brings along must lead there, also one that no check needs: a bag with
  a foreign certificate in it was tampered with.
* Parsing is memoised by bytes; signatures, dates and revocation are examined in every appraisal.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from cloister.attest._roots import Root, TrustRoots
from cloister.attest._times import stamp
from cloister.errors import AttestationError

__all__ = ["Certificate", "Chain", "Chains", "RevocationList", "parse_crl", "parse_pem"]

T = TypeVar("T", bound=x509.ExtensionType)

MAX_CERTIFICATES = 8  # a DCAP chain has three; more only costs the verifier signatures
MAX_DEPTH = 4
_BLOCK = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]{1,8192}\r?\n)+)-----END CERTIFICATE-----(?:(?:\r?\n)+|\Z)"
)
_KNOWN_CRITICAL = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE}
_KNOWN_CRL_EXTENSIONS = {ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER}


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """A parsed certificate; nothing about it is verified yet."""

    der: bytes
    x509: x509.Certificate
    key: ec.EllipticCurvePublicKey
    spki_sha256: str
    common_name: str
    subject: bytes
    issuer: bytes
    not_before: datetime
    not_after: datetime
    is_ca: bool
    path_length: int | None
    signs_certificates: bool
    signs_crls: bool

    def extension(self, oid: x509.ObjectIdentifier) -> bytes | None:
        """The raw value of a non-standard extension, or None."""
        for extension in self.x509.extensions:
            if extension.oid == oid and isinstance(extension.value, x509.UnrecognizedExtension):
                return extension.value.value
        return None


@dataclass(frozen=True, slots=True, eq=False)
class RevocationList:
    """A parsed CRL; nothing about it is verified yet."""

    x509: x509.CertificateRevocationList
    issuer: bytes
    this_update: datetime
    next_update: datetime


@dataclass(frozen=True, slots=True)
class Chain:
    """Leaf first, root last; every signature on it verified."""

    certificates: tuple[Certificate, ...]
    root: Root

    @property
    def leaf(self) -> Certificate:
        """The certificate that the chain was built for."""
        return self.certificates[0]


def parse_pem(data: bytes, what: str) -> tuple[Certificate, ...]:
    """The certificates of a PEM text; one final NUL is tolerated, because quoting libraries write one.

    Raises:
        AttestationError: 4110 when it is anything but well-formed certificates, or has more than eight.
    """
    text = data[:-1] if data.endswith(b"\0") else data
    found: list[Certificate] = []
    at = 0
    while at < len(text):
        block = _BLOCK.match(text, at)
        if block is None or len(found) == MAX_CERTIFICATES:
            raise AttestationError(4110, f"{what}: not a PEM chain of at most {MAX_CERTIFICATES} certificates")
        found.append(_parse_certificate(_decode(block.group(1), what)))
        at = block.end()
    if not found:
        raise AttestationError(4110, f"{what}: no certificate in it")
    return tuple(found)


def parse_crl(data: bytes, what: str) -> RevocationList:
    """A CRL from its DER.

    Raises:
        AttestationError: 4115 when it is not a CRL that we understand in full.
    """
    try:
        crl = _parse_crl(data)
    except AttestationError as error:
        raise AttestationError(4115, f"{what}: {error.what}") from None
    return crl


class Chains:
    """Builds chains within one appraisal, verifying each certificate once.

    Args:
        roots: The keys that may end a chain.
    """

    def __init__(self, roots: TrustRoots) -> None:
        self._roots = roots
        self._pool: dict[bytes, Certificate] = {}
        self._built: dict[bytes, Chain] = {}

    def add(self, certificates: Iterable[Certificate]) -> None:
        """Puts certificates among the candidate issuers."""
        for certificate in certificates:
            self._pool.setdefault(certificate.der, certificate)

    def build(self, leaf: Certificate) -> Chain:
        """The chain from ``leaf`` to an accepted root.

        Raises:
            AttestationError: 4110 no issuer in the pool signed it, or an issuer may not; 4112 the chain ends at a
                root that is not pinned.
        """
        chain = self._build(leaf, 0)
        for below, issuer in enumerate(chain.certificates[1:]):
            if issuer.path_length is not None and issuer.path_length < below:
                raise AttestationError(4110, f"'{issuer.common_name}' may not stand so far above a leaf", got=below)
        return chain

    def _build(self, certificate: Certificate, depth: int) -> Chain:
        known = self._built.get(certificate.der)
        if known is not None:
            return known
        if depth >= MAX_DEPTH:
            raise AttestationError(4110, f"chain is longer than {MAX_DEPTH} certificates")
        chain = self._end(certificate) if certificate.subject == certificate.issuer else self._step(certificate, depth)
        self._built[certificate.der] = chain
        return chain

    def _end(self, certificate: Certificate) -> Chain:
        root = self._roots.find(certificate.spki_sha256)
        if root is None:
            raise AttestationError(
                4112,
                f"'{certificate.common_name}' is not among the accepted roots",
                expected=", ".join(f"{r.name} ({r.spki_sha256})" for r in self._roots.roots),
                got=certificate.spki_sha256,
            )
        if not (_may_issue(certificate) and _signed_by(certificate, certificate)):
            raise AttestationError(4110, f"'{certificate.common_name}' is not signed by its own key")
        return Chain((certificate,), root)

    def _step(self, certificate: Certificate, depth: int) -> Chain:
        candidates = [c for c in self._pool.values() if c.subject == certificate.issuer]
        candidates.sort(key=lambda c: c.not_after, reverse=True)  # of two certificates for one key, the younger
        if not candidates:
            raise AttestationError(4110, f"the issuer of '{certificate.common_name}' is not there")
        for issuer in candidates:
            if _may_issue(issuer) and _signed_by(certificate, issuer):
                above = self._build(issuer, depth + 1)
                return Chain((certificate, *above.certificates), above.root)
        raise AttestationError(4110, f"'{certificate.common_name}' is not signed by '{candidates[0].common_name}'")


def check_dates(chain: Chain, at: datetime) -> None:
    """Returns when every certificate of the chain is valid at ``at``.

    Raises:
        AttestationError: 4111 otherwise.
    """
    for certificate in chain.certificates:
        if not certificate.not_before <= at <= certificate.not_after:
            raise AttestationError(
                4111,
                f"'{certificate.common_name}' is not valid at {stamp(at)}",
                expected=f"{stamp(certificate.not_before)} to {stamp(certificate.not_after)}",
                got=stamp(at),
            )


def check_crl(crl: RevocationList, issuer: Certificate, at: datetime, what: str) -> None:
    """Returns when ``crl`` is the issuer's and in its window.

    Raises:
        AttestationError: 4115 not this issuer's, or its signature does not verify; 4131, 4132 outside its
            window.
    """
    if crl.issuer != issuer.subject or not issuer.signs_crls:
        raise AttestationError(4115, f"{what} is not of '{issuer.common_name}'", expected=issuer.common_name)
    if not _crl_signed_by(crl.x509, issuer):
        raise AttestationError(4115, f"{what}: signature of '{issuer.common_name}' does not verify")
    check_window(crl.this_update, crl.next_update, at, what)


def check_window(issued: datetime, next_update: datetime, at: datetime, what: str) -> None:
    """Returns when ``at`` lies between a document's issue and its next update.

    Raises:
        AttestationError: 4132 before; 4131 after.
    """
    if at < issued:
        raise AttestationError(4132, f"{what} was issued later", expected=f"{stamp(issued)} or later", got=stamp(at))
    if at > next_update:
        raise AttestationError(4131, f"{what} expired", expected=f"{stamp(next_update)} or earlier", got=stamp(at))


def check_not_revoked(certificate: Certificate, crl: RevocationList) -> None:
    """Returns when ``crl``, already checked, does not name the certificate.

    Raises:
        AttestationError: 4114 when it does.
    """
    entry = crl.x509.get_revoked_certificate_by_serial_number(certificate.x509.serial_number)
    if entry is not None:
        since = stamp(entry.revocation_date_utc)
        raise AttestationError(
            4114, f"'{certificate.common_name}' was revoked at {since}", got=hex(entry.serial_number)
        )


def verify_raw(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` (``r ‖ s``, 64 bytes) over ``data`` is of ``key``."""
    try:
        key.verify(_der_signature(signature), data, _ECDSA)
    except InvalidSignature:
        return False
    return True


def point(raw: bytes) -> ec.EllipticCurvePublicKey | None:
    """The P-256 key ``x ‖ y``, or None when it is not on the curve."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_P256, b"\x04" + raw)
    except ValueError:
        return None


_P256 = ec.SECP256R1()
_ECDSA = ec.ECDSA(SHA256())


def _der_signature(raw: bytes) -> bytes:
    parts: list[bytes] = []
    for half in (raw[:32], raw[32:]):
        digits = half.lstrip(b"\0") or b"\0"
        if digits[0] & 0x80:
            digits = b"\0" + digits
        parts.append(b"\x02" + bytes([len(digits)]) + digits)
    body = b"".join(parts)
    return b"\x30" + bytes([len(body)]) + body


def _may_issue(issuer: Certificate) -> bool:
    return issuer.is_ca and issuer.signs_certificates


def _signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        issuer.key.verify(certificate.x509.signature, certificate.x509.tbs_certificate_bytes, _ECDSA)
    except InvalidSignature:
        return False
    return True


def _crl_signed_by(crl: x509.CertificateRevocationList, issuer: Certificate) -> bool:
    try:
        issuer.key.verify(crl.signature, crl.tbs_certlist_bytes, _ECDSA)
    except InvalidSignature:
        return False
    return True


def _decode(lines: bytes, what: str) -> bytes:
    text = lines.replace(b"\r", b"").replace(b"\n", b"")
    try:
        der = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        der = b""
    if not der or base64.b64encode(der) != text:
        raise AttestationError(4110, f"{what}: not canonical base64")
    return der


@lru_cache(maxsize=256)
def _parse_certificate(der: bytes) -> Certificate:
    try:
        return _read_certificate(der)
    except AttestationError:
        raise
    except Exception as error:  # a parser may choke on hostile bytes in any way; the answer is the same
        raise AttestationError(4110, f"a certificate is malformed: {str(error)[:120]}") from None


def _read_certificate(der: bytes) -> Certificate:
    parsed = x509.load_der_x509_certificate(der)
    key = parsed.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AttestationError(4110, "a certificate's key is not P-256")
    if parsed.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise AttestationError(4110, "a certificate's signature is not ECDSA with SHA-256")
    if not der.endswith(b"\0" + parsed.signature):
        # a bit string may claim unused bits without changing its bytes: one certificate, one encoding
        raise AttestationError(4110, "a certificate's signature is not DER")
    for extension in parsed.extensions:
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise AttestationError(
                4110, f"a certificate has an unknown critical extension {extension.oid.dotted_string}"
            )
    constraints = _extension(parsed, x509.BasicConstraints)
    usage = _extension(parsed, x509.KeyUsage)
    names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(
        der=der,
        x509=parsed,
        key=key,
        spki_sha256=hashlib.sha256(spki).hexdigest(),
        common_name=str(names[0].value) if len(names) == 1 else "",
        subject=parsed.subject.public_bytes(),
        issuer=parsed.issuer.public_bytes(),
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
        is_ca=constraints is not None and constraints.ca,
        path_length=None if constraints is None else constraints.path_length,
        signs_certificates=usage is not None and usage.key_cert_sign,
        signs_crls=usage is not None and usage.crl_sign,
    )


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


@lru_cache(maxsize=64)
def _parse_crl(der: bytes) -> RevocationList:
    try:
        parsed = x509.load_der_x509_crl(der)
        if parsed.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
            raise AttestationError(4115, "signature is not ECDSA with SHA-256")
        if not der.endswith(b"\0" + parsed.signature):
            raise AttestationError(4115, "signature is not DER")
        for extension in parsed.extensions:
            if extension.oid not in _KNOWN_CRL_EXTENSIONS:  # a delta or partitioned list would leave certificates out
                raise AttestationError(4115, f"unknown extension {extension.oid.dotted_string}")
        next_update = parsed.next_update_utc
        if next_update is None:
            raise AttestationError(4115, "no next update")
        return RevocationList(parsed, parsed.issuer.public_bytes(), parsed.last_update_utc, next_update)
    except AttestationError:
        raise
    except Exception as error:  # a parser may choke on hostile bytes in any way; the answer is the same
        raise AttestationError(4115, f"malformed: {str(error)[:120]}") from None
