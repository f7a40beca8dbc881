"""The budget of maliciously secure linear models, for many plans: field, modulus, distance, traffic, time.

    python scripts/linear_budget.py            the tables python scripts/linear_budget.py --check    the same; exits 1
    when a plan has no room or a session's distance exceeds 2^-40

What a session needs and how far it is from ideal is counted by ``cloister.linear._budget``, which refuses plans by
the same numbers; this file adds traffic and time of one party, by phase, from measured primitives. All logarithms are
base 2.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from cloister.linear._budget import BOX_BITS, DROPPED, KEPT, KEPT_BITS, RING, ROWS, WHOLE_BITS, Budget, budget_of
from cloister.linear._plan import ITERATE_BITS, SHIFT_BITS, Plan
from cloister.linear._ranges import MODULUS_BITS, PROJECTIONS, SIGMA, kept_bits, mask_bits, slack_bits, truncations

# measured on an EPYC with AVX-512, one thread of a busy core, milliseconds
NTT_MS, FIELD_NTT_MS, PRODUCT_NS = 0.62, 5.4, 10.0
TO_LIMBS_3_MS, TO_LIMBS_6_MS, SWITCH_MS, DECODE_MS, STREAM_MS = 2.5, 3.8, 2.5, 2.5, 0.35
POINTWISE_MS = 0.05
START_S, ROUND_MS = 3.0, 1.2  # interpreter and compiled code of a party; one round of an opening in Python

ELEMENT_MB = 23e-6
KEPT_MB = KEPT[0] * KEPT[1] / 8 * RING / 1e6
WHOLE_MB = KEPT_MB + DROPPED[0] * DROPPED[1] / 8 * RING / 1e6
LIMBS = KEPT[0] + DROPPED[0]

# log q at most for 128, 192 and 256 bits: the homomorphic encryption standard's classical table
STANDARD = (880, 612, 478)


@dataclass(frozen=True)
class Session:
    """A plan, run so many times with one set of keys, proven or not."""

    name: str
    plan: Plan
    fits: int = 1
    malicious: bool = True

    @property
    def budget(self) -> Budget:
        """Of the whole session."""
        return budget_of(self.plan, fits=self.fits, malicious=self.malicious)

    @property
    def others(self) -> int:
        """Parties that one party sends to."""
        return self.plan.parties - 1

    @property
    def tags(self) -> int:
        """Field elements that stand for one shared value at a party."""
        return 1 + 2 * self.others * self.malicious


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
    return Session(method, replace(plan, **given), 4 if method == "newton" else 1, malicious)


def heads_and_bodies(s: Session, budget: Budget) -> tuple[dict[str, int], dict[str, int]]:
    """Answers of one party: heads for everybody, bodies for each other party."""
    values = (budget.polynomials + 1) * s.malicious
    heads = {"triples": budget.batches * (5 if s.malicious else 1), "matrix": budget.tiles.answers, "values": values}
    return heads, heads | {"triples": budget.batches * (7 if s.malicious else 1)}


def traffic(s: Session, budget: Budget) -> dict[str, float]:
    """Megabytes that one party sends, by phase."""
    tiles, counts = budget.tiles, budget.counts
    heads, bodies = heads_and_bodies(s, budget)

    def response(width: int) -> float:
        bits = (BOX_BITS + 3) + width * ((BOX_BITS + 7) + (MODULUS_BITS + 1 + BOX_BITS + 3))
        return ROWS * RING / 8 / 1e6 * bits

    useful = tiles.answers * s.plan.columns * tiles.vectors * KEPT[0] * KEPT[1] / 8 / 1e6
    each = {
        "ciphertexts": (1 + budget.batches + s.fits * tiles.tiles) * WHOLE_MB,
        "their proofs": (response(1) + response(tiles.tiles)) * s.malicious,
        "answers": (sum(heads.values()) + bodies["triples"] + bodies["values"]) * KEPT_MB + useful,
        "checks": 2 * counts.triples * ELEMENT_MB * s.malicious,
        "inputs": counts.authenticated["inputs and proofs"] * ELEMENT_MB,
        "online": counts.openings * ELEMENT_MB + counts.rounds * 1e-4,
    }
    return {phase: size * s.others for phase, size in each.items()}


def seconds(s: Session, budget: Budget) -> dict[str, float]:
    """Of one party's processor, by phase."""
    counts, tiles, others, proven = budget.counts, budget.tiles, s.others, s.malicious
    heads, bodies = heads_and_bodies(s, budget)
    make = TO_LIMBS_3_MS + 2 * LIMBS * NTT_MS + SWITCH_MS
    body = LIMBS * (NTT_MS + POINTWISE_MS) + TO_LIMBS_6_MS + STREAM_MS + SWITCH_MS
    take = KEPT[0] * (NTT_MS + POINTWISE_MS) + DECODE_MS

    def answers(kind: str) -> float:
        return heads[kind] * (make + others * KEPT[0] * NTT_MS) + bodies[kind] * others * (body + take)

    def row(width: int) -> float:
        return LIMBS * NTT_MS * (1 + 2 * width) + width * (TO_LIMBS_3_MS + TO_LIMBS_6_MS) + 2

    slots = budget.batches * (3 + 4 * others + 6 * others * proven) * FIELD_NTT_MS
    shared = tiles.tiles * (TO_LIMBS_3_MS + LIMBS * NTT_MS) + LIMBS * NTT_MS + SWITCH_MS
    to_each = LIMBS * (NTT_MS + tiles.tiles * POINTWISE_MS) + 1.5 + 2 * KEPT[0] * NTT_MS
    groups = (1 + budget.batches) * row(1) + s.fits * row(tiles.tiles)
    proofs = proven * ROWS * (1 + others) * (row(1) + row(tiles.tiles))
    product_s = PRODUCT_NS / 1e9
    square = s.plan.columns**2
    return {
        "start": START_S,
        "ciphertexts, proofs": (groups + proofs) / 1e3,
        "triples": (answers("triples") + slots) / 1e3,
        "matrix": tiles.answers * (shared + others * to_each) / 1e3,
        "values": proven * answers("values") / 1e3,
        "checks": (8 * counts.triples + 2 * sum(counts.authenticated.values())) * s.tags * product_s,
        "inputs": 0.3
        + counts.private_bits * 12 * others * product_s
        + proven * PROJECTIONS * truncations(s.plan, fits=s.fits) * 12e-9,
        "online": counts.rounds * ROUND_MS / 1e3
        + (2 * counts.products * square + 10 * counts.triples) * s.tags * product_s,
    }


