"""Who is at the other end of a link: TLS 1.3 in which both sides show that they hold a pinned key.

A party's certificate is made when a link is opened: for a fresh key, and signed with the party's pinned ed25519 key.
The pinned key itself is never given to OpenSSL, and a certificate serves for a day. For each peer we make the *anchor*
ourselves, a certificate that names the pinned key; OpenSSL accepts only what an anchor's key signed, and
:func:`whose` verifies that signature once more, so that no rule of path building decides who somebody is.

A signature over a certificate never passes for one over a labelled payload: the first begins with 0x30, the latter
with ``DSSEv1``.
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from cloister.errors import PeerError
from cloister.wire import SigningKey, VerifyKey

__all__ = ["context", "whose"]

_VALID = timedelta(days=1)  # to both sides of now: clocks may differ, and a session may last


def context(own: SigningKey, peers: Iterable[VerifyKey], *, listening: bool) -> ssl.SSLContext:
    """TLS 1.3 with a certificate of ours, for links to these peers and nobody else.

    Args:
        own: The key that the others have pinned.
        peers: The keys that may be at the other end.
        listening: Whether the other side opens the link.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if listening else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # an address is a hint: who somebody is, the key says
    made.verify_mode = ssl.CERT_REQUIRED
    if listening:
        made.num_tickets = 0  # a link is opened once
    made.load_verify_locations(cadata=b"".join(_anchor(key) for key in peers))
    _load(made, own)
    return made


def whose(link: ssl.SSLSocket, peers: Mapping[int, VerifyKey]) -> int:
    """The number of the peer at the other end of a link whose handshake is done.

    Raises:
        PeerError: 6908 when no such peer's key signed the certificate.
    """
    data = link.getpeercert(binary_form=True)
    certificate = x509.load_der_x509_certificate(data) if data else None
    for number, key in peers.items():
        if certificate is not None and certificate.issuer == _name(key) and _signed_by(certificate, key):
            return number
    raise PeerError(6908)


def _signed_by(certificate: x509.Certificate, key: VerifyKey) -> bool:
    try:
        public = Ed25519PublicKey.from_public_bytes(key.raw)
        public.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except InvalidSignature:
        return False
    return True


def _name(key: VerifyKey) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key.id)])


def _anchor(key: VerifyKey) -> bytes:
    """A certificate that names the key. Who signed it means nothing: it is trusted because we made it."""
    public = Ed25519PublicKey.from_public_bytes(key.raw)
    made = _certificate(_name(key), _name(key), public, Ed25519PrivateKey.generate(), authority=True)
    return made.public_bytes(serialization.Encoding.DER)


def _load(into: ssl.SSLContext, own: SigningKey) -> None:
    """A fresh key and its certificate. OpenSSL reads them from a file: encrypted, private, and gone at once."""
    fresh, password = Ed25519PrivateKey.generate(), secrets.token_bytes(32).hex().encode()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a link")])
    issuer = Ed25519PrivateKey.from_private_bytes(own.seed().reveal())
    made = _certificate(subject, _name(own.public), fresh.public_key(), issuer, authority=False)
    key = fresh.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "link.pem"
        path.touch(mode=0o600)
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key)
        into.load_cert_chain(path, password=password)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, signer: Ed25519PrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
    )
    return builder.sign(signer, None)
