"""The verifier of Intel's DCAP evidence, SGX and TDX.

The steps, each of which leaves one claim (in brackets Intel's numbers, from "Verifying a quote", 4.1.2.4)::

     (1) evidence.format          the bytes are one quote of the announced TEE             [1-3]
     (2) evidence.certification   it carries a PCK certificate that names its platform     [4]
     (3) collateral.present       there is something to check it with
     (4) evidence.root            the PCK chain ends at a pinned key                       [5]
     (5) evidence.validity        every certificate on it is valid at the time             [5]
     (6) evidence.revocation      both CRLs hold and name none of them                     [6-8]
     (7) evidence.qe.signature    the PCK signed the quoting enclave's report              [12]
     (8) evidence.qe.binding      that report binds the attestation key                    [13]
     (9) evidence.signature       the attestation key signed header and body               [16]
    (10) collateral.qe_identity   QE identity: signer, signature, window                   [14]
    (11) evidence.qe.identity     the quoting enclave is the published one                 [15]
    (12) collateral.tcb_info      TCB info: signer, signature, window                      [9]
    (13) collateral.platform      it is about this TEE, FMSPC and PCE                      [10]
    (14) evidence.tdx_module      the TDX module is the published one (TDX only)           [11, 17.4.1]
    (15) tee.tcb.status           levels match; platform, module and QE converge           [17]
    (16) tee.*                    what the report says: asserted only when (1) to (11) are

Source: Intel SGX and TDX DCAP Quote Verification Library, "Verifying a quote"; PCK certificate and CRL profile.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cloister.attest._certificates import (
    Certificate,
    Chain,
    Chains,
    RevocationList,
    check_crl,
    check_dates,
    check_not_revoked,
    check_window,
    parse_crl,
    parse_pem,
    point,
    verify_raw,
)
from cloister.attest._evidence import Collateral, Evidence
from cloister.attest._facts import body_facts, platform_facts, tcb_facts
from cloister.attest._ledger import Ledger
from cloister.attest._pck import SGX_EXTENSION, Platform, parse_platform
from cloister.attest._quote import (
    PCK_CHAIN_CERTIFICATION,
    EnclaveReport,
    Quote,
    TdReport,
    parse_enclave_report,
    parse_quote,
)
from cloister.attest._roots import TrustRoots
from cloister.attest._tcb import (
    Level,
    QeIdentity,
    TcbInfo,
    TcbState,
    combine,
    match_module,
    match_platform,
    match_qe,
    parse_document,
)
from cloister.attest._times import parse_time
from cloister.errors import AttestationError

__all__ = ["verify_dcap"]

_AUTHENTIC = (
    "evidence.format",
    "evidence.certification",
    "evidence.root",
    "evidence.validity",
    "evidence.revocation",
    "evidence.qe.signature",
    "evidence.qe.binding",
    "evidence.signature",
    "collateral.qe_identity",
    "evidence.qe.identity",
)


@dataclass(frozen=True, slots=True)
class _Case:
    """What is appraised."""

    evidence: Evidence
    collateral: Collateral | None
    at: datetime
    chains: Chains


@dataclass(frozen=True, slots=True)
class _Pck:
    """The quote's certificates, and the one that names the platform."""

    certificates: tuple[Certificate, ...]
    leaf: Certificate
    platform: Platform


@dataclass(frozen=True, slots=True)
class _Module:
    """The TDX module's level: None for SGX and for modules that the platform's level covers."""

    level: Level | None


def verify_dcap(evidence: Evidence, collateral: Collateral | None, at: datetime, roots: TrustRoots) -> Ledger:
    """The claims of an SGX or TDX quote; total: hostile bytes give refuted claims, never an exception."""
    ledger = Ledger()
    step, case = ledger.step, _Case(evidence, collateral, at, Chains(roots))
    quote = step("evidence.format", "quote", _parse, case, value=_describe)
    pck = step("evidence.certification", "quote: certification data", _certification, quote)
    given = step("collateral.present", "collateral", _present, case)
    chain = step("evidence.root", "PCK chain", _pck_chain, case, pck, value=_root_name)
    step("evidence.validity", "PCK chain", _dated, case, chain)
    crl = step("evidence.revocation", "CRLs", _revocation, case, given, chain)
    step("evidence.qe.signature", "quote: QE report", _qe_signature, quote, pck)
    step("evidence.qe.binding", "quote: QE report data", _qe_binding, quote)
    step("evidence.signature", "quote", _quote_signature, quote)
    identity = step("collateral.qe_identity", "QE identity", _qe_identity, case, quote, given, chain, crl)
    qe = step("evidence.qe.identity", "quote: QE report", _qe_level, identity, quote, value=_status)
    info = step("collateral.tcb_info", "TCB info", _tcb_info, case, given, chain, crl)
    fitting = step("collateral.platform", "TCB info", _platform_matches, info, quote, pck)
    module: _Module | None = _Module(None)
    if quote is not None and quote.tee == "tdx":
        module = step("evidence.tdx_module", "TD report", _module, fitting, quote)
    state = step("tee.tcb.status", "TCB info, QE identity", _state, fitting, quote, pck, qe, module, value=_combined)
    _facts(ledger, quote, pck, chain, state, info, identity)
    return ledger


