import pytest
from tests.enclaves import IDENTITIES, World

from cloister.enclave import open_log
from cloister.errors import CloisterError
from cloister.receipt import verify_receipt

COPY = "open('/outputs/model/m.txt', 'w').write(open('/inputs/data/x.txt').read().upper())"
PRINT = "print('seen', open('/inputs/data/x.txt').read())\n"


@pytest.fixture
def world(tmp_path):
    return lambda script=COPY, **options: World.build(tmp_path / "world", script, **options)


def refusal(outcome):
    with pytest.raises(CloisterError) as caught:
        outcome.require()
    return caught.value


def log_of(world, attempt, party="hospital"):
    said = attempt.log
    return open_log(
        said,
        party=party,
        key=IDENTITIES[party].opening_key,
        session=world.session.public,
        attempt=world.grant_digest,
    ).decode()


def test_a_stage_reads_its_input_and_its_output_is_sealed(world):
    here = world()
    outcome = here.launch()
    assert (here.unpacked(outcome) / "m.txt").read_text() == "SECRET 42"


def test_the_receipt_fits_the_manifest_and_says_what_happened(world):
    here = world()
    result = here.launch().require()
    facts = verify_receipt(result.receipt, key=here.session.public, manifest=here.signed.manifest)
    assert facts.outputs["model"].image == result.images["model"]
    assert facts.outputs["model"].size_bytes == 9
    assert facts.claims == result.claims.digest()
    assert facts.evidence == result.evidence.quote_digest()
    assert (facts.assurance, facts.sandbox, facts.attempt) == ("simulated", "bubblewrap", 1)


def test_arguments_and_variables_are_the_manifests(world):
    script = (
        "import os, sys; open('/outputs/model/m', 'w').write(f'{sys.argv[1:]} {os.environ[\"EPOCHS\"]} {os.getcwd()}')"
    )
    here = world(script, stage={"argv": ("python", "train.py", "--rate", "1 2"), "env": {"EPOCHS": "5"}})
    assert (here.unpacked(here.launch()) / "m").read_text() == "['--rate', '1 2'] 5 /code"


def test_a_script_imports_its_neighbours_and_installed_packages(world):
    here = world("import numpy, helper; open('/outputs/model/m', 'w').write(helper.x)", files={"helper.py": "x = 'y'"})
    assert (here.unpacked(here.launch()) / "m").read_text() == "y"


def test_plaintext_is_gone_whatever_happened(world, tmp_path):
    for index, script in enumerate((COPY, "raise SystemExit(3)")):
        here = World.build(tmp_path / str(index), script)
        here.launch()
        assert not any(path.is_file() for path in (here.folder / "private").rglob("*"))


def test_a_failing_script_tells_the_host_its_code_and_no_more(world):
    here = world(PRINT + "raise ValueError(open('/inputs/data/x.txt').read())")
    error = refusal(here.launch())
    assert error.code == 5501
    assert "42" not in str(error.as_json())


def test_the_log_goes_to_the_parties_that_the_manifest_names(world):
    here = world(PRINT + "raise ValueError('why')", stage={"logs": ("hospital",)})
    failure = here.launch().failure
    text = log_of(here, failure)
    assert "seen secret 42" in text
    assert "ValueError: why" in text
    assert "status 1" in text
    with pytest.raises(CloisterError) as caught:
        log_of(here, failure, party="lab")
    assert caught.value.code == 2502


def test_a_sealed_log_has_one_length_whatever_was_printed(tmp_path):
    sizes = set()
    for index, script in enumerate(("", "print('x' * 100000)")):
        here = World.build(tmp_path / str(index), script, stage={"logs": ("hospital",)})
        sizes.add(len(here.launch().require().log.canonical()))
    assert len(sizes) == 1


def test_nothing_is_kept_of_a_log_that_is_closed(world):
    assert world(PRINT).launch().require().log is None


def test_an_empty_output_is_an_output(world):
    here = world("")
    assert list(here.unpacked(here.launch()).iterdir()) == []


def test_the_steps_are_timed(world):
    result = world().launch().require()
    assert set(result.fixed_ms) == {"verify", "release", "open", "unpack", "sandbox", "seal", "register"}
    assert result.script_ms > 0


def test_inline_runs_the_same_script_and_says_unsandboxed(world, capsys):
    script = "import pathlib as p, sys; p.Path(sys.argv[1], 'm.txt').write_bytes(p.Path(sys.argv[2]).read_bytes())"
    here = world(script, stage={"argv": ("python", "train.py", "/outputs/model", "/inputs/data/x.txt")})
    outcome = here.launch(inline=True)
    assert (here.unpacked(outcome) / "m.txt").read_text() == "secret 42"
    facts = verify_receipt(outcome.require().receipt, key=here.session.public, manifest=here.signed.manifest)
    assert (facts.sandbox, facts.assurance) == ("UNSANDBOXED", "simulated")


def test_inline_without_the_manifests_consent_to_simulated_evidence_is_refused_before_any_key(world):
    here = world(simulated=False)
    assert refusal(here.launch(inline=True)).code == 3504
    assert here.obtained == 0


class Hardware:
    simulated = False
    measurement = "0" * 96

    def attest(self, report_data):
        raise AssertionError("inline must not attest on hardware")

    def sealing_key(self, label):
        return None


def test_inline_on_hardware_is_refused_before_any_key(world):
    here = world()
    assert refusal(here.launch(inline=True, platform=Hardware())).code == 3504
    assert here.obtained == 0


def test_a_missing_place_is_an_error_before_any_key(world):
    here = world()
    job = here.job.model_copy(update={"inputs": {"code": here.job.inputs["code"]}})
    assert refusal(here.launch(job)).code == 2505
    assert here.obtained == 0


def test_a_stage_that_wants_a_network_is_refused_before_any_key(world):
    here = world(stage={"network": ("gpu",)}, workers=True)
    assert refusal(here.launch()).code == 3503
    assert here.obtained == 0
