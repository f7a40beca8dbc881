"""A manifest with everything in it, as a person writes it."""

from __future__ import annotations

from cloister.manifest import load_manifest
from cloister.party import Identity
from cloister.wire import OpeningKey

PEOPLE = {
    name: Identity.generate(name) for name in ("hospital-a", "hospital-b", "host", "cloud-x", "cloud-y", "cloud-z")
}
MANAGERS = {name: Identity.generate(name) for name in ("keys-a", "keys-b")}
WORKERS = {name: str(OpeningKey.generate(post_quantum=False).public) for name in ("gpu-x", "gpu-y", "gpu-z")}

FULL = """\
cloister: 1
name: full
purpose: Everything that a manifest can say
valid: {not_before: 2026-01-01T00:00:00Z, not_after: 2027-01-01T00:00:00Z}
parties:
@PARTIES@
tees:
  launcher: {type: tdx, measurements: ["@96@"], tcb: [UpToDate, SWHardeningNeeded], deny_advisories: [INTEL-SA-00615],
    rtmrs: [["@96@", "@96@", "@96@", any]]}
  key-manager: {type: sgx, measurements: ["@64@"], platforms: [00906ED50000]}
registrar: keys-a
key_managers:
@MANAGERS@
workers:
  gpu-x: {operator: cloud-x, url: "tcp://x.example:8430", key: "@gpu-x@"}
  gpu-y: {operator: cloud-y, url: "tcp://[2001:db8::1]:8430", key: "@gpu-y@"}
  gpu-z: {operator: cloud-z, url: "tcp://z.example:8430", key: "@gpu-z@"}
images:
  data-a: {id: "@A@", kind: dataset, owner: hospital-a, key_manager: keys-a, uses: 5, until: 2026-12-01T00:00:00Z}
  data-b: {id: "@B@", kind: dataset, owner: hospital-b, key_manager: keys-b}
  scripts: {id: "@C@", kind: code, owner: host, key_manager: keys-a}
  program: {id: "@D@", kind: code, owner: host, key_manager: keys-a}
  records: {id: "@E@", kind: dataset, owner: hospital-b, key_manager: keys-b,
    budget: {epsilon: "80", delta: "2e-5", unit: patient, relation: replace-one}}
stages:
  prepare:
    tee: launcher
    code: scripts
    argv: [python, prepare.py, --labels, "benign malignant"]
    env: {SEED: "7"}
    inputs: [data-a]
    outputs: {clean: {max_size: 64 MiB}, scratch: {max_bytes: 1048576}}
    limits: {memory: 2 GiB, time: 10 min, processes: 64}
    logs: [hospital-a]
    checkpoint: {max_size: 64 MiB}
  train:
    tee: launcher
    code: scripts
    argv: [python, train.py]
    inputs: [clean, data-b]
    outputs: {model: {max_bytes: 64 MiB}, report: {max_bytes: 4096}}
    network: [gpu-x, gpu-y, gpu-z]
    offload: {mode: shared3, workers: [gpu-x, gpu-y, gpu-z]}
  learn:
    tee: launcher
    code: program
    argv: [python, -I, -m, cloister.privacy]
    inputs: [records]
    outputs: {weights: {max_size: 64 MiB}}
    privacy: {epsilon: "3.0", delta: "1e-5", unit: patient, relation: replace-one, units: 50000, batch: 64,
      steps: 23437, noise_multiplier: "2.2", clip: "0.5", most_rows: 4, slack: "2e-10"}
services:
  answers: {tee: launcher, model: model, clients: [hospital-b]}
releases:
  - {output: clean, stage: train, uses: 3}
  - {output: scratch, nobody: true}
  - {output: model, service: answers}
  - {output: weights, party: hospital-a}
  - {output: report, party: hospital-a, until: 2026-12-01T00:00:00Z}
"""


def _fill(text: str) -> str:
    parties = "\n".join(
        f'  {n}: {{sign: "{i.signing_key.public}", hpke: "{i.opening_key.public}"}}' for n, i in PEOPLE.items()
    )
    managers = "\n".join(f'  {n}: {{sign: "{i.signing_key.public}", tee: key-manager}}' for n, i in MANAGERS.items())
    text = text.replace("@PARTIES@", parties).replace("@MANAGERS@", managers)
    for name, key in WORKERS.items():
        text = text.replace(f"@{name}@", key)
    for mark, digits in (
        ("@96@", "0" * 96),
        ("@64@", "1" * 64),
        ("@A@", "a" * 64),
        ("@B@", "b" * 64),
        ("@C@", "c" * 64),
        ("@D@", "d" * 64),
        ("@E@", "e" * 64),
    ):
        text = text.replace(mark, digits)
    return text


FULL_YAML = _fill(FULL)
FULL_MANIFEST = load_manifest(FULL_YAML.encode(), what="full.yaml")
