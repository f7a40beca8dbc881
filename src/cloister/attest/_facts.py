"""What a verified quote says, as claims under one set of names for every TEE."""

from __future__ import annotations

from typing import Final

from cloister.attest._ledger import Ledger
from cloister.attest._pck import Platform
from cloister.attest._quote import EnclaveReport, Quote, TdReport
from cloister.attest._tcb import QeIdentity, TcbInfo, TcbState

__all__ = ["body_facts", "platform_facts", "tcb_facts"]

_TD_DEBUG_BYTE = 0  # bits 0 to 7, "TD under debug": any of them set means that the TD is not to be trusted
_SGX_FLAGS: Final = {
    "init": 0,
    "debug": 1,
    "mode64": 2,
    "provision_key": 4,
    "einittoken_key": 5,
    "cet": 6,
    "kss": 7,
    "aex_notify": 10,
}
_TD_FLAGS: Final = {
    "lass": 27,
    "sept_ve_disable": 28,
    "migratable": 29,
    "pks": 30,
    "key_locker": 31,
    "tpa": 62,
    "perfmon": 63,
}


def body_facts(ledger: Ledger, quote: Quote, *, proven: bool) -> None:
    """Claims from the report that the quote is about."""
    ledger.fact("tee.type", quote.tee, "quote header", proven=proven)
    ledger.fact("tee.quote_version", quote.version, "quote header", proven=proven)
    if isinstance(quote.body, TdReport):
        _td_facts(ledger, quote.body, proven=proven)
    else:
        _enclave_facts(ledger, quote.body, proven=proven)


def _bit(attributes: bytes, index: int) -> bool:
    return bool(attributes[index // 8] >> index % 8 & 1)


def _enclave_facts(ledger: Ledger, report: EnclaveReport, *, proven: bool) -> None:
    def fact(name: str, value: str | int | bool, source: str = "SGX report") -> None:
        ledger.fact(name, value, source, proven=proven)

    fact("tee.measurement", report.mr_enclave.hex())
    fact("tee.signer", report.mr_signer.hex())
    fact("tee.prodid", report.prod_id)
    fact("tee.svn", report.svn)
    fact("tee.config", report.config_id.hex())
    fact("tee.config_svn", report.config_svn)
    fact("tee.ext_prodid", report.ext_prod_id.hex())
    fact("tee.family_id", report.family_id.hex())
    fact("tee.report_data", report.report_data.hex())
    fact("tee.attributes", report.attributes[:8].hex())
    fact("tee.xfam", report.attributes[8:].hex())
    fact("tee.misc_select", report.misc_select.hex())
    fact("tee.cpu_svn", report.cpu_svn.hex())
    for name, index in _SGX_FLAGS.items():
        fact(f"tee.{name}", _bit(report.attributes, index))
    fact("tee.service_td", False, "SGX: an enclave has none")


def _td_facts(ledger: Ledger, report: TdReport, *, proven: bool) -> None:
    def fact(name: str, value: str | int | bool | None, source: str = "TD report") -> None:
        ledger.fact(name, value, source, proven=proven)

    fact("tee.measurement", report.mr_td.hex())
    fact("tee.config", report.mr_config_id.hex())
    # the host chooses MROWNER freely: it is no signer, and no policy on tee.signer may be met with it
    fact("tee.owner", report.mr_owner.hex())
    fact("tee.owner_config", report.mr_owner_config.hex())
    for index, value in enumerate(report.rtmr):
        fact(f"tee.rtmr{index}", value.hex())
    fact("tee.report_data", report.report_data.hex())
    fact("tee.debug", report.td_attributes[_TD_DEBUG_BYTE] != 0)
    fact("tee.attributes", report.td_attributes.hex())
    fact("tee.xfam", report.xfam.hex())
    for name, index in _TD_FLAGS.items():
        fact(f"tee.{name}", _bit(report.td_attributes, index))
    fact("tee.seam.measurement", report.mr_seam.hex())
    fact("tee.seam.signer", report.mr_signer_seam.hex())
    fact("tee.seam.attributes", report.seam_attributes.hex())
    fact("tee.tcb.svn", report.tee_tcb_svn.hex())
    fact("tee.tcb.svn2", None if report.tee_tcb_svn2 is None else report.tee_tcb_svn2.hex())
    _service_td(ledger, report, proven=proven)


def _service_td(ledger: Ledger, report: TdReport, *, proven: bool) -> None:
    if report.mr_service_td is not None:
        bound = any(report.mr_service_td)
        ledger.fact("tee.service_td", bound, "TD report: MRSERVICETD", proven=proven)
        ledger.fact("tee.service_td_hash", report.mr_service_td.hex(), "TD report: MRSERVICETD", proven=proven)
    elif _bit(report.td_attributes, _TD_FLAGS["migratable"]):
        reason = "a TD report 1.0 does not name service TDs, and this TD is migratable"
        ledger.fact("tee.service_td", True, "TD report 1.0", proven=False, because=reason, code=4143)
    else:
        ledger.fact("tee.service_td", False, "TD report 1.0: the TD is not migratable", proven=proven)


def platform_facts(ledger: Ledger, platform: Platform, *, proven: bool) -> None:
    """Claims from the PCK certificate."""
    values = {
        "tee.platform": platform.ppid.hex(),
        "tee.platform_instance": None if platform.instance_id is None else platform.instance_id.hex(),
        "tee.fmspc": platform.fmspc.hex(),
        "tee.pce_id": platform.pce_id.hex(),
        "tee.pce_svn": platform.pce_svn,
        "tee.platform_cpu_svn": bytes(platform.cpu_svn).hex(),
        "tee.platform_type": platform.sgx_type,
        "tee.dynamic_platform": platform.dynamic,
        "tee.cached_keys": platform.cached_keys,
        "tee.smt": platform.smt,
    }
    for name, value in values.items():
        ledger.fact(name, value, "PCK certificate", proven=proven)


def tcb_facts(ledger: Ledger, state: TcbState, info: TcbInfo, identity: QeIdentity, *, proven: bool) -> None:
    """Claims from the levels that matched."""
    values = {
        "tee.tcb.advisories": state.advisories,
        "tee.tcb.date": state.date,
        "tee.tcb.evaluation": min(info.evaluation, identity.evaluation),
        "tee.tcb.issued": min(info.issued, identity.issued),
        "tee.tcb.expires": min(info.next_update, identity.next_update),
        "tee.tcb.platform_status": state.platform.status,
        "tee.tcb.qe_status": state.qe.status,
        "tee.tcb.module_status": None if state.module is None else state.module.status,
    }
    for name, value in values.items():
        ledger.fact(name, value, "TCB info, QE identity", proven=proven)
