"""Runs the X-ray example through Cloister on one machine: every act is a command of the role that acts.

Two hospitals seal their pictures, a lab its scripts; one manifest is signed; a host runs four stages and a service on
ciphertext; a radiologist asks about pictures that nobody has labelled yet; a hospital audits it all. The enclaves are
SIMULATED: everything is checked as on hardware, and nothing is hidden from whoever owns this machine.

    python run.py --covid DATA/chest_xray_ieee8023 --nih DATA/chest_xray_nih --work xray-run [--epochs 15] [--size 96]

With ``--private`` the training is differentially private by a term of the manifest (``private/manifest.yaml``): each
hospital cleans its pictures at home and seals records, the launcher's engine trains a certified network, and each asks
the sealed model about the patients whom it kept back.

Leaves in the work folder: ``commands.txt`` (every command, in order), a folder a role, ``storage/`` (all that is
shared: ciphertext), ``audit.html`` and ``xray.json`` (what was reached and found, and how long each stage took). With
``--native`` the same scripts run natively too, right after their stages, as the manifest would have them run.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cloister.demo import Role, Script, free_port
from cloister.errors import CloisterError
from cloister.manifest import Manifest, load_signed, review, stage_order

HERE = Path(__file__).resolve().parent
SCRIPTS = ("preprocess_covid.py", "preprocess_nih.py", "aggregate.py", "train.py")
IMAGES = {"xrays-covid": "hospital-covid", "xrays-nih": "hospital-nih", "scripts": "lab"}  # image: owner
PRIVATE_IMAGES = {"records-covid": "hospital-covid", "records-nih": "hospital-nih", "program": "lab", "scripts": "lab"}
PRIVATE_SCRIPTS = ("network.py", "export.py")
HOSPITALS = {"hospital-covid": "covid", "hospital-nih": "nih"}
PEOPLE = ("hospital-covid", "hospital-nih", "lab", "radiologist")
ASKED = 6  # how many pictures the radiologist asks about
SIGNED, HOST, RUN, BUNDLE = "host/manifest.signed.json", "host/host.toml", "host/run", "host/run.bundle.json"


class Variant(NamedTuple):
    """What is sealed, by whom, and what is agreed on."""

    manifest: Path
    images: dict[str, str]
    scripts: tuple[Path, ...]


OPEN = Variant(HERE / "manifest.yaml", IMAGES, tuple(HERE / name for name in SCRIPTS))
PRIVATE = Variant(
    HERE / "private" / "manifest.yaml", PRIVATE_IMAGES, tuple(HERE / "private" / name for name in PRIVATE_SCRIPTS)
)


def seal(variant: Variant, roles: dict[str, Role], folders: dict[str, Path], facts: dict[str, Any]) -> None:
    """Everybody makes an identity; owners seal what they own. The keys stay in their folders."""
    for name in PEOPLE:
        facts["people"][name] = roles[name].run("party", "init", name)
    for image, owner in variant.images.items():
        to, key = f"storage/{image}.cloister", f"{owner}/{image}.cloister-key"
        sealed = roles[owner].run("seal", str(folders[image]), "--name", image, "--to", to, "--key-out", key)
        facts["images"][image] = sealed["id"]


def start_key_manager(roles: dict[str, Role], site: str, stack: ExitStack, facts: dict[str, Any]) -> None:
    """The host makes the simulated site and says what its enclaves measure; the key manager starts in one."""
    host, keys = roles["host"], roles["keys"]
    facts["root"] = host.run("attest", "site", site, "--reuse")["root_spki"]
    for kind in ("launcher", "service", "key-manager"):
        facts["measurements"][kind] = host.run("enclave", "measure", "--role", kind)["measurement"]
    where = ("--store", f"sqlite:///{keys.folder / 'store.db'}", "--site", site)
    facts["keys"] = keys.run("keys", "init", *where)["sign"]
    port = free_port()
    stack.callback(keys.serve("keys", "serve", *where, "--listen", f"127.0.0.1:{port}").close)
    facts["url"] = f"http://127.0.0.1:{port}"


def fill(template: str, facts: dict[str, Any], *, epochs: int, size: int) -> str:
    """The manifest with everything filled in that says FILL-IN: what a person would copy from what commands printed."""
    now = datetime.now(UTC)
    values = {
        "NOT-BEFORE": f"{now - timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}",
        "NOT-AFTER": f"{now + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}",
        "SIMULATED-ROOT": facts["root"],
        "SIGN-KEYS": facts["keys"],
        "URL-KEYS": facts["url"],
        "EPOCHS": str(epochs),
        "SIZE": str(size),
    }
    for name, person in facts["people"].items():
        values |= {f"SIGN-{name.upper()}": person["sign"], f"HPKE-{name.upper()}": person["hpke"]}
    values |= {f"MEASUREMENT-{kind.upper()}": value for kind, value in facts["measurements"].items()}
    values |= {f"IMAGE-{image.upper()}": value for image, value in facts["images"].items()}
    return re.sub(r'(?<=")FILL-IN-([A-Z-]+)(?=")', lambda found: values[found[1]], template)


def agree(variant: Variant, roles: dict[str, Role], facts: dict[str, Any], *, epochs: int, size: int) -> None:
    """The host proposes; the owners pin each other's keys and sign; then each installs its key.

    Before signing, a person reads ``cloister manifest review``: in plain language, what is read, what leaves to whom.
    """
    host = roles["host"]
    text = fill(variant.manifest.read_text(encoding="utf-8"), facts, epochs=epochs, size=size)
    (host.folder / "manifest.yaml").write_text(text, encoding="utf-8")
    facts["manifest"] = host.run("manifest", "propose", "host/manifest.yaml", "-o", SIGNED)["id"]
    for owner in dict.fromkeys(variant.images.values()):
        others = [name for name in PEOPLE if name != owner]
        # The eight words of each fingerprint are what the partners read to each other by phone.
        words = [part for name in others for part in ("--fingerprint", facts["people"][name]["fingerprint"])]
        roles[owner].run("party", "trust", *(f"{name}/home/{name}.pub" for name in others), *words)
        roles[owner].run("manifest", "sign", SIGNED, "--as", owner, "--yes")
    for image, owner in variant.images.items():
        key = ("--key-file", f"{owner}/{image}.cloister-key")
        roles[owner].run("keys", "install", SIGNED, "--image", image, *key, "--as", owner, "--allow-simulated")


def train(variant: Variant, roles: dict[str, Role], site: str, facts: dict[str, Any]) -> None:
    """The host runs the stages."""
    places = [f'{image} = "../storage/{image}.cloister"' for image in variant.images]
    where = json.dumps(str(Path("..", site)), ensure_ascii=False)
    lines = ['storage = "../storage"', f"site = {where}", "[images]", *places]
    (roles["host"].folder / "host.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts["run"] = roles["host"].run("run", "start", SIGNED, "--host", HOST, "--dir", RUN)


def collect(roles: dict[str, Role], facts: dict[str, Any]) -> None:
    """Each hospital opens the report that was released to it."""
    report = facts["run"]["stages"]["train"]["outputs"]["report"]
    for hospital in HOSPITALS:
        where = ("--run", facts["run"]["run"], "--image", report["url"], "--as", hospital)
        roles[hospital].run("run", "collect", SIGNED, "report", *where, "--to", f"{hospital}/report")
        read = (roles[hospital].folder / "report" / "metrics.json").read_text(encoding="utf-8")
        facts["metrics"] = json.loads(read)


def natively(manifest: Manifest, folders: dict[str, Path], out: Path) -> dict[str, float]:
    """Seconds of each stage's script as a process of its own, on the same files; what it writes goes to ``out``."""
    took: dict[str, float] = {}
    for name in stage_order(manifest):
        stage, places = manifest.stages[name], dict[str, str]()
        for image in stage.inputs:
            places[f"/inputs/{image}"] = str(folders.get(image, out / image))
        for output in stage.outputs:
            (out / output).mkdir(parents=True)
            places[f"/outputs/{output}"] = str(out / output)
        arguments = [places.get(argument, argument) for argument in stage.argv[1:]]
        began = time.monotonic()
        subprocess.run([sys.executable, *arguments], cwd=folders[stage.code], stdout=subprocess.DEVNULL, check=True)
        took[name] = time.monotonic() - began
    return took


