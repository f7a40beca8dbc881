"""Workers that lie, scripts that hide it, hosts that watch: around a stage whose layers leave."""

import pytest
from tests.brokers import ASK, FakeOffloader
from tests.enclaves import LIMITS, World

from cloister.enclave import _launcher
from cloister.errors import CloisterError, PeerError, RefusedError
from cloister.manifest import CheckpointTerms, OffloadTerms
from cloister.receipt import verify_receipt

TERMS = OffloadTerms(mode="verify", workers=("gpu",))
WRITE = "open('/outputs/model/m', 'w').write('trained')\n"
LIES = {
    "one product": "ask('lie fc1')\n" + WRITE,
    "another, later": "ask('multiply')\nask('multiply')\nask('lie blocks.3.attention.qkv.weight')\n" + WRITE,
    "all of them": "for n in range(40): ask(f'lie {n}')\n",
    "and the script stops at once": "ask('lie fc1')\nraise SystemExit(5)",
    "and the script crashes": "ask('lie fc1')\nimport os; os.abort()",
    "and the script swallows it": "try:\n    ask('lie fc1')\n    raise RuntimeError\nexcept RuntimeError:\n    pass\n"
    + WRITE,
    "and the script prints it": "print('wrong', ask('lie fc1'), '!' * 10000)\nraise SystemExit(1)",
    "and the script breaks its output": "import os\nask('lie fc1')\nos.symlink('/etc', '/outputs/model/x')",
    "and a link breaks": "ask('lie fc1')\nask('break 6706')\nraise SystemExit(1)",
    "after a link broke": "ask('break 6705')\nask('lie fc1')\n",
    "and the script takes too long": "ask('lie fc1')\nimport time; time.sleep(60)",
    "and the script takes too much": "ask('lie fc1')\nx = b'x' * (1 << 30)\nimport time; time.sleep(60)",
}


@pytest.fixture
def world(tmp_path):
    def build(script=WRITE, name="world", **options):
        stage = {"logs": ("hospital",), "limits": LIMITS.model_copy(update={"time_s": 5}), **options.pop("stage", {})}
        return World.build(tmp_path / name, ASK + script, **{"offload": TERMS, "stage": stage, **options})

    return build


def code_of(outcome):
    with pytest.raises(CloisterError) as caught:
        outcome.require()
    return caught.value.code


SEALED = ("log", "findings")


def seen_by_host(failure):
    """All of a failure: what is sealed by its size alone, what is drawn for every attempt not at all."""
    value = failure.as_json()
    drawn = {name: value.pop(name) for name in ("claims", "evidence")}
    sizes = {name: len(failure.model_dump()[name]["payload"]) for name in SEALED}
    for name in SEALED:
        value[name]["payload"] = ""
        value[name]["signatures"] = [len(each["sig"]) for each in value[name]["signatures"]]
    assert all(drawn.values())
    return value, sizes


@pytest.mark.slow
def test_whatever_was_wrong_and_whatever_came_of_it_the_host_sees_the_same(world):
    seen = []
    for number, script in enumerate(LIES.values()):
        here = world(script, name=f"world-{number}")
        failure = here.launch(offloader=FakeOffloader()).failure
        assert failure.code == 5701
        seen.append(seen_by_host(failure))
    first, *others = seen
    assert others == [first] * len(others)
    assert first[0] == {
        "code": 5701,
        "what": "a worker's answer is wrong",
        "hint": first[0]["hint"],
        "releases": {},
        "log": {"payloadType": "cloister/log/v1", "payload": "", "signatures": [88]},
        "findings": {"payloadType": "cloister/findings/v1", "payload": "", "signatures": [88]},
    }


@pytest.mark.parametrize("lie", ["one product", "and the script stops at once", "and a link breaks"])
def test_a_lie_leaves_no_output_whatever_the_script_makes_of_it(world, lie):
    here = world(LIES[lie])
    assert code_of(here.launch(offloader=FakeOffloader())) == 5701
    assert not (here.folder / "model.image").exists()


