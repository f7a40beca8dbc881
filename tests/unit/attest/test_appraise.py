"""Appraisal: a good quote is accepted, each thing that can be wrong has its own code, and dcap-qvl agrees."""

import json
import struct
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import dcap_qvl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister import attest
from cloister.attest import CollateralKnobs, TdKnobs
from cloister.attest import _simulated_quote as forge
from cloister.errors import AttestationError, CloisterError, InputError

Judge = Callable[..., attest.Verdict]
STATUSES = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]


def _code(verdict: attest.Verdict) -> int | None:
    try:
        verdict.require()
    except AttestationError as error:
        return error.code
    return None


def _second_opinion(site: attest.SimulatedSite, evidence: attest.Evidence, at: datetime) -> Any:
    assert evidence.collateral is not None
    theirs = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(evidence.collateral.as_json()))
    return dcap_qvl.verify_with_root_ca(evidence.quote, theirs, site.root_certificate, int(at.timestamp()))


@pytest.mark.parametrize(("tee", "version"), [("tdx", 4), ("tdx", 5), ("sgx", 3)])
def test_good_simulated_evidence_is_accepted_and_says_simulated(
    judge: Judge, site: attest.SimulatedSite, at: datetime, tee: attest.EvidenceType, version: int
) -> None:
    knobs = TdKnobs(version=5 if version == 5 else 4)
    verdict = judge(tee=tee, td=knobs, report_data=b"r" * 64)
    verdict.require()
    assert (verdict.outcome, verdict.assurance, verdict.simulated) == ("asserted", "simulated", True)
    assert verdict.value("tee.simulated") is True
    assert verdict.value("tee.quote_version") == version
    assert verdict.value("tee.report_data") == (b"r" * 64).hex()
    assert verdict.value("tee.platform") == site.platform
    assert verdict.value("tee.fmspc") == site.fmspc
    assert verdict.value("tee.tcb.status") == "UpToDate"
    size = 32 if tee == "sgx" else 48
    evidence = site.attester(bytes(size), tee=tee, td=knobs, clock=lambda: at).attest(bytes(64))
    assert _second_opinion(site, evidence, at).status == "UpToDate"


@pytest.mark.parametrize(("version", "body_type"), [(4, None), (5, 1), (5, 2)])
def test_the_other_bodies_of_v4_and_v5_are_read_as_the_formats_say(
    site: attest.SimulatedSite, roots: attest.TrustRoots, at: datetime, version: int, body_type: int | None
) -> None:
    keys, certificates = site.signing_material()
    tee: attest.EvidenceType = "tdx" if body_type == 2 else "sgx"
    size = 584 if tee == "tdx" else 384
    inner = site.attester(bytes(48 if tee == "tdx" else 32), tee=tee, attach_collateral=False).attest(b"r" * 64).quote
    body = inner[48 : 48 + size]
    descriptor = b"" if body_type is None else struct.pack("<HI", body_type, size)
    signed = forge._header(version, 0x81 if tee == "tdx" else 0) + descriptor + body
    part = forge._qe_part(keys, certificates, tee)
    auth = forge._sign(keys.attestation, signed) + forge._point(keys.attestation)
    auth += struct.pack("<HI", 6, len(part)) + part
    evidence = attest.Evidence(type=tee, quote=signed + struct.pack("<I", len(auth)) + auth)
    policy = attest.DANGEROUS_DEVELOPMENT_POLICY
    verdict = attest.appraise(evidence, site.collateral(at, tee=tee), policy, at, roots=roots)
    verdict.require()
    assert verdict.value("tee.report_data") == (b"r" * 64).hex()
    assert verdict.value("tee.quote_version") == version
    theirs = evidence.model_copy(update={"collateral": site.collateral(at, tee=tee)})
    if tee == "tdx":
        assert _second_opinion(site, theirs, at).status == "UpToDate"
    else:
        # dcap-qvl reads SGX in v3 only; Intel's own library reads it in v4 and v5 too, and so does ours
        with pytest.raises(ValueError, match="SGX TEE quote must have version 3"):
            _second_opinion(site, theirs, at)


