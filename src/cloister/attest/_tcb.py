"""TCB info and enclave identities: what the vendor says about versions, and how statuses meet.

Source: Intel PCS API v4, "Get TCB Info" and "Get Identity"; Intel TDX DCAP, "Verifying a TD quote", steps 4.1.2.4.10
to 4.1.2.4.17.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from cloister.attest._pck import Platform
from cloister.attest._quote import EnclaveReport, TdReport
from cloister.errors import AttestationError, InputError
from cloister.wire import Timestamp, parse_json

__all__ = [
    "Level",
    "QeIdentity",
    "TcbInfo",
    "TcbStatus",
    "match_module",
    "match_platform",
    "match_qe",
    "parse_document",
]

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]
_Hex = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-fA-F]{2})+$", max_length=128)]
_Svn = Annotated[int, Field(ge=0, le=0xFFFF)]
_Advisory = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Signed(BaseModel):
    """A part of a document that the vendor signed; it may grow fields that do not concern us."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=False)


class _Component(_Signed):
    svn: Annotated[int, Field(ge=0, le=0xFF, strict=True)]


class _Tcb(_Signed):
    sgx: Annotated[tuple[_Component, ...], Field(alias="sgxtcbcomponents", min_length=16, max_length=16)]
    tdx: Annotated[tuple[_Component, ...] | None, Field(alias="tdxtcbcomponents", min_length=16, max_length=16)] = None
    pce_svn: Annotated[_Svn, Field(alias="pcesvn", strict=True)]


class _IsvTcb(_Signed):
    svn: Annotated[_Svn, Field(alias="isvsvn", strict=True)]


class Level(_Signed):
    """One state of a component and what the vendor thinks of it."""

    date: Annotated[Timestamp, Field(alias="tcbDate")]
    status: Annotated[TcbStatus, Field(alias="tcbStatus")]
    advisories: Annotated[tuple[_Advisory, ...], Field(alias="advisoryIDs", max_length=512)] = ()


class _PlatformLevel(Level):
    tcb: _Tcb


class _IsvLevel(Level):
    tcb: _IsvTcb


class _Module(_Signed):
    mr_signer: Annotated[_Hex, Field(alias="mrsigner")]
    attributes: _Hex
    mask: Annotated[_Hex, Field(alias="attributesMask")]


class _ModuleIdentity(_Module):
    id: str
    levels: Annotated[tuple[_IsvLevel, ...], Field(alias="tcbLevels", min_length=1, max_length=256)]


class _Dated(_Signed):
    issued: Annotated[Timestamp, Field(alias="issueDate")]
    next_update: Annotated[Timestamp, Field(alias="nextUpdate")]
    evaluation: Annotated[int, Field(alias="tcbEvaluationDataNumber", ge=0, le=1 << 31, strict=True)]


class TcbInfo(_Dated):
    """TCB info v3 for one kind of platform (FMSPC) and one TEE."""

    id: Literal["SGX", "TDX"]
    version: Literal[3]
    fmspc: _Hex
    pce_id: Annotated[_Hex, Field(alias="pceId")]
    tcb_type: Annotated[Literal[0], Field(alias="tcbType")]
    module: Annotated[_Module | None, Field(alias="tdxModule")] = None
    modules: Annotated[tuple[_ModuleIdentity, ...], Field(alias="tdxModuleIdentities", max_length=64)] = ()
    levels: Annotated[tuple[_PlatformLevel, ...], Field(alias="tcbLevels", min_length=1, max_length=256)]


class QeIdentity(_Dated):
    """The quoting enclave that the vendor published, v2."""

    id: Literal["QE", "TD_QE"]
    version: Literal[2]
    misc_select: Annotated[_Hex, Field(alias="miscselect")]
    misc_select_mask: Annotated[_Hex, Field(alias="miscselectMask")]
    attributes: _Hex
    attributes_mask: Annotated[_Hex, Field(alias="attributesMask")]
    mr_signer: Annotated[_Hex, Field(alias="mrsigner")]
    prod_id: Annotated[_Svn, Field(alias="isvprodid", strict=True)]
    levels: Annotated[tuple[_IsvLevel, ...], Field(alias="tcbLevels", min_length=1, max_length=256)]


