"""The private demo: where the story is another, because what training may tell of any patient is bounded.

The training stage has ``privacy`` terms, so it runs no script; the launcher's engine reads the hospitals' own images,
since of what a script made of them no bound could be stated. So each hospital cleans its biopsies at home, with the
lab's scripts, and seals records. It keeps a quarter of its patients back, and asks the sealed model about them itself.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, Any

from cloister.demo._roles import Role

if TYPE_CHECKING:
    from cloister.demo._story import Story

__all__ = [
    "HOSPITALS",
    "agree_on_terms",
    "compared",
    "counted",
    "make_program",
    "measured",
    "prepare_records",
    "price",
    "spent",
    "told",
]

HOSPITALS = ("hospital-a", "hospital-b")
_RATE, _MOMENTUM = "0.5", "0.5"
_ROWS = "400"  # at a time: a step's all, so that workers are asked for few products
_TERMS = {
    "epsilon": "3",
    "delta": "1e-5",
    "batch": 128,
    "steps": 60,
    "noise": "4",
    "budget": "5",  # two such trainings, and no third
    "budget_delta": "4e-5",
}


def prepare_records(story: Story, hospital: str) -> None:
    """At home: the hospital cleans its table, and makes records of three quarters of its patients."""
    role, letter = story.roles[hospital], hospital[-1]
    for folder, script in (("scripts", f"preprocess_{letter}.py"), ("private", "records.py")):
        (role.folder / script).write_bytes(_packaged(folder, script))
    arguments = ("--input", f"{hospital}/data", "--output", f"{hospital}/clean")
    role.python(f"{hospital}/preprocess_{letter}.py", *arguments)
    arguments = ("--input", f"{hospital}/clean", "--output", f"{hospital}/records", "--test", f"{hospital}/test.csv")
    told = json.loads(role.python(f"{hospital}/records.py", *arguments))
    story.facts.setdefault("patients", {})[hospital] = told


def make_program(story: Story) -> None:
    """Where no data is: the lab has its network certified, and says how it is to be trained."""
    lab = story.roles["lab"]
    (lab.folder / "network.py").write_bytes(_packaged("private", "network.py"))
    how = ("--learning-rate", _RATE, "--momentum", _MOMENTUM, "--micro-batch", _ROWS)
    story.facts["program"] = lab.run("privacy", "program", "lab/network.py:build", "--out", "lab/program", *how)


def agree_on_terms(story: Story) -> None:
    """What the manifest will say. How many patients went to both is nobody's business: the sum bounds their number."""
    units = sum(said["patients"] for said in story.facts["patients"].values())
    story.facts["terms"] = {**_TERMS, "units": units}


def counted(story: Story) -> str:
    """How many patients' records the hospitals seal, and how many patients they keep back."""
    found = story.facts["patients"].values()
    sealed, kept = (" and ".join(str(said[part]) for said in found) for part in ("patients", "kept_back"))
    return f"{sealed} patients sealed, {kept} kept back"


def price(story: Story, manifest: str) -> list[str]:
    """What a hospital reads of it before it signs, in lines."""
    review = story.roles["hospital-a"].run("manifest", "review", manifest, "--as", "hospital-a")
    story.facts["review"] = lines = review["sections"]["PRIVACY"]
    return ["before signing, each reads in 'cloister manifest review':", *(f"  {line}" for line in lines)]


def spent(story: Story, receipt: dict[str, Any]) -> str:
    """What the training's receipt says that it did, and what that costs."""
    from cloister.ledger import Account, Ledger, Method
    from cloister.wire import parse_message

    ledger = parse_message(Ledger, receipt["privacy"], what="privacy ledger")
    terms = story.facts["terms"]
    epsilon = Account(ledger.events, by=Method.RDP).epsilon(terms["delta"]).epsilon
    story.facts["privacy"] = {"epsilon": epsilon, "delta": terms["delta"], "unit": ledger.unit, "head": ledger.head}
    return (
        f"no script, {terms['steps']} steps of the launcher's own engine\n"
        f"               ε = {epsilon} at δ = {terms['delta']} per patient: signed into the receipt, and charged to "
        f"the ε ≤ {terms['budget']}\n               that each hospital allows for ever"
    )


def compared(story: Story) -> dict[str, Any]:
    """The same network on the same records without privacy: what only whoever made both hospitals up can know."""
    teller = Role("storyteller", story.folder / "storyteller", story.folder, story.roles["lab"].script)
    teller.folder.mkdir()
    for script in ("network.py", "compare.py"):
        (teller.folder / script).write_bytes(_packaged("private", script))
    arguments = [part for name in HOSPITALS for part in ("--records", f"{name}/records", "--test", f"{name}/test.csv")]
    how = ("--steps", str(_TERMS["steps"]), "--learning-rate", _RATE, "--momentum", _MOMENTUM)
    found: dict[str, Any] = json.loads(teller.python("storyteller/compare.py", *arguments, *how))
    return found


def measured(story: Story, url: str, without: dict[str, Any]) -> None:
    """Each hospital asks the sealed model about the patients whom it kept back, and counts."""
    manifest, pinned = "host/manifest.signed.json", story.facts["manifest"]

    def ask(hospital: str) -> tuple[int, int]:
        where = ("--manifest", manifest, "--id", pinned, "--url", url, "--as", hospital)
        receipts = ("--receipts", f"{hospital}/receipts.jsonl")
        answers = story.roles[hospital].run("predict", f"{hospital}/test.csv", *where, *receipts)["predictions"]
        # the label is patient and diagnosis, which the table has and the service is not sent
        right = sum(row["row"].split()[1] == row["text"].split()[0] for row in answers)
        return right, len(answers)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(HOSPITALS, pool.map(ask, HOSPITALS), strict=True))
    right, asked = (sum(counts) for counts in zip(*found.values(), strict=True))
    story.facts["metrics"] = {
        "accuracy": round(right / asked, 4),
        "test_patients": asked,
        "right": {name: counts[0] for name, counts in found.items()},
        "accuracy_without_privacy": without["accuracy"],
    }
    by = ", ".join(f"{name} {ok} of {count}" for name, (ok, count) in found.items())
    story.say(f"               right about the patients whom they kept back: {by}: accuracy {right / asked:.3f};")
    story.say(f"               the same network on the same records without privacy: {without['accuracy']:.3f}")


def told(report: dict[str, Any]) -> list[str]:
    """What the audit says of one patient, an image a line."""
    checks = [check for check in report["checks"] if check["group"] == "privacy" and "bounded" in check["what"]]
    return [f"{check['what']}: {check['reason'].partition(' of this run')[0]}" for check in checks]


def _packaged(folder: str, name: str) -> bytes:
    return resources.files("cloister.demo").joinpath(folder, name).read_bytes()
