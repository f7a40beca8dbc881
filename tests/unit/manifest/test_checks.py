"""Every rule between the parts of a manifest, broken once."""

import pytest
from tests.unit.manifest.full import FULL_YAML, PEOPLE, WORKERS

from cloister.errors import CloisterError, InputError, RefusedError
from cloister.keys._service import NONCE_NAME
from cloister.manifest import check, check_environment, load_manifest, require_sound
from cloister.manifest._checks import _RESERVED
from cloister.manifest._model import OFFLOAD_WORKERS
from cloister.manifest._text import fault_of_name, fault_of_text, skeleton

OTHER_KEY = str(PEOPLE["host"].signing_key.public)
OTHER_HPKE = str(PEOPLE["host"].opening_key.public)
HOSPITAL_KEY = str(PEOPLE["hospital-a"].signing_key.public)
HOSPITAL_HPKE = str(PEOPLE["hospital-a"].opening_key.public)

# what to replace, by what, the code, the place of the finding
BROKEN = [
    ("outputs: {model:", "outputs: {clean: {max_bytes: 1}, model:", 2311, "stages.train.outputs.clean"),
    ("outputs: {model:", "outputs: {data-a: {max_bytes: 1}, model:", 2311, "stages.train.outputs.data-a"),
    ("answers: {tee", "train: {tee", 2311, "services.train"),
    ("registrar: keys-a", "registrar: keys-c", 2312, "registrar"),
    ("owner: hospital-a", "owner: hospital-c", 2312, "images.data-a.owner"),
    ("key_manager: keys-b", "key_manager: keys-z", 2312, "images.data-b.key_manager"),
    ("operator: cloud-x", "operator: cloud-q", 2312, "workers.gpu-x.operator"),
    ("prepare:\n    tee: launcher", "prepare:\n    tee: lawncher", 2312, "stages.prepare.tee"),
    ("code: scripts\n    argv: [python, train", "code: skripts\n    argv: [python, train", 2312, "stages.train.code"),
    ("inputs: [data-a]", "inputs: [data-a, data-q]", 2312, "stages.prepare.inputs.1"),
    ("logs: [hospital-a]", "logs: [press]", 2312, "stages.prepare.logs.0"),
    ("network: [gpu-x, gpu-y, gpu-z]", "network: [gpu-x, gpu-y, gpu-z, gpu-q]", 2312, "stages.train.network.3"),
    ("clients: [hospital-b]", "clients: [press]", 2312, "services.answers.clients.0"),
    ("answers: {tee: launcher", "answers: {tee: none", 2312, "services.answers.tee"),
    ("{output: clean, stage: train, uses: 3}", "{output: clean, stage: tarin}", 2312, "releases.0.stage"),
    ("{output: report, party: hospital-a,", "{output: report, party: press,", 2312, "releases.4.party"),
    ("{output: scratch, nobody", "{output: skratch, nobody", 2312, "releases.1.output"),
    ("code: scripts\n    argv: [python, train", "code: clean\n    argv: [python, train", 2312, "stages.train.code"),
    ("inputs: [data-a]", "inputs: [data-a, model]", 2310, "stages"),
    ("inputs: [data-a]", "inputs: [data-a, clean]", 2310, "stages"),
    ("code: scripts\n    argv: [python, train", "code: data-b\n    argv: [python, train", 2317, "stages.train.code"),
    ("inputs: [data-a]", "inputs: [data-a, scripts]", 2317, "stages.prepare.inputs.1"),
    ("model: model", "model: scripts", 2317, "services.answers.model"),
    ("inputs: [clean, data-b]", "inputs: [clean]", 2318, "images.data-b"),
    ("  - {output: clean, stage: train, uses: 3}\n", "", 2314, "stages.prepare.outputs.clean"),
    ("  - {output: scratch, nobody: true}\n", "", 2314, "stages.prepare.outputs.scratch"),
    ("{output: clean, stage: train, uses: 3}", "{output: clean, nobody: true}", 2313, "stages.train.inputs.0"),
    ("{output: clean, stage: train, uses: 3}", "{output: clean, party: host}", 2313, "stages.train.inputs.0"),
    ("{output: model, service: answers}", "{output: model, party: host}", 2313, "services.answers.model"),
    ("{output: scratch, nobody: true}", "{output: scratch, stage: train}", 2313, "releases.1"),
    ("{output: scratch, nobody: true}", "{output: scratch, service: answers}", 2313, "releases.1"),
    ("{output: scratch, nobody: true}", "{output: scratch}", 2315, "releases.1"),
    ("{output: scratch, nobody: true}", "{output: scratch, nobody: true, party: host}", 2315, "releases.1"),
    ("{output: clean, stage: train, uses: 3}", "{output: clean, stage: train, party: host}", 2315, "releases.0"),
    ("nobody: true}", "nobody: true}\n  - {output: scratch, party: host}", 2316, "stages.prepare.outputs.scratch"),
    ("nobody: true}", "nobody: true}\n  - {output: scratch, nobody: true}", 2327, "releases.2"),
    ("nobody: true}", "nobody: true}\n  - {output: clean, stage: train, uses: 99}", 2327, "releases.2"),
    ("not_after: 2027-01-01", "not_after: 2025-01-01", 2319, "valid"),
    ("not_after: 2027-01-01", "not_after: 2026-01-01", 2319, "valid"),
    ("uses: 5, until: 2026-12-01", "uses: 5, until: 2025-12-01", 2319, "images.data-a.until"),
    ("hospital-a, until: 2026-12-01", "hospital-a, until: 2026-01-01", 2319, "releases.4.until"),
    ("type: tdx", "type: sgx", 2320, "tees.launcher.measurements.0"),
    ("type: sgx", "type: tdx", 2320, "tees.key-manager.measurements.0"),
    (HOSPITAL_KEY, "ed25519:short", 2321, "parties.hospital-a.sign"),
    (HOSPITAL_KEY, HOSPITAL_HPKE, 2321, "parties.hospital-a.sign"),
    (HOSPITAL_HPKE, "x25519:" + "\u00e9" * 43, 2321, "parties.hospital-a.hpke"),
    (HOSPITAL_KEY, OTHER_KEY, 2322, "parties.host.sign"),
    (HOSPITAL_HPKE, OTHER_HPKE, 2322, "parties.host.hpke"),
    ('"3.0"', '"0"', 2325, "stages.learn.privacy.epsilon"),
    ('"3.0"', '"1001"', 2325, "stages.learn.privacy.epsilon"),
    ('"1e-5"', '"1"', 2325, "stages.learn.privacy.delta"),
    ('"1e-5"', '"0"', 2325, "stages.learn.privacy.delta"),
    ("batch: 64", "batch: 50001", 2325, "stages.learn.privacy.batch"),
    ("unit: patient, relation: replace-one, units", "unit: record, units", 2325, "stages.learn.privacy.most_rows"),
    ('noise_multiplier: "2.2"', 'noise_multiplier: "0.001"', 2325, "stages.learn.privacy"),
    ('slack: "2e-10"', 'slack: "0.1"', 2325, "stages.learn.privacy"),
    ('"3.0"', '"0.7"', 7805, "stages.learn.privacy"),
    ('noise_multiplier: "2.2"', 'noise_multiplier: "0.4"', 7805, "stages.learn.privacy"),
    ("steps: 23437", "steps: 2343700", 7805, "stages.learn.privacy"),
    ("-m, cloister.privacy]", "-m, mine.privacy]", 2335, "stages.learn.argv"),
    ("    privacy: {", "    env: {SEED: '1'}\n    privacy: {", 2335, "stages.learn.env"),
    ("    privacy: {", "    network: [gpu-x]\n    privacy: {", 2335, "stages.learn.network"),
    ("    privacy: {", "    network: [gpu-x]\n    offload: {mode: verify, workers: [gpu-x]}\n    privacy: {",
     2335, "stages.learn.offload"),
    ("    privacy: {", "    network: [gpu-x, gpu-y]\n    offload: {mode: blind, workers: [gpu-x]}\n    privacy: {",
     2335, "stages.learn.network"),
    ("{weights: {max_size: 64 MiB}}", "{weights: {max_size: 64 MiB}, more: {max_bytes: 9}}", 2335, "stages.learn"),
    ("inputs: [records]", "inputs: []", 2335, "stages.learn"),
    ('budget: {epsilon: "80"', 'budget: {epsilon: "501"', 2325, "images.records.budget"),
    ('delta: "2e-5"', 'delta: "1"', 2325, "images.records.budget"),
    ("inputs: [data-a]", "inputs: [data-a, records]", 3308, "stages.prepare.inputs"),
    ("unit: patient, relation: replace-one}}", "unit: patient}}", 3308, "stages.learn.inputs"),
    ("{tee: launcher, model: model,", "{tee: launcher, model: records,", 3308, "services.answers"),
    ("mode: shared3", "mode: blind2", 2326, "stages.train.offload"),
    ("mode: shared3", "mode: enclave", 2326, "stages.train.offload"),
    ("network: [gpu-x, gpu-y, gpu-z]", "network: [gpu-x, gpu-y]", 2326, "stages.train.offload"),
    ("operator: cloud-y", "operator: cloud-x", 3306, "stages.train.offload"),
    (WORKERS["gpu-x"], "x25519:short", 2321, "workers.gpu-x.key"),
    (WORKERS["gpu-x"], HOSPITAL_KEY, 2321, "workers.gpu-x.key"),
    (WORKERS["gpu-y"], WORKERS["gpu-x"], 2322, "workers.gpu-y.key"),
    (WORKERS["gpu-z"], HOSPITAL_HPKE, 2322, "workers.gpu-z.key"),
    (f', key: "{WORKERS["gpu-z"]}"', "", 2334, "workers.gpu-z"),
    ("tcp://z.example:8430", "https://z.example:8430", 2334, "workers.gpu-z.url"),
    ("tcp://z.example:8430", "tcp://z.example:84300", 2334, "workers.gpu-z.url"),
    ("tcp://z.example:8430", "tcp://z.example:0", 2334, "workers.gpu-z.url"),
    ("inputs: [data-a]", "inputs: [data-a, data-a]", 2327, "stages.prepare.inputs"),
    ("logs: [hospital-a]", "logs: [hospital-a, hospital-a]", 2327, "stages.prepare.logs"),
    ("[UpToDate, SWHardeningNeeded]", "[UpToDate, UpToDate]", 2327, "tees.launcher.tcb"),
    ("b" * 64, "a" * 64, 2327, "images.data-b.id"),
    ("  gpu-z: {operator",
     "  gpu.z: {operator: cloud-z, url: \"https://z.example\"}\n  gpu-z: {operator", 2324, "workers.gpu.z"),
    ("outputs: {clean: {max_size: 64 MiB}, scratch:",
     "outputs: {c1ean: {max_size: 64 MiB}, clean: {max_bytes: 1}, scratch:", 2324, "stages.prepare.outputs.clean"),
    ("  keys-a: {sign", "  client: {sign", 2333, "key_managers.client"),
    ("  keys-a: {sign", "  relying-party: {sign", 2333, "key_managers.relying-party"),
    ("SEED:", "PYTHONPATH:", 3304, "stages.prepare.env.PYTHONPATH"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "code", "place"), BROKEN, ids=[f"{c}-{p}-{i}" for i, (*_, c, p) in enumerate(BROKEN)]
)
def test_a_broken_rule_is_found_where_it_is_broken(old, new, code, place):
    assert old in FULL_YAML
    broken = load_manifest(FULL_YAML.replace(old, new, 1).encode())
    found = {(finding.code, ".".join(map(str, finding.place))) for finding in check(broken)}
    assert (code, place) in found
    with pytest.raises(CloisterError) as caught:
        require_sound(broken)
    assert caught.value.code in {finding.code for finding in check(broken)}


