"""Certificates and revocation lists are read strictly: one certificate, one encoding, nothing beside it."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister import attest
from cloister.attest._certificates import parse_crl, parse_pem
from cloister.attest._pck import parse_platform
from cloister.attest._simulated_pki import _sgx_extension
from cloister.errors import AttestationError

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def chain(site: attest.SimulatedSite, at: datetime) -> str:
    return site.collateral(at).tcb_info_issuer_chain


def _pem_code(text: str | bytes) -> int | None:
    try:
        parse_pem(text if isinstance(text, bytes) else text.encode(), "chain")
    except AttestationError as error:
        return error.code
    return None


def _certificate(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, algorithm: SHA256 | SHA384 | None, *critical: str
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(SINCE)
        .not_valid_after(SINCE + timedelta(days=1))
    )
    for oid in critical:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x05\0"), critical=True
        )
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def test_a_chain_may_end_in_one_nul_and_have_either_line_end(chain: str) -> None:
    for text in (chain, chain + "\0", chain.replace("\n", "\r\n"), chain + "\n\n", chain.rstrip("\n")):
        assert len(parse_pem(text.encode(), "chain")) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "\0",
        lambda text: text + "\0\0",
        lambda text: text + "x",
        lambda text: "x" + text,
        lambda text: " " + text,
        lambda text: text.replace("-----END", "-----end"),
        lambda text: text.replace("\n", "", 1),
        lambda text: text * 5,
        lambda text: text.replace("\nMII", "\n\nMII"),
        lambda text: text.replace("\nMII", "\nMI"),
        lambda text: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ],
)
def test_anything_beside_well_formed_certificates_is_refused(chain: str, change: Callable[[str], str]) -> None:
    assert _pem_code(change(chain)) == 4110


def test_a_signature_that_claims_unused_bits_is_refused() -> None:
    """Its last bit is 0 here: of a bit that is unused and 1 every parser says that it is no DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = (x509.load_pem_x509_certificate(_certificate(key, SHA256())) for _ in range(64))
    first = next(each for each in made if each.signature[-1] % 2 == 0)
    der = first.public_bytes(Encoding.DER)
    at = len(der) - len(first.signature) - 1
    assert der[at] == 0
    edited = der[:at] + b"\x01" + der[at + 1 :]
    text = base64.encodebytes(edited).decode()
    assert _pem_code(f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n") == 4110


def test_a_revocation_list_whose_signature_claims_unused_bits_is_refused(
    site: attest.SimulatedSite, at: datetime
) -> None:
    lists = (bytes.fromhex(site.collateral(at + timedelta(seconds=later)).pck_crl) for later in range(64))
    der = next(each for each in lists if each[-1] % 2 == 0)  # so that the bit that is not used is 0
    place = len(der) - len(x509.load_der_x509_crl(der).signature) - 1
    parse_crl(der, "CRL")
    with pytest.raises(AttestationError) as caught:
        parse_crl(der[:place] + b"\x01" + der[place + 1 :], "CRL")
    assert caught.value.code == 4115


def test_only_p256_with_sha256_is_read() -> None:
    p256 = ec.generate_private_key(ec.SECP256R1())
    assert _pem_code(_certificate(p256, SHA256())) is None
    assert _pem_code(_certificate(p256, SHA384())) == 4110
    assert _pem_code(_certificate(ec.generate_private_key(ec.SECP384R1()), SHA256())) == 4110
    assert _pem_code(_certificate(ed25519.Ed25519PrivateKey.generate(), None)) == 4110


def test_a_critical_extension_that_is_not_understood_is_refused() -> None:
    assert _pem_code(_certificate(ec.generate_private_key(ec.SECP256R1()), SHA256(), "1.2.3.4")) == 4110


@pytest.mark.parametrize("case", ["delta", "sha384", "garbage"])
def test_a_revocation_list_that_is_not_complete_or_not_ours_is_refused(case: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateRevocationListBuilder().issuer_name(NAME).last_update(SINCE)
    builder = builder.next_update(SINCE + timedelta(days=1))
    if case == "delta":
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    der = builder.sign(key, SHA384() if case == "sha384" else SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(AttestationError) as caught:
        parse_crl(b"garbage" if case == "garbage" else der, "CRL")
    assert caught.value.code == 4115


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_are_no_chain_no_list_and_no_platform(data: bytes) -> None:
    for read in (lambda: parse_pem(data, "x"), lambda: parse_crl(data, "x"), lambda: parse_platform(data)):
        with pytest.raises(AttestationError):
            read()


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_platform_extension_is_read_or_refused_but_never_chokes(place: float, value: int) -> None:
    extension = bytearray(_sgx_extension(bytes(16), bytes(6)))
    extension[int(place * len(extension))] = value
    try:
        platform = parse_platform(bytes(extension))
    except AttestationError as error:
        assert error.code == 4110  # noqa: PT017
    else:
        assert len(platform.cpu_svn) == 16
