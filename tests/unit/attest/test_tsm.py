"""configfs-tsm, on a folder that behaves as the kernel does."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister import attest
from cloister.attest import ConfigfsTsmAttester
from cloister.errors import AttestationError, InputError


def test_a_quote_comes_out_for_the_bytes_that_went_in(
    kernel: Any, tmp_path: Path, roots: attest.TrustRoots, site: attest.SimulatedSite
) -> None:
    made: attest.Attester = ConfigfsTsmAttester(tmp_path)
    evidence = made.attest(b"r" * 64)
    assert (evidence.type, evidence.collateral) == ("tdx", None)
    now = datetime(2026, 11, 20, tzinfo=UTC)
    verdict = attest.appraise(evidence, site.collateral(now), attest.DANGEROUS_DEVELOPMENT_POLICY, now, roots=roots)
    verdict.require()
    assert verdict.value("tee.report_data") == (b"r" * 64).hex()
    assert list(tmp_path.iterdir()) == [], "the entry is removed"


def test_the_measurement_is_that_of_the_guests_own_quote(kernel: Any, tmp_path: Path) -> None:
    made = ConfigfsTsmAttester(tmp_path)
    assert made.measurement == (b"k" * 48).hex()
    assert made.measurement == (b"k" * 48).hex()
    assert not made.simulated
    assert made.sealing_key("x") is None


def test_another_writer_in_between_is_noticed(kernel: Any, tmp_path: Path) -> None:
    kernel.other_writers = 1
    with pytest.raises(AttestationError) as caught:
        ConfigfsTsmAttester(tmp_path).attest(bytes(64))
    assert caught.value.code == 4160
    assert list(tmp_path.iterdir()) == []


def test_an_oversized_answer_is_refused(kernel: Any, tmp_path: Path) -> None:
    kernel.tail = bytes(attest.MAX_QUOTE_BYTES)
    with pytest.raises(AttestationError) as caught:
        ConfigfsTsmAttester(tmp_path).attest(bytes(64))
    assert caught.value.code == 4103


@pytest.mark.parametrize(("name", "value"), [("provider", "sev_guest\n"), ("generation", "many\n")])
def test_a_kernel_that_is_no_tdx_guest_is_refused(kernel: Any, tmp_path: Path, name: str, value: str) -> None:
    setattr(kernel, name, value)
    with pytest.raises(AttestationError) as caught:
        ConfigfsTsmAttester(tmp_path).attest(bytes(64))
    assert caught.value.code == 4160


def test_a_kernel_that_refuses_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AttestationError) as caught:
        ConfigfsTsmAttester(tmp_path / "absent").attest(bytes(64))
    assert caught.value.code == 4160


def test_report_data_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        ConfigfsTsmAttester(tmp_path).attest(bytes(32))
    assert caught.value.code == 2108


def test_a_machine_without_a_tee_says_so(tmp_path: Path) -> None:
    assert isinstance(attest.find_attester(tmp_path), ConfigfsTsmAttester)
    with pytest.raises(AttestationError) as caught:
        attest.find_attester(tmp_path / "absent")
    assert caught.value.code == 4161