D = TypeVar("D", TcbInfo, QeIdentity)


def parse_document(kind: type[D], text: str, what: str) -> D:
    """A signed document. The caller has verified its signature: these bytes are the vendor's.

    Raises:
        AttestationError: 4108 when it is not what the format prescribes.
    """
    return _parse(kind, text, what)


@lru_cache(maxsize=32)
def _parse(kind: type[D], text: str, what: str) -> D:
    try:
        return kind.model_validate(parse_json(text.encode(), what=what))
    except InputError as error:
        raise AttestationError(4108, error.what) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AttestationError(4108, f"{what}: {where}: {first['msg'].lower()}") from None


# ---- matching ----------------------------------------------------------------------------------------------------


def match_platform(info: TcbInfo, platform: Platform, report: TdReport | None) -> tuple[Level, Level]:
    """The first level whose SGX versions the platform reaches, and the first that the TD's versions reach as well.

    For SGX both are the same.

    Raises:
        AttestationError: 4134 when there is none.
    """
    sgx: Level | None = None
    for level in info.levels:
        reached = platform.pce_svn >= level.tcb.pce_svn and _reaches(platform.cpu_svn, level.tcb.sgx, 0)
        if not reached:
            continue
        sgx = sgx or level
        if report is None:
            return sgx, level
        # with a module of major version > 0 its own identity decides over the first two versions
        skip = 2 if report.tee_tcb_svn[1] > 0 else 0
        if level.tcb.tdx is not None and _reaches(report.tee_tcb_svn, level.tcb.tdx, skip):
            return sgx, level
    raise AttestationError(
        4134, f"no TCB level of FMSPC {info.fmspc.lower()} matches the {'TDX' if sgx else 'SGX'} versions"
    )


def _reaches(versions: Sequence[int], components: Sequence[_Component], skip: int) -> bool:
    return all(mine >= theirs.svn for mine, theirs in zip(versions[skip:], components[skip:], strict=True))


def match_module(info: TcbInfo, report: TdReport) -> Level | None:
    """The TDX module's level; None for a module of major version 0, which the platform's level covers.

    Raises:
        AttestationError: 4135 not the vendor's module, or no identity of its major version; 4134 no level matches.
    """
    version = report.tee_tcb_svn[1]
    identity = _module_identity(info, version) if version > 0 else None
    expected = identity or info.module
    if expected is None:
        raise AttestationError(4135, "the TCB info names no TDX module")
    if bytes.fromhex(expected.mr_signer) != report.mr_signer_seam:
        raise AttestationError(
            4135, "signer of the TDX module", expected=expected.mr_signer.lower(), got=report.mr_signer_seam.hex()
        )
    if not _masked_equal(report.seam_attributes, expected.attributes, expected.mask):
        raise AttestationError(
            4135, "attributes of the TDX module", expected=expected.attributes.lower(), got=report.seam_attributes.hex()
        )
    if identity is None:
        return None
    return _isv_level(identity.levels, report.tee_tcb_svn[0], f"TDX module {identity.id}")


def _module_identity(info: TcbInfo, version: int) -> _ModuleIdentity:
    wanted = f"TDX_{version:02X}"
    for identity in info.modules:
        if identity.id.upper() == wanted:
            return identity
    raise AttestationError(4135, f"the TCB info has no identity for TDX module version {version}", expected=wanted)


def match_qe(identity: QeIdentity, report: EnclaveReport) -> Level:
    """The quoting enclave's level, once it is shown to be the one that the vendor published.

    Raises:
        AttestationError: 4123 another signer, product, attributes or selection; 4134 no level matches.
    """
    for what, expected, got in (
        ("signer", identity.mr_signer.lower(), report.mr_signer.hex()),
        ("product", identity.prod_id, report.prod_id),
    ):
        if expected != got:
            raise AttestationError(4123, f"{what} of the quoting enclave", expected=expected, got=got)
    for what, got, expected, mask in (
        ("attributes", report.attributes, identity.attributes, identity.attributes_mask),
        ("miscselect", report.misc_select, identity.misc_select, identity.misc_select_mask),
    ):
        if not _masked_equal(got, expected, mask):
            raise AttestationError(4123, f"{what} of the quoting enclave", expected=expected.lower(), got=got.hex())
    return _isv_level(identity.levels, report.svn, "quoting enclave")