@pytest.mark.parametrize(("mode", "sound"), [("enclave", True), ("blind", True), ("shared3", True), ("verify", False)])
def test_a_private_stage_may_offload_in_the_modes_that_hide_records(mode, sound):
    workers = ", ".join(("gpu-x", "gpu-y", "gpu-z")[: OFFLOAD_WORKERS[mode]])
    terms = f"    network: [{workers}]\n    offload: {{mode: {mode}, workers: [{workers}]}}\n    privacy: {{"
    found = check(load_manifest(FULL_YAML.replace("    privacy: {", terms, 1).encode()))
    assert [(finding.code, finding.place[-1]) for finding in found] == ([] if sound else [(2335, "offload")])


def test_the_names_that_services_and_key_managers_give_a_strangers_nonce_are_reserved():
    assert {NONCE_NAME, "client"} == set(_RESERVED)


def test_every_finding_has_a_registered_code():
    for old, new, code, _ in BROKEN:
        for finding in check(load_manifest(FULL_YAML.replace(old, new, 1).encode())):
            assert finding.error().code == finding.code
            assert finding.error(where="x.yaml:1:2").what.startswith("x.yaml:1:2: ")
        assert code // 1000 in (2, 3, 7)


def test_all_findings_are_given_at_once(full_yaml):
    text = full_yaml.replace("registrar: keys-a", "registrar: nobody-here").replace("type: sgx", "type: tdx")
    assert [finding.code for finding in check(load_manifest(text.encode()))] == [2312, 2320, 2332]


