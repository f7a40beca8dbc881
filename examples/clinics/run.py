"""Three clinics on one machine: identities, an agreement, consent, a preflight, and a LASSO of their joined patients.

Each clinic is a folder and its own processes; they talk over TLS. All files are made in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso

CLINICS = ("north", "south", "west")
CUTS = (120, 300)
ALPHA = 1.0
TARGET = "progression"


class Clinic:
    """One party: its home, its rows, its commands."""

    def __init__(self, name: str, work: Path, log: Path) -> None:
        self.name, self.home, self.log = name, work / name, log
        self.environment = os.environ | {"CLOISTER_PASSPHRASE": secrets.token_hex(16)}

    def start(self, *words: object) -> subprocess.Popen[str]:
        """A command of this clinic; its output is collected."""
        home = () if "explore" in words else ("--home", self.home)  # which reads rows and nothing else
        command = ["cloister", *map(str, (*words, *home))]
        with self.log.open("a") as log:
            log.write(f"{self.name}$ {shlex.join(command)}\n")
        program = [sys.executable, "-m", *command]
        return subprocess.Popen(
            program, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *words: object) -> str:
        """The same, to its end."""
        return ended(self.start(*words))


def ended(process: subprocess.Popen[str]) -> str:
    said, noted = process.communicate()
    if process.returncode:
        sys.exit(said + noted)
    return said


def main() -> None:
    """Everything, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("clinics-run"))
    parser.add_argument("--adversary", choices=("malicious", "semi-honest"), default="malicious")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    log = options.work / "commands.txt"
    clinics = [Clinic(name, options.work, log) for name in CLINICS]

    data = load_diabetes(scaled=False)
    names = (*data.feature_names, TARGET)
    table = np.column_stack([data.data, data.target])
    parts = np.split(np.arange(len(table)), CUTS)
    for clinic, part in zip(clinics, parts, strict=True):
        clinic.home.mkdir()
        rows = clinic.home / "rows.csv"
        np.savetxt(rows, table[part], delimiter=",", header=",".join(names), comments="", fmt="%.6g")
        clinic.run("party", "init", clinic.name)
        print(f"{clinic.name:6} {len(part)} patients, {rows}")
    for clinic in clinics:
        others = [other for other in clinics if other is not clinic]
        trust(clinic, others)

    draft = options.work / "agreement.yaml"
    places = [f"127.0.0.1:{port}" for port in free_ports(len(clinics))]
    named = [word for clinic, at in zip(clinics, places, strict=True) for word in ("--party", f"{public(clinic)}@{at}")]
    first = clinics[0]
    header = first.home / "rows.csv"
    first.run(
        *("linear", "new", "diabetes", *named, "--model", "lasso", "--response", TARGET, "--columns", header),
        *("--adversary", options.adversary, "-o", draft),
    )
    draft.write_text(filled(draft.read_text(), names, table, [len(part) for part in parts]))
    print("\n" + first.run("linear", "explore", draft, "--data", header))

    signed = options.work / "agreement.signed.json"
    first.run("linear", "sign", draft, "--as", first.name, "--yes", "-o", signed)
    for clinic in clinics[1:]:
        print(clinic.run("linear", "sign", signed, "--as", clinic.name, "--yes"))
    for word in ("check", "run"):
        started = [
            clinic.start(
                *("linear", word, signed, "--as", clinic.name, "--data", clinic.home / "rows.csv"),
                *(("-o", clinic.home / "model.json") if word == "run" else ()),
            )
            for clinic in clinics
        ]
        said = [ended(process) for process in started]
        print(said[0])
    compare(table, first.home / "model.json")


def trust(clinic: Clinic, others: list[Clinic]) -> None:
    """Pins partners. People read each other the words by phone; here the script carries them."""
    for other in others:
        shown = other.run("party", "show", other.name)
        words = re.search(r"fingerprint\s+((?:\w+ ){7}\w+)", shown)
        assert words is not None
        clinic.run("party", "trust", public(other), "--fingerprint", words[1])


def public(clinic: Clinic) -> Path:
    """What a clinic sends to its partners."""
    return clinic.home / f"{clinic.name}.pub"


def free_ports(many: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(many)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def filled(draft: str, names: Sequence[str], table: NDArray[np.float64], rows: Sequence[int]) -> str:
    """The draft with what people would fill in: rows, round numbers for centres and scales, bounds that rows keep."""
    for count in rows:
        draft = draft.replace("FILL-IN-NUMBER", str(count), 1)
    draft = re.sub(r"FILL-IN: [^\"]*", "progression after a year, of ten measurements", draft)
    for name, column in zip(names, table.T, strict=True):
        scaled = f'centre: "{column.mean():.3g}", scale: "{column.std():.3g}"'
        draft = re.sub(rf'(name: "?{re.escape(name)}"?), centre: "0", scale: "1"', rf"\1, {scaled}", draft)
    draft = re.sub(r'curvature: "\d+"', 'curvature: "5"', draft)
    return draft.replace('mean_square: "2"', 'mean_square: "3"').replace('alpha: "0.1"', f'alpha: "{ALPHA}"')


def compare(table: NDArray[np.float64], path: Path) -> None:
    """The model beside scikit-learn's on the pooled rows, which no clinic has."""
    found = json.loads(path.read_text())
    features = table[:, :-1]
    centre, scale = (
        np.array([float(f"{value:.3g}") for value in part]) for part in (features.mean(0), features.std(0))
    )
    other = Lasso(alpha=ALPHA, tol=1e-8).fit((features - centre) / scale, table[:, -1])
    print(f"{'':8}{'together':>12}{'scikit-learn':>14}")
    for name, mine, theirs in zip(found["columns"], found["coefficients"], other.coef_ / scale, strict=True):
        print(f"{name:8}{float(mine):12.4f}{theirs:14.4f}")


if __name__ == "__main__":
    main()
