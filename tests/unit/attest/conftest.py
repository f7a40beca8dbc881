"""One simulated site for the room's tests, at a fixed moment."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from cloister import attest

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def at() -> datetime:
    return AT


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> attest.SimulatedSite:
    return attest.SimulatedSite.create(tmp_path_factory.mktemp("site"), created=datetime(2026, 11, 1, tzinfo=UTC))


@pytest.fixture(scope="session")
def roots(site: attest.SimulatedSite) -> attest.TrustRoots:
    return attest.VENDOR_ROOTS.with_development(site.root_spki)


@pytest.fixture(scope="session")
def judge(site: attest.SimulatedSite, roots: attest.TrustRoots) -> Callable[..., attest.Verdict]:
    """Makes simulated evidence with the knobs given and appraises it."""

    def appraise(
        *,
        report_data: bytes = bytes(64),
        collateral: attest.Collateral | None = None,
        policy: attest.Policy = attest.DANGEROUS_DEVELOPMENT_POLICY,
        when: datetime = AT,
        knobs: attest.CollateralKnobs | None = None,
        tee: attest.EvidenceType = "tdx",
        roots: attest.TrustRoots = roots,
        **attester: object,
    ) -> attest.Verdict:
        measurement = bytes(48 if tee == "tdx" else 32)
        made = site.attester(measurement, tee=tee, collateral=knobs, clock=lambda: AT, **attester)
        return attest.appraise(made.attest(report_data), collateral, policy, when, roots=roots)

    return appraise
