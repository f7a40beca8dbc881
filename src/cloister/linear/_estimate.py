"""How long a session takes and how much it sends, by phase, before it begins: from public counts and measurements.

Nothing depends on the number of rows but the reading of them. What is sent is what :mod:`cloister.linear._counts`
counts; time is a model, linear in the same counts. *All constants of the model stand in* :class:`Primitives`: three of
them are measured on the spot, the others are scaled with the transform that most of them are made of.

>>> from fractions import Fraction
>>> plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
>>> found = estimate(plan, Primitives())
>>> list(found.phases) == list(PHASES), 100 < found.up_bytes / 1e6 < 400, 5 < found.seconds < 60
(True, True, True)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from cloister.linear import _field as field
from cloister.linear._budget import RING, Budget, budget_of
from cloister.linear._counts import Counts, Sent, count_statistics
from cloister.linear._field_ntt import to_slots
from cloister.linear._frames import HEADER_BYTES, PHASES
from cloister.linear._ntt import forward
from cloister.linear._plan import Plan
from cloister.linear._primes import FULL
from cloister.linear._ranges import PROJECTIONS
from cloister.linear._streams import PublicStream, elements, residues

__all__ = ["Estimate", "Network", "Phase", "Primitives", "estimate", "measured"]


@dataclass(frozen=True, slots=True)
class Primitives:
    """What one operation takes on one core, in milliseconds unless it says otherwise.

    Measured where this was written; :func:`measured` replaces the first three, and the others by the ratio of the
    first.

    Attributes:
        ntt: A transform modulo one prime.
        field_ntt: A transform of slots.
        product_ns: A product of field elements, in nanoseconds, in a long array.
        encrypt: A polynomial of a group.
        prove: A polynomial of a proof's rows.
        verify: The same, at another party.
        unmask: A polynomial of a group, in such a verification.
        head: Of answers.
        head_more: A polynomial of a head after the first.
        answer: On one group, at both ends together, without its coefficients.
        coefficients: N of them, likewise.
        root_us: A square root, in microseconds.
        step: Of messages, in the interpreter.
        exchange: With one peer, in a step.
        tag: Of what is opened, for one peer and of its own.
        megabyte: To send and to receive: encryption, copies.
        start_s: Interpreter and compiled code of a party, and its links, in seconds.
    """

    ntt: float = 0.23
    field_ntt: float = 3.0
    product_ns: float = 9.2
    encrypt: float = 15.0
    prove: float = 62.0
    verify: float = 45.0
    unmask: float = 8.0
    head: float = 12.0
    head_more: float = 7.0
    answer: float = 8.5
    coefficients: float = 8.0
    root_us: float = 3.2
    step: float = 0.4
    exchange: float = 0.13
    tag: float = 0.19
    megabyte: float = 2.9
    start_s: float = 0.9


@dataclass(frozen=True, slots=True)
class Network:
    """Between any two parties.

    Attributes:
        round_trip_s: From one to another and back.
        bytes_s: That a party sends, to all others together.
    """

    round_trip_s: float = 0.001
    bytes_s: float = 125e6


@dataclass(frozen=True, slots=True)
class Phase:
    """Of one party: seconds of its processor and of the network, bytes it sends, rounds of messages."""

    cpu_s: float
    network_s: float
    up_bytes: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one party in a session, by phase."""

    phases: dict[str, Phase]

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(phase.cpu_s + phase.network_s for phase in self.phases.values())

    @property
    def up_bytes(self) -> int:
        """In all."""
        return sum(phase.up_bytes for phase in self.phases.values())


def estimate(
    plan: Plan,
    primitives: Primitives,
    *,
    network: Network | None = None,
    fits: int = 1,
    again: Plan | None = None,
    entries: int = 0,
    malicious: bool = True,
    shared_by: float = 1.0,
) -> Estimate:
    """What a session of ``plan`` takes one party.

    Args:
        plan: What was agreed.
        primitives: Of this machine.
        network: Between the parties; a local one by default.
        fits: More than one for Newton's rounds.
        again: Of all fits after the first; as the first by default.
        entries: Of S that are opened, and nothing is fitted: statistics.
        malicious: Whether everything is proven.
        shared_by: How many times longer the processor takes since other parties use it, too.
    """
    network = network or Network()
    if entries:
        counts = count_statistics(plan, entries, malicious=malicious)
        cpu = _Work(plan, counts, None, primitives, malicious).seconds()
    else:
        budget = budget_of(plan, fits=fits, again=again, malicious=malicious)
        counts = budget.counts
        cpu = _Work(plan, counts, budget, primitives, malicious).seconds()
    others, sent = plan.parties - 1, counts.phases
    phases: dict[str, Phase] = {}
    for phase in PHASES:
        one = sent.get(phase, Sent(0, 0))
        up_bytes = others * (one.size_bytes + one.steps * HEADER_BYTES)
        network_s = up_bytes / network.bytes_s + one.steps * network.round_trip_s / 2
        phases[phase] = Phase(cpu[phase] * shared_by, network_s, up_bytes, one.steps)
    return Estimate(phases)