# ---- (1) to (3) --------------------------------------------------------------------------------------------------


def _parse(case: _Case) -> Quote:
    quote = parse_quote(case.evidence.quote)
    if quote.tee != case.evidence.type:
        raise AttestationError(4105, expected=case.evidence.type, got=quote.tee)
    return quote


def _describe(quote: Quote) -> str:
    return f"{quote.tee} quote v{quote.version}"


def _certification(quote: Quote) -> _Pck:
    if quote.certification_type != PCK_CHAIN_CERTIFICATION:
        raise AttestationError(4106, expected="certification data type 5", got=f"type {quote.certification_type}")
    certificates = parse_pem(quote.certification, "PCK chain")
    leaf = _leaf(certificates, "SGX PCK Certificate", "PCK chain")
    extension = leaf.extension(SGX_EXTENSION)
    if extension is None:
        raise AttestationError(4110, "the PCK certificate names no platform")
    return _Pck(certificates, leaf, parse_platform(extension))


def _leaf(certificates: tuple[Certificate, ...], role: str, what: str) -> Certificate:
    """The one end-entity certificate, found by what it is and not by where it stands."""
    leaves = {certificate.der: certificate for certificate in certificates if not certificate.is_ca}
    if len(leaves) != 1:
        raise AttestationError(4110, f"{what}: not one end-entity certificate", expected="1", got=len(leaves))
    leaf = next(iter(leaves.values()))
    if role not in leaf.common_name:
        raise AttestationError(4110, f"{what}: certificate of another role", expected=role, got=leaf.common_name[:80])
    return leaf


def _present(case: _Case) -> Collateral:
    if case.collateral is None:
        raise AttestationError(4107)
    return case.collateral


# ---- (4) to (6) --------------------------------------------------------------------------------------------------


def _pck_chain(case: _Case, pck: _Pck) -> Chain:
    case.chains.add(pck.certificates)
    if case.collateral is not None:
        # a quote may leave out its CA certificates; the same ones come with the CRL
        case.chains.add(_optional_pem(case.collateral.pck_crl_issuer_chain))
    chain = case.chains.build(pck.leaf)
    _all_lead_to(case.chains, pck.certificates, chain)
    return chain


def _root_name(chain: Chain) -> str:
    return chain.root.name


def _bytes(text: str) -> bytes:
    """The bytes of a text, total: what no UTF-8 text can hold becomes bytes that no signature is over."""
    return text.encode("utf-8", "surrogatepass")


def _optional_pem(text: str) -> tuple[Certificate, ...]:
    try:
        return parse_pem(_bytes(text), "chain")
    except AttestationError:
        return ()  # refused by name where this chain itself is examined, in step (6)


def _all_lead_to(chains: Chains, certificates: Iterable[Certificate], chain: Chain) -> None:
    for certificate in certificates:
        root = chains.build(certificate).root
        if root != chain.root:
            raise AttestationError(4113, expected=chain.root.name, got=root.name)


def _dated(case: _Case, chain: Chain) -> bool:
    check_dates(chain, case.at)
    return True


def _revocation(case: _Case, collateral: Collateral, chain: Chain) -> RevocationList:
    """The root's list, for the signers of the documents; that of the PCK's issuer is done with here."""
    if len(chain.certificates) != 3:
        raise AttestationError(
            4110, "PCK chain", expected="PCK, CA, root", got=f"{len(chain.certificates)} certificates"
        )
    leaf, authority, root = chain.certificates
    _bag(case.chains, collateral.pck_crl_issuer_chain, "PCK CRL issuer chain", chain)
    if collateral.pck_certificate_chain is not None:
        _bag(case.chains, collateral.pck_certificate_chain, "PCK certificate chain", chain)
    root_crl = parse_crl(bytes.fromhex(collateral.root_ca_crl), "root CA CRL")
    check_crl(root_crl, root, case.at, "root CA CRL")
    check_not_revoked(authority, root_crl)
    pck_crl = parse_crl(bytes.fromhex(collateral.pck_crl), "PCK CRL")
    check_crl(pck_crl, authority, case.at, "PCK CRL")
    check_not_revoked(leaf, pck_crl)
    return root_crl


def _bag(chains: Chains, text: str, what: str, chain: Chain) -> tuple[Certificate, ...]:
    """The certificates of a collateral's chain, each shown to lead to the root of the quote's own chain."""
    certificates = parse_pem(_bytes(text), what)
    chains.add(certificates)
    _all_lead_to(chains, certificates, chain)
    return certificates


# ---- (7) to (9) --------------------------------------------------------------------------------------------------


def _qe_signature(quote: Quote, pck: _Pck) -> bool:
    if not verify_raw(pck.leaf.key, quote.qe_report_signature, quote.qe_report):
        raise AttestationError(4121)
    return True