def test_collateral_that_is_passed_wins_over_that_which_travelled(
    judge: Judge, site: attest.SimulatedSite, at: datetime
) -> None:
    newer = site.collateral(at, knobs=CollateralKnobs(status="OutOfDate"))
    assert judge().value("tee.tcb.status") == "UpToDate"
    assert judge(collateral=newer).value("tee.tcb.status") == "OutOfDate"


def test_no_collateral_is_unknown_and_unknown_is_no_acceptance(judge: Judge) -> None:
    verdict = judge(attach_collateral=False)
    assert (verdict.outcome, _code(verdict)) == ("unknown", 4107)
    claim = verdict.claim("tee.measurement")
    assert claim is not None
    assert (claim.status, claim.value) == ("unknown", bytes(48).hex())
    assert "tee.measurement" not in verdict.facts()
    with pytest.raises(AttestationError):
        verdict.value("tee.measurement")


def test_evidence_announced_as_another_tee_is_refused(site: attest.SimulatedSite, at: datetime) -> None:
    made = site.attester(bytes(48), clock=lambda: at).attest(bytes(64))
    lied = attest.Evidence(type="sgx", quote=made.quote, collateral=made.collateral)
    assert _code(attest.appraise(lied, None, attest.DEFAULT_POLICY, at)) == 4105


def test_a_time_without_a_zone_is_refused(site: attest.SimulatedSite, at: datetime) -> None:
    evidence = site.attester(bytes(48), attach_collateral=False).attest(bytes(64))
    with pytest.raises(InputError) as caught:
        attest.appraise(evidence, None, attest.DEFAULT_POLICY, at.replace(tzinfo=None))
    assert caught.value.code == 2106


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_platform_status_and_advisories_are_claims_and_dcap_qvl_agrees(
    judge: Judge, site: attest.SimulatedSite, at: datetime, status: Any, tee: attest.EvidenceType
) -> None:
    advisories = ("INTEL-SA-00002", "INTEL-SA-00001")
    knobs = CollateralKnobs(status=status, advisories=advisories, qe_advisories=("INTEL-SA-00003",))
    verdict = judge(tee=tee, knobs=knobs)
    assert verdict.value("tee.tcb.status") == status
    assert verdict.value("tee.tcb.advisories") == ("INTEL-SA-00001", "INTEL-SA-00002", "INTEL-SA-00003")
    assert _code(verdict) == (None if status == "UpToDate" else 4142)
    made = site.attester(bytes(48 if tee == "tdx" else 32), tee=tee, collateral=knobs, clock=lambda: at)
    if status == "Revoked":
        # dcap-qvl refuses a revoked TCB outright; ours reports it, and the default policy refuses
        with pytest.raises(ValueError, match=r"[Rr]evoked"):
            _second_opinion(site, made.attest(bytes(64)), at)
        return
    theirs = _second_opinion(site, made.attest(bytes(64)), at)
    assert theirs.status == status
    assert sorted(theirs.advisory_ids) == list(verdict.value("tee.tcb.advisories"))


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("part", ["qe_status", "module_status"])
def test_an_outdated_part_worsens_the_platform_and_dcap_qvl_agrees(
    judge: Judge, site: attest.SimulatedSite, at: datetime, status: Any, part: str
) -> None:
    knobs = CollateralKnobs(**{"status": status, part: "OutOfDate"})
    verdict = judge(knobs=knobs)
    if status != "Revoked":
        made = site.attester(bytes(48), collateral=knobs, clock=lambda: at)
        assert verdict.value("tee.tcb.status") == _second_opinion(site, made.attest(bytes(64)), at).status
    expected = {
        "UpToDate": "OutOfDate",
        "SWHardeningNeeded": "OutOfDate",
        "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
    }
    assert verdict.value("tee.tcb.status") == expected.get(status, status)


@pytest.mark.parametrize(
    ("word", "platform", "expected"),
    [
        ("SWHardeningNeeded", "UpToDate", "SWHardeningNeeded"),
        ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
    ],
)
def test_a_word_that_is_not_expected_of_a_part_is_never_lost_against_up_to_date(
    judge: Judge, word: Any, platform: Any, expected: str
) -> None:
    assert judge(knobs=CollateralKnobs(status=platform, qe_status=word)).value("tee.tcb.status") == expected