def _masked_equal(value: bytes, expected: str, mask: str) -> bool:
    """``value & mask == expected``, all of one length: a mask of another length would compare nothing."""
    want, bits = bytes.fromhex(expected), bytes.fromhex(mask)
    if not len(value) == len(want) == len(bits):
        return False
    return all(a & m == b & m for a, b, m in zip(value, want, bits, strict=True))


def _isv_level(levels: tuple[_IsvLevel, ...], svn: int, what: str) -> Level:
    for level in levels:
        if svn >= level.tcb.svn:
            return level
    raise AttestationError(4134, f"no TCB level of the {what} matches version {svn}")


# ---- convergence -------------------------------------------------------------------------------------------------

_OUT_OF_DATE: dict[TcbStatus, TcbStatus] = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "TDRelaunchAdvised": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvisedConfigurationNeeded": "OutOfDateConfigurationNeeded",
}


def converge(platform: TcbStatus, part: TcbStatus) -> TcbStatus:
    """The platform's status, worsened by that of a part (the quoting enclave, the TDX module)."""
    if part == "Revoked" or platform == "Revoked":
        return "Revoked"
    if part in ("OutOfDate", "OutOfDateConfigurationNeeded"):
        return _OUT_OF_DATE.get(platform, platform)
    if part == "UpToDate":
        return platform
    # the vendor publishes only UpToDate, OutOfDate and Revoked for parts; any other word stands against UpToDate
    return part if platform == "UpToDate" else platform


@dataclass(frozen=True, slots=True)
class TcbState:
    """What the levels amount to.

    Attributes:
        status: After convergence.
        advisories: Of all levels that matched, sorted.
        date: The earliest of the levels' dates: everything is at least of this state.
        platform: The platform's level.
        qe: The quoting enclave's.
        module: The TDX module's.
    """

    status: TcbStatus
    advisories: tuple[str, ...]
    date: str
    platform: Level
    qe: Level
    module: Level | None


def combine(
    info: TcbInfo, levels: tuple[Level, Level], module: Level | None, qe: Level, report: TdReport | None
) -> TcbState:
    """Statuses of the platform, its TDX module and its quoting enclave, as one."""
    sgx, platform = levels
    status = platform.status if module is None else converge(platform.status, module.status)
    if report is not None and module is not None and _relaunch_helps(info, report, sgx, status, module, qe):
        configuration = "Configuration" in sgx.status or "Configuration" in status
        status = "TDRelaunchAdvisedConfigurationNeeded" if configuration else "TDRelaunchAdvised"
    status = converge(status, qe.status)
    parts = [level for level in (platform, module, qe) if level is not None]
    advisories = sorted({advisory for level in parts for advisory in level.advisories})
    return TcbState(status, tuple(advisories), min(level.date for level in parts), platform, qe, module)


def _relaunch_helps(info: TcbInfo, report: TdReport, sgx: Level, status: TcbStatus, module: Level, qe: Level) -> bool:
    """Whether the TD was launched under an outdated module, but the machine has since loaded the latest one.

    Source: Intel TDX DCAP, step 4.1.2.4.17.4.3.
    """
    svn2 = report.tee_tcb_svn2
    if svn2 is None or module.status != "OutOfDate" or qe.status in ("OutOfDate", "Revoked"):
        return False
    good = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded")
    if sgx.status not in good or status not in ("OutOfDate", "OutOfDateConfigurationNeeded"):
        return False
    latest = info.levels[0].tcb.tdx
    if latest is None or svn2[2] < latest[2].svn:
        return False
    if svn2[1] == 0:
        return svn2[0] >= latest[0].svn
    return svn2[0] >= _module_identity(info, svn2[1]).levels[0].tcb.svn
