"""The simulated site: kept safely, honest about itself, and no key of one thing opens another's."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509

from cloister import attest
from cloister.errors import InputError


def test_a_site_comes_back_as_itself(tmp_path: Path, at: datetime) -> None:
    made = attest.SimulatedSite.create(tmp_path / "new", created=at)
    again = attest.SimulatedSite.open(tmp_path / "new")
    assert (again.root_spki, again.fmspc, again.platform) == (made.root_spki, made.fmspc, made.platform)
    key = made.attester(bytes(48)).sealing_key("state")
    assert again.attester(bytes(48)).sealing_key("state").matches(key)


def test_its_file_is_its_owners_alone(tmp_path: Path) -> None:
    attest.SimulatedSite.create(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(InputError) as caught:
        attest.SimulatedSite.open(tmp_path)
    assert caught.value.code == 2014


def test_a_site_is_never_overwritten(tmp_path: Path) -> None:
    attest.SimulatedSite.create(tmp_path)
    with pytest.raises(InputError) as caught:
        attest.SimulatedSite.create(tmp_path)
    assert caught.value.code == 2007


def test_of_two_that_make_a_site_at_once_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    def make(_: int) -> str | int:
        try:
            return attest.SimulatedSite.create(tmp_path).root_spki
        except InputError as error:
            return error.code

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(make, range(4)))
    assert results.count(2007) == 3
    assert attest.SimulatedSite.open(tmp_path).root_spki in results
    assert len(list(tmp_path.iterdir())) == 1


def test_no_site_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        attest.SimulatedSite.open(tmp_path)
    assert caught.value.code == 2001


@pytest.mark.parametrize("damage", ["keys", "certificates", "text", "version", "root"])
def test_a_damaged_site_is_refused_without_printing_its_keys(tmp_path: Path, damage: str) -> None:
    attest.SimulatedSite.create(tmp_path)
    (file,) = tmp_path.iterdir()
    value = json.loads(file.read_text())
    if damage == "text":
        file.write_text("{")
    elif damage == "version":
        file.write_text(json.dumps({**value, "version": 2}))
    elif damage == "root":
        file.write_text(json.dumps({**value, "keys": {**value["keys"], "root": value["keys"]["pck"]}}))
    else:
        file.write_text(json.dumps({**value, damage: {}}))
    with pytest.raises(InputError) as caught:
        attest.SimulatedSite.open(tmp_path)
    assert caught.value.code == 2109
    assert value["secret"] not in str(caught.value.as_json())


def test_every_certificate_says_that_it_is_simulated(site: attest.SimulatedSite, at: datetime) -> None:
    collateral = site.collateral(at)
    for chain in (collateral.pck_crl_issuer_chain, collateral.tcb_info_issuer_chain):
        for certificate in x509.load_pem_x509_certificates(chain.encode()):
            assert "Simulated" in certificate.subject.rfc4514_string()


def test_sealing_keys_differ_by_everything_that_matters(site: attest.SimulatedSite, tmp_path: Path) -> None:
    other = attest.SimulatedSite.create(tmp_path)
    measurement = bytes(48)
    attesters = [
        site.attester(measurement),
        site.attester(b"\x01" + bytes(47)),
        site.attester(measurement, debug=True),
        site.attester(measurement, config_id=b"c"),
        site.attester(bytes(32), tee="sgx"),
        other.attester(measurement),
    ]
    keys = [attester.sealing_key("state").reveal() for attester in attesters] + [attesters[0].sealing_key("x").reveal()]
    assert len({*keys}) == len(keys)
    assert all(len(key) == 32 for key in keys)


def test_an_attester_is_an_attester(site: attest.SimulatedSite) -> None:
    made: attest.Attester = site.attester(b"m" * 48)
    assert isinstance(made, attest.Attester)
    assert (made.measurement, made.simulated) == ((b"m" * 48).hex(), True)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_of_another_size_is_refused(site: attest.SimulatedSite, size: int) -> None:
    with pytest.raises(InputError) as caught:
        site.attester(bytes(48)).attest(bytes(size))
    assert caught.value.code == 2108


def test_measurements_and_configuration_have_the_formats_sizes(site: attest.SimulatedSite) -> None:
    for attempt in (
        lambda: site.attester(bytes(32)),
        lambda: site.attester(bytes(48), tee="sgx"),
        lambda: site.attester(bytes(48), config_id=bytes(49)),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.code == 2108


def test_evidence_carries_fresh_collateral_until_it_is_an_hour_old(site: attest.SimulatedSite, at: datetime) -> None:
    moments = [at, at.replace(minute=30), at.replace(hour=14), at]
    clock = iter(moments)
    made = site.attester(bytes(48), clock=lambda: next(clock))
    first, second, third, back = (made.attest(bytes(64)).collateral for _ in moments)
    assert first == second
    assert third != first
    assert back != third, "a clock that went back gets collateral of its own time"


def test_secrets_do_not_show(site: attest.SimulatedSite) -> None:
    assert repr(site) == f"<SimulatedSite {site.root_spki[:16]}…>"
    assert repr(site.attester(bytes(48))) == "<SimulatedAttester tdx 0000000000000000…>"
