"""A host edits evidence or collateral, or signs it with keys that it holds."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister import attest
from cloister.attest import _simulated_pki as pki
from cloister.attest import _simulated_quote as forge
from cloister.errors import AttestationError

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
SINCE = datetime(2026, 1, 1, tzinfo=UTC)
QE_REPORT = 632 + 4 + 64 + 64 + 6  # of a v4 quote


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> attest.SimulatedSite:
    return attest.SimulatedSite.create(tmp_path_factory.mktemp("site"), created=SINCE)


@pytest.fixture(scope="module")
def verdict_of(site: attest.SimulatedSite) -> Callable[..., attest.Verdict]:
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)

    def appraise(quote: bytes, collateral: attest.Collateral | None = None) -> attest.Verdict:
        given = collateral or site.collateral(AT)
        evidence = attest.Evidence(type="tdx", quote=quote)
        return attest.appraise(evidence, given, attest.DANGEROUS_DEVELOPMENT_POLICY, AT, roots=roots)

    return appraise


@pytest.fixture(scope="module")
def code_of(verdict_of: Callable[..., attest.Verdict]) -> Callable[..., int | None]:
    def code(quote: bytes, collateral: attest.Collateral | None = None) -> int | None:
        with pytest.raises(AttestationError) as caught:
            verdict_of(quote, collateral).require()
        return caught.value.code

    return code


@pytest.fixture(scope="module")
def quote(site: attest.SimulatedSite) -> bytes:
    return site.attester(bytes(48), attach_collateral=False).attest(bytes(64)).quote


def _built(keys: pki.Keys, certificates: pki.Certificates, **changed: Any) -> bytes:
    facts = {"measurement": bytes(48), "config_id": bytes(48), "report_data": bytes(64), "knobs": attest.TdKnobs()}
    return forge.build_tdx_quote(keys, certificates, **{**facts, **changed})


def _resigned(site: attest.SimulatedSite, document: str, **changed: Any) -> attest.Collateral:
    """The site's collateral with fields of one document changed and signed again by the site's own signer."""
    good, (keys, _) = site.collateral(AT), site.signing_material()
    text = json.dumps({**json.loads(getattr(good, document)), **changed})
    return good.model_copy(
        update={document: text, f"{document}_signature": forge._sign(keys.signing, text.encode()).hex()}
    )


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates) + b"\0"


def test_the_quote_and_collateral_that_are_edited_below_are_good(
    verdict_of: Callable[..., attest.Verdict], site: attest.SimulatedSite, quote: bytes
) -> None:
    verdict_of(quote).require()
    verdict_of(_built(*site.signing_material())).require()
    verdict_of(quote, _resigned(site, "tcb_info")).require()
    verdict_of(quote, _resigned(site, "qe_identity")).require()


@pytest.mark.parametrize("offset", [28, 48 + 136, 48 + 520, 636])
def test_an_edited_header_body_or_signature_is_refused(code_of: Any, quote: bytes, offset: int) -> None:
    edited = bytearray(quote)
    edited[offset] ^= 1
    assert code_of(bytes(edited)) == 4120


def test_an_attestation_key_of_the_hosts_own_is_refused(code_of: Any, site: attest.SimulatedSite, quote: bytes) -> None:
    keys, _ = site.signing_material()
    own = ec.generate_private_key(ec.SECP256R1())
    signed = quote[:632]
    swapped = signed + quote[632:636] + forge._sign(own, signed) + forge._point(own) + quote[636 + 128 :]
    assert code_of(swapped) == 4122
    assert keys.attestation is not own


def test_an_attestation_key_that_is_no_point_of_the_curve_is_refused(code_of: Any, quote: bytes) -> None:
    assert code_of(quote[: 636 + 64] + b"\x01" * 64 + quote[636 + 128 :]) in (4120, 4122)


def test_a_qe_report_edited_to_bind_the_hosts_key_is_refused(code_of: Any, quote: bytes) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    edited = bytearray(quote)
    edited[636 : 636 + 128] = forge._sign(own, quote[:632]) + forge._point(own)
    bound = hashlib.sha256(forge._point(own) + bytes(range(32))).digest()
    edited[QE_REPORT + 320 : QE_REPORT + 352] = bound
    assert code_of(bytes(edited)) == 4121


def test_a_quoting_enclave_certified_by_another_platform_is_refused(
    code_of: Any, site: attest.SimulatedSite, tmp_path: Any
) -> None:
    other, (keys, certificates) = attest.SimulatedSite.create(tmp_path, created=SINCE), site.signing_material()
    foreign, _ = other.signing_material()
    assert code_of(_built(replace(foreign, root=keys.root), certificates)) == 4121


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"mrsigner": "00" * 32}, 4123),
        ({"isvprodid": 7}, 4123),
        ({"attributes": "13" + "00" * 15}, 4123),
        ({"attributes": "11"}, 4123),
        ({"attributesMask": "FB"}, 4123),
        ({"miscselect": "01000000"}, 4123),
        ({"id": "QE"}, 4133),
        ({"version": 1}, 4108),
        ({"tcbLevels": []}, 4108),
        ({"tcbLevels": [{"tcb": {"isvsvn": 9}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"}]}, 4134),
        ({"nextUpdate": "2026-11-20T11:59:59Z"}, 4131),
        ({"issueDate": "2026-11-20T12:00:01Z"}, 4132),
    ],
)
def test_a_quoting_enclave_that_is_not_the_published_one_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, changed: dict[str, Any], code: int
) -> None:
    assert code_of(quote, _resigned(site, "qe_identity", **changed)) == code


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"fmspc": "00" * 6}, 4133),
        ({"pceId": "0001"}, 4133),
        ({"id": "SGX"}, 4133),
        ({"version": 2}, 4108),
        ({"tcbType": 1}, 4108),
        ({"tcbLevels": []}, 4108),
        ({"tcbLevels": "none"}, 4108),
        ({"tdxModuleIdentities": []}, 4135),
        ({"nextUpdate": "2026-11-20T11:59:59Z"}, 4131),
        ({"issueDate": "2026-11-20T12:00:01Z"}, 4132),
    ],
)
def test_tcb_info_that_is_not_of_this_platform_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, changed: dict[str, Any], code: int
) -> None:
    assert code_of(quote, _resigned(site, "tcb_info", **changed)) == code


@pytest.mark.parametrize(
    "changed", [{"mrsigner": "01" + "00" * 47}, {"attributes": "01" + "00" * 7}, {"attributesMask": "FF"}]
)
def test_a_tdx_module_that_is_not_the_published_one_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, changed: dict[str, Any]
) -> None:
    (identity,) = json.loads(site.collateral(AT).tcb_info)["tdxModuleIdentities"]
    assert code_of(quote, _resigned(site, "tcb_info", tdxModuleIdentities=[{**identity, **changed}])) == 4135


@pytest.mark.parametrize("document", ["tcb_info", "qe_identity"])
def test_an_edited_document_is_refused(code_of: Any, site: attest.SimulatedSite, quote: bytes, document: str) -> None:
    good = site.collateral(AT, knobs=attest.CollateralKnobs(status="OutOfDate", qe_status="OutOfDate"))
    edited = getattr(good, document).replace("OutOfDate", "UpToDate")
    assert code_of(quote, good.model_copy(update={document: edited})) == 4130


@pytest.mark.parametrize("document", ["tcb_info", "qe_identity"])
def test_a_document_signed_by_the_platform_key_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, document: str
) -> None:
    keys, certificates = site.signing_material()
    good = site.collateral(AT)
    forged = good.model_copy(
        update={
            f"{document}_signature": forge._sign(keys.pck, getattr(good, document).encode()).hex(),
            f"{document}_issuer_chain": pki.pem_chain(certificates.pck, certificates.authority, certificates.root),
        }
    )
    assert code_of(quote, forged) == 4110


@pytest.mark.parametrize("issuer", ["pck", "signing"])
def test_a_key_that_is_no_authority_cannot_certify_a_platform(
    verdict_of: Callable[..., attest.Verdict], site: attest.SimulatedSite, issuer: str
) -> None:
    keys, certificates = site.signing_material()
    above = getattr(certificates, issuer)
    own = ec.generate_private_key(ec.SECP256R1())
    extension = pki._sgx_extension(bytes(16), bytes(6))
    child = pki._certificate("PCK Certificate 2", own, above, getattr(keys, issuer), SINCE, extension=extension)
    forged = _built(replace(keys, pck=own), replace(certificates, pck=child))
    chain = pki.pem_chain(above, certificates.authority, certificates.root)
    verdict = verdict_of(forged, site.collateral(AT).model_copy(update={"pck_crl_issuer_chain": chain}))
    claim = verdict.claim("evidence.root")
    assert claim is not None
    assert (claim.status, claim.code) == ("refuted", 4110)


def test_a_platform_certificate_that_only_names_its_issuer_is_refused(code_of: Any, site: attest.SimulatedSite) -> None:
    keys, certificates = site.signing_material()
    own = ec.generate_private_key(ec.SECP256R1())
    extension = pki._sgx_extension(bytes(16), bytes(6))
    child = pki._certificate("PCK Certificate", own, certificates.authority, own, SINCE, extension=extension)
    assert code_of(_built(replace(keys, pck=own), replace(certificates, pck=child))) == 4110


@pytest.mark.parametrize("case", ["issued by the root", "names no platform"])
def test_a_platform_certificate_that_is_not_of_the_profile_is_refused(
    code_of: Any, site: attest.SimulatedSite, case: str
) -> None:
    keys, certificates = site.signing_material()
    own = ec.generate_private_key(ec.SECP256R1())
    if case == "issued by the root":
        extension = pki._sgx_extension(bytes(16), bytes(6))
        leaf = pki._certificate("PCK Certificate", own, certificates.root, keys.root, SINCE, extension=extension)
    else:
        leaf = pki._certificate("PCK Certificate", own, certificates.authority, keys.authority, SINCE)
    assert code_of(_built(replace(keys, pck=own), replace(certificates, pck=leaf))) == 4110


@pytest.mark.parametrize("document", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize("case", ["another role", "issued by the platform CA"])
def test_a_document_signed_by_another_certificate_under_the_same_root_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, document: str, case: str
) -> None:
    keys, certificates = site.signing_material()
    own = ec.generate_private_key(ec.SECP256R1())
    if case == "another role":
        signer = pki._certificate("Something Else", own, certificates.root, keys.root, SINCE)
        chain = pki.pem_chain(signer, certificates.root)
    else:
        signer = pki._certificate("TCB Signing", own, certificates.authority, keys.authority, SINCE)
        chain = pki.pem_chain(signer, certificates.authority, certificates.root)
    good = site.collateral(AT)
    signature = forge._sign(own, getattr(good, document).encode()).hex()
    changes = {f"{document}_signature": signature, f"{document}_issuer_chain": chain}
    assert code_of(quote, good.model_copy(update=changes)) == 4110


def test_the_tcb_signer_cannot_stand_in_for_a_platform(code_of: Any, site: attest.SimulatedSite) -> None:
    keys, certificates = site.signing_material()
    assert code_of(_built(replace(keys, pck=keys.signing), replace(certificates, pck=certificates.signing))) == 4110


def test_a_path_longer_than_the_root_allows_is_refused(
    verdict_of: Callable[..., attest.Verdict], site: attest.SimulatedSite
) -> None:
    keys, certificates = site.signing_material()
    middle_key = ec.generate_private_key(ec.SECP256R1())
    middle = pki._certificate(
        "PCK Platform CA 2", middle_key, certificates.authority, keys.authority, SINCE, path_length=0
    )
    own = ec.generate_private_key(ec.SECP256R1())
    leaf = pki._certificate(
        "PCK Certificate", own, middle, middle_key, SINCE, extension=pki._sgx_extension(bytes(16), bytes(6))
    )
    good = _built(replace(keys, pck=own), replace(certificates, pck=leaf))
    chain = _pem(leaf, certificates.authority, certificates.root)
    longer = _pem(leaf, middle, certificates.authority, certificates.root)
    forged = good.replace(chain, longer)
    grown = len(longer) - len(chain)
    data = bytearray(forged)
    for offset in (632, 636 + 128 + 2, QE_REPORT + 384 + 64 + 2 + 32 + 2):
        size = int.from_bytes(data[offset : offset + 4], "little") + grown
        data[offset : offset + 4] = size.to_bytes(4, "little")
    claim = verdict_of(bytes(data)).claim("evidence.root")
    assert claim is not None
    assert (claim.status, claim.code) == ("refuted", 4110)


def test_a_foreign_certificate_in_the_bag_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, tmp_path: Any
) -> None:
    stray = attest.SimulatedSite.create(tmp_path, created=SINCE).collateral(AT).tcb_info_issuer_chain
    good = site.collateral(AT)
    for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        assert code_of(quote, good.model_copy(update={name: getattr(good, name) + stray})) in (4110, 4112)


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
def test_a_revocation_list_of_another_issuer_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, name: str
) -> None:
    good = site.collateral(AT)
    other = {"root_ca_crl": good.pck_crl, "pck_crl": good.root_ca_crl}[name]
    assert code_of(quote, good.model_copy(update={name: other})) == 4115


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
def test_a_revocation_list_signed_by_somebody_else_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, name: str
) -> None:
    _, certificates = site.signing_material()
    issuer = certificates.root if name == "root_ca_crl" else certificates.authority
    own = ec.generate_private_key(ec.SECP256R1())
    forged = pki.issue_crl(issuer, own, [], issued=SINCE, next_update=AT.replace(year=2027))
    assert code_of(quote, site.collateral(AT).model_copy(update={name: forged.hex()})) == 4115


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
def test_a_revocation_list_in_another_name_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, name: str
) -> None:
    keys, certificates = site.signing_material()
    named, key = (certificates.authority, keys.root) if name == "root_ca_crl" else (certificates.root, keys.authority)
    crl = pki.issue_crl(named, key, [], issued=SINCE, next_update=AT.replace(year=2027))
    assert code_of(quote, site.collateral(AT).model_copy(update={name: crl.hex()})) == 4115


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
@pytest.mark.parametrize(("issued", "until", "code"), [(2025, 2026, 4131), (2027, 2028, 4132)])
def test_a_revocation_list_outside_its_window_is_refused(
    code_of: Any, site: attest.SimulatedSite, quote: bytes, name: str, issued: int, until: int, code: int
) -> None:
    keys, certificates = site.signing_material()
    issuer, key = {
        "root_ca_crl": (certificates.root, keys.root),
        "pck_crl": (certificates.authority, keys.authority),
    }[name]
    stale = pki.issue_crl(
        issuer, key, [], issued=datetime(issued, 1, 1, tzinfo=UTC), next_update=datetime(until, 1, 1, tzinfo=UTC)
    )
    assert code_of(quote, site.collateral(AT).model_copy(update={name: stale.hex()})) == code


def test_bytes_appended_to_a_quote_are_refused_and_zeros_are_not(code_of: Any, verdict_of: Any, quote: bytes) -> None:
    assert code_of(quote + b"\0\0x") == 4104
    verdict_of(quote + bytes(64)).require()