def line(s: Session, budget: Budget) -> str:
    """One plan in one line."""
    counts, sent = budget.counts, sum(traffic(s, budget).values())
    one = sum(seconds(s, budget).values()) - START_S
    here = START_S + s.plan.parties * one / 1.3  # two hyperthreads of one core do 1.3 times the work of one
    far = START_S + one + counts.rounds * 0.05 + sent * 8 / 100
    modulus = max(budget.scalars.modulus, budget.matrix.modulus)
    return (
        f"{s.name:7s} d={s.plan.features:<4d} n={s.plan.parties} κ={float(s.plan.curvature):<4.0f}"
        f" | level {budget.level:2d}"
        f" field {budget.field} of {MODULUS_BITS}  q {modulus:.0f}  distance 2^{budget.distance:.1f}"
        f" | products {counts.products:5d} triples {counts.triples / 1e3:6.1f}k openings {counts.openings / 1e3:7.1f}k"
        f" rounds {counts.rounds:4d} | {sent:6.0f} MB {one:6.1f} CPU-s a party, all on one core {here:4.0f} s,"
        f" 100 ms and 100 Mbit/s {far:4.0f} s" + "".join(f"  NO ROOM: {what}" for what in budget.exceeded)
    )


def details(s: Session, budget: Budget) -> str:
    """The rest of one plan."""
    tiles, counts = budget.tiles, budget.counts
    lines = [
        f"truncation: shift {SHIFT_BITS}, result {kept_bits(budget.level)},"
        f" mask {mask_bits(s.plan, level=budget.level, fits=s.fits)};"
        f" a cheater's shift ≤ 2^{slack_bits(s.plan, fits=s.fits)} ulp of 2^-{ITERATE_BITS}"
    ]
    secure = next((bits for bits, most in zip((256, 192, 128), STANDARD[::-1], strict=True) if most >= WHOLE_BITS), 0)
    for name, x in (("scalars", budget.scalars), ("matrix", budget.matrix)):
        lines.append(
            f"RLWE {name}: N {RING}, slack 2^{x.slack:.0f}, hidden term 2^{x.hidden:.0f}, flood 2^{x.flood:.0f},"
            f" log q ≥ {x.modulus:.0f} of {WHOLE_BITS:.0f} ({secure} bits by the standard's table),"
            f" switched ≥ {x.switched:.0f} of {KEPT_BITS:.0f}"
        )
    leaves = -math.expm1(ROWS * (1 + 2 * tiles.tiles) * RING * math.log1p(-(2.0**-BOX_BITS)))
    named = (
        ("statistical distance", "; ".join(f"{key} 2^{value:.1f}" for key, value in budget.distances.items())),
        ("authenticated a party", "; ".join(f"{key} {value:,}" for key, value in counts.authenticated.items())),
        ("upload a party, MB", "; ".join(f"{key} {value:.0f}" for key, value in traffic(s, budget).items())),
        ("CPU a party, s", "; ".join(f"{key} {value:.1f}" for key, value in seconds(s, budget).items())),
        (
            "packing",
            f"{tiles.tiles} tiles, {tiles.vectors} vectors a body, {tiles.answers} answers; {budget.batches} batches",
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
    print(f"p = (2^120 - 51)·2^64 + 1; N = {RING}; q of {KEPT[0]} + {DROPPED[0]} limbs; σ = {SIGMA}\n")
    for method in ("lasso", "ridge", "newton"):
        one = session(method, 90, 4)
        print(f"{line(one, one.budget)}\n{details(one, one.budget)}\n")
    sound = True
    for one in sessions():
        print(line(one, one.budget))
        sound &= not one.budget.exceeded
    return 0 if sound or not check else 1


if __name__ == "__main__":
    raise SystemExit(main())