@pytest.mark.parametrize(
    "text", ["cafe\u0301", "a\u202eb", "a\u200b", "\x1b[31m", "\x7f", "a\u00a0", "\u2028", "\ue000", "\ud800"]
)
def test_text_that_hides_something_is_found_without_a_file(full, text):
    value = full.model_copy(update={"purpose": text})
    assert [(finding.code, finding.place) for finding in check(value)] == [(2323, ("purpose",))]
    stage = full.stages["train"].model_copy(update={"argv": ("python", text)})
    value = full.model_copy(update={"stages": {**full.stages, "train": stage}})
    assert [(f.code, f.place) for f in check(value)] == [(2323, ("stages", "train", "argv", 1))]


@pytest.mark.parametrize("text", ["", "plain", "two\nlines\tand a tab", "caf\u00e9", "\U0001f600", "日本"])
def test_honest_text_has_no_fault(text):
    assert fault_of_text(text) is None


@pytest.mark.parametrize(
    "pair",
    [
        ("hospital-1", "hospital-l"),
        ("b0nk", "bonk"),
        ("rnodel", "model"),
        ("clata", "data"),
        ("vvorker", "worker"),
        ("a.b", "a-b"),
        ("ai", "al"),
        ("s5", "ss"),
    ],
)
def test_names_that_look_alike_share_a_skeleton(pair):
    assert skeleton(pair[0]) == skeleton(pair[1])