def _qe_binding(quote: Quote) -> bool:
    report_data = parse_enclave_report(quote.qe_report).report_data
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest() + bytes(32)
    if not hmac.compare_digest(bound, report_data):
        raise AttestationError(4122, expected=bound.hex(), got=report_data.hex())
    return True


def _quote_signature(quote: Quote) -> bool:
    key = point(quote.attestation_key)
    if key is None:
        raise AttestationError(4120, "the attestation key is not a point of P-256")
    if not verify_raw(key, quote.signature, quote.signed):
        raise AttestationError(4120)
    return True


# ---- (10) to (15) ------------------------------------------------------------------------------------------------


def _check_signed(
    case: _Case, text: str, signature: str, issuers: str, what: str, chain: Chain, crl: RevocationList
) -> None:
    """Returns when the vendor's TCB signing certificate, valid and not revoked, signed ``text``."""
    certificates = _bag(case.chains, issuers, f"{what} issuer chain", chain)
    signer = _leaf(certificates, "SGX TCB Signing", f"{what} issuer chain")
    path = case.chains.build(signer)
    if len(path.certificates) != 2:
        raise AttestationError(4110, f"{what}: the TCB signing certificate is not issued by the root itself")
    check_dates(path, case.at)
    check_not_revoked(signer, crl)
    if not verify_raw(signer.key, bytes.fromhex(signature), _bytes(text)):
        raise AttestationError(4130, f"signature of the {what} does not verify")


def _qe_identity(case: _Case, quote: Quote, given: Collateral, chain: Chain, crl: RevocationList) -> QeIdentity:
    text, what = given.qe_identity, "QE identity"
    _check_signed(case, text, given.qe_identity_signature, given.qe_identity_issuer_chain, what, chain, crl)
    identity = parse_document(QeIdentity, text, what)
    check_window(parse_time(identity.issued), parse_time(identity.next_update), case.at, what)
    expected = "TD_QE" if quote.tee == "tdx" else "QE"
    if identity.id != expected:
        raise AttestationError(4133, "QE identity is of another TEE", expected=expected, got=identity.id)
    return identity


def _qe_level(identity: QeIdentity, quote: Quote) -> Level:
    return match_qe(identity, parse_enclave_report(quote.qe_report))


def _status(level: Level) -> str:
    return level.status


def _tcb_info(case: _Case, given: Collateral, chain: Chain, crl: RevocationList) -> TcbInfo:
    text, what = given.tcb_info, "TCB info"
    _check_signed(case, text, given.tcb_info_signature, given.tcb_info_issuer_chain, what, chain, crl)
    info = parse_document(TcbInfo, text, what)
    check_window(parse_time(info.issued), parse_time(info.next_update), case.at, what)
    return info


def _platform_matches(info: TcbInfo, quote: Quote, pck: _Pck) -> TcbInfo:
    for what, expected, got in (
        ("TEE", quote.tee, info.id.lower()),
        ("FMSPC", pck.platform.fmspc.hex(), info.fmspc.lower()),
        ("PCE", pck.platform.pce_id.hex(), info.pce_id.lower()),
    ):
        if expected != got:
            raise AttestationError(4133, f"TCB info is of another {what}", expected=expected, got=got)
    return info


def _td_report(quote: Quote) -> TdReport | None:
    return quote.body if isinstance(quote.body, TdReport) else None


def _module(info: TcbInfo, quote: Quote) -> _Module:
    report = _td_report(quote)
    return _Module(None if report is None else match_module(info, report))


def _state(info: TcbInfo, quote: Quote, pck: _Pck, qe: Level, module: _Module) -> TcbState:
    report = _td_report(quote)
    levels = match_platform(info, pck.platform, report)
    return combine(info, levels, module.level, qe, report)


def _combined(state: TcbState) -> str:
    return state.status


# ---- (16) --------------------------------------------------------------------------------------------------------


def _facts(
    ledger: Ledger,
    quote: Quote | None,
    pck: _Pck | None,
    chain: Chain | None,
    state: TcbState | None,
    info: TcbInfo | None,
    identity: QeIdentity | None,
) -> None:
    authentic = ledger.asserted(*_AUTHENTIC)
    if chain is not None:
        ledger.fact("tee.simulated", chain.root.simulated, "PCK chain", proven=ledger.asserted("evidence.root"))
        ledger.fact("tee.root", chain.root.spki_sha256, "PCK chain", proven=ledger.asserted("evidence.root"))
    if quote is not None:
        body_facts(ledger, quote, proven=authentic)
        qe_report: EnclaveReport = parse_enclave_report(quote.qe_report)
        ledger.fact("tee.qe.svn", qe_report.svn, "quote: QE report", proven=authentic)
    if pck is not None:
        platform_facts(ledger, pck.platform, proven=authentic)
    if state is not None and info is not None and identity is not None:
        tcb_facts(ledger, state, info, identity, proven=authentic and ledger.asserted("tee.tcb.status"))