def table(stages: dict[str, Any], native: dict[str, float] | None) -> str:
    """How long each stage took, in seconds, as this machine was busy then."""
    rows = [["stage", "script inside", "around it", *(["script natively"] if native else [])]]
    for name, row in stages.items():
        seconds = [row["script_ms"] / 1000, (row["attempt_ms"] - row["script_ms"]) / 1000]
        seconds += [native[name]] if native else []
        rows.append([name, *(f"{each:.1f} s" for each in seconds)])
    lines = [f"{row[0]:<18}" + "".join(f"{cell:>17}" for cell in row[1:]) for row in rows]
    return "\n".join(f"{'':<12}{line}" for line in lines)


def serve(roles: dict[str, Role], stack: ExitStack) -> str:
    """The host serves the sealed model; where."""
    address = f"127.0.0.1:{free_port()}"
    stack.callback(roles["host"].serve("run", "serve", RUN, "--host", HOST, "--listen", address).close)
    return f"http://{address}"


def ask(role: Role, pictures: list[Path], url: str) -> list[dict[str, Any]]:
    """What the model answers somebody who asks with a program of their own, ``predict.py``."""
    arguments = ["--manifest", SIGNED, "--url", url, "--as", role.name]
    arguments += ["--receipts", f"{role.name}/receipts.jsonl", *map(str, pictures)]
    environment = os.environ | {"CLOISTER_HOME": str(role.folder / "home"), "CLOISTER_PASSPHRASE": role.passphrase}
    command = [sys.executable, str(HERE / "predict.py"), *arguments]
    said = subprocess.run(command, cwd=role.root, env=environment, stdout=subprocess.PIPE, check=True)
    with role.script.path.open("a", encoding="utf-8") as file:
        file.write(f"{role.name}$ python predict.py {' '.join(arguments)}\n")
    return json.loads(said.stdout)["predictions"]