@pytest.mark.parametrize(
    "error",
    [OSError("no more processes"), RefusedError(3508), PeerError(6201), RefusedError(3501, "said by bubblewrap")],
)
def test_a_lie_is_told_though_the_sandbox_itself_failed(world, monkeypatch, error):
    """A host that pulls the sandbox or the storage away after a lie would otherwise see a code of its own choice."""

    def pulled(self, script, **_):
        script.broker._answer("lie", "fc1")
        raise error

    monkeypatch.setattr("cloister.enclave._confinement.Sandboxed.run", pulled)
    failure = world().launch(offloader=FakeOffloader()).failure
    assert (failure.code, failure.what, failure.findings is None) == (5701, "a worker's answer is wrong", False)


def test_a_swallowed_link_error_leaves_no_output(world):
    here = world("try:\n    ask('break 6706')\nexcept Exception:\n    pass\n" + WRITE)
    assert code_of(here.launch(offloader=FakeOffloader())) == 6706
    assert not (here.folder / "model.image").exists()


def test_a_manifest_that_sets_the_brokers_variable_is_refused(tmp_path):
    with pytest.raises(CloisterError) as caught:
        World.build(tmp_path / "world", WRITE, stage={"env": {"CLOISTER_OFFLOAD": '{"mode": "enclave"}'}})
    assert caught.value.code == 3304


def test_the_launcher_itself_refuses_that_variable(world, monkeypatch):
    monkeypatch.setattr(_launcher, "require_signed", lambda signed: signed)
    here = world()
    manifest = here.signed.manifest
    stage = manifest.stages["train"].model_copy(update={"env": {"CLOISTER_OFFLOAD": '{"mode": "enclave"}'}})
    changed = manifest.model_copy(update={"stages": {"train": stage}})
    signed = here.signed.model_copy(update={"manifest": changed})
    job = here.job.model_copy(update={"manifest": signed, "grant": World.granted(changed)})
    assert code_of(here.launch(job, offloader=FakeOffloader())) == 3304
    assert here.obtained == 0


def test_a_script_that_writes_the_variable_itself_changes_nothing_that_the_receipt_says(world):
    script = "os.environ['CLOISTER_OFFLOAD'] = '{\"mode\": \"enclave\", \"products\": 1000}'\nask('multiply')\n" + WRITE
    here = world(script)
    receipt = here.launch(offloader=FakeOffloader()).require().receipt
    facts = verify_receipt(receipt, key=here.session.public, manifest=here.signed.manifest)
    assert (facts.offload.mode, facts.offload.products) == ("verify", 1)


def test_a_job_that_names_an_address_that_is_none_is_no_job(world):
    from cloister.enclave import parse_task
    from cloister.wire import canonical

    here = world()
    for address in ("http://gpu.example", "tcp://gpu.example", "tcp://gpu:0", "tcp://gpu:65536", "tcp://a b:1"):
        with pytest.raises(CloisterError) as caught:
            parse_task(canonical(here.job.as_json() | {"workers": {"gpu": address}}))
        assert caught.value.code == 2005


SAVES = """
import os, pathlib, sys, time
folder = pathlib.Path(os.environ["CLOISTER_CHECKPOINT"])

def save(text):
    (folder / "new").write_text(text)
    os.replace(folder / "new", folder / "state")
    time.sleep(0.4)

if (folder / "state").exists():
    open("/outputs/model/m", "w").write((folder / "state").read_text())
    sys.exit()
save("clean")
ask("multiply")
ask("lie fc1")
save("tainted")
"""


@pytest.mark.parametrize("then", ["sys.exit(3)", "os.abort()", "save('worse')", "time.sleep(60)"])
def test_a_state_that_was_saved_after_a_lie_is_nobodys_checkpoint(world, monkeypatch, then):
    monkeypatch.setattr("cloister.enclave._checkpoint._POLL_S", 0.02)
    here = world(SAVES + then, stage={"checkpoint": CheckpointTerms(max_bytes=1 << 16)})
    first = here.job.model_copy(update={"grant": here.granted(here.signed.manifest, attempt=1)})
    assert code_of(here.launch(first, offloader=FakeOffloader())) == 5701
    assert len(here.saved) == 1
    second = here.job.model_copy(update={"grant": here.granted(here.signed.manifest, attempt=2)})
    outcome = here.launch(second, offloader=FakeOffloader())
    assert (here.unpacked(outcome) / "m").read_text() == "clean"
