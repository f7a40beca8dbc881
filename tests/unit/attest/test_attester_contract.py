"""What every attester keeps: one class of tests, run against each implementation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from cloister import attest
from cloister.errors import InputError


@pytest.fixture(params=["simulated tdx", "simulated sgx", "configfs-tsm"])
def attester(
    request: pytest.FixtureRequest, site: attest.SimulatedSite, kernel: object, tmp_path: Path
) -> attest.Attester:
    if request.param == "configfs-tsm":
        return attest.ConfigfsTsmAttester(tmp_path)
    tee: attest.EvidenceType = "sgx" if request.param.endswith("sgx") else "tdx"
    return site.attester(b"m" * (32 if tee == "sgx" else 48), tee=tee)


@pytest.fixture
def verdict_of(
    site: attest.SimulatedSite, roots: attest.TrustRoots, at: datetime
) -> Callable[[attest.Evidence], attest.Verdict]:
    def appraise(evidence: attest.Evidence) -> attest.Verdict:
        collateral = site.collateral(at, tee=evidence.type)
        return attest.appraise(evidence, collateral, attest.DANGEROUS_DEVELOPMENT_POLICY, at, roots=roots)

    return appraise


class TestAttesterContract:
    def test_it_has_the_shape_of_one(self, attester: attest.Attester) -> None:
        assert isinstance(attester, attest.Attester)
        assert isinstance(attester.simulated, bool)

    def test_evidence_is_over_the_bytes_given_and_the_code_that_asks(
        self, attester: attest.Attester, verdict_of: Callable[[attest.Evidence], attest.Verdict]
    ) -> None:
        for report_data in (bytes(range(64)), b"\xff" * 64):
            verdict = verdict_of(attester.attest(report_data))
            verdict.require()
            assert verdict.value("tee.report_data") == report_data.hex()
            assert verdict.value("tee.measurement") == attester.measurement

    @pytest.mark.parametrize("size", [0, 32, 65])
    def test_report_data_is_64_bytes(self, attester: attest.Attester, size: int) -> None:
        with pytest.raises(InputError) as caught:
            attester.attest(bytes(size))
        assert caught.value.code == 2108

    def test_a_sealing_key_is_stable_and_differs_by_label(self, attester: attest.Attester) -> None:
        key = attester.sealing_key("a")
        if key is None:
            return
        again, other = attester.sealing_key("a"), attester.sealing_key("b")
        assert again is not None
        assert other is not None
        assert key.matches(again)
        assert not key.matches(other)
        assert len(key) == 32
