"""One rule of the manifest's TEE terms at a time, on a verdict."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.keyworld import NOW

from cloister.attest import CollateralKnobs, Evidence, SimulatedSite, Verdict
from cloister.errors import CloisterError
from cloister.keys import Trace, appraise_tee, require_tee
from cloister.manifest import Tee

CODE = b"\x31" * 48


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tee, Evidence, Verdict]:
    site = SimulatedSite.create(tmp_path_factory.mktemp("site"))
    knobs = CollateralKnobs(status="SWHardeningNeeded", advisories=("INTEL-SA-1", "INTEL-SA-2"))
    evidence = site.attester(CODE, collateral=knobs).attest(bytes(64))
    tee = Tee(
        type="tdx",
        measurements=(CODE.hex(),),
        tcb=("SWHardeningNeeded",),
        simulated_root=site.root_spki,
        platforms=(site.platform,),
        deny_advisories=("INTEL-SA-3",),
    )
    return tee, evidence, appraise_tee(tee, evidence, at=datetime.now(UTC))


def test_evidence_within_every_term_is_accepted(accepted: tuple[Tee, Evidence, Verdict]) -> None:
    trace = Trace()
    require_tee(*accepted, trace=trace)
    assert {step.outcome for step in trace.steps} == {"passed"}
    assert len(trace.steps) == 8


@pytest.mark.parametrize(
    ("term", "code"),
    [
        ({"type": "sgx"}, 4401),
        ({"measurements": ("0" * 96,)}, 4402),
        ({"rtmrs": (("0" * 95 + "1", "any", "any", "any"),)}, 4409),
        ({"tcb": ("UpToDate",)}, 4403),
        ({"deny_advisories": ("INTEL-SA-3", "INTEL-SA-2")}, 4404),
        ({"platforms": ("0" * 32,)}, 4405),
        ({"simulated_root": None}, 4406),
    ],
)
def test_each_term_has_its_own_code(accepted: tuple[Tee, Evidence, Verdict], term: dict[str, Any], code: int) -> None:
    tee, evidence, verdict = accepted
    trace = Trace()
    with pytest.raises(CloisterError) as raised:
        require_tee(tee.model_copy(update=term), evidence, verdict, trace=trace)
    assert raised.value.code == code
    assert trace.steps[-1].outcome == "failed"
    assert trace.steps[-1].reason.startswith(f"{code}: ")


def test_hardware_does_not_stand_in_for_the_named_development_root(accepted: tuple[Tee, Evidence, Verdict]) -> None:
    tee, evidence, verdict = accepted
    with pytest.raises(CloisterError) as raised:
        require_tee(tee, evidence, replace(verdict, simulated=False))
    assert raised.value.code == 4407


def test_verdict_that_is_not_accepted_is_not_looked_into(accepted: tuple[Tee, Evidence, Verdict]) -> None:
    tee, evidence, _ = accepted
    with pytest.raises(CloisterError) as raised:
        require_tee(tee, evidence, appraise_tee(tee, evidence, at=NOW.replace(year=2030)))
    assert raised.value.code // 100 == 41
