"""The budget of maliciously secure linear models, for many plans: field, modulus, distance, traffic, time.

    python scripts/linear_budget.py            the tables
    python scripts/linear_budget.py --check    the same; exits 1 when a plan has no room or exceeds its distance

What a session uses and how far it is from ideal is counted by ``cloister.linear._budget``, which refuses plans by the
same numbers; time is ``cloister.linear._estimate``'s, for the machine where its constants were measured. All logarithms
are base 2.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from cloister.linear._budget import BOX_BITS, KEPT_BITS, RING, ROWS, WHOLE_BITS, Budget, budget_of
from cloister.linear._demand import slack_bits
from cloister.linear._estimate import Estimate, Network, Primitives, estimate
from cloister.linear._newton import newton_plan
from cloister.linear._plan import ITERATE_BITS, SHIFT_BITS, Plan
from cloister.linear._ranges import MODULUS_BITS, SIGMA

FAR = Network(round_trip_s=0.1, bytes_s=100e6 / 8)
HYPERTHREADS = 2  # of the core that all parties share; both were busy when the constants were measured

# log q at most for 128, 192 and 256 bits: the homomorphic encryption standard's classical table
STANDARD = (880, 612, 478)


@dataclass(frozen=True)
class Session:
    """A plan, run so many times with one set of keys, proven or not."""

    name: str
    plan: Plan
    again: Plan | None = None
    fits: int = 1
    malicious: bool = True

    @property
    def budget(self) -> Budget:
        """Of the whole session."""
        return budget_of(self.plan, fits=self.fits, again=self.again, malicious=self.malicious)

    def estimate(self, network: Network | None = None, *, shared_by: float = 1.0) -> Estimate:
        """Of one party, on a local network by default."""
        return estimate(
            self.plan,
            Primitives(),
            network=network,
            fits=self.fits,
            again=self.again,
            malicious=self.malicious,
            shared_by=shared_by,
        )


def session(method: Literal["ridge", "lasso", "newton"], d: int, parties: int, **fields: object) -> Session:
    """The reference plan of a method: curvature 20, mean squares 2, penalty 0.01, ten thousand rows a party."""
    malicious = bool(fields.pop("malicious", True))
    given = {key: value if isinstance(value, int) else Fraction(str(value)) for key, value in fields.items()}
    plan = Plan(
        method="lasso" if method == "lasso" else "ridge",
        rows=(10_000,) * parties,
        curvature=Fraction(20),
        mean_squares=(Fraction(2),) * (d + 1),
        l1=Fraction(1, 100) if method == "lasso" else Fraction(0),
        steps=120 if method == "newton" else 200,
    )
    plan = replace(plan, **given)
    if method != "newton":
        return Session(method, plan, malicious=malicious)
    again = newton_plan(plan, l1=plan.l1, l2=plan.l2, reach=Fraction(8))
    return Session(method, plan, again, 4, malicious)


def line(s: Session, budget: Budget) -> str:
    """One plan in one line."""
    counts, here = budget.counts, s.estimate(shared_by=max(1, s.plan.parties / HYPERTHREADS))
    steps = sum(sent.steps for sent in counts.phases.values())
    modulus = max(budget.scalars.modulus, budget.matrix.modulus)
    return (
        f"{s.name:7s} d={s.plan.features:<4d} n={s.plan.parties} κ={float(s.plan.curvature):<4.0f}"
        f" | level {budget.level:2d}"
        f" field {budget.field} of {MODULUS_BITS}  q {modulus:.0f}  distance 2^{budget.distance:.1f}"
        f" | products {counts.products:5d} triples {counts.triples / 1e3:6.1f}k bits {counts.bits / 1e3:6.1f}k"
        f" openings {sum(counts.openings.values()) / 1e3:7.1f}k steps {steps:4d}"
        f" | {here.up_bytes / 1e6:6.0f} MB {cpu_s(s.estimate()):6.1f} CPU-s a party,"
        f" all on one core {here.seconds:4.0f} s, 100 ms and 100 Mbit/s {s.estimate(FAR).seconds:4.0f} s"
        + "".join(f"  NO ROOM: {what}" for what in budget.exceeded)
    )


def cpu_s(found: Estimate) -> float:
    """In all phases."""
    return sum(phase.cpu_s for phase in found.phases.values())


def details(s: Session, budget: Budget) -> str:
    """The rest of one plan."""
    tiles, counts, needs, found = budget.tiles, budget.counts, budget.needs, s.estimate()
    secure = next((bits for bits, most in zip((256, 192, 128), STANDARD[::-1], strict=True) if most >= WHOLE_BITS), 0)
    lines = [
        f"truncation: shift {SHIFT_BITS}, result {needs.kept_bits}, mask {needs.hiding_bits}, room {needs.room_bits};"
        f" comparisons: {needs.coarse.digits}, {needs.fine.digits}, {needs.wide.digits} digits, mask {needs.high_bits};"
        f" a cheater's shift < 2^{slack_bits(s.plan, fits=s.fits)} ulp of 2^-{ITERATE_BITS}"
    ]
    for name, x in (("scalars", budget.scalars), ("matrix", budget.matrix)):
        lines.append(
            f"RLWE {name}: N {RING}, slack 2^{x.slack:.1f}, hidden term 2^{x.hidden:.0f}, flood 2^{x.flood:.0f},"
            f" log q ≥ {x.modulus:.0f} of {WHOLE_BITS:.1f} ({secure} bits by the standard's table),"
            f" switched ≥ {x.switched:.1f} of {KEPT_BITS:.1f}"
        )
    leaves = -math.expm1(ROWS * (1 + 2 * tiles.tiles) * RING * math.log1p(-(2.0**-BOX_BITS)))
    phases = found.phases.items()
    sent = sorted(counts.messages.items(), key=lambda pair: -pair[1].size_bytes)[:8]
    named = (
        ("statistical distance", "; ".join(f"{key} 2^{value:.1f}" for key, value in budget.distances.items())),
        ("authenticated a party", "; ".join(f"{key} {value:,}" for key, value in counts.authenticated.items())),
        ("upload a party, MB", "; ".join(f"{key} {phase.up_bytes / 1e6:.1f}" for key, phase in phases)),
        ("steps", "; ".join(f"{key} {phase.rounds}" for key, phase in phases)),
        ("most of it, MB to each", "; ".join(f"{kind} {one.size_bytes / 1e6:.1f}" for (_, kind), one in sent)),
        ("CPU a party, s", "; ".join(f"{key} {phase.cpu_s:.1f}" for key, phase in phases)),
        (
            "packing",
            f"{tiles.tiles} tiles, {tiles.vectors} vectors and {tiles.answers} answers; {counts.batches} batches,"
            f" {counts.polynomials} polynomials of values",
        ),
        ("a proof leaves its box with probability", f"{leaves:.1e}"),
    )
    return "\n".join(f"  {text}" for text in [*lines, *(f"{name}: {text}" for name, text in named)])


def sessions() -> list[Session]:
    """The reference plans, then harder ones: unknown curvature, a small penalty; last, without proofs."""
    methods: tuple[Literal["lasso", "ridge", "newton"], ...] = ("lasso", "ridge", "newton")
    reference = [session(method, d, n) for n in (2, 3, 4, 8) for d in (20, 90, 200, 300) for method in methods]
    return [
        *reference,
        session("lasso", 90, 4, curvature=90, rounds=30, half=12),
        session("lasso", 200, 4, curvature=200, rounds=30, half=12),
        session("lasso", 300, 8, curvature=60, rounds=30, half=12),
        session("lasso", 90, 4, l1=0.001),
        session("lasso", 90, 4, malicious=False),
        session("ridge", 90, 4, malicious=False),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the budget of maliciously secure linear models")
    parser.add_argument("--check", action="store_true", help="exit 1 when a plan has no room")
    check = parser.parse_args(arguments).check
    print(f"p = (2^120 - 51)·2^64 + 1; N = {RING}; q of {WHOLE_BITS:.1f} bits, {KEPT_BITS:.1f} kept; σ = {SIGMA}\n")
    for method in ("lasso", "ridge", "newton"):
        one = session(method, 90, 4)
        print(f"{line(one, one.budget)}\n{details(one, one.budget)}\n")
    sound = True
    for one in sessions():
        budget = one.budget
        print(line(one, budget))
        sound &= not budget.exceeded
    return 0 if sound or not check else 1


if __name__ == "__main__":
    raise SystemExit(main())
