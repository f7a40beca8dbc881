"""Linear fits over slow networks: the same sessions at round trips of 25 and 100 ms, and at 100 Mbit/s a party.

    python benchmarks/linear_network.py --quick               two parties, few columns: a minute
    python benchmarks/linear_network.py --json F --plot G     four parties, 90 columns, 100,000 rows each

Round trips are made by a relay before each party that listens: it holds what comes for half a round trip, each way, and
lets as much through as comes. All parties say something in every step, so a step costs half a round trip, not a whole
one. The relay ends TCP, whose windows are therefore those of a short way.

Rates are made by ``tc`` (tbf) where it can be used: each party has a network of its own, 100 Mbit/s up and as many
down, whatever the number of its peers, removed at the end. Elsewhere the relay limits each link to the party's share of
100 Mbit/s; the table says which it was. The baseline, in the same run, is the same session over the loopback alone.

Networks take turns, one session each; the column *runs* says of how many the medians are.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _linear_bars import plot
from _linear_sessions import Case, Place, error_of, free_ports, median_of, prepare, run
from _machine import machine
from _shaped import Network, can_shape, shaped

RELAY = Path(__file__).with_name("_relay.py")
LISTEN, BEHIND = 7443, 7444


@dataclass(frozen=True)
class Link:
    """What lies between parties.

    Attributes:
        round_trip_s: Of each pair.
        mbit: Of each party, up and down; 0: as much as the machine does.
    """

    round_trip_s: float = 0.0
    mbit: float = 0.0

    @property
    def name(self) -> str:
        """For a table."""
        parts = [f"{1000 * self.round_trip_s:g} ms"] if self.round_trip_s else []
        return ", ".join([*parts, *([f"{self.mbit:g} Mbit/s"] if self.mbit else [])]) or "loopback"


LINKS = (Link(), Link(0.025), Link(0.1), Link(0, 100), Link(0.025, 100), Link(0.1, 100))
HEADER = (
    f"{'case':<24}{'network':<22}{'by':<8}{'runs':>5}{'wall s':>8}{'ratio':>7}{'online s':>10}{'link s':>8}{'steps':>7}"
)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that networks are removed then, too
    found: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()[0], "sessions": []}
    with_tc = can_shape()
    links = [LINKS[0], LINKS[1], LINKS[3]] if options.quick else LINKS
    kinds = [("lasso", True), ("ridge", True)] + ([] if options.quick else [("lasso", False)])
    cases = [Case(m, s, options.features, options.rows, options.parties, options.degree) for m, s in kinds]
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        plain, _ = prepare(cases[0], Path(folder))
        run(cases[0], Path(folder))  # not timed: compiles what is not compiled yet
        for case in cases:
            model, _ = plain.fit(case.model)
            runs: dict[Link, list[dict[str, Any]]] = {link: [] for link in links}
            for _ in range(options.rounds):
                for link in links:
                    with placed(link, case.parties, with_tc=with_tc) as places:
                        runs[link].append(run(case, Path(folder), places=places))
            base = median_of(runs[links[0]])["wall_s"]
            for link, done in runs.items():
                error = max(error_of(one["model"], model) for one in done)
                row = median_of(done) | {"case": case.name, "network": link.name, "runs": len(done), "error": error}
                row |= {"by": ("tc" if with_tc else "relay") if link.mbit else "", "ratio": row["wall_s"] / base}
                row |= {"link_s": sum(phase.get("link_s", 0) for phase in row["phases"].values())}
                found["sessions"].append(row)
                print(text_of(row), flush=True)
    print(f"\n{found['machine']}; load before {found['load_before']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    if options.plot:
        draw(options.plot, found, options)
    return 0


@contextmanager
def placed(link: Link, parties: int, *, with_tc: bool) -> Iterator[list[Place]]:
    """Where the parties run for sessions over such links; relays and networks are gone at the end."""
    with ExitStack() as stack:
        if link.mbit and with_tc:
            networks = stack.enter_context(shaped(parties, mbit=link.mbit))
            rate, ports = 0.0, [(LISTEN, BEHIND)] * parties
        else:
            networks = [Network("127.0.0.1", [])] * parties
            rate, ports = link.mbit * 125_000 / max(1, parties - 1), pairs(free_ports(2 * parties))
        places = []
        for place, (network, (port, behind)) in enumerate(zip(networks, ports, strict=True)):
            at = f"{network.address}:{port}"
            relayed = (link.round_trip_s or rate) and place < parties - 1  # the last one listens for nobody
            if relayed:
                stack.enter_context(relaying(network.before, port, behind, link.round_trip_s / 2, rate))
            places.append(Place(at, f"127.0.0.1:{behind}" if relayed else at, network.before))
        yield places


def pairs(ports: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(ports[::2], ports[1::2], strict=True))


@contextmanager
def relaying(before: Sequence[str], port: int, behind: int, half_s: float, rate: float) -> Iterator[None]:
    command = [*before, sys.executable, str(RELAY), str(port), "127.0.0.1", str(behind), repr(half_s), repr(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.terminate()


def text_of(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:<24}{row['network']:<22}{row['by']:<8}{row['runs']:>5}{row['wall_s']:>8.1f}{row['ratio']:>7.2f}"
        f"{row['phases']['online']['wall_s']:>10.1f}{row['link_s']:>8.1f}{row['steps']:>7.0f}"
    )


def draw(path: Path, found: dict[str, Any], options: argparse.Namespace) -> None:
    panels: dict[str, dict[str, Any]] = {}
    for row in found["sessions"]:
        panels.setdefault(row["case"], {})[row["network"].replace(", ", "\n")] = row
    subtitle = f"{found['machine']}; {options.parties} parties on it, d = {options.features}, over TLS"
    plot(path, panels, subtitle=subtitle)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer parties, columns, networks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw there, SVG or PNG")
    parser.add_argument("--parties", type=int)
    parser.add_argument("--features", type=int)
    parser.add_argument("--rows", type=int, help="of each party")
    parser.add_argument("--rounds", type=int, default=1, help="sessions over each network")
    parser.add_argument("--degree", type=int, default=32768, help="of ciphertexts; less is insecure, for tests alone")
    options = parser.parse_args()
    options.parties = options.parties or (2 if options.quick else 4)
    options.features = options.features or (20 if options.quick else 90)
    options.rows = options.rows or (20_000 if options.quick else 100_000)
    return options


if __name__ == "__main__":
    sys.exit(main())
