"""Two stages through real launchers, a real key manager on loopback, real (simulated) evidence."""

import contextlib
import os
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.enclaves import IDENTITIES, LIMITS
from tests.keyserver import served

from cloister.attest import SimulatedSite
from cloister.enclave import Job, executor_named, measure_installed
from cloister.errors import CloisterError
from cloister.keys import (
    KeyManagerClient,
    KeyRule,
    MemoryStore,
    RegistrationRequest,
    Service,
    collect_output,
    initialise,
    install_key,
    verify_service,
)
from cloister.manifest import (
    Image,
    KeyManager,
    Manifest,
    Output,
    Party,
    Release,
    SignedManifest,
    Stage,
    Tee,
    Validity,
    sign,
)
from cloister.receipt import verify_receipt
from cloister.seal import open_image, seal_folder, unpack
from cloister.wire import VerifyKey

PREPARE = """
import sys
from pathlib import Path
Path(sys.argv[2], "n").write_text(str(len(Path(sys.argv[1], "x.txt").read_text())))
"""
TRAIN = """
import sys
from pathlib import Path
Path(sys.argv[2], "m").write_text(Path(sys.argv[1], "n").read_text() + " learned")
"""
DEBUG = """
import os, sys
from pathlib import Path

def read(place):
    text, pid = Path(place, "x.txt").read_text(), os.getpid()
    breakpoint()
    return text

os.environ["PYTHONBREAKPOINT"] = "0"  # it goes on where nobody put a hook of his own
Path(sys.argv[2], "x").write_text(read(sys.argv[1]))
"""
WAIT = "import os, pathlib, time\npathlib.Path('/outputs/waited/x').write_text('x')\ntime.sleep(300)"
MARK = "cloister-test-mark"


