"""Switches off each defence in turn; the attack test that guards it must then turn red.

The table is ``tests/mutants.toml``: for each mutant the file, the exact text of the check, what disables it, and the
tests. The source is copied to a temporary folder for each mutant, so the working tree is never touched. There it is
*installed*, in an environment of its own beside our packages: closed processes are started with ``-I`` and would pass
over a folder that ``PYTHONPATH`` names. A mutant counts as caught only because the same tests, in the same kind of
environment, are green without it: they run first.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cloister.enclave._hashes import memory

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defence and the tests of which one must notice its absence."""

    name: str
    file: str
    find: str
    replace: str
    test: str


def load() -> list[Mutant]:
    """The mutants of the table."""
    table = tomllib.loads((ROOT / "tests/mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(name, **row) for name, row in table.items()]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the source and its tests that is installed in an environment of its own, ``venv``."""
    with tempfile.TemporaryDirectory(prefix="cloister-mutant-") as folder:
        tree = Path(folder)
        for part in ("src", "tests", "examples", "scripts", "benchmarks"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, tree / part)
        home = tree / "venv"
        venv.create(home, symlinks=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
        # no .pth file of our own environment is read there: the copy is the only source
        others = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
        (packages / "mutant.pth").write_text("\n".join([str(tree / "src"), *others]), encoding="ascii")
        _copy_hashes(tree / "cache", home)
        yield tree


def _copy_hashes(cache: Path, home: Path) -> None:
    """Hashes that this user's measurements left: read gigabytes of packages once, not once for each mutant."""
    kept = memory(Path(platformdirs.user_cache_dir("cloister")))
    target = memory(cache / "cloister", str(home))
    target.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_file():
        shutil.copy(kept, target)


def run_tests(tree: Path, *arguments: str, timeout_s: int = 1200) -> tuple[int, str]:
    """Pytest's exit status, 124 when it took too long, and what it printed."""
    data = os.environ.get("CLOISTER_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    environment = {**os.environ, "CLOISTER_TEST_DATA": data, "XDG_CACHE_HOME": str(tree / "cache")}
    environment.pop("PYTHONPATH", None)
    command = [str(tree / "venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return 124, f"not done after {timeout_s} s"
    return done.returncode, done.stdout


def run(mutant: Mutant) -> tuple[Mutant, str, str]:
    """Runs the tests against the mutated source: ``caught``, ``survived`` or ``broken`` with pytest's last lines."""
    with copied() as tree:
        target = tree / mutant.file
        source = target.read_text(encoding="utf-8")
        if source.count(mutant.find) != 1:
            return mutant, "broken", f"the text stands {source.count(mutant.find)} times in {mutant.file}, not once"
        target.write_text(source.replace(mutant.find, mutant.replace), encoding="utf-8")
        status, said = run_tests(tree, "-x", *shlex.split(mutant.test))
    if status == 1 and " failed" in said:
        return mutant, "caught", _tail(said)
    return mutant, "survived" if status == 0 else "broken", _tail(said)


def _tail(said: str, lines: int = 3) -> str:
    return "\n".join(said.strip().splitlines()[-lines:])


def main() -> int:
    """Runs the mutants, two at a time; exit status 1 when one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    mutants = [m for m in load() if not options.names or m.name in options.names]
    unknown = sorted(set(options.names) - {m.name for m in mutants})
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}")
    tests = sorted({test for mutant in mutants for test in shlex.split(mutant.test)})
    with copied() as tree:
        status, said = run_tests(tree, "-n", str(options.jobs), *tests, timeout_s=3600)
    if status != 0:
        print(f"red without any mutant:\n{_tail(said, 30)}", flush=True)
        return 1
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