@pytest.mark.parametrize("part", ["qe_status", "module_status"])
@pytest.mark.parametrize("status", STATUSES)
def test_a_revoked_part_revokes_the_whole(judge: Judge, part: str, status: Any) -> None:
    knobs = CollateralKnobs(**{"status": status, part: "Revoked"})
    assert judge(knobs=knobs).value("tee.tcb.status") == "Revoked"


def test_a_td_launched_before_the_module_was_updated_is_advised_to_relaunch(judge: Judge) -> None:
    old, new = bytes([5, 1, 2]) + bytes(13), bytes([6, 1, 2]) + bytes(13)
    knobs = CollateralKnobs(module_status="OutOfDate")
    launched = judge(knobs=knobs, td=TdKnobs(version=5, tee_tcb_svn=old, tee_tcb_svn2=new))
    assert launched.value("tee.tcb.status") == "TDRelaunchAdvised"
    still_old = judge(knobs=knobs, td=TdKnobs(version=5, tee_tcb_svn=old, tee_tcb_svn2=old))
    assert still_old.value("tee.tcb.status") == "OutOfDate"
    configured = CollateralKnobs(status="ConfigurationNeeded", module_status="OutOfDate")
    verdict = judge(knobs=configured, td=TdKnobs(version=5, tee_tcb_svn=old, tee_tcb_svn2=new))
    assert verdict.value("tee.tcb.status") == "TDRelaunchAdvisedConfigurationNeeded"
    for svn2, status in (
        (bytes([5, 0, 2]), "TDRelaunchAdvised"),  # a loaded module of version 0 is measured by the newest level
        (bytes([4, 0, 2]), "OutOfDate"),
        (bytes([6, 1, 1]), "OutOfDate"),  # its microcode is still behind
    ):
        td = TdKnobs(version=5, tee_tcb_svn=old, tee_tcb_svn2=svn2 + bytes(13))
        assert judge(knobs=knobs, td=td).value("tee.tcb.status") == status
    unknown = judge(knobs=knobs, td=TdKnobs(version=5, tee_tcb_svn=old, tee_tcb_svn2=bytes([6, 9, 2]) + bytes(13)))
    assert _code(unknown) == 4135
    bad_qe = CollateralKnobs(module_status="OutOfDate", qe_status="OutOfDate")
    verdict = judge(knobs=bad_qe, td=TdKnobs(version=5, tee_tcb_svn=old, tee_tcb_svn2=new))
    assert verdict.value("tee.tcb.status") == "OutOfDate"


def test_a_tcb_that_no_level_matches_is_unknown(judge: Judge, site: attest.SimulatedSite, at: datetime) -> None:
    knobs = CollateralKnobs(unmatched=True)
    verdict = judge(knobs=knobs)
    assert (verdict.outcome, _code(verdict)) == ("unknown", 4134)
    # dcap-qvl raises here; ours still shows who the TD is, so that a refusal can be explained
    assert verdict.value("tee.measurement") == bytes(48).hex()
    made = site.attester(bytes(48), collateral=knobs, clock=lambda: at)
    with pytest.raises(ValueError, match="No matching TCB level"):
        _second_opinion(site, made.attest(bytes(64)), at)


def test_a_module_below_every_level_is_unknown(judge: Judge) -> None:
    assert _code(judge(knobs=CollateralKnobs(module_svn=6))) == 4134


def test_a_module_of_a_major_version_that_nobody_published_is_refused(judge: Judge) -> None:
    assert _code(judge(td=TdKnobs(tee_tcb_svn=bytes([5, 9, 2]) + bytes(13)))) == 4135


def test_a_module_of_major_version_zero_is_judged_by_the_platforms_level(judge: Judge) -> None:
    judge(td=TdKnobs(tee_tcb_svn=bytes([5, 0, 2]) + bytes(13))).require()
    assert _code(judge(td=TdKnobs(tee_tcb_svn=bytes([4, 0, 2]) + bytes(13)))) == 4134


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_debug_is_a_claim_and_the_default_policy_refuses_it(
    judge: Judge, site: attest.SimulatedSite, at: datetime, tee: attest.EvidenceType
) -> None:
    verdict = judge(tee=tee, debug=True)
    assert (verdict.value("tee.debug"), _code(verdict)) == (True, 4141)
    made = site.attester(bytes(48 if tee == "tdx" else 32), tee=tee, debug=True, clock=lambda: at)
    # dcap-qvl cannot report a debuggable TEE, only raise; a policy needs the fact
    with pytest.raises(ValueError, match="Debug mode is enabled"):
        _second_opinion(site, made.attest(bytes(64)), at)


