"""The keys and certificates of a simulated site: a root of its own, shaped like Intel's.

Every common name says ``simulated``, so that nobody who looks at a certificate takes it for the vendor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attest._pck import SGX_EXTENSION

__all__ = ["Certificates", "Keys", "issue_certificates", "issue_crl", "pem_chain"]

PPID_BYTES, FMSPC_BYTES = 16, 6
PCE_ID = bytes(2)
CPU_SVN = (2, 2, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)
PCE_SVN = 11
_LIFETIME = timedelta(days=3650)
_ORGANISATION = "Cloister simulated site"


@dataclass(frozen=True, slots=True)
class Keys:
    """The private keys of a site. They live in one file that only its owner reads."""

    root: ec.EllipticCurvePrivateKey
    authority: ec.EllipticCurvePrivateKey
    pck: ec.EllipticCurvePrivateKey
    signing: ec.EllipticCurvePrivateKey
    attestation: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> Keys:
        """Fresh keys from the operating system's CSPRNG."""
        root, authority, pck, signing, attestation = (ec.generate_private_key(ec.SECP256R1()) for _ in range(5))
        return cls(root, authority, pck, signing, attestation)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the keys are certified as."""

    root: x509.Certificate
    authority: x509.Certificate
    pck: x509.Certificate
    signing: x509.Certificate


def issue_certificates(keys: Keys, *, ppid: bytes, fmspc: bytes, created: datetime) -> Certificates:
    """Root → platform CA → PCK, and root → TCB signing, valid from ``created``."""
    root = _certificate("Root CA", keys.root, None, keys.root, created, path_length=1)
    authority = _certificate("PCK Platform CA", keys.authority, root, keys.root, created, path_length=0)
    extension = _sgx_extension(ppid, fmspc)
    pck = _certificate("PCK Certificate", keys.pck, authority, keys.authority, created, extension=extension)
    signing = _certificate("TCB Signing", keys.signing, root, keys.root, created)
    return Certificates(root, authority, pck, signing)


def issue_crl(
    issuer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    revoked: Sequence[x509.Certificate],
    *,
    issued: datetime,
    next_update: datetime,
) -> bytes:
    """A CRL in DER."""
    builder = (
        x509.CertificateRevocationListBuilder().issuer_name(issuer.subject).last_update(issued).next_update(next_update)
    )
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    # dcap-qvl, the second opinion, refuses a list without it
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(issued)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def pem_chain(*certificates: x509.Certificate) -> str:
    """The certificates as one PEM text."""
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def _certificate(
    role: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    created: datetime,
    *,
    path_length: int | None = None,
    extension: bytes | None = None,
) -> x509.Certificate:
    is_ca = path_length is not None
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Simulated SGX {role}"),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(created)
        .not_valid_after(created + _LIFETIME)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(SGX_EXTENSION, extension), critical=False)
    return builder.sign(issuer_key, SHA256())


# ---- just enough DER, written ------------------------------------------------------------------------------------


def _sgx_extension(ppid: bytes, fmspc: bytes) -> bytes:
    base = SGX_EXTENSION.dotted_string
    tcb = [_entry(f"{base}.2.{i}", _integer(svn)) for i, svn in enumerate(CPU_SVN, 1)]
    tcb += [_entry(f"{base}.2.17", _integer(PCE_SVN)), _entry(f"{base}.2.18", _tlv(0x04, bytes(CPU_SVN)))]
    return _tlv(
        0x30,
        _entry(f"{base}.1", _tlv(0x04, ppid)),
        _entry(f"{base}.2", _tlv(0x30, *tcb)),
        _entry(f"{base}.3", _tlv(0x04, PCE_ID)),
        _entry(f"{base}.4", _tlv(0x04, fmspc)),
        _entry(f"{base}.5", _tlv(0x0A, b"\0")),
    )


def _entry(oid: str, value: bytes) -> bytes:
    return _tlv(0x30, _tlv(0x06, _oid(oid)), value)


def _tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(number) for number in dotted.split("."))
    out = bytearray([first * 40 + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(number & 0x7F | 0x80)
        out += bytes(reversed(digits))
    return bytes(out)