def stamp(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Sealed images, a signed manifest, installed keys, a run."""
    folder = tmp_path_factory.mktemp("stages")
    for name, files in {
        "code": {"prepare.py": PREPARE, "train.py": TRAIN, "wait.py": WAIT, "debug.py": DEBUG},
        "data": {"x.txt": "12345"},
    }.items():
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text)
    sealed = {name: seal_folder(folder / name, folder / f"{name}.image") for name in ("code", "data")}
    room = SimulatedSite.create(folder / "site")
    attester = room.attester(b"\1" * 48)
    store = MemoryStore()
    made = initialise(store, now=datetime.now(UTC), attester=attester)
    service = Service(store, attester=attester)
    now = datetime.now(UTC)
    measurements = tuple(
        measure_installed("launcher", sandbox=each).measurement for each in ("bubblewrap", "UNSANDBOXED")
    )
    stage = {"tee": "stages", "code": "code", "limits": LIMITS}
    manifest = Manifest(
        cloister=1,
        name="two-stages",
        valid=Validity(not_before=stamp(now - timedelta(days=1)), not_after=stamp(now + timedelta(days=1))),
        parties={
            n: Party(sign=str(i.signing_key.public), hpke=str(i.opening_key.public)) for n, i in IDENTITIES.items()
        },
        key_managers={"keys": KeyManager(sign=made.sign, tee="keys")},
        registrar="keys",
        tees={
            "keys": Tee(type="tdx", measurements=("01" * 48,), simulated_root=room.root_spki),
            "stages": Tee(type="tdx", measurements=measurements, simulated_root=room.root_spki),
        },
        images={
            "code": Image(id=sealed["code"].id, kind="code", owner="lab", key_manager="keys"),
            "data": Image(id=sealed["data"].id, kind="dataset", owner="hospital", key_manager="keys"),
        },
        stages={
            "prepare": Stage(
                **stage,
                argv=("python", "prepare.py", "/inputs/data", "/outputs/counted"),
                inputs=("data",),
                outputs={"counted": Output(max_bytes=1000)},
            ),
            "wait": Stage(
                **stage, argv=("python", "wait.py", MARK), inputs=("data",), outputs={"waited": Output(max_bytes=1000)}
            ),
            "debug": Stage(
                **stage,
                argv=("python", "debug.py", "/inputs/data", "/outputs/seen"),
                inputs=("data",),
                outputs={"seen": Output(max_bytes=1000)},
            ),
            "train": Stage(
                **stage,
                argv=("python", "train.py", "/inputs/counted", "/outputs/model"),
                inputs=("counted",),
                outputs={"model": Output(max_bytes=1000)},
            ),
        },
        releases=(
            Release(output="waited", nobody=True),
            Release(output="seen", nobody=True),
            Release(output="counted", stage="train"),
            Release(output="model", party="hospital"),
        ),
    )
    signed = SignedManifest(manifest=manifest)
    for identity in IDENTITIES.values():
        signed = sign(signed, identity)
    with served(service) as url, KeyManagerClient(url, VerifyKey.parse(made.sign)) as client:
        client.install_manifest(signed)
        verified = verify_service(client, manifest, "keys", at=datetime.now(UTC), allow_simulated=True)
        for name, owner in (("code", "lab"), ("data", "hospital")):
            rule = KeyRule(uses=10, until=stamp(now + timedelta(days=1)), simulated=True)
            given = {"manifest": manifest, "image": name, "key": sealed[name].key, "rule": rule}
            install_key(client, verified, **given, identity=IDENTITIES[owner])
        yield SimpleNamespace(folder=folder, room=room, signed=signed, manifest=manifest, client=client, url=url)
    service.close()


def job_for(site, run, stage, inputs):
    out = site.folder / f"{os.urandom(4).hex()}.image"
    (output,) = site.manifest.stages[stage].outputs
    return Job(
        manifest=site.signed,
        stage=stage,
        grant=site.client.start_attempt(run, stage),
        key_managers={"keys": site.url},
        inputs={"code": str(site.folder / "code.image"), **inputs},
        outputs={output: str(out)},
        site=str(site.folder / "site"),
    )


def ended(site, executor, job):
    """The stage's result, once the host has delivered its registration."""
    result = executor_named(executor).submit(job).outcome(120).require()
    assert result.registrations == {}
    site.client.register(RegistrationRequest(registration=result.registration))
    return result


@pytest.mark.parametrize(("executor", "sandbox"), [("process", "bubblewrap"), ("inline", "UNSANDBOXED")])
def test_a_whole_run_ends_with_a_model_that_only_its_party_opens(site, executor, sandbox):
    run = site.client.start_run(site.manifest.id)
    first = job_for(site, run, "prepare", {"data": str(site.folder / "data.image")})
    counted = ended(site, executor, first)
    second = job_for(site, run, "train", {"counted": first.outputs["counted"]})
    trained = ended(site, executor, second)
    facts = verify_receipt(trained.receipt, key=VerifyKey.parse(trained.claims.sign), manifest=site.manifest)
    assert facts.inputs["counted"] == counted.images["counted"]
    assert (facts.sandbox, facts.assurance, facts.attempt) == (sandbox, "simulated", 1)
    collected = collect_output(
        site.manifest, "model", run=facts.run, identity=IDENTITIES["hospital"], clients={"keys": site.client}
    )
    target = site.folder / f"model-{executor}"
    with open_image(second.outputs["model"], image_id=collected.image, key=collected.key) as reader:
        unpack(reader, target)
    assert (target / "m").read_text() == "5 learned"


@pytest.fixture
def debugger(monkeypatch):
    """What a debugger in this process sees of the script: its local variables, its thread, its calls."""
    seen = SimpleNamespace(stopped=[], traced=[])

    def stop():
        found = sys._getframe(1).f_locals
        seen.stopped.append((found["pid"], found["text"], threading.get_ident()))

    def trace(frame, event, argument):
        if Path(frame.f_code.co_filename).name == "debug.py":
            seen.traced.append((event, frame.f_code.co_name))
        return None

    monkeypatch.setattr(sys, "breakpointhook", stop)
    before = sys.gettrace()
    sys.settrace(trace)
    yield seen
    sys.settrace(before)


def test_an_inline_script_runs_in_this_very_process_where_a_debugger_sees_it(site, debugger):
    run = site.client.start_run(site.manifest.id)
    job = job_for(site, run, "debug", {"data": str(site.folder / "data.image")})
    result = ended(site, "inline", job)
    assert debugger.stopped == [(os.getpid(), "12345", threading.get_ident())]
    assert ("call", "read") in debugger.traced
    facts = verify_receipt(result.receipt, key=VerifyKey.parse(result.claims.sign), manifest=site.manifest)
    assert facts.sandbox == "UNSANDBOXED"


def test_a_sandboxed_script_is_out_of_a_debuggers_reach(site, debugger):
    run = site.client.start_run(site.manifest.id)
    ended(site, "process", job_for(site, run, "debug", {"data": str(site.folder / "data.image")}))
    assert (debugger.stopped, debugger.traced) == ([], [])


def test_a_host_that_hands_over_another_output_than_the_registered_one_is_refused(site):
    run = site.client.start_run(site.manifest.id)
    first = job_for(site, run, "prepare", {"data": str(site.folder / "data.image")})
    ended(site, "process", first)
    second = job_for(site, run, "train", {"counted": str(site.folder / "data.image")})
    with pytest.raises(CloisterError) as caught:
        executor_named("process").submit(second).outcome(120).require()
    assert caught.value.code // 100 == 52


def test_a_stage_before_its_input_is_registered_gets_no_keys(site):
    run = site.client.start_run(site.manifest.id)
    job = job_for(site, run, "train", {"counted": str(site.folder / "data.image")})
    with pytest.raises(CloisterError) as caught:
        executor_named("process").submit(job).outcome(120).require()
    assert caught.value.code == 3417


def processes_with(mark):
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in entry.read_bytes():
                found.append(entry)
    return found


def test_a_cancelled_attempt_leaves_nothing_behind(site):
    run = site.client.start_run(site.manifest.id)
    task = executor_named("process").submit(job_for(site, run, "wait", {"data": str(site.folder / "data.image")}))
    deadline = time.monotonic() + 60
    while not processes_with(MARK) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    task.cancel()
    assert task.done()
    assert task.outcome().failure.code == 6503
    deadline = time.monotonic() + 10
    while processes_with(MARK) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(MARK) == []