def test_a_service_td_is_a_claim_and_the_default_policy_refuses_it(
    judge: Judge, site: attest.SimulatedSite, at: datetime
) -> None:
    knobs = TdKnobs(version=5, service_td=b"s" * 48)
    verdict = judge(td=knobs)
    assert (verdict.value("tee.service_td"), _code(verdict)) == (True, 4143)
    assert verdict.value("tee.service_td_hash") == (b"s" * 48).hex()
    with pytest.raises(ValueError, match="service TD"):
        _second_opinion(site, site.attester(bytes(48), td=knobs, clock=lambda: at).attest(bytes(64)), at)


def test_a_migratable_td_whose_report_cannot_name_service_tds_is_not_shown_to_have_none(judge: Judge) -> None:
    verdict = judge(td=TdKnobs(version=4, migratable=True))
    claim = verdict.claim("tee.service_td")
    assert claim is not None
    assert claim.status == "unknown"
    assert _code(verdict) == 4143
    assert judge(td=TdKnobs(version=5, migratable=True)).value("tee.service_td") is False


def test_sept_ve_disable_is_a_claim_that_a_policy_may_demand(
    judge: Judge, site: attest.SimulatedSite, at: datetime
) -> None:
    knobs = TdKnobs(sept_ve_disable=False)
    verdict = judge(td=knobs)
    verdict.require()
    assert verdict.value("tee.sept_ve_disable") is False
    wanted = {"authority": "x", "allOf": [{"claim": "tee.sept_ve_disable", "equals": True}]}
    policy = attest.parse_policy({"version": "1.0.0", "anyOf": [wanted]})
    assert _code(judge(td=knobs, policy=policy)) == 4140
    judge(policy=policy).require()
    # dcap-qvl raises for every such TD; whether it matters depends on the guest's kernel, so ours lets a policy say
    with pytest.raises(ValueError, match="SEPT_VE_DISABLE"):
        _second_opinion(site, site.attester(bytes(48), td=knobs, clock=lambda: at).attest(bytes(64)), at)


def test_the_hosts_mrowner_is_not_a_signer(judge: Judge) -> None:
    verdict = judge()
    assert verdict.value("tee.owner") == bytes(48).hex()
    assert verdict.claim("tee.signer") is None


@pytest.mark.parametrize("seconds", [-1, 0])
def test_collateral_is_good_up_to_its_next_update(
    judge: Judge, site: attest.SimulatedSite, at: datetime, seconds: int
) -> None:
    issued = at - timedelta(hours=1)
    end = issued + timedelta(days=30)
    judge(when=end + timedelta(seconds=seconds)).require()
    assert _code(judge(when=end + timedelta(seconds=1))) == 4131
    judge(when=issued).require()
    assert _code(judge(when=issued - timedelta(seconds=1))) == 4132


def test_certificates_outside_their_validity_are_refused(
    judge: Judge, site: attest.SimulatedSite, at: datetime
) -> None:
    late = at + timedelta(days=3660)
    assert _code(judge(when=late, collateral=site.collateral(late))) == 4111


@pytest.mark.parametrize("name", ["pck", "authority", "signing"])
def test_a_revoked_certificate_is_refused(judge: Judge, name: Any) -> None:
    verdict = judge(knobs=CollateralKnobs(revoked=frozenset({name})))
    assert _code(verdict) == 4114
    claim = verdict.claim("collateral.qe_identity" if name == "signing" else "evidence.revocation")
    assert claim is not None
    assert claim.status == "refuted"


def test_collateral_of_another_platform_is_refused(judge: Judge) -> None:
    assert _code(judge(knobs=CollateralKnobs(fmspc=bytes(6)))) == 4133


