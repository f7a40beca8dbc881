"""A host offers evidence of a machine that exists only in software."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister import attest
from cloister.errors import AttestationError, InputError

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
SINCE = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> attest.SimulatedSite:
    return attest.SimulatedSite.create(tmp_path_factory.mktemp("site"), created=SINCE)


def _evidence(site: attest.SimulatedSite) -> attest.Evidence:
    return site.attester(bytes(48), clock=lambda: AT).attest(bytes(64))


def _code(verdict: attest.Verdict) -> int:
    with pytest.raises(AttestationError) as caught:
        verdict.require()
    return caught.value.code


def test_a_development_root_is_refused_by_production_roots(site: attest.SimulatedSite) -> None:
    for policy in (attest.DEFAULT_POLICY, attest.DANGEROUS_DEVELOPMENT_POLICY):
        verdict = attest.appraise(_evidence(site), None, policy, AT)
        assert _code(verdict) == 4112
        assert verdict.assurance == "simulated", "what leads to no accepted root never counts as hardware"


def test_accepting_the_root_is_not_enough_while_the_policy_wants_hardware(site: attest.SimulatedSite) -> None:
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    assert _code(attest.appraise(_evidence(site), None, attest.DEFAULT_POLICY, AT, roots=roots)) == 4145


def test_another_sites_root_is_refused_although_it_has_the_same_names(
    site: attest.SimulatedSite, tmp_path: Path
) -> None:
    other = attest.SimulatedSite.create(tmp_path, created=SINCE)
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    policy = attest.DANGEROUS_DEVELOPMENT_POLICY
    assert _code(attest.appraise(_evidence(other), None, policy, AT, roots=roots)) == 4112
    # certificates of the accepted site, mixed in, lend it nothing: the names match, the signatures do not
    mixed = _evidence(other).model_copy(update={"collateral": site.collateral(AT)})
    assert _code(attest.appraise(mixed, None, policy, AT, roots=roots)) == 4112


def test_a_development_root_cannot_vouch_for_a_vendors_platform(
    site: attest.SimulatedSite, attestation_vectors: Path
) -> None:
    at = datetime(2025, 6, 21, tzinfo=UTC)
    real = attest.Evidence(type="tdx", quote=(attestation_vectors / "tdx/tdx_v4_outofdate.quote.bin").read_bytes())
    genuine = attest.parse_collateral((attestation_vectors / "tdx/fmspc_00806f_2025-07.collateral.json").read_bytes())
    forged = site.collateral(at, knobs=attest.CollateralKnobs(fmspc=bytes.fromhex("00806f050000")))
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    policy = attest.DANGEROUS_DEVELOPMENT_POLICY
    assert _code(attest.appraise(real, forged, policy, at, roots=roots)) == 4113
    names = [name for name in attest.Collateral.model_fields if name.startswith(("tcb_info", "qe_identity"))]
    half = genuine.model_copy(update={name: getattr(forged, name) for name in names})
    assert _code(attest.appraise(real, half, policy, datetime(2025, 7, 10, tzinfo=UTC), roots=roots)) == 4113


def test_a_vendors_root_cannot_be_declared_simulated() -> None:
    (vendor,) = attest.VENDOR_ROOTS.roots
    with pytest.raises(InputError) as caught:
        attest.VENDOR_ROOTS.with_development(vendor.spki_sha256)
    assert caught.value.code == 2107


@pytest.mark.parametrize("text", ["", "AB" * 32, "a" * 63, "a" * 65])
def test_a_root_is_named_in_full_or_not_at_all(text: str) -> None:
    with pytest.raises(InputError) as caught:
        attest.VENDOR_ROOTS.with_development(text)
    assert caught.value.code == 2107


def test_simulated_evidence_stays_simulated_in_every_form(site: attest.SimulatedSite) -> None:
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    verdict = attest.appraise(_evidence(site), None, attest.DANGEROUS_DEVELOPMENT_POLICY, AT, roots=roots)
    verdict.require()
    facts = json.loads(json.dumps(verdict.as_json()))
    assert (facts["assurance"], facts["simulated"], verdict.value("tee.simulated")) == ("simulated", True, True)
