"""Switches off each defence in turn; the attack test that guards it must then turn red.

The table is ``tests/mutants.toml``: for each mutant the file, the exact text of the check, what disables it, and the
test. The source is copied to a temporary folder for each mutant, so the working tree is never touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defence and the test that must notice its absence."""

    name: str
    file: str
    find: str
    replace: str
    test: str


def load() -> list[Mutant]:
    """The mutants of the table."""
    table = tomllib.loads((ROOT / "tests/mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(name, **row) for name, row in table.items()]


def run(mutant: Mutant) -> tuple[Mutant, str, str]:
    """Runs the test against the mutated source: ``caught``, ``survived`` or ``broken`` with the test's last lines."""
    with tempfile.TemporaryDirectory(prefix="cloister-mutant-") as folder:
        tree = Path(folder)
        for part in ("src", "tests", "examples", "scripts", "benchmarks"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, tree / part)
        target = tree / mutant.file
        source = target.read_text(encoding="utf-8")
        if source.count(mutant.find) != 1:
            return mutant, "broken", f"the text stands {source.count(mutant.find)} times in {mutant.file}, not once"
        target.write_text(source.replace(mutant.find, mutant.replace), encoding="utf-8")
        data = os.environ.get("CLOISTER_TEST_DATA", str(ROOT.parent / "shared" / "data"))
        environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "CLOISTER_TEST_DATA": data}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=600)
    tail = "\n".join(done.stdout.strip().splitlines()[-3:])
    if done.returncode == 1 and " failed" in done.stdout:
        return mutant, "caught", tail
    return mutant, "survived" if done.returncode == 0 else "broken", tail


def main() -> int:
    """Runs the mutants, two at a time; exit status 1 when one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    mutants = [m for m in load() if not options.names or m.name in options.names]
    bad = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, outcome, tail in pool.map(run, mutants):
            print(f"{outcome:9} {mutant.name}", flush=True)
            if outcome != "caught":
                bad += 1
                print("          " + tail.replace("\n", "\n          "), flush=True)
    print(f"{len(mutants) - bad} of {len(mutants)} defences are guarded")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
