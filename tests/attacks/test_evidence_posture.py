"""Genuine evidence of a TEE that is not in a state, or not the code, that the parties accept."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloister import attest
from cloister.attest import CollateralKnobs, TdKnobs
from cloister.errors import AttestationError

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> attest.SimulatedSite:
    return attest.SimulatedSite.create(tmp_path_factory.mktemp("site"), created=datetime(2026, 1, 1, tzinfo=UTC))


def _refusal(site: attest.SimulatedSite, policy: attest.Policy, at: datetime = AT, **attester: Any) -> AttestationError:
    evidence = site.attester(b"m" * 48, clock=lambda: AT, **attester).attest(bytes(64))
    roots = attest.VENDOR_ROOTS.with_development(site.root_spki)
    with pytest.raises(AttestationError) as caught:
        attest.appraise(evidence, None, policy, at, roots=roots).require()
    return caught.value


def _policy(*conditions: dict[str, Any]) -> attest.Policy:
    return attest.parse_policy({"version": "1.0.0", "anyOf": [{"authority": "parties", "allOf": list(conditions)}]})


@pytest.mark.parametrize(
    ("attester", "code"),
    [
        ({"debug": True}, 4141),
        ({"td": TdKnobs(version=5, debug=True)}, 4141),
        ({"td": TdKnobs(version=5, service_td=b"s" * 48)}, 4143),
        ({"td": TdKnobs(migratable=True)}, 4143),
        ({"collateral": CollateralKnobs(status="OutOfDate")}, 4142),
        ({"collateral": CollateralKnobs(qe_status="OutOfDate")}, 4142),
        ({"collateral": CollateralKnobs(module_status="OutOfDate")}, 4142),
        ({"collateral": CollateralKnobs(status="Revoked")}, 4142),
        ({"collateral": CollateralKnobs(unmatched=True)}, 4134),
        ({"collateral": CollateralKnobs(fmspc=b"other!")}, 4133),
        ({"collateral": CollateralKnobs(revoked=frozenset({"pck"}))}, 4114),
        ({"attach_collateral": False}, 4107),
    ],
)
def test_what_the_default_policy_does_not_accept_has_its_own_code(
    site: attest.SimulatedSite, attester: dict[str, Any], code: int
) -> None:
    assert _refusal(site, attest.DANGEROUS_DEVELOPMENT_POLICY, **attester).code == code


def test_expired_collateral_is_refused(site: attest.SimulatedSite) -> None:
    assert _refusal(site, attest.DANGEROUS_DEVELOPMENT_POLICY, AT + timedelta(days=31)).code == 4131


def test_a_clock_rolled_back_does_not_revive_collateral(site: attest.SimulatedSite) -> None:
    assert _refusal(site, attest.DANGEROUS_DEVELOPMENT_POLICY, AT - timedelta(days=1)).code == 4132


@pytest.mark.parametrize(
    "condition",
    [
        {"claim": "tee.tcb.advisories", "disjointFrom": ["INTEL-SA-00615"]},
        {"claim": "tee.tcb.advisories", "subsetOf": ["INTEL-SA-00289"]},
    ],
)
@pytest.mark.parametrize("where", ["advisories", "qe_advisories"])
def test_a_deny_listed_advisory_is_refused_wherever_it_comes_from(
    site: attest.SimulatedSite, condition: dict[str, Any], where: str
) -> None:
    knobs = CollateralKnobs(**{where: ("INTEL-SA-00615",)})
    assert _refusal(site, _policy(condition), collateral=knobs).code == 4144


def test_other_code_is_refused(site: attest.SimulatedSite) -> None:
    wanted = {"claim": "tee.measurement", "equals": (b"n" * 48).hex()}
    assert _refusal(site, _policy(wanted)).code == 4146


@pytest.mark.parametrize(
    "condition",
    [
        {"claim": "tee.debug", "equals": "false"},
        {"claim": "tee.signer", "notEquals": "00"},
        {"claim": "tee.signer", "exists": False},
        {"claim": "no.such.claim", "notEquals": True},
    ],
)
def test_a_policy_that_is_typed_wrong_or_asks_for_what_is_missing_accepts_nothing(
    site: attest.SimulatedSite, condition: dict[str, Any]
) -> None:
    assert _refusal(site, _policy(condition)).code in (4140, 4141, 4146)


def test_an_old_tcb_evaluation_is_refused_by_a_policy_that_names_one(site: attest.SimulatedSite) -> None:
    wanted = {"claim": "tee.tcb.evaluation", "greaterOrEquals": 18}
    assert _refusal(site, _policy(wanted)).code == 4140
