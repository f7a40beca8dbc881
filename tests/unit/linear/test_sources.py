"""Rows from files: the same numbers from every format, and each fault with its code, its column and its row."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from cloister.cli.linear import _header
from cloister.errors import InputError
from cloister.linear._gram import RowFactor
from cloister.linear._rows import CHUNK, Rows, read_rows
from cloister.linear._scaling import Scaling
from cloister.linear._sources import Source, read_source

MANY = 2 * CHUNK + 77
JOBS = ("none", "nurse", "clerk")


def columns() -> dict[str, Any]:
    generator = np.random.default_rng(4)
    return {
        "id": np.arange(MANY),
        "age": generator.integers(18, 90, MANY).astype(np.int16),
        "job": generator.choice(JOBS, MANY),
        "rate": generator.normal(size=MANY),
        "paid": generator.choice(["no", "yes"], MANY),
        "old": generator.choice([False, True], MANY),
    }


def expected() -> np.ndarray:
    table = columns()
    jobs = [table["job"] == job for job in JOBS]
    return np.column_stack([table["rate"], *jobs, table["age"], table["old"], table["paid"] == "yes"]).astype(float)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("rows")
    table = pyarrow.table(columns())
    written(made / "rows.csv", columns())
    (made / "rows.csv.gz").write_bytes(gzip.compress((made / "rows.csv").read_bytes()))
    (made / "rows.tsv").write_text((made / "rows.csv").read_text().replace(",", ";").split("\n", 1)[1])
    pyarrow.parquet.write_table(table, made / "rows.parquet", row_group_size=3000)
    coded = table.set_column(2, "job", table["job"].dictionary_encode())
    pyarrow.feather.write_feather(coded, made / "rows.feather", chunksize=5000)
    with pyarrow.ipc.new_stream(made / "rows.arrow", table.schema) as stream:
        stream.write_table(table)
    return made


def source(path: Path, **change: Any) -> Source:
    fields: dict[str, Any] = {
        "features": ["rate", "job", "age", "old"],
        "response": "paid",
        "categories": {"job": JOBS, "paid": ("no", "yes")},
    }
    return read_source(path, **(fields | change))


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.tsv", "rows.parquet", "rows.feather", "rows.arrow"])
def test_every_format_gives_the_same_rows_as_often_as_they_are_asked_for(folder: Path, name: str) -> None:
    told: list[int] = []
    headed = {"separator": ";", "header": tuple(columns())} if name.endswith("tsv") else {}
    part = source(folder / name, progress=told.append, **headed)
    assert part.names == ("rate", "job=none", "job=nurse", "job=clerk", "age", "old")
    for _ in range(2):
        chunks = list(part.chunks())
        assert all(isinstance(rows, Rows) and 0 < len(rows) <= CHUNK for rows in chunks)
        found = np.vstack([np.column_stack([rows.features, rows.response]) for rows in chunks])
        assert np.allclose(found, expected(), rtol=1e-15)
    assert told[-1] == MANY
    assert told == sorted(told[: len(told) // 2]) * 2


def test_a_file_and_an_array_have_the_same_scaling_and_factor(folder: Path) -> None:
    rows = read_rows(expected()[:, :-1], expected()[:, -1])
    part = source(folder / "rows.parquet")
    mine, theirs = Scaling.of([part]), Scaling.of([rows])
    assert np.allclose(mine.centres, theirs.centres, rtol=1e-12)
    assert np.allclose(mine.scales, theirs.scales, rtol=1e-12)
    triangles = []
    for given in (part, rows):
        factor = RowFactor(8)
        for chunk in mine.chunks(given):
            factor.add(chunk)
        triangles.append(factor.triangle)
    assert np.allclose(*triangles, atol=1e-9)


def refusal(code: int, part: Source) -> str:
    with pytest.raises(InputError) as refused:
        list(part.chunks())
    assert refused.value.code == code
    assert refused.value.__cause__ is None
    return f"{refused.value.what} {refused.value.got}"


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])
def test_2908_a_category_that_was_not_agreed_is_named_by_row_and_column(tmp_path: Path, ending: str) -> None:
    table = columns()
    table["job"][CHUNK + 5] = "spy"
    path = written(tmp_path / f"rows.{ending}", table)
    text = refusal(2908, source(path))
    assert f"'job', row {CHUNK + 5}" in text
    assert "spy" not in text


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_2904_missing_or_infinite_numbers(tmp_path: Path, ending: str, bad: float | None) -> None:
    table = columns()
    table["rate"] = table["rate"].astype(object)
    table["rate"][CHUNK + 9] = bad
    path = written(tmp_path / f"rows.{ending}", table)
    assert f"'rate', row {CHUNK + 9}" in refusal(2904, source(path))


def test_2904_a_missing_category(tmp_path: Path) -> None:
    table = columns()
    table["job"] = table["job"].astype(object)
    table["job"][3] = None
    assert "'job', row 3" in refusal(2904, source(written(tmp_path / "rows.parquet", table)))


def test_2908_text_where_a_number_is_due(tmp_path: Path) -> None:
    table = columns()
    table["age"] = table["age"].astype(str)
    assert "'age'" in refusal(2908, source(written(tmp_path / "rows.parquet", table)))
    lines = (tmp_path / "rows.csv", ["x,y", *(["1,2"] * 10), ",7", "1,2", "secret,5"])
    lines[0].write_text("\n".join(lines[1]))
    part = read_source(lines[0], features=["x"], response="y")
    text = refusal(2908, part)
    assert "'x', row 12" in text
    assert "secret" not in text


def test_2908_a_list_of_another_type(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", columns())
    part = read_source(path, features=["age"], response="rate", categories={"age": ["young", "old"]})
    assert "'age'" in refusal(2908, part)


def test_categories_may_be_numbers(tmp_path: Path) -> None:
    table = {"kind": [3, 1, 2], "cost": [1.0, 2.0, 3.0]}
    for ending in ("csv", "parquet", "arrow"):
        path = written(tmp_path / f"rows.{ending}", table)
        [rows] = read_source(path, features=["kind"], response="cost", categories={"kind": [1, 2, 3]}).chunks()
        assert rows.names == ("kind=1", "kind=2", "kind=3")
        assert rows.features.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_2906_a_column_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.parquet", "rows.feather", "rows.arrow"):
        refusal(2906, source(folder / name, features=["rate", "height"], categories={"paid": ("no", "yes")}))
    table = pyarrow.table([[1.0], [2.0], [3.0]], names=["x", "x", "y"])
    with pyarrow.ipc.new_file(tmp_path / "twice.arrow", table.schema) as file:
        file.write_table(table)
    (tmp_path / "twice.csv").write_text("x,x,y\n1,2,3\n")
    for name in ("twice.arrow", "twice.csv"):
        assert "twice" in refusal(2906, read_source(tmp_path / name, features=["x"], response="y"))
    (tmp_path / "bare.csv").write_text("1,2,3\n")
    refusal(2906, read_source(tmp_path / "bare.csv", features=["x"], response="y", header=["x", "x", "y"]))


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_tabs_separate_a_tsv(tmp_path: Path, name: str) -> None:
    data = b"x\ty\n1.5\t2\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    [rows] = read_source(tmp_path / name, features=["x"], response="y").chunks()
    assert (rows.features.tolist(), rows.response.tolist()) == ([[1.5]], [2.0])


def test_2907_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n")
    refusal(2907, read_source(tmp_path / "rows.csv", features=["x"], response="y"))


@pytest.mark.parametrize("name", ["no.csv", "no.parquet", "no.arrow", "rows.xls"])
def test_2913_a_file_that_is_not_there_or_of_no_known_kind(tmp_path: Path, name: str) -> None:
    refusal(2913, read_source(tmp_path / name, features=["x"], response="y"))


@pytest.mark.parametrize("name", ["bad.csv", "bad.csv.gz", "bad.parquet", "bad.arrow"])
def test_2913_a_damaged_file(folder: Path, tmp_path: Path, name: str) -> None:
    whole = (folder / name.replace("bad", "rows")).read_bytes()
    cut = b"x,y\n1,2\n1\n" if name == "bad.csv" else whole[: len(whole) // 2]
    (tmp_path / name).write_bytes(cut)
    part = read_source(tmp_path / name, features=["x"], response="y") if name == "bad.csv" else source(tmp_path / name)
    refusal(2913, part)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        (2906, {"features": []}),
        (2906, {"features": ["rate", "rate"]}),
        (2906, {"features": ["rate", "paid"]}),
        (2906, {"categories": {"job": JOBS, "nobody": ("a", "b")}}),
        (2908, {"categories": {"job": JOBS, "paid": ("no", "yes", "maybe")}}),
        (2908, {"categories": {"job": ("none", "none")}}),
        (2908, {"categories": {"job": ("none",)}}),
        (2909, {"categories": {"job": range(300), "age": range(3)}}),
    ],
)
def test_what_was_asked_for_is_checked_before_a_file_is_opened(code: int, change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        source(Path("nowhere.csv"), **change)
    assert refused.value.code == code


def test_what_a_source_shows_is_its_files_name(folder: Path) -> None:
    assert repr(source(folder / "rows.csv")) == "<Source rows.csv>"


def written(path: Path, table: dict[str, Any]) -> Path:
    made = pyarrow.table({name: pyarrow.array(values, from_pandas=False) for name, values in table.items()})
    if path.suffix == ".csv":  # true and false are text there
        old = made.schema.get_field_index("old")
        made = made if old < 0 else made.set_column(old, "old", made["old"].cast(pyarrow.int8()))
        pyarrow.csv.write_csv(made, path)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(made, path)
    else:
        with pyarrow.ipc.new_file(path, made.schema) as file:
            file.write_table(made, max_chunksize=1000)
    return path


TYPED = {
    "int": pyarrow.int64(),
    "float": pyarrow.float64(),
    "decimal": pyarrow.decimal128(3, 0),
    "text": pyarrow.string(),
    "view": pyarrow.string_view(),
}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", TYPED)
def test_labels_and_categories_are_text_whatever_type_a_column_has(tmp_path: Path, ending: str, kind: str) -> None:
    def typed(values: list[int]) -> Any:
        given = [str(value) for value in values] if kind in ("text", "view") else values
        return pyarrow.array(given, pyarrow.string() if ending == "parquet" and kind == "view" else TYPED[kind])

    table = {"kind": typed([3, 1, 2, 3]), "x": [1.0, 2.0, 3.0, 4.0], "bad": typed([0, 1, 1, 0])}
    lists = {"kind": ("1", "2", "3"), "bad": ("0", "1")}
    path = written(tmp_path / f"rows.{ending}", table)
    [rows] = read_source(path, features=["kind", "x"], response="bad", categories=lists).chunks()
    assert rows.features[:, :3].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert rows.response.tolist() == [0, 1, 1, 0]
    part = read_source(path, features=["x"], response="kind", categories={"kind": ("1", "3")})
    text = refusal(2908, part)
    assert "'kind', row 2" in text
    assert text.count("2") == 1


@pytest.mark.parametrize(("labels", "truth"), [(("False", "True"), 1), (("true", "false"), 0), (("FALSE", "TRUE"), 1)])
def test_truth_values_are_labels_that_are_written_like_them(
    tmp_path: Path, labels: tuple[str, str], truth: int
) -> None:
    path = written(tmp_path / "rows.parquet", {"x": [1.0, 2.0], "y": [True, False]})
    [rows] = read_source(path, features=["x"], response="y", categories={"y": labels}).chunks()
    assert rows.response.tolist() == [truth, 1 - truth]
    same = written(tmp_path / "same.parquet", {"x": [1.0, 2.0], "y": [True, True]})
    for others in (("0", "1"), ("no", "yes"), ("TRUE", "true")):
        refusal(2908, read_source(same, features=["x"], response="y", categories={"y": others}))


def test_what_cannot_be_a_category_is_refused(tmp_path: Path) -> None:
    days = pyarrow.array([1, 2], pyarrow.date32())
    path = written(tmp_path / "rows.parquet", {"x": [1.0, 2.0], "y": days, "z": [1.0, float("nan")]})
    assert "'y'" in refusal(2908, read_source(path, features=["x"], response="y", categories={"y": ("a", "b")}))
    missing = read_source(path, features=["x"], response="z", categories={"z": ("1", "nan")})
    assert "'z', row 1" in refusal(2904, missing)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "ROWS.TSV"])
def test_the_names_of_a_draft_are_those_of_its_rows(tmp_path: Path, name: str) -> None:
    """A mark at the beginning is not part of the first name, and a tab separates a .tsv."""
    separator = "," if name.endswith("csv") else chr(9)
    lines = ["x,y", "1.5,2"]
    (tmp_path / name).write_text(chr(10).join(lines).replace(",", separator), encoding="utf-8-sig")
    assert _header(tmp_path / name) == ["x", "y"]
    [rows] = read_source(tmp_path / name, features=["x"], response="y").chunks()
    assert (rows.features.tolist(), rows.response.tolist()) == ([[1.5]], [2.0])


def test_2906_another_separator_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(chr(10).join(["x;y", "1;2"]))
    for read in (lambda: _header(path), lambda: list(read_source(path, features=["x"], response="y").chunks())):
        with pytest.raises(InputError) as refused:
            read()
        assert refused.value.code == 2906
        assert refused.value.hint == "the file seems to be separated by ';'"