@pytest.mark.parametrize(
    "pair", [("data-a", "data-b"), ("train", "test"), ("keys-a", "keys-b"), ("stage-2", "stage-3")]
)
def test_names_that_differ_visibly_do_not(pair):
    assert skeleton(pair[0]) != skeleton(pair[1])
    assert fault_of_name(pair[0]) is None


@pytest.mark.parametrize(
    "name",
    ["PYTHONPATH", "PYTHONSTARTUP", "PYTHONHASHSEED", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_LIBRARIES",
     "PATH", "HOME", "BASH_ENV", "ENV", "IFS", "PERL5LIB", "RUBYOPT", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "CLASSPATH",
     "HTTP_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSH_COMMAND", "GCONV_PATH", "TMPDIR", "CLOISTER_HOME",
     "OMP_TOOL_LIBRARIES", "CUDA_INJECTION64_PATH", "lower", "A=B", "A\0", "", "É", "A" * 65],
)  # fmt: skip
def test_dangerous_variables_are_refused(name):
    with pytest.raises(RefusedError) as caught:
        check_environment({"EPOCHS": "1", name: "x"})
    assert caught.value.code == 3304


def test_a_variable_with_a_nul_is_refused():
    with pytest.raises(RefusedError) as caught:
        check_environment({"EPOCHS": "1\0LD_PRELOAD=x"})
    assert caught.value.code == 3304


def test_ordinary_variables_are_not():
    check_environment(
        {"EPOCHS": "5", "SEED": "1", "OMP_NUM_THREADS": "2", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "LANG": "C"}
    )


@pytest.mark.parametrize("argument", ["", "a\0b"])
def test_an_argument_holds_no_nul(full, argument):
    from cloister.manifest import Stage
    from cloister.wire import parse_message

    value = full.stages["train"].as_json() | {"argv": ["python", argument]}
    with pytest.raises(InputError) as caught:
        parse_message(Stage, value, what="stage")
    assert caught.value.code == 2005


def test_a_worker_that_no_layer_is_offloaded_to_needs_no_key():
    """And is written, and so hashed and signed, as ever."""
    text = FULL_YAML.replace("    offload: {mode: shared3, workers: [gpu-x, gpu-y, gpu-z]}\n", "")
    for name, key in WORKERS.items():
        text = text.replace(f', key: "{key}"', "").replace(f"tcp://{name[-1]}.example:8430", "https://gpu.example")
    manifest = load_manifest(text.encode())
    assert check(manifest) == ()
    assert manifest.as_json()["workers"]["gpu-x"] == {"operator": "cloud-x", "url": "https://gpu.example"}
