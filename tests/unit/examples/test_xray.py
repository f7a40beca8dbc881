"""The X-ray example on real pictures: pooled without duplicates, and no person on both sides of the split.

The counts below are those of the data set's own description, followed through the scripts' rules by hand.
"""

import ast
import csv
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

SCRIPTS = Path(__file__).parents[3] / "examples" / "xray"
STAGES = ("aggregate.py", "preprocess_covid.py", "preprocess_nih.py", "train.py")
ROLES = ("predict.py", "run.py")  # what people run outside enclaves


def program(name: str) -> ModuleType:
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"xray_{Path(name).stem}", SCRIPTS / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(name: str, *arguments: str | Path, timeout_s: int = 60) -> str:
    """What the script prints; it must end well and warn of nothing."""
    command = [sys.executable, "-W", "error", SCRIPTS / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def covid(shared_data: Path) -> Path:
    if not (folder := shared_data / "chest_xray_ieee8023").is_dir():
        pytest.skip(f"no {folder.name} in the shared data")
    return folder


@pytest.fixture(scope="module")
def nih(shared_data: Path) -> Path:
    if not (folder := shared_data / "chest_xray_nih").is_dir():
        pytest.skip(f"no {folder.name} in the shared data")
    return folder


@pytest.fixture(scope="module")
def pooled(covid: Path, nih: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both cleaned sources and the pooled set."""
    folder = tmp_path_factory.mktemp("xray")
    script("preprocess_covid.py", "--input", covid, "--output", folder / "clean-covid")
    script("preprocess_nih.py", "--input", nih, "--output", folder / "clean-nih")
    cleaned = ["--input", folder / "clean-covid", "--input", folder / "clean-nih"]
    script("aggregate.py", *cleaned, "--output", folder / "dataset")
    return folder


def sides(pooled: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    return read(pooled / "dataset" / "train.csv"), read(pooled / "dataset" / "test.csv")


def imported(path: Path) -> set[str]:
    """The top-level modules that a script imports, wherever in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_stage_scripts_import_nothing_of_cloister_and_nothing_of_each_other() -> None:
    names = {path.name for path in SCRIPTS.glob("*.py")}
    assert names == {*STAGES, *ROLES}
    for name in STAGES:
        assert imported(SCRIPTS / name) <= sys.stdlib_module_names | {"numpy", "onnx", "PIL", "torch"}, name


def test_the_manifest_says_everything_that_is_run_and_passes_every_check_once_filled_in() -> None:
    from cloister.manifest import load_manifest, require_sound
    from cloister.party import Identity
    from cloister.wire import SigningKey

    run = program("run.py")
    people = {name: Identity.generate(name).public for name in run.PEOPLE}
    facts = {
        "people": {name: {"sign": public.sign, "hpke": public.hpke} for name, public in people.items()},
        "images": {image: f"{index:x}" * 64 for index, image in enumerate(run.IMAGES)},
        "measurements": {"launcher": "a" * 96, "service": "b" * 96, "key-manager": "c" * 96},
        "root": "d" * 64,
        "keys": str(SigningKey.generate().public),
        "url": "http://127.0.0.1:1",
    }
    template = (SCRIPTS / "manifest.yaml").read_text(encoding="utf-8")
    text = run.fill(template, facts, epochs=2, size=32)
    assert '"FILL-IN' not in text
    manifest = load_manifest(text.encode())
    require_sound(manifest)
    assert {stage.argv[1] for stage in manifest.stages.values()} == set(STAGES) == set(run.SCRIPTS)
    assert manifest.stages["train"].argv[-4:] == ("--epochs", "2", "--size", "32")
    assert {name: image.owner for name, image in manifest.images.items()} == run.IMAGES
    assert [release.party for release in manifest.releases if release.party] == ["hospital-covid", "hospital-nih"]
    assert all(not stage.logs and not stage.network for stage in manifest.stages.values())
    with pytest.raises(KeyError, match="NOBODY-KNOWS"):
        run.fill('x: "FILL-IN-NOBODY-KNOWS"', facts, epochs=2, size=32)


def test_the_private_manifest_is_sound_and_no_script_reads_a_picture() -> None:
    from cloister.manifest import Reach, load_manifest, reaches_of, require_sound
    from cloister.party import Identity
    from cloister.wire import SigningKey

    run = program("run.py")
    people = {name: Identity.generate(name).public for name in run.PEOPLE}
    facts = {
        "people": {name: {"sign": public.sign, "hpke": public.hpke} for name, public in people.items()},
        "images": {image: f"{index:x}" * 64 for index, image in enumerate(run.PRIVATE.images)},
        "measurements": {"launcher": "a" * 96, "service": "b" * 96, "key-manager": "c" * 96},
        "root": "d" * 64,
        "keys": str(SigningKey.generate().public),
        "url": "http://127.0.0.1:1",
    }
    text = run.fill(run.PRIVATE.manifest.read_text(encoding="utf-8"), facts, epochs=2, size=32)
    assert '"FILL-IN' not in text
    manifest = load_manifest(text.encode())
    require_sound(manifest)
    assert {name: image.owner for name, image in manifest.images.items()} == run.PRIVATE.images
    assert manifest.stages["export"].argv[1] in {path.name for path in run.PRIVATE.scripts}
    assert reaches_of(manifest)["model"] == dict.fromkeys(("records-covid", "records-nih"), Reach.PRIVATE)
    assert all(image.budget for name, image in manifest.images.items() if name.startswith("records-"))
    assert not [release for release in manifest.releases if release.party]


@pytest.fixture(scope="module")
def kept_apart(covid: Path, nih: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each hospital makes at home: records to be sealed, and a table of the patients kept back."""
    folder = tmp_path_factory.mktemp("private")
    for name, source in (("covid", covid), ("nih", nih)):
        script(f"preprocess_{name}.py", "--input", source, "--output", folder / f"clean-{name}")
        to = ("--output", folder / f"records-{name}", "--test", folder / f"test-{name}.csv")
        said = script("private/records.py", "--input", folder / f"clean-{name}", *to)
        (folder / f"{name}.json").write_text(said)
    return folder


def test_no_patient_is_sealed_and_kept_back_and_nobody_is_without_one(kept_apart: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    number = program("private/records.py").number
    units = 0
    for name in ("covid", "nih"):
        records = load_file(kept_apart / f"records-{name}" / "records.safetensors")
        sealed, test = set(records["patient"].tolist()), read(kept_apart / f"test-{name}.csv")
        assert not sealed & {number(row["patient"]) for row in test}
        index = read(kept_apart / f"clean-{name}" / "index.csv")
        patients = {row["patient"] for row in index if row["patient"]}
        assert sealed == {number(patient) for patient in patients - {row["patient"] for row in test}}
        assert records["0"].shape[1:] == (1, 48, 48)
        assert records["0"].dtype is torch.uint8
        assert len(records["0"]) + len(test) == sum(bool(row["patient"]) for row in index)
        said = report(kept_apart / f"{name}.json")
        assert said == {"patients": len(sealed), "pictures": len(records["0"]), "kept_back": len(test)}
        units += len(sealed)
    assert units <= 450  # what private/manifest.yaml allows for


def test_the_private_network_can_be_certified_and_its_export_answers_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    from safetensors.torch import save_file

    from cloister.privacy import check_model

    network, loss, batch = program("private/network.py").build()
    assert check_model(network, loss, batch).verdict == "independent"
    (tmp_path / "trained").mkdir()
    save_file(network.state_dict(), tmp_path / "trained" / "weights.safetensors")
    command = [sys.executable, SCRIPTS / "private" / "export.py"]
    command += ["--input", tmp_path / "trained", "--model", tmp_path / "model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    pictures = torch.randint(0, 256, (5, 1, 48, 48)).float()
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    [answers] = session.run(["probabilities"], {"images": pictures.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answers, torch.softmax(network.eval()(pictures), 1).numpy(), atol=1e-4)


@pytest.mark.parametrize("more", [["--native"], ["--epochs", "3"], ["--size", "64"]])
def test_what_the_private_manifest_fixes_is_no_option(tmp_path: Path, more: list[str]) -> None:
    command = [sys.executable, SCRIPTS / "run.py", "--covid", tmp_path, "--nih", tmp_path, "--work", tmp_path / "w"]
    done = subprocess.run([*command, "--private", *more], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "private/manifest.yaml" in done.stderr
    assert not (tmp_path / "w").exists()


def test_each_stage_is_told_with_its_script_and_what_is_around_it() -> None:
    stages = {"clean": {"script_ms": 1500, "attempt_ms": 2700}, "train": {"script_ms": 60_000, "attempt_ms": 61_000}}
    table = program("run.py").table
    assert [line.split() for line in table(stages, None).splitlines()] == [
        ["stage", "script", "inside", "around", "it"],
        ["clean", "1.5", "s", "1.2", "s"],
        ["train", "60.0", "s", "1.0", "s"],
    ]
    *_, train = table(stages, {"clean": 1.25, "train": 59.0}).splitlines()
    assert train.split() == ["train", "60.0", "s", "1.0", "s", "59.0", "s"]


def test_pictures_that_are_asked_about_are_of_nobody_who_trained_or_tested(covid: Path, pooled: Path) -> None:
    def small(path: Path) -> np.ndarray:
        values = program("predict.py").prepare(path, 24).ravel().astype(np.float64)
        return (values - values.mean()) / np.linalg.norm(values - values.mean())

    asked = program("run.py").unlabelled(covid)
    assert len(asked) == len(set(asked)) == 6
    rows = {row["filename"]: row for row in read(covid / "metadata.csv")}
    assert {rows[path.name]["finding"] for path in asked} == {"todo"}
    known = [row for side in sides(pooled) for row in side]
    numbers = {"covid-" + re.sub(r"\D", "", rows[path.name]["patientid"]) for path in asked}
    assert len(numbers) == 6
    assert not numbers & {row["patient"] for row in known}
    pictures = [small(pooled / "dataset" / "pictures" / row["picture"]) for row in known]
    assert (np.stack([*map(small, asked)]) @ np.stack(pictures).T).max() < 0.98


def test_the_radiologist_prepares_a_picture_as_the_hospitals_did(covid: Path, pooled: Path) -> None:
    row = next(row for row in read(pooled / "clean-covid" / "index.csv"))
    [original] = (covid / "images").glob(row["original"] + ".*")
    with Image.open(pooled / "clean-covid" / "pictures" / row["picture"]) as picture:
        trained_on = np.asarray(picture.resize((96, 96), Image.Resampling.LANCZOS), dtype=np.float32)
    prepared = program("predict.py").prepare(original, 96)
    assert prepared.dtype == np.float32
    assert np.array_equal(prepared, trained_on[None])


def test_unlabelled_lateral_and_unclassifiable_pictures_are_rejected_and_counted(pooled: Path) -> None:
    """301 rows: 58 todo (9 of them lateral), 3 ARDS without a cause, 24 further laterals."""
    facts = report(pooled / "clean-covid" / "report.json")
    assert facts == {
        "rows_read": 301,
        "rows_kept": 216,
        "rejected": {"lateral view": 24, "none of the three classes: ARDS": 3, "not labelled yet": 58},
        "labels": {"covid-19": 152, "no-finding": 8, "pneumonia": 56},
    }


def test_pictures_whose_folder_and_label_list_disagree_are_rejected_and_counted(pooled: Path) -> None:
    facts = report(pooled / "clean-nih" / "report.json")
    assert facts == {
        "pictures_read": 763,
        "pictures_kept": 740,
        "rejected": {"folder says pneumonia, label list does not": 23},
        "labels": {"covid-19": 13, "no-finding": 361, "pneumonia": 366},
    }


def test_both_sources_arrive_in_one_shape(pooled: Path) -> None:
    for source in ("covid", "nih"):
        folder = pooled / f"clean-{source}"
        rows = read(folder / "index.csv")
        assert {row["label"] for row in rows} == {"covid-19", "no-finding", "pneumonia"}
        assert {row["source"] for row in rows} == {source}
        assert {row["picture"] for row in rows} == {path.name for path in (folder / "pictures").iterdir()}
        for path in (folder / "pictures").iterdir():
            with Image.open(path) as picture:
                assert (picture.mode, picture.size, picture.format) == ("L", (128, 128), "PNG")


def test_both_preprocessors_turn_one_picture_into_the_same_pixels(pooled: Path) -> None:
    copies = [row["original"] for row in read(pooled / "clean-nih" / "index.csv") if row["label"] == "covid-19"]
    assert len(copies) == 13
    for stem in copies:
        ours = (pooled / "clean-covid" / "pictures" / f"covid-{stem}.png").read_bytes()
        theirs = (pooled / "clean-nih" / "pictures" / f"nih-{stem}.png").read_bytes()
        assert ours == theirs


def test_duplicates_are_dropped_and_counted(pooled: Path) -> None:
    """13 copies between the sources, 4 rows listed twice, 4 published again as another patient, 1 NIH follow-up."""
    facts = report(pooled / "dataset" / "report.json")
    assert facts["entries_read"] == 216 + 740
    assert facts["dropped"] == {"copy of a picture that is kept": 13 + 4 + 4 + 1}
    assert facts["pictures_kept"] == 934


def test_no_two_pictures_of_the_pooled_set_are_the_same(pooled: Path) -> None:
    train, test = sides(pooled)
    rows = train + test
    assert len({row["original"] for row in rows}) == len(rows) == 934
    pixels = set()
    for row in rows:
        with Image.open(pooled / "dataset" / "pictures" / row["picture"]) as picture:
            pixels.add(hashlib.sha256(picture.tobytes()).digest())
    assert len(pixels) == len(rows)


def test_no_picture_of_the_test_set_resembles_one_of_the_training_set(pooled: Path) -> None:
    def small(row: dict[str, str]) -> np.ndarray:
        with Image.open(pooled / "dataset" / "pictures" / row["picture"]) as picture:
            values = np.asarray(picture.resize((24, 24), Image.Resampling.BOX), dtype=np.float64).ravel()
        return (values - values.mean()) / np.linalg.norm(values - values.mean())

    train, test = sides(pooled)
    assert (np.stack([*map(small, train)]) @ np.stack([*map(small, test)]).T).max() < 0.98


def test_no_patient_is_in_both_training_and_test(pooled: Path) -> None:
    train, test = sides(pooled)
    for column in ("patient", "person"):
        assert not {row[column] for row in train} & {row[column] for row in test}
    numbers = {row["patient"] for row in train + test}
    assert all(re.fullmatch(r"(covid|nih)-\d+", number) for number in numbers)


def test_patients_listed_under_two_numbers_are_one_person(pooled: Path) -> None:
    """285 and 339, 287 and 340 share rows; 97 and 178 share pictures published twice under other names."""
    train, test = sides(pooled)
    persons = {row["patient"]: row["person"] for row in train + test}
    for one, other in (("covid-285", "covid-339"), ("covid-287", "covid-340"), ("covid-178", "covid-97")):
        assert len({one, other} & set(persons)) == 1
        assert {persons.get(one), persons.get(other)} == {one, None}
    assert report(pooled / "dataset" / "report.json")["patient_numbers_that_were_another_patient"] == 3


def test_classes_of_each_source_are_as_derived_from_the_data_set(pooled: Path) -> None:
    train, test = sides(pooled)
    assert Counter((row["source"], row["label"]) for row in train + test) == {
        ("covid", "covid-19"): 152 - 4,
        ("covid", "no-finding"): 8,
        ("covid", "pneumonia"): 56 - 4,
        ("nih", "no-finding"): 361 - 1,
        ("nih", "pneumonia"): 366,
    }
    facts = report(pooled / "dataset" / "report.json")
    for name, side in (("train", train), ("test", test)):
        counts = {source: dict(labels) for source, labels in facts[name]["pictures"].items()}
        assert sum(sum(labels.values()) for labels in counts.values()) == len(side)
        assert facts[name]["persons"] == len({row["person"] for row in side})


def test_about_a_quarter_of_each_kind_is_test(pooled: Path) -> None:
    train, test = sides(pooled)
    all_kinds = Counter((row["source"], row["label"]) for row in train + test)
    tested = Counter((row["source"], row["label"]) for row in test)
    for kind, count in all_kinds.items():
        assert 0.2 <= tested[kind] / count <= 0.35, kind


def test_the_split_does_not_depend_on_the_order_of_the_inputs(pooled: Path, tmp_path: Path) -> None:
    cleaned = ["--input", pooled / "clean-nih", "--input", pooled / "clean-covid"]
    script("aggregate.py", *cleaned, "--output", tmp_path / "dataset")
    numbers = [{row["original"] for row in rows} for rows in sides(pooled)]
    again = [{row["original"] for row in read(tmp_path / "dataset" / f"{side}.csv")} for side in ("train", "test")]
    assert again == numbers


def entry(folder: Path, picture: str, seed: int, **facts: str) -> None:
    """Adds one made-up picture to a cleaned folder."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (128, 128), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "pictures" / picture)
    row = {"picture": picture, "view": "pa", "original": Path(picture).stem} | facts
    index = folder / "index.csv"
    new = not index.exists()
    with index.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["picture", "patient", "label", "source", "view", "original"])
        if new:
            writer.writeheader()
        writer.writerow(row)
    (folder / "report.json").write_text("{}\n", encoding="utf-8")


def test_copies_that_disagree_and_pictures_without_a_patient_are_dropped(tmp_path: Path) -> None:
    for folder, source in ((tmp_path / "one", "a"), (tmp_path / "two", "b")):
        for number in range(4):
            facts = {"label": "pneumonia", "source": source, "patient": f"{source}-{number}"}
            entry(folder, f"{source}{number}.png", 10 * ord(source) + number, **facts)
    entry(tmp_path / "one", "x.png", 1, label="pneumonia", source="a", patient="a-7")
    entry(tmp_path / "two", "renamed.png", 1, label="no-finding", source="b", patient="b-7")
    entry(tmp_path / "two", "nobody.png", 2, label="covid-19", source="b", patient="")
    script("aggregate.py", "--input", tmp_path / "one", "--input", tmp_path / "two", "--output", tmp_path / "out")
    facts = report(tmp_path / "out" / "report.json")
    assert facts["dropped"] == {
        "copies disagree about the label": 2,
        "copy of a picture that is kept": 0,
        "no copy has a patient": 1,
    }
    assert facts["pictures_kept"] == 8


def test_a_shared_picture_makes_two_numbers_one_person_in_all_their_pictures(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for number in range(8):
        entry(one, f"a{number}.png", 10 + number, label="pneumonia", source="a", patient=f"a-{number}")
    entry(two, "b0.png", 90, label="pneumonia", source="b", patient="b-0")
    entry(two, "b1.png", 91, label="no-finding", source="b", patient="b-0")
    entry(two, "a3-renamed.png", 13, label="pneumonia", source="b", patient="b-0")
    script("aggregate.py", "--input", one, "--input", two, "--output", tmp_path / "out")
    rows = read(tmp_path / "out" / "train.csv") + read(tmp_path / "out" / "test.csv")
    assert {row["picture"]: row["person"] for row in rows if row["patient"] in ("a-3", "b-0")} == {
        "a3-renamed.png": "a-3",
        "b0.png": "a-3",
        "b1.png": "a-3",
    }
    kept = [{row["person"] for row in read(tmp_path / "out" / f"{side}.csv")} for side in ("train", "test")]
    assert not kept[0] & kept[1]


def test_patient_numbers_with_a_letter_count_as_the_number(covid: Path, tmp_path: Path) -> None:
    rows = read(covid / "metadata.csv")
    chosen = [row for row in rows if row["finding"] == "COVID-19" and row["view"] == "PA"][:3]
    for row, number in zip(chosen, ("350a", "350c", "x1"), strict=True):
        row["patientid"] = number
        (tmp_path / "in" / "images").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(covid / "images" / row["filename"], tmp_path / "in" / "images" / row["filename"])
    with (tmp_path / "in" / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    script("preprocess_covid.py", "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert [row["patient"] for row in read(tmp_path / "out" / "index.csv")] == ["covid-350", "covid-350"]
    assert report(tmp_path / "out" / "report.json")["rejected"] == {"unreadable patient number": 1}


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_short_training_beats_chance_in_every_class_and_reports_the_source(pooled: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, result = tmp_path / "model", tmp_path / "report"
    places = ["--input", pooled / "dataset", "--model", model, "--report", result]
    script("train.py", *places, "--epochs", "6", "--size", "64", timeout_s=900)
    metrics = report(result / "metrics.json")
    assert metrics["accuracy"] > 0.55 > metrics["most_frequent_class"]
    assert metrics["mean_recall"] > 0.5
    assert metrics["persons"] == {"train": 448, "test": 139, "both": 0}
    assert all(recall > 0.2 for recall in metrics["recall"].values())

    # What the report says of the sources follows from the table alone.
    train, test = sides(pooled)
    usual = {
        source: Counter(row["label"] for row in train if row["source"] == source).most_common(1)[0][0]
        for source in ("covid", "nih")
    }
    assert usual == {"covid": "covid-19", "nih": "pneumonia"}
    by_source = sum(usual[row["source"]] == row["label"] for row in test) / len(test)
    assert metrics["source_only"] == round(by_source, 4)
    assert sum(within["pictures"] for within in metrics["within_source"].values()) == len(test)
    sources = Counter(row["source"] for row in test)
    assert metrics["most_frequent_source"] == round(max(sources.values()) / len(test), 4)
    assert 0 < metrics["source_from_answer"] <= 1
    within = metrics["within_source"]
    pooled_right = sum(within[source]["accuracy"] * within[source]["pictures"] for source in within)
    assert pooled_right / len(test) == pytest.approx(metrics["accuracy"], abs=1e-3)
    confusion, covid = metrics["confusion"]["rows_are_truth"], metrics["confusion"]["classes"].index("covid-19")
    healthy = {source: sum(row["source"] == source and row["label"] != "covid-19" for row in test) for source in within}
    called = sum(row[covid] for index, row in enumerate(confusion) if index != covid)
    alarms = sum(within[source]["called_covid_19_without_it"] * healthy[source] for source in within)
    assert alarms == pytest.approx(called, abs=0.1)

    # The exported model, given the pictures as its description says, reaches what the report says.
    description = report(model / "model.json")
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.stack(
        [
            np.asarray(Image.open(pooled / "dataset" / "pictures" / row["picture"]).resize((64, 64), Image.LANCZOS))
            for row in test
        ]
    )
    [probabilities] = session.run(
        [description["output"]["name"]], {description["input"]["name"]: images[:, None].astype(np.float32)}
    )
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    answers = [description["classes"][index] for index in probabilities.argmax(axis=1)]
    right = sum(answer == row["label"] for answer, row in zip(answers, test, strict=True)) / len(test)
    # A picture on the fence may fall to the other side under another runtime's arithmetic.
    assert right == pytest.approx(metrics["accuracy"], abs=2 / len(test))
    assert b"train.py" not in (model / "model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_training_twice_gives_the_same_model(pooled: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    small = tmp_path / "small"
    shutil.copytree(pooled / "dataset" / "pictures", small / "pictures")
    for side in ("train", "test"):
        lines = (pooled / "dataset" / f"{side}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (small / f"{side}.csv").write_text("".join([lines[0], *lines[1::6]]), encoding="utf-8")
    for name in ("first", "second"):
        places = ["--input", small, "--model", tmp_path / name, "--report", tmp_path / f"{name}-report"]
        script("train.py", *places, "--epochs", "1", "--size", "32", timeout_s=400)
    assert (tmp_path / "first" / "model.onnx").read_bytes() == (tmp_path / "second" / "model.onnx").read_bytes()
    assert (tmp_path / "first" / "model.json").read_bytes() == (tmp_path / "second" / "model.json").read_bytes()