def at_home(roles: dict[str, Role], sources: dict[str, Path]) -> dict[str, Any]:
    """Each hospital cleans its pictures and makes records, the lab a program; how many patients each hospital has."""
    told: dict[str, Any] = {}
    for hospital, source in sources.items():
        clean, role = f"{hospital}/clean", roles[hospital]
        role.python(str(HERE / f"preprocess_{HOSPITALS[hospital]}.py"), "--input", str(source), "--output", clean)
        to = ("--output", f"{hospital}/records", "--test", f"{hospital}/test.csv")
        told[hospital] = json.loads(role.python(str(HERE / "private" / "records.py"), "--input", clean, *to))
    how = ("--learning-rate", "0.3", "--momentum", "0.9")
    roles["lab"].run("privacy", "program", "lab/scripts/network.py:build", "--out", "lab/program", *how)
    return told


def measure(roles: dict[str, Role], sources: dict[str, Path], url: str) -> dict[str, Any]:
    """Each hospital asks about the pictures of patients whom it kept back, and counts; nobody shows the other any."""
    found: dict[str, Any] = {}
    for hospital, source in sources.items():
        with (roles[hospital].folder / "test.csv").open(encoding="utf-8", newline="") as file:
            truth = {row["original"]: row["label"] for row in csv.DictReader(file)}
        pictures = sorted(path for path in source.rglob("*.jpg") if path.stem in truth)
        answers = [(truth[Path(row["picture"]).stem], row["class"]) for row in ask(roles[hospital], pictures, url)]
        usual = Counter(true for true, _ in answers).most_common(1)[0][1]
        right = sum(true == guess for true, guess in answers)
        found[HOSPITALS[hospital]] = {"pictures": len(answers), "right": right, "most_frequent_class": usual}
    total = {name: sum(each[name] for each in found.values()) for name in ("pictures", "right", "most_frequent_class")}
    return {
        "accuracy": round(total["right"] / total["pictures"], 4),
        "source_only": round(total["most_frequent_class"] / total["pictures"], 4),
        "test_pictures": total["pictures"],
        "within_source": found,
    }


