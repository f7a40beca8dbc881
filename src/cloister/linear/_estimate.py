"""How long a session takes and how much it sends, by phase, before it begins: from public counts and measurements.

Nothing depends on the number of rows but the reading of them. Traffic follows from the plan; time is a model, linear in
what is counted. *All constants of the model stand in* :class:`Primitives`: three of them are measured on the spot, the
others are scaled with the transform that they are made of.

>>> from fractions import Fraction
>>> plan = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
>>> found = estimate(plan, Primitives())
>>> list(found.phases) == list(PHASES), 100 < found.up_bytes / 1e6 < 400, 5 < found.seconds < 60
(True, True, True)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cloister.linear import _field as field
from cloister.linear._budget import BOX_BITS, DROPPED, KEPT, RING, ROWS, Budget, budget_of
from cloister.linear._field_ntt import to_slots
from cloister.linear._frames import HEADER_BYTES, PHASES
from cloister.linear._ntt import forward
from cloister.linear._plan import Plan
from cloister.linear._primes import FULL
from cloister.linear._ranges import MODULUS_BITS, PROJECTIONS, truncations
from cloister.linear._streams import PublicStream, elements, residues

__all__ = ["Estimate", "Network", "Phase", "Primitives", "estimate", "measured"]

_ELEMENT_BYTES = 23
_KEPT_BYTES = KEPT[0] * KEPT[1] * RING // 8
_WHOLE_BYTES = _KEPT_BYTES + DROPPED[0] * DROPPED[1] * RING // 8
_LIMBS = KEPT[0] + DROPPED[0]


@dataclass(frozen=True, slots=True)
class Primitives:
    """What one operation takes on one core, in milliseconds unless it says otherwise.

    Measured where this was written; :func:`measured` replaces the first three, and the next ones by the ratio of the
    first.

    Attributes:
        ntt: A transform modulo one prime.
        field_ntt: A transform of slots.
        product_ns: A product of field elements, in nanoseconds, in a long array.
        to_limbs_3: Field elements to the residues of one polynomial.
        to_limbs_6: The same of numbers twice as long.
        switch: Of a polynomial to the smaller modulus.
        decode: Of a polynomial to field elements.
        stream: A uniform polynomial modulo one prime.
        pointwise: A product of polynomials in transformed form, modulo one prime.
        round: Of one opening, in the interpreter.
        start_s: Interpreter and compiled code of a party, in seconds.
    """

    ntt: float = 0.62
    field_ntt: float = 5.4
    product_ns: float = 10.0
    to_limbs_3: float = 2.5
    to_limbs_6: float = 3.8
    switch: float = 2.5
    decode: float = 2.5
    stream: float = 0.35
    pointwise: float = 0.05
    round: float = 1.2
    start_s: float = 3.0


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
    malicious: bool = True,
    shared_by: float = 1.0,
) -> Estimate:
    """What a session of ``plan`` takes one party.

    Args:
        plan: What was agreed.
        primitives: Of this machine.
        network: Between the parties; a local one by default.
        fits: More than one for Newton's rounds.
        malicious: Whether everything is proven.
        shared_by: How many times longer the processor takes since other parties use it, too.
    """
    network = network or Network()
    model = _Session(plan, budget_of(plan, fits=fits, malicious=malicious), primitives, fits, malicious)
    cpu, traffic, rounds = model.cpu_s(), model.up_bytes(), model.rounds()
    phases = {
        phase: Phase(
            cpu_s=cpu.get(phase, 0.0) * shared_by,
            network_s=traffic.get(phase, 0) / network.bytes_s + rounds[phase] * network.round_trip_s / 2,
            up_bytes=traffic.get(phase, 0),
            rounds=rounds[phase],
        )
        for phase in PHASES
    }
    return Estimate(phases)


def measured(reference: Primitives | None = None) -> Primitives:
    """The primitives of this machine: the two transforms and the product are timed for about a second."""
    reference = reference or Primitives()
    stream = PublicStream(bytes(32), "measure")
    polynomial, slots = residues(stream, FULL), elements(stream, RING)
    ntt = _best(lambda: forward(polynomial, FULL)) / _LIMBS * 1e3
    field_ntt = _best(lambda: to_slots(slots)) * 1e3
    product_ns = _best(lambda: field.multiply(slots, slots)) / RING * 1e9
    by = ntt / reference.ntt
    scaled = {
        name: getattr(reference, name) * by
        for name in ("to_limbs_3", "to_limbs_6", "switch", "decode", "stream", "pointwise", "round", "start_s")
    }
    return replace(reference, ntt=ntt, field_ntt=field_ntt, product_ns=product_ns, **scaled)


def _best(work: Callable[[], object], times: int = 7) -> float:
    """The median of several runs after a first, which compiles."""
    work()
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return float(np.median(took))


@dataclass(frozen=True, slots=True)
class _Session:
    plan: Plan
    budget: Budget
    primitives: Primitives
    fits: int
    malicious: bool

    @property
    def others(self) -> int:
        return self.plan.parties - 1

    @property
    def tags(self) -> int:
        """Field elements that stand for one shared value at a party."""
        return 1 + 2 * self.others * self.malicious

    @property
    def heads(self) -> dict[str, int]:
        """Answers of one party that serve all others."""
        values = (self.budget.polynomials + 1) * self.malicious
        triples = self.budget.batches * (5 if self.malicious else 1)
        return {"triples": triples, "matrix": self.budget.tiles.answers, "values": values}

    @property
    def bodies(self) -> dict[str, int]:
        """Answers to each other party."""
        return self.heads | {"triples": self.budget.batches * (7 if self.malicious else 1)}

    def up_bytes(self) -> dict[str, int]:
        """Bytes that one party sends, by phase."""
        tiles, counts, heads, bodies = self.budget.tiles, self.budget.counts, self.heads, self.bodies
        useful = tiles.answers * self.plan.columns * tiles.vectors * KEPT[0] * KEPT[1] // 8
        proofs = (_response_bytes(1) + _response_bytes(tiles.tiles)) * self.malicious
        each = {
            "session": 300,
            "groups": (1 + self.budget.batches + self.fits * tiles.tiles) * _WHOLE_BYTES + proofs,
            "answers": (sum(heads.values()) + bodies["triples"] + bodies["values"]) * _KEPT_BYTES + useful,
            "checks": 2 * counts.triples * _ELEMENT_BYTES * self.malicious,
            "inputs": counts.authenticated["inputs and proofs"] * _ELEMENT_BYTES,
            "online": counts.openings * _ELEMENT_BYTES
            + counts.rounds * (_ELEMENT_BYTES * self.malicious + HEADER_BYTES),
            "release": 2000,
        }
        return {phase: round(size) * self.others for phase, size in each.items()}

    def rounds(self) -> dict[str, int]:
        """Steps of messages, by phase."""
        return {
            "session": 2,
            "groups": 8 if self.malicious else 1,
            "answers": 2 * self.budget.batches + self.budget.tiles.answers + self.budget.polynomials,
            "checks": 30 if self.malicious else 0,
            "inputs": 12 if self.malicious else 1,
            "online": self.budget.counts.rounds,
            "release": 4,
        }

    def cpu_s(self) -> dict[str, float]:
        """Seconds of one party's processor, by phase."""
        p, counts, others, proven = self.primitives, self.budget.counts, self.others, self.malicious
        tiles, product_s = self.budget.tiles, self.primitives.product_ns / 1e9
        groups = (1 + self.budget.batches) * self._row_ms(1) + self.fits * self._row_ms(tiles.tiles)
        proofs = proven * ROWS * (1 + others) * (self._row_ms(1) + self._row_ms(tiles.tiles))
        slots = self.budget.batches * (3 + 4 * others + 6 * others * proven) * p.field_ntt
        answers = self._answers_ms("triples") + slots + self._matrix_ms() + proven * self._answers_ms("values")
        narrow = proven * PROJECTIONS * truncations(self.plan, fits=self.fits) * 12e-9
        online = (2 * counts.products * self.plan.columns**2 + 10 * counts.triples) * self.tags * product_s
        authenticated = sum(counts.authenticated.values())
        return {
            "session": p.start_s,
            "groups": (groups + proofs) / 1e3,
            "answers": answers / 1e3,
            "checks": (8 * counts.triples + 2 * authenticated) * self.tags * product_s * proven,
            "inputs": 0.3 + counts.private_bits * 12 * others * product_s + narrow,
            "online": counts.rounds * p.round / 1e3 + online,
        }

    def _row_ms(self, width: int) -> float:
        """One row of a proof, or one group."""
        p = self.primitives
        return _LIMBS * p.ntt * (1 + 2 * width) + width * (p.to_limbs_3 + p.to_limbs_6) + 2

    def _answers_ms(self, kind: str) -> float:
        p = self.primitives
        make = p.to_limbs_3 + 2 * _LIMBS * p.ntt + p.switch
        body = _LIMBS * (p.ntt + p.pointwise) + p.to_limbs_6 + p.stream + p.switch
        take = KEPT[0] * (p.ntt + p.pointwise) + p.decode
        heads, bodies = self.heads[kind], self.bodies[kind]
        return heads * (make + self.others * KEPT[0] * p.ntt) + bodies * self.others * (body + take)

    def _matrix_ms(self) -> float:
        p, tiles = self.primitives, self.budget.tiles
        shared = tiles.tiles * (p.to_limbs_3 + _LIMBS * p.ntt) + _LIMBS * p.ntt + p.switch
        to_each = _LIMBS * (p.ntt + tiles.tiles * p.pointwise) + 1.5 + 2 * KEPT[0] * p.ntt
        return tiles.answers * (shared + self.others * to_each)


def _response_bytes(width: int) -> int:
    """Of a proof's rows: one coefficient of the key, then of noise and message for each polynomial."""
    bits = (BOX_BITS + 3) + width * ((BOX_BITS + 7) + (MODULUS_BITS + 1 + BOX_BITS + 3))
    return math.ceil(ROWS * RING / 8 * bits)