def measured(reference: Primitives | None = None) -> Primitives:
    """The primitives of this machine: the two transforms and the product are timed for about a second."""
    reference = reference or Primitives()
    stream = PublicStream(bytes(32), "measure")
    polynomial, slots = residues(stream, FULL), elements(stream, RING)
    ntt = _median_s(lambda: forward(polynomial, FULL)) / len(FULL.primes) * 1e3
    field_ntt = _median_s(lambda: to_slots(slots)) * 1e3
    product_ns = _median_s(lambda: field.multiply(slots, slots)) / RING * 1e9
    by = ntt / reference.ntt
    scaled = {one.name: getattr(reference, one.name) * by for one in fields(Primitives)}
    return replace(reference, **(scaled | {"ntt": ntt, "field_ntt": field_ntt, "product_ns": product_ns}))


def _median_s(work: Callable[[], object], times: int = 7) -> float:
    """Of several runs after a first, which compiles."""
    work()
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return float(np.median(took))


@dataclass(frozen=True, slots=True)
class _Work:
    """Of one party's processor."""

    plan: Plan
    counts: Counts
    budget: Budget | None
    primitives: Primitives
    malicious: bool

    @property
    def others(self) -> int:
        return self.plan.parties - 1

    @property
    def rows(self) -> int:
        """Field elements that stand for one shared value at a party."""
        return 1 + 2 * self.others * self.malicious

    def seconds(self) -> dict[str, float]:
        """By phase."""
        p, sent = self.primitives, self.counts.phases
        work = {
            "session": p.start_s * 1e3,
            "groups": self._groups(),
            "answers": self._answers(),
            "checks": self._checks(),
            "inputs": self._inputs(),
            "online": self._online(),
        }
        step = p.step + self.others * (p.exchange + p.tag * self.malicious)
        out: dict[str, float] = {}
        for phase in PHASES:
            one = sent.get(phase, Sent(0, 0))
            carried = one.steps * step + self.others * one.size_bytes / 1e6 * p.megabyte
            out[phase] = (work.get(phase, 0.0) + carried) / 1e3
        return out

    def _groups(self) -> float:
        p, counts = self.primitives, self.counts
        width, fits = (self.budget.tiles.tiles, self.budget.needs.fits) if self.budget else (0, 0)
        if ("groups", "groups") not in counts.messages:
            return 0.0
        polynomials, proven = 1 + counts.batches + fits * width, 1 + width
        checked = self.others * (p.verify * proven + p.unmask * polynomials)
        return p.encrypt * polynomials + (p.prove * proven + checked) * self.malicious

    def _answers(self) -> float:
        p, counts, others = self.primitives, self.counts, self.others
        columns, width = self.plan.columns, self.budget.tiles.tiles if self.budget else 1
        products = 2 if self.malicious else 1  # of a and of â, each on one or two groups
        heads = counts.polynomials + products * counts.batches + counts.answers
        answers = counts.polynomials + products**2 * counts.batches + counts.answers
        each = answers * p.answer + counts.answered / RING * p.coefficients
        slots = counts.batches * (1 + products * (1 + self.rows) + self.rows) * p.field_ntt
        own = counts.products * columns**2 * self._elements(1)
        return heads * p.head + counts.answers * (width - 1) * p.head_more + others * each + slots + own

    def _checks(self) -> float:
        p, counts = self.primitives, self.counts
        roots = counts.bits * (p.root_us / 1e3 + self._elements(3 * self.rows))
        opened = counts.openings.get("checks", 0) * self._elements(8 * self.rows)
        if not (self.malicious and self.budget):
            return roots + opened
        needs, tagged = self.budget.needs, sum(counts.authenticated.values()) + 5 * counts.batches * RING
        projected = PROJECTIONS * (2 * needs.hidden + needs.compared) * self._elements(0.7 * self.rows)
        return roots + opened + projected + tagged * self._elements(6 * self.rows)

    def _inputs(self) -> float:
        return self.counts.authenticated.get("inputs and proofs", 0) * self._elements(23 * self.rows)

    def _online(self) -> float:
        linear = self.counts.products * self.plan.columns**2 * self._elements(1.3 * self.rows)
        return linear + self.counts.openings.get("online", 0) * self._elements(23 * self.rows)

    def _elements(self, many: float) -> float:
        """Milliseconds of so many products of elements."""
        return many * self.primitives.product_ns / 1e6
