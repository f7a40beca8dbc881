"""A manifest to start from: it explains itself, and passes ``check`` once the FILL-IN parts are filled in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cloister.errors import InputError
from cloister.manifest._model import Party
from cloister.party import PublicIdentity

__all__ = ["template"]

_TIME = "%Y-%m-%dT%H:%M:%SZ"

_HEAD = """\
# A Cloister manifest: what the parties agree on. Fill in what says FILL-IN, then
#   cloister manifest check FILE      does it hold together?
#   cloister manifest review FILE     what does it mean, in plain language?
#   cloister manifest propose FILE -o NAME.signed.json, and everybody: cloister manifest sign NAME.signed.json --as NAME
# Every field: docs/manifest.md. Sizes are written as 64 MiB, durations as 10 min, times in UTC, fractions in quotes.
cloister: 1
name: {name}
purpose: "FILL-IN: one sentence that everybody signs"
valid: {{not_before: {start}, not_after: {end}}}

# Who takes part, by the keys in their public files (cloister party init). Compare the fingerprints by phone.
parties:
{parties}

# The enclaves that are accepted. 'cloister enclave measure' prints the measurement of a launcher.
# MRTD covers a TD's firmware only; what boots then is in RTMR0 to RTMR3, which the platform's operator publishes.
# A line 'simulated_root: …' instead of 'rtmrs' would accept SIMULATED evidence, which protects nothing.
tees:
  launcher: {{type: tdx, measurements: ["FILL-IN-MEASUREMENT-96-DIGITS"], tcb: [UpToDate],
    rtmrs: [["FILL-IN-RTMR0", "FILL-IN-RTMR1", "FILL-IN-RTMR2", any]]}}
  key-manager: {{type: tdx, measurements: ["FILL-IN-MEASUREMENT-96-DIGITS"], tcb: [UpToDate],
    rtmrs: [["FILL-IN-RTMR0", "FILL-IN-RTMR1", "FILL-IN-RTMR2", any]]}}

# Who holds the owners' keys. The registrar numbers runs and attempts.
registrar: keys
key_managers:
  keys: {{sign: "FILL-IN-KEY-MANAGER-SIGNING-KEY", tee: key-manager}}

# What the owners contribute: the ids that 'cloister seal' printed. 'uses' counts releases of the key, retries included.
images:
{images}

# What is run. Inside its sandbox: code in /code, inputs in /inputs/NAME, outputs in /outputs/NAME; no network, no logs.
# One that is to go on where it was when it is killed saves its state in /checkpoint: 'checkpoint: {{max_size: 1 GiB}}'.
stages:
{stages}

# What answers requests with a model. Without 'clients', anyone may ask.
services:
  predictions: {{tee: launcher, model: model, clients: [{last}]}}

# Who finally gets each output. What must never be opened: {{output: NAME, nobody: true}}
releases:
{releases}
"""


def template(name: str, *, parties: Sequence[PublicIdentity], now: datetime) -> str:
    """A commented manifest in YAML: each party prepares its own dataset, one stage trains, one service answers.

    Args:
        name: The manifest's name.
        parties: Who takes part; the first also owns the scripts, and the last asks the service.
        now: The start of its validity of 90 days.

    Raises:
        InputError: 2005 without parties, or when two have one name.
    """
    names = [public.name for public in parties]
    if not names or len(set(names)) != len(names):
        raise InputError(2005, "a manifest needs parties, each once", got=", ".join(names) or "none")
    lines: dict[str, list[str]] = {"parties": [], "images": [], "stages": [], "releases": []}
    for public in parties:
        party = Party(sign=public.sign, hpke=public.hpke)
        lines["parties"].append(f'  {public.name}: {{sign: "{party.sign}", hpke: "{party.hpke}"}}')
        lines["images"].append(_image(f"data-{public.name}", "dataset", public.name))
        lines["stages"].append(
            _stage(f"prepare-{public.name}", "prepare.py", [f"data-{public.name}"], [f"clean-{public.name}"])
        )
        lines["releases"].append(f"  - {{output: clean-{public.name}, stage: train}}")
    lines["images"].append(_image("scripts", "code", names[0]))
    lines["stages"].append(_stage("train", "train.py", [f"clean-{party}" for party in names], ["model", "report"]))
    lines["releases"].append("  - {output: model, service: predictions}")
    lines["releases"] += [f"  - {{output: report, party: {party}}}" for party in names]
    start = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return _HEAD.format(
        name=name,
        start=start.strftime(_TIME),
        end=(start + timedelta(days=90)).strftime(_TIME),
        last=names[-1],
        **{key: "\n".join(value) for key, value in lines.items()},
    )


def _image(name: str, kind: str, owner: str) -> str:
    id_ = f"FILL-IN-IMAGE-ID-OF-{name.upper()}"
    return f'  {name}: {{id: "{id_}", kind: {kind}, owner: {owner}, key_manager: keys, uses: 10}}'


def _stage(name: str, script: str, inputs: list[str], outputs: list[str]) -> str:
    written = ", ".join(f"{output}: {{max_size: 64 MiB}}" for output in outputs)
    return (
        f"  {name}:\n    tee: launcher\n    code: scripts\n    argv: [python, {script}]\n"
        f"    inputs: [{', '.join(inputs)}]\n    outputs: {{{written}}}\n    limits: {{memory: 2 GiB, time: 1 h}}"
    )