def audit(roles: dict[str, Role], facts: dict[str, Any]) -> None:
    """A hospital checks the run offline, by a bundle from the host and a tree head that it fetched itself."""
    hospital, head = roles["hospital-nih"], "hospital-nih/head.json"
    hospital.run("keys", "head", SIGNED, "--out", head)
    kept = [role.folder / "receipts.jsonl" for role in roles.values()]
    receipts = [part for path in kept if path.exists() for part in ("--receipts", str(path))]
    roles["host"].run("run", "bundle", RUN, "--host", HOST, "-o", BUNDLE, *receipts)
    facts["audit"] = hospital.run("audit", "verify", BUNDLE, "--at", "now", "--head", head, "--html", "audit.html")


def unlabelled(covid: Path) -> list[Path]:
    """Frontal pictures that the collection has not labelled yet, of patients of whom it has labelled none.

    Preparation rejects them, so they are neither trained nor tested on; nobody here knows the right answer.
    """
    with (covid / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labelled = {row["patientid"].rstrip("abc") for row in rows if row["finding"] != "todo"}
    asked: dict[str, Path] = {}  # one picture a patient
    for row in rows:
        if row["patientid"].rstrip("abc") not in labelled and row["view"] in ("PA", "AP", "AP Supine"):
            asked.setdefault(row["patientid"].rstrip("abc"), covid / "images" / row["filename"])
    return list(asked.values())[:ASKED]


def caveat(metrics: dict[str, Any]) -> str:
    """What the accuracy does not mean, in the report's own numbers."""
    within = metrics["within_source"]
    lines = ["Do not read this as medicine: class and source are confounded."]
    lines += [f"  answering by the source alone, without looking at the picture, reaches {metrics['source_only']}"]
    for source, found in within.items():
        beside = f"its most frequent class {found['most_frequent_class']}"
        alarms = f"{found['called_covid_19_without_it']:.0%} of its pictures without COVID-19 are called COVID-19"
        lines.append(f"  within {source}: accuracy {found['accuracy']} ({beside}); {alarms}")
    return "\n".join(f"{'':<12}{line}" for line in lines)


def told_of_private(facts: dict[str, Any]) -> str:
    """What was agreed, what it reached, and what that does not mean."""
    metrics = facts["metrics"]
    lines = [line.strip() for line in facts["price"] if "cost ε" in line]
    lines += [f"accuracy {metrics['accuracy']}, measured by the hospitals on {metrics['test_pictures']} pictures:"]
    for source, found in metrics["within_source"].items():
        usual = f"its most frequent class alone {found['most_frequent_class']}"
        lines.append(f"  within {source}: {found['right']} of {found['pictures']} right ({usual})")
    lines += [f"  answering by the source alone, without looking at the picture, reaches {metrics['source_only']}"]
    lines += ["Do not read this as medicine: class and source are confounded."]
    return "\n".join(f"{'':<12}{line}" for line in lines)


def main() -> None:
    """Tells the story, one line a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covid", type=Path, required=True, help="the COVID-19 image collection's folder")
    parser.add_argument("--nih", type=Path, required=True, help="the NIH pictures' folder")
    parser.add_argument("--work", type=Path, required=True, help="a new folder for everything that is made")
    parser.add_argument("--epochs", type=int, default=15, help="of the training (15)")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels (96)")
    parser.add_argument("--native", action="store_true", help="run the scripts natively too, and time them")
    parser.add_argument(
        "--private", action="store_true", help="train with differential privacy, as private/manifest.yaml says"
    )
    parser.add_argument("--site", type=Path, help="a simulated site to keep: it compiles what stages import once")
    args = parser.parse_args()
    if args.private and (args.native or args.epochs != 15 or args.size != 96):
        parser.error("--private takes no --native, --epochs or --size: everything is in private/manifest.yaml")
    work, covid, nih = args.work.resolve(), args.covid.resolve(), args.nih.resolve()
    if work.exists():
        raise SystemExit(f"'{work}' is there already; name a new folder")
    variant, site = PRIVATE if args.private else OPEN, "host/site" if args.site is None else str(args.site.resolve())
    (work / "storage").mkdir(parents=True)
    (work / "lab" / "scripts").mkdir(parents=True)
    for path in variant.scripts:
        shutil.copyfile(path, work / "lab" / "scripts" / path.name)
    sources = {"hospital-covid": covid, "hospital-nih": nih}
    folders = {"xrays-covid": covid, "xrays-nih": nih, "scripts": work / "lab" / "scripts"}
    folders |= {f"records-{name}": work / hospital / "records" for hospital, name in HOSPITALS.items()}
    folders |= {"program": work / "lab" / "program"}
    script = Script(work / "commands.txt")
    roles = {name: Role(name, work / name, work, script) for name in (*PEOPLE, "keys", "host")}

    print("SIMULATED ENCLAVES: no hardware protection. Software signs the evidence; this machine's owner sees all.")
    facts: dict[str, Any] = {"people": {}, "images": {}, "measurements": {}}
    began = time.monotonic()
    with ExitStack() as stack:
        if args.private:
            facts["patients"] = at_home(roles, sources)
            each = ", ".join(f"{name} {said['patients']}" for name, said in facts["patients"].items())
            print(f"0 at home   records of {each} patients, a quarter of the patients kept back", flush=True)
        seal(variant, roles, folders, facts)
        print(f"1 seal      {', '.join(variant.images)}: sealed, keys at home", flush=True)
        start_key_manager(roles, site, stack, facts)
        agree(variant, roles, facts, epochs=args.epochs, size=args.size)
        owners = ", ".join(dict.fromkeys(variant.images.values()))
        print(f"2 agree     manifest {facts['manifest'][:16]}… signed by {owners}", flush=True)
        started = time.monotonic()
        train(variant, roles, site, facts)
        agreed = load_signed((work / SIGNED).read_bytes()).manifest
        print(f"3 train     {len(agreed.stages)} sandboxed stages in {time.monotonic() - started:.0f} s", flush=True)
        if args.native:
            facts["native_s"] = natively(agreed, folders, work / "native")
        stages = {name: facts["run"]["stages"][name] for name in stage_order(agreed)}
        print(table(stages, facts.get("native_s")))
        url = serve(roles, stack)
        if args.private:
            facts["metrics"] = measure(roles, sources, url)
            facts["price"] = list(review(agreed).as_json()["sections"]["PRIVACY"])
            print(told_of_private(facts), flush=True)
        else:
            collect(roles, facts)
            metrics, persons = facts["metrics"], facts["metrics"]["persons"]
            print("            the report, to both hospitals:")
            print("            {train} persons to train, {test} to test, {both} in both".format(**persons))
            print(f"            accuracy {metrics['accuracy']} (most frequent class {metrics['most_frequent_class']})")
            print(caveat(metrics), flush=True)
        facts["predictions"] = ask(roles["radiologist"], unlabelled(covid), url)
        print(f"4 ask       {len(facts['predictions'])} pictures that nobody has labelled; the host saw ciphertext:")
        for row in facts["predictions"]:
            print(f"            {row['picture']:<44} {row['class']:<11} {max(row['probabilities']):.3f}")
        audit(roles, facts)
    count = facts["audit"]["count"]
    print(f"5 audit     {facts['audit']['outcome']} ({facts['audit']['assurance'].upper()}): ", end="")
    print(f"{count['asserted']} checks passed, {count['refuted']} failed, {count['unknown']} not provable")
    for check in facts["audit"]["checks"]:
        if check["group"] == "privacy" and check["status"] == "asserted":
            print(f"            {check['what']}: {check['reason']}")
    (work / "xray.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if facts["audit"]["outcome"] != "asserted":
        raise SystemExit(f"the audit does not accept this run; see {work / 'audit.html'}")
    print(f"Done in {time.monotonic() - began:.0f} s. Read {work / 'audit.html'} and {work / 'commands.txt'}.")


if __name__ == "__main__":
    try:
        main()
    except CloisterError as error:
        print(error, f"hint: {error.hint}", sep="\n", file=sys.stderr)
        sys.exit(error.exit_status)
