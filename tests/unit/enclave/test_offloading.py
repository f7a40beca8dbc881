"""A stage whose layers leave, through the real sandbox, with a broker that only counts."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.brokers import ASK, FakeOffloader
from tests.enclaves import IDENTITIES, LIMITS, World, offload_workers

from cloister.enclave import open_findings, open_log
from cloister.errors import CloisterError
from cloister.manifest import OffloadTerms
from cloister.receipt import verify_receipt
from cloister.wire import SigningKey

VERIFY = OffloadTerms(mode="verify", workers=("gpu",))
SHARED = OffloadTerms(mode="shared3", workers=("gpu-a", "gpu-b", "gpu-c"))
WRITE = "open('/outputs/model/m', 'w').write('trained')\n"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def world(tmp_path):
    return lambda script=WRITE, **options: World.build(
        tmp_path / "world", ASK + script, **{"offload": VERIFY, **options}
    )


@pytest.fixture
def offloader():
    return FakeOffloader()


def code_of(outcome):
    with pytest.raises(CloisterError) as caught:
        outcome.require()
    return caught.value.code


def facts_of(world, outcome):
    receipt = outcome.require().receipt
    return verify_receipt(receipt, key=world.session.public, manifest=world.signed.manifest).offload


@pytest.mark.parametrize("inline", [False, True], ids=["sandboxed", "inline"])
def test_a_script_finds_the_broker_and_the_receipt_says_what_it_did(tmp_path, offloader, inline):
    script = "import sys\nwith open(sys.argv[1], 'w') as file: file.write(ask('multiply') + ask('multiply'))"
    argv = ("python", "train.py", "/outputs/model/m")
    here = World.build(tmp_path / "world", ASK + script, offload=SHARED, stage={"argv": argv})
    outcome = here.launch(offloader=offloader, inline=inline)
    facts = facts_of(here, outcome)
    assert (here.unpacked(outcome) / "m").read_text() == "productproduct"
    assert (facts.mode, facts.workers) == ("shared3", SHARED.workers)
    assert (facts.models, facts.products, facts.checks, facts.sent_bytes, facts.received_bytes) == (1, 2, 2, 200, 20)
    assert "CLOISTER_OFFLOAD" not in os.environ


def test_a_script_that_offloads_nothing_is_a_stage_like_any_other(world, offloader):
    here = world()
    assert facts_of(here, here.launch(offloader=offloader)).products == 0
    assert offloader.broker.left


def test_a_stage_without_terms_has_no_broker_and_its_receipt_says_nothing_of_one(world, offloader):
    here = world(
        "", offload=None, files={"train.py": "import os; assert 'CLOISTER_OFFLOAD' not in os.environ\n" + WRITE}
    )
    outcome = here.launch(offloader=offloader)
    assert facts_of(here, outcome) is None
    assert b"offload" not in outcome.require().receipt.payload
    assert offloader.made == []


def test_the_broker_is_given_the_manifests_keys_the_hosts_addresses_and_the_data_owners(world, offloader):
    here = world(offload=SHARED)
    moved = dict.fromkeys(SHARED.workers, "tcp://10.0.0.7:8430")
    here.launch(here.job.model_copy(update={"workers": moved}), offloader=offloader).require()
    made, agreed = offloader.broker, here.signed.manifest
    assert made.terms == SHARED
    assert tuple(made.workers) == SHARED.workers
    assert {worker.url for worker in made.workers.values()} == {"tcp://10.0.0.7:8430"}
    assert [worker.key for worker in made.workers.values()] == [agreed.workers[name].key for name in SHARED.workers]
    assert set(made.parties) == {"hospital"}
    assert offloader.memory_bytes == LIMITS.memory_bytes // 2


@pytest.mark.parametrize(
    ("script", "options", "code"),
    [
        ("raise SystemExit(3)", {}, 5501),
        ("import time; time.sleep(60)", {"stage": {"limits": LIMITS.model_copy(update={"time_s": 1})}}, 5503),
        ("", {"stage": {"argv": ("nowhere",)}}, 2504),
    ],
)
def test_the_broker_ends_with_the_script_however_that_ended(world, offloader, script, options, code):
    assert code_of(world(script, **options).launch(offloader=offloader)) == code
    assert offloader.broker.left


def test_a_link_that_broke_is_told_by_its_code_alone_though_the_script_went_on_without_it(world, offloader):
    here = world("ask('break 6706')\n" + WRITE)
    failure = here.launch(offloader=offloader).failure
    assert (failure.code, failure.what, failure.got) == (6706, "the link to the worker broke", None)


@pytest.mark.parametrize(
    ("script", "time_s", "code"),
    [
        ("ask('break 6706')\nraise SystemExit(1)", 60, 6706),
        ("ask('break 5712')\nraise SystemExit(1)", 60, 5712),
        ("ask('break 6706')\nimport time; time.sleep(60)", 2, 5503),
    ],
    ids=["before the script's own failure", "which need not be a peer's", "after a limit"],
)
def test_of_two_things_that_went_wrong_one_is_told(world, offloader, script, time_s, code):
    here = world(script, stage={"limits": LIMITS.model_copy(update={"time_s": time_s})})
    assert code_of(here.launch(offloader=offloader)) == code


def test_what_was_printed_before_a_lie_is_for_the_readers_of_the_log(world, offloader):
    here = world("print('epoch 7', flush=True)\nask('lie fc1')\n" + WRITE, stage={"logs": ("hospital",)})
    failure = here.launch(offloader=offloader).failure
    key, session = IDENTITIES["hospital"].opening_key, here.session.public
    text = open_log(failure.log, party="hospital", key=key, session=session, attempt=here.grant_digest)
    assert failure.code == 5701
    assert b"epoch 7" in text
    assert b"a worker's answer was wrong" in text


def read(world, failure, party="hospital", **how):
    given = {"session": world.session.public, "attempt": world.grant_digest, **how}
    return open_findings(failure.findings, party=party, key=IDENTITIES[party].opening_key, **given)


def test_what_failed_is_for_the_owners_of_the_data_and_not_for_an_operator(world, offloader):
    here = world("ask('lie fc1')\nask('lie fc2')\n" + WRITE)
    failure = here.launch(offloader=offloader).failure
    assert failure.code == 5701
    assert json.loads(read(here, failure))["failures"] == [{"layer": "fc1"}, {"layer": "fc2"}]
    for how, code in (
        ({"party": "lab"}, 2502),
        ({"attempt": "0" * 64}, 5506),
        ({"session": SigningKey.generate().public}, 5001),
    ):
        with pytest.raises(CloisterError) as caught:
            read(here, failure, **how)
        assert caught.value.code == code


def test_findings_sealed_under_another_label_do_not_open(world, offloader, monkeypatch):
    monkeypatch.setattr("tests.brokers.RECORD_INFO", b"another")
    here = world("ask('lie fc1')")
    with pytest.raises(CloisterError) as caught:
        read(here, here.launch(offloader=offloader).failure)
    assert caught.value.code == 5002


def test_the_rooms_that_seal_and_open_findings_use_one_label():
    from cloister.enclave._findings import RECORD_INFO
    from cloister.offload._verdict import EVIDENCE_INFO

    assert RECORD_INFO == EVIDENCE_INFO


def test_without_an_offloader_no_such_stage_runs(world):
    here = world()
    assert code_of(here.launch()) == 3503
    assert here.obtained == 0


def test_a_worker_that_no_layer_is_offloaded_to_is_still_a_network_that_nobody_has(world, offloader):
    here = world(stage={"network": ("gpu", "other")}, links=offload_workers("gpu", "other"))
    assert code_of(here.launch(offloader=offloader)) == 3503
    assert here.obtained == 0


def test_a_worker_without_a_place_is_an_error_before_any_key(world, offloader):
    here = world()
    assert code_of(here.launch(here.job.model_copy(update={"workers": {}}), offloader=offloader)) == 2505
    assert here.obtained == 0


def test_a_launcher_imports_what_multiplies_for_stages_that_offload_and_for_no_others(tmp_path):
    """In a process of its own: other tests' torch is in this one."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.enclaves import World
        from cloister.cli import _launcher
        from cloister.manifest import OffloadTerms

        folder, terms = Path(sys.argv[1]), OffloadTerms(mode="verify", workers=("gpu",))
        plain = World.build(folder / "plain", "open('/outputs/model/m', 'w')")
        plain.launch(offloader=_launcher.offloader).require()
        assert "torch" not in sys.modules, "imported for nothing"
        offloaded = World.build(folder / "offloaded", "open('/outputs/model/m', 'w')", offload=terms)
        offloaded.launch(offloader=_launcher.offloader).require()
        assert "torch" in sys.modules
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
