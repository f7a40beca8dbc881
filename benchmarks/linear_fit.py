"""Linear fits without an enclave: LASSO and ridge between processes over TLS, beside a plaintext fit of the same rows.

    python benchmarks/linear_fit.py --quick                   two parties, few columns and rows: a minute
    python benchmarks/linear_fit.py --json F --plot G         everything: three quarters of an hour
    python benchmarks/linear_fit.py --parts rows --rows 100000

*rows*: four parties, 90 columns, 10⁵ to 10⁷ rows each, malicious and semi-honest. Each party is a process of its own on
this machine, with one thread for linear algebra; they share its processors. Rows are drawn as they are read (see
``_linear_rows``), a few thousand at a time, one party after the other, and reduced by the package; the plaintext
contender, numpy's product of the same scaled chunk, takes its turn on every chunk. At 400,000 rows in all,
scikit-learn's own fit of all rows in one array stands beside it. *shapes*: other numbers of parties and columns.
*parquet*: parties read their rows from files, in the session.

A session is timed from the start of the processes to their end: interpreters, connections, keys, everything but the
reading of drawn rows, which is a column of its own. Sessions take turns; the column *runs* says of how many the medians
are, and a case whose sessions are long has fewer. Phases and traffic are means over parties, memory is the greatest
(VmHWM), CPU is of all parties. *Error* is of the coefficients, relative to the plaintext's. *Estimate* is what
``cloister linear estimate`` says, for ciphertexts of full size.
The times of the plaintext fit take parties for reading at the same time, on machines of their own, and it for reading
all rows; those in CPU add up what all parties spend.

What other protocols need is counted and multiplied, never measured here: ``_linear_costs`` has constants and origin.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from _linear_bars import plot
from _linear_costs import HELEN_S, admm, sgd
from _linear_rows import LAMBDA, Plain, World
from _linear_sessions import MIB, PHASES, Case, error_of, estimated_s, median_of, prepare, run
from _machine import machine

TARGETS = {"lasso": 60.0, "ridge": 30.0}
TARGET_TRAFFIC, TARGET_MEMORY = 0.5e9, 1.5 * 1024 * MIB
LONG_S = 240.0  # another shape that has taken so long is not begun again
PARTS = ("rows", "shapes", "parquet")
HEADER = (
    f"{'case':<24}{'n':>9}{'parties':>8}{'d':>5}{'runs':>5}{'wall s':>8}{'CPU s':>8}{'MB up':>8}{'MiB':>7}{'error':>10}"
)


def main() -> int:
    options = arguments()
    found: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()[0], "sessions": [], "reading": []}
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        warm(options)
        for part in options.parts:
            {"rows": by_rows, "shapes": by_shape, "parquet": from_files}[part](options, found)
    others(found)
    print(f"\n{found['machine']}; load before {found['load_before']:.2f}")
    keep(options, found)
    if options.plot:
        draw(options.plot, found)
    return 0


def keep(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Writes what there is so far: a run of half an hour may be cut short."""
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def warm(options: argparse.Namespace) -> None:
    """Sessions that nobody times: they compile what is not compiled yet."""
    for model in ("lasso", "ridge"):
        for malicious in (True, False):
            case = Case(model, malicious, 3, 500, 2, 2048)
            prepare(case, options.folder)
            run(case, options.folder)


# ---- the parts -------------------------------------------------------------------------------------------


