"""Every snippet in the README and in docs/ runs.

Python as it stands, TOML through our own reader, console lines as commands in an empty folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def snippets(language: str) -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), body)
        for path in DOCUMENTS
        for found, body in FENCE.findall(path.read_text(encoding="utf-8"))
        if found == language
    ]


def by_document(language: str) -> list[object]:
    found: dict[str, list[str]] = {}
    for name, body in snippets(language):
        found.setdefault(name, []).append(body)
    return [pytest.param(name, bodies, id=name) for name, bodies in sorted(found.items())]


@pytest.mark.parametrize(("name", "bodies"), by_document("python"))
def test_python_snippets_run(name: str, bodies: list[str], tmp_path: Path) -> None:
    program = "\n".join(bodies)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize(("name", "bodies"), by_document("toml"))
def test_toml_snippets_are_read(name: str, bodies: list[str], tmp_path: Path) -> None:
    from cloister.run import load_host

    for body in bodies:
        tomllib.loads(body)
        if "storage" in body:
            (tmp_path / "host.toml").write_text(body)
            load_host(tmp_path / "host.toml")


@pytest.mark.parametrize(("name", "bodies"), by_document("yaml"))
def test_yaml_snippets_are_parts_of_a_manifest(name: str, bodies: list[str]) -> None:
    """What stands in them is in the schema; ids and keys may be left out as ``…``."""
    from ruamel.yaml import YAML

    from cloister.manifest import OffloadTerms, PrivacyBudget, PrivacyTerms, Stage, price_of_terms

    for body in bodies:
        part = YAML(typ="safe").load(body)
        for image in part.get("images", {}).values():
            PrivacyBudget.model_validate(image["budget"])
        for stage in part["stages"].values():
            assert stage.keys() <= Stage.model_fields.keys(), name
            if "offload" in stage:
                OffloadTerms.model_validate({**stage["offload"], "workers": tuple(stage["offload"]["workers"])})
            if "privacy" in stage:
                terms = PrivacyTerms.model_validate(stage["privacy"])
                assert float(price_of_terms(terms).epsilon or "inf") <= float(terms.epsilon)


@pytest.mark.parametrize(("name", "bodies"), by_document("console"))
def test_console_lines_run(name: str, bodies: list[str], tmp_path: Path) -> None:
    """A line ``$ command`` must end with status 0, or with N where its line ends in ``# exit N``."""
    environment = {
        **os.environ,
        "CLOISTER_HOME": str(tmp_path / "home"),
        "CLOISTER_PASSPHRASE": "a passphrase for tests",
    }
    for line in (line for body in bodies for line in body.splitlines() if line.startswith("$ ")):
        command, _, comment = line[2:].partition("  # ")
        words = shlex.split(command)
        if words[0] == "make":  # the two commands that would run this very test: only that they exist
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
            continue
        if words[0] == "cloister":
            words = [sys.executable, "-m", "cloister", *words[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        expected = int(comment.removeprefix("exit ")) if comment.startswith("exit ") else 0
        assert done.returncode == expected, f"{name}: {line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_document_is_short_enough_to_read() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