def test_a_chain_is_built_by_issuer_and_not_by_position(site: attest.SimulatedSite, judge: Judge, at: datetime) -> None:
    good = site.collateral(at)

    def turned(text: str) -> str:
        marker = "-----BEGIN CERTIFICATE-----\n"
        return "".join(marker + block for block in reversed(text.split(marker)[1:]))

    swapped = good.model_copy(
        update={
            name: turned(getattr(good, name))
            for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
        }
    )
    assert swapped != good
    judge(collateral=swapped).require()


def test_a_claim_that_is_not_made_has_a_code_of_its_own(judge: Judge) -> None:
    with pytest.raises(AttestationError) as caught:
        judge().value("tee.colour")
    assert caught.value.code == 4147


def test_a_verdict_has_no_truth_value(judge: Judge) -> None:
    with pytest.raises(TypeError):
        bool(judge())


def test_a_verdict_is_json_and_says_what_failed(judge: Judge) -> None:
    facts = json.loads(json.dumps(judge(debug=True).as_json()))
    assert (facts["outcome"], facts["accepted"], facts["assurance"]) == ("refuted", False, "simulated")
    policy = facts["claims"][-1]
    assert (policy["name"], policy["status"], policy["code"]) == ("policy", "refuted", 4141)
    assert facts["policy"]["holds"] is False


def test_the_verdict_names_the_evidence_whatever_collateral_travels(judge: Judge) -> None:
    evidence = attest.Evidence(type="tdx", quote=b"x")
    assert evidence.quote_digest() == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(sorted(attest.Collateral.model_fields)),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 6),
)
@example(field="root_ca_crl", place=0.0, bit=5)
def test_any_bit_of_the_collateral_changed_is_refused(
    site: attest.SimulatedSite, roots: attest.TrustRoots, at: datetime, field: str, place: float, bit: int
) -> None:
    evidence = site.attester(bytes(48), clock=lambda: at).attest(bytes(64))
    assert evidence.collateral is not None
    value = evidence.collateral.as_json()
    if field not in value:
        return
    text = bytearray(value[field].encode())
    text[int(place * len(text))] ^= 1 << bit
    value[field] = text.decode("ascii")
    with pytest.raises(CloisterError):
        attest.appraise(
            evidence,
            attest.parse_collateral(json.dumps(value).encode()),
            attest.DANGEROUS_DEVELOPMENT_POLICY,
            at,
            roots=roots,
        ).require()


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_byte_of_the_quote_changed_is_refused(
    site: attest.SimulatedSite, roots: attest.TrustRoots, at: datetime, place: float, change: int
) -> None:
    evidence = site.attester(bytes(48), clock=lambda: at).attest(bytes(64))
    quote = bytearray(evidence.quote)
    quote[int(place * len(quote))] ^= change
    changed = attest.Evidence(type="tdx", quote=bytes(quote), collateral=evidence.collateral)
    with pytest.raises(AttestationError):
        attest.appraise(changed, None, attest.DANGEROUS_DEVELOPMENT_POLICY, at, roots=roots).require()


@settings(max_examples=100, deadline=None)
@given(quote=st.binary(max_size=1500), document=st.text(max_size=200))
def test_random_bytes_end_in_a_verdict(site: attest.SimulatedSite, at: datetime, quote: bytes, document: str) -> None:
    good = site.collateral(at)
    updates = {name: document for name in ("tcb_info", "qe_identity", "pck_crl_issuer_chain")}
    collateral = good.model_copy(update=updates)
    for kind in ("sgx", "tdx"):
        evidence = attest.Evidence(type=kind, quote=quote, collateral=collateral)
        assert attest.appraise(evidence, None, attest.DEFAULT_POLICY, at).outcome == "refuted"


@pytest.mark.parametrize("text", ["\ud800", "ü", "-----BEGIN CERTIFICATE-----\n"])
def test_text_that_is_not_a_chain_ends_in_a_verdict(
    site: attest.SimulatedSite, judge: Judge, at: datetime, text: str
) -> None:
    broken = site.collateral(at).model_copy(update={"tcb_info_issuer_chain": text})
    assert _code(judge(collateral=broken)) == 4110