def by_rows(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """All four kinds of fit at every number of rows."""
    parties, features = options.parties[0], options.features[0]
    for rows in options.rows:
        cases = [Case(m, s, features, rows, parties, options.degree) for m in TARGETS for s in (True, False)]
        plain, read = prepare(cases[0], options.folder)
        fits = {model: plain.fit(model) for model in TARGETS}
        reading = reading_of(rows, read, fits, options)
        found["reading"].append(reading)
        show_reading(reading)
        done = sessions(options, cases, fits, rounds=options.rounds)
        for row in done:
            row["with_reading_s"] = row["wall_s"] + reading["read_s"]
            plain_s = reading["plain_s"] * parties + fits[row["model_kind"]][1]
            row["times_plain"] = row["with_reading_s"] / plain_s
            row["cpu_times_plain"] = (row["cpu_s"] + reading["read_s"] * parties) / plain_s
            ratios = f"{row['times_plain']:.3g} times the plaintext fit, {row['cpu_times_plain']:.3g} times in CPU"
            text = f"with reading {row['with_reading_s']:.1f} s, {ratios}"
            print(f"  {row['case']}: {text}{missed(row)}")
        found["sessions"] += done
        keep(options, found)


def by_shape(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Other numbers of parties and of columns, malicious."""
    parties, features = options.parties, options.features
    shapes = [(n, features[0]) for n in parties[1:]] + [(parties[0], d) for d in features[1:]]
    if not options.quick and (max(parties), max(features)) not in shapes:
        shapes.append((max(parties), max(features)))
    print(f"\n{HEADER}")
    for n, d in shapes:
        if needed := too_large(n, d, found["sessions"]):
            print(f"{n} parties, d = {d}: left out, needs about {needed / 1024 / MIB:.0f} GiB on this machine")
            found["left_out"] = [*found.get("left_out", []), {"parties": n, "features": d, "needed_bytes": needed}]
            continue
        cases = [Case(model, True, d, options.rows[0], n, options.degree) for model in TARGETS]
        plain, _ = prepare(cases[0], options.folder)
        fits = {model: plain.fit(model) for model in TARGETS}
        found["sessions"] += sessions(options, cases, fits, rounds=options.rounds, header=False, long_s=LONG_S)
        keep(options, found)


def too_large(parties: int, features: int, done: Sequence[dict[str, Any]]) -> float:
    """Bytes that all parties need, from what they took where there were fewer; 0 when the machine has them."""
    peaks = [row["peak_bytes"] / row["parties"] for row in done if row["features"] == features]
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    needed = max(peaks, default=0) * parties**2
    return needed if needed > free else 0


def from_files(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """One session whose parties read Parquet files of float32."""
    rows = options.rows[-1] if options.quick else sorted(options.rows)[len(options.rows) // 2]
    case = Case("lasso", True, options.features[0], rows, options.parties[0], options.degree)
    world, plain = World(case.features), Plain(World(case.features))
    files = [options.folder / f"party-{party}.parquet" for party in range(case.parties)]
    for party, path in enumerate(files):
        write(path, world, party, rows, plain)
    model, _ = plain.fit(case.model)
    row = row_of(case, [run(case, options.folder, files=files)], model) | {"file_bytes": files[0].stat().st_size}
    print(f"\n{HEADER}\n{text_of(row)}")
    size, reading = row["file_bytes"] / 1e6, row["phases"]["read"]["wall_s"]
    print(f"  from Parquet, {size:.0f} MB a party: {reading:.1f} s of it reading, all parties at once{missed(row)}")
    found["parquet"] = row


def write(path: Path, world: World, party: int, rows: int, plain: Plain) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.float32()) for name in (*world.names, "year")])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        for many in gathered(world.blocks(party, rows, single=True), 16):
            features, response = (np.concatenate(column) for column in zip(*many, strict=True))
            plain.add(features, response)
            file.write_table(pyarrow.table([*features.T, response], schema=schema))


def gathered(blocks: Iterator[Any], many: int) -> Iterator[list[Any]]:
    """So many blocks at a time: a row group of a file."""
    while taken := list(islice(blocks, many)):
        yield taken


# ---- sessions and their tables ---------------------------------------------------------------------------


def sessions(
    options: argparse.Namespace,
    cases: Sequence[Case],
    fits: dict[str, Any],
    *,
    rounds: int,
    header: bool = True,
    long_s: float = float("inf"),
) -> list[dict[str, Any]]:
    """Medians of sessions that take turns; a case that has taken ``long_s`` is not begun again."""
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, done in runs.items():
            if sum(one["wall_s"] for one in done) < long_s:
                done.append(run(case, options.folder))
    if header:
        print(f"\n{HEADER}")
    rows = [row_of(case, done, fits[case.model][0]) for case, done in runs.items()]
    for row in rows:
        print(text_of(row), flush=True)
    return rows


def row_of(case: Case, runs: Sequence[dict[str, Any]], plain: np.ndarray) -> dict[str, Any]:
    errors = [error_of(one["model"], plain) for one in runs]
    taken = [one["wall_s"] for one in runs]
    return median_of([{name: value for name, value in one.items() if name != "model"} for one in runs]) | {
        "case": case.name,
        "model_kind": case.model,
        "malicious": case.malicious,
        "rows": case.rows,
        "parties": case.parties,
        "features": case.features,
        "runs": len(runs),
        "wall_range_s": [min(taken), max(taken)],
        "estimated_s": estimated_s(case),
        "error": max(errors),
        "nonzero": [int(np.count_nonzero(runs[0]["model"][1:])), int(np.count_nonzero(plain[1:]))],
    }


def text_of(row: dict[str, Any]) -> str:
    first = (
        f"{row['case']:<24}{row['rows']:>9}{row['parties']:>8}{row['features']:>5}{row['runs']:>5}{row['wall_s']:>8.1f}"
        f"{row['cpu_s']:>8.1f}{row['up_bytes'] / 1e6:>8.1f}{row['peak_bytes'] / MIB:>7.0f}{row['error']:>10.1e}"
    )
    phases = [(name, row["phases"].get(name, {})) for name in PHASES]
    shown = [
        f"{name} {of['wall_s']:.1f} s" + (f" {of['up_bytes'] / 1e6:.0f} MB" if of.get("up_bytes", 0) > 5e5 else "")
        for name, of in phases
        if of.get("wall_s", 0) > 0.05
    ]
    said = f"estimate {row['estimated_s']:.1f} s, {row['estimated_s'] / row['wall_s']:.2f} times"
    return f"{first}\n    {', '.join(shown)}; {said}"


def missed(row: dict[str, Any]) -> str:
    """What of the targets a malicious session does not reach."""
    if not row["malicious"]:
        return ""
    target = TARGETS[row["model_kind"]]
    faults = [
        name
        for name, reached in {
            f"{target:.0f} s": row["wall_s"] - row["phases"]["read"]["wall_s"] <= target,
            "0.5 GB": row["up_bytes"] < TARGET_TRAFFIC,
            "1.5 GiB": row["peak_bytes"] < TARGET_MEMORY,
        }.items()
        if not reached
    ]
    return f"; MISSES {', '.join(faults)}" if faults else "; within all targets"


# ---- the contenders --------------------------------------------------------------------------------------


def reading_of(rows: int, read: list[dict[str, Any]], fits: dict[str, Any], options: argparse.Namespace) -> Any:
    """Medians over parties; at few rows also scikit-learn's fits of all in one array."""
    found: dict[str, Any] = {
        "rows": rows,
        "draw_s": statistics.median(one["draw"] for one in read),
        "plain_s": statistics.median(one["plain"] for one in read),
        "read_s": statistics.median(one["read"] for one in read),
        "peak_bytes": max(one["peak_bytes"] for one in read),
        "solve_s": {model: seconds for model, (_, seconds) in fits.items()},
    }
    parties, features = options.parties[0], options.features[0]
    if rows * parties <= 400_000:
        found["scikit_learn"] = scikit_learn(World(features), rows, parties, fits)
    return found


def scikit_learn(world: World, rows: int, parties: int, fits: dict[str, Any]) -> dict[str, Any]:
    """Seconds to fit all rows, scaled and in memory, at its own tolerance; how far it is from the plaintext fit."""
    from sklearn.linear_model import Lasso, Ridge

    table, response = np.empty((rows * parties, world.features)), np.empty(rows * parties)
    _, centres, scales, _, _ = world.parameters()
    at = 0
    for party in range(parties):
        for features, values in world.blocks(party, rows):
            part = slice(at, at + len(values))
            table[part], response[part] = features, values
            at += len(values)
    table -= centres[:-1]
    table /= scales[:-1]
    response = (response - centres[-1]) / scales[-1]
    found = {}
    for name, model in (("lasso", Lasso(LAMBDA)), ("ridge", Ridge(LAMBDA * len(table)))):
        start = time.perf_counter()
        model.fit(table, response)
        seconds = time.perf_counter() - start
        plain = fits[name][0]
        found[name] = {"fit_s": seconds, "error": error_of(plain, np.append(model.intercept_, model.coef_))}
    return found


def show_reading(reading: dict[str, Any]) -> None:
    solve = ", ".join(f"{model} {seconds * 1e3:.1f} ms" for model, seconds in reading["solve_s"].items())
    print(
        f"\n{reading['rows']} rows a party, read one party at a time: {reading['read_s']:.2f} s "
        f"(numpy's product of the same chunks {reading['plain_s']:.2f} s, ratio "
        f"{reading['read_s'] / reading['plain_s']:.2f}; drawing them {reading['draw_s']:.1f} s, counted to neither), "
        f"{reading['peak_bytes'] / MIB:.0f} MiB; plaintext solvers on the pooled moments: {solve}"
    )
    for model, row in reading.get("scikit_learn", {}).items():
        print(f"  scikit-learn's {model} on all rows in memory: {row['fit_s']:.2f} s, apart by {row['error']:.1e}")


def others(found: dict[str, Any]) -> None:
    """Published and counted, beside the malicious LASSO."""
    ours = [row for row in found["sessions"] if row["case"] == "lasso, malicious" and "with_reading_s" in row]
    found["others"] = []
    for row in ours:
        n, d = row["parties"], row["features"]
        if n not in (2, 4):
            continue
        wall = row["with_reading_s"]
        costs = {"SGD in MASCOT": sgd(row["rows"] * n, d, n), "ADMM in LowGear": admm(d, n)}
        print(f"\n{row['rows']} rows a party, LASSO with reading {wall:.1f} s; not measured here:")
        for name, cost in costs.items():
            print(
                f"  {name}, counted: {cost.triples:.3g} triples, {cost.wall_s:,.0f} s, {cost.bytes / n / 1e9:,.1f} GB "
                f"a party; ours {cost.wall_s / wall:,.0f} times faster"
            )
            found["others"].append({"name": name, "rows": row["rows"], "wall_s": cost.wall_s, "bytes": cost.bytes})
        if (n, d) == (4, 90):
            print(
                f"  Helen, published: under {HELEN_S} s, on other machines, in four regions; {HELEN_S / wall:.0f} times"
            )


def draw(path: Path, found: dict[str, Any]) -> None:
    """Kinds of fit at the greatest number of rows, then LASSOs by parties and by columns."""
    rows = found["sessions"]
    first = rows[0]
    reference = [row for row in rows if (row["parties"], row["features"]) == (first["parties"], first["features"])]
    most = max(row["rows"] for row in reference)
    kinds = {row["case"].replace(", ", "\n"): row for row in reference if row["rows"] == most}
    panels = {f"{first['parties']} parties, d = {first['features']}": kinds}
    lassos = [row for row in rows if row["case"] == "lasso, malicious" and row["rows"] == first["rows"]]
    for other, same in (("parties", "features"), ("features", "parties")):
        chosen = sorted((row for row in lassos if row[same] == first[same]), key=lambda row: row[other])
        label = "d" if other == "features" else other
        if len(chosen) > 1:
            panels[f"LASSO, malicious, by {label}"] = {str(row[other]): row for row in chosen}
    subtitle = f"{found['machine']}; all parties on it, over TLS; {most:,} rows a party on the left, read before"
    plot(path, panels, subtitle=subtitle)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer parties, columns and rows, one session each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw there, SVG or PNG")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", nargs="+", type=int, help="of each party")
    parser.add_argument("--parties", nargs="+", type=int, help="the first for *rows*, all for *shapes*")
    parser.add_argument("--features", nargs="+", type=int, help="the same")
    parser.add_argument("--rounds", type=int, help="sessions of a case, by default 5; fewer of a shape that takes long")
    parser.add_argument("--degree", type=int, default=32768, help="of ciphertexts; less is insecure, for tests alone")
    options = parser.parse_args()
    options.rows = options.rows or ([20_000] if options.quick else [100_000, 1_000_000, 10_000_000])
    options.parties = options.parties or ([2, 3] if options.quick else [4, 2, 3, 8])
    options.features = options.features or ([20, 40] if options.quick else [90, 20, 200])
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


if __name__ == "__main__":
    sys.exit(main())
