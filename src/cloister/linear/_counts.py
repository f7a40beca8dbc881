"""What one session makes, opens and sends, counted before it begins: what it then uses, number for number.

The functions below follow the protocol's own, one a phase, and say what those say: :class:`_Tally` has the names of
:class:`cloister.linear._party.Party`. Sizes are those of the messages' own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloister.linear._answers import answer_bytes
from cloister.linear._demand import Comparisons, Demand
from cloister.linear._field import ELEMENT_BYTES
from cloister.linear._groups import group_bytes
from cloister.linear._inputs import pool_needed
from cloister.linear._masks import pool_for_masks
from cloister.linear._party import COIN_BYTES
from cloister.linear._plan import RELAXATION_BITS, Plan
from cloister.linear._primes import DEGREE
from cloister.linear._proof import NONCE_BYTES, response_bytes
from cloister.linear._quadratic import masks_needed
from cloister.linear._roundings import rounding_bits, roundings_needed
from cloister.linear._streams import SEED_BYTES
from cloister.linear._tiles import Packing
from cloister.linear._transcript import DIGEST_BYTES
from cloister.linear._zeros import zeros_needed

__all__ = ["Counts", "Sent", "count", "count_statistics", "pieces"]

_HELLO_BYTES, _SIGNATURE_BYTES = 100, 64


@dataclass(frozen=True, slots=True)
class Sent:
    """Steps, and the bytes that one party sends to each other one in them."""

    steps: int
    size_bytes: int

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.steps + other.steps, self.size_bytes + other.size_bytes)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one session.

    Attributes:
        products: Secret matrix times secret vector, in the program.
        triples: Used online.
        bits: Random shared bits; each takes a triple besides.
        batches: Of N triples.
        authenticated: Values of one party that get tags, by use; the batches' five polynomials each are not among them.
        polynomials: Answers on global keys to each other party, beside those of the batches' a and â.
        answers: Of tiles of matrices.
        answered: Coefficients of all answers to each other party.
        openings: Field elements opened, by phase.
        messages: By phase and kind.
    """

    products: int
    triples: int
    bits: int
    batches: int
    authenticated: dict[str, int]
    polynomials: int
    answers: int
    answered: int
    openings: dict[str, int]
    messages: dict[tuple[str, str], Sent]

    @property
    def phases(self) -> dict[str, Sent]:
        """All that is said, by phase in order."""
        out: dict[str, Sent] = {}
        for (phase, _), sent in self.messages.items():
            out[phase] = out.get(phase, Sent(0, 0)) + sent
        return out


def count(plans: Sequence[Plan], needs: Demand, packing: Packing, *, malicious: bool = True) -> Counts:
    """Of a session of fits.

    Args:
        plans: Of each fit, in order.
        needs: Of all of them.
        packing: Of their matrices.
        malicious: Whether there are tags and proofs.
    """
    batches = _up(needs.triples + needs.bits, packing.degree)
    used = _authenticated(plans, needs) if malicious else {}
    tally = _Tally(packing.degree, malicious=malicious)
    _greeted(tally)
    tally.begin("groups")
    _groups(tally, 1, 1 + batches)
    _groups(tally, packing.tiles, needs.fits)
    tally.begin("answers")
    polynomials = _answers(tally, used, batches, needs, packing) if malicious else 0
    products = 2 if malicious else 1
    tally.answer("products", [packing.degree] * products, times=products * batches)
    sizes = [needs.columns * vectors for vectors in pieces(needs, packing)] * needs.fits
    for size in sizes:
        tally.answer("matrix", [size])
    tally.begin("checks")
    if malicious:
        _checked(tally, batches, needs)
    tally.open(2 * needs.bits)
    tally.open(needs.bits)
    for kind in needs.comparisons:
        if kind.count:
            tally.open(2 * kind.count * (kind.digits + kind.sides))
    for plan in plans:
        _shared(tally, plan)
        _program(tally, plan, needs)
    _released(tally)
    return Counts(
        products=needs.fits * (needs.steps + 1),
        triples=needs.triples,
        bits=needs.bits,
        batches=batches,
        authenticated=used,
        polynomials=polynomials,
        answers=len(sizes),
        answered=tally.answered,
        openings=tally.openings,
        messages=tally.messages,
    )


def count_statistics(plan: Plan, entries: int, *, malicious: bool = True, degree: int = DEGREE) -> Counts:
    """Of a session that opens so many entries of S and computes nothing."""
    tally = _Tally(degree, malicious=malicious)
    pool = pool_needed(plan) + roundings_needed(plan, entries) + zeros_needed(entries) + 1 if malicious else 0
    polynomials = 1 + _up(pool, degree) if malicious else 0
    _greeted(tally)
    if malicious:
        tally.begin("groups")
        _groups(tally, 1, 1)
        tally.begin("answers")
        tally.answer("values", [degree], times=polynomials)
        tally.begin("checks")
        _constant(tally)
        _consistent(tally)
    _shared(tally, plan)
    if malicious:
        tally.commit("roundings of sums", entries)
        tally.toss()
        tally.commit("projections of roundings", rounding_bits(plan, entries))
        tally.prove("roundings of sums")
    tally.begin("online")
    tally.swap("seeds of zeros", SEED_BYTES)
    if malicious:
        tally.commit("zeros", zeros_needed(entries))
        tally.is_zero()
    tally.open(entries)
    _released(tally)
    used = {"inputs and proofs": pool} if malicious else {}
    return Counts(0, 0, 0, 0, used, polynomials, 0, tally.answered, tally.openings, tally.messages)


def pieces(needs: Demand, packing: Packing) -> list[int]:
    """Vectors of each answer on one matrix."""
    whole, rest = divmod(needs.vectors, packing.vectors)
    return [packing.vectors] * whole + [rest] * bool(rest)


class _Tally:
    """What one party says to each other one."""

    def __init__(self, degree: int, *, malicious: bool) -> None:
        self.degree, self.malicious = degree, malicious
        self.answered, self.openings = 0, dict[str, int]()
        self.messages: dict[tuple[str, str], Sent] = {}
        self._phase = ""

    def begin(self, phase: str) -> None:
        self._phase = phase

    def swap(self, kind: str, size_bytes: int, *, times: int = 1) -> None:
        if times:
            place = self._phase, kind
            self.messages[place] = self.messages.get(place, Sent(0, 0)) + Sent(times, times * size_bytes)

    def broadcast(self, kind: str, size_bytes: int) -> None:
        self.swap(kind, size_bytes)
        self.swap(f"{kind} echo", DIGEST_BYTES)

    def toss(self) -> None:
        self.broadcast("coin commitment", DIGEST_BYTES)
        self.swap("coin", COIN_BYTES + NONCE_BYTES)

    def open(self, many: int, *, times: int = 1) -> None:
        self.swap("open", ELEMENT_BYTES * (many + self.malicious), times=times)
        self.openings[self._phase] = self.openings.get(self._phase, 0) + times * many

    def is_zero(self) -> None:
        self.toss()
        self.open(1)

    def commit(self, kind: str, many: int) -> None:
        self.broadcast(kind, ELEMENT_BYTES * many)

    def prove(self, what: str) -> None:
        self.toss()
        self.swap(f"relations of {what}", 2 * ELEMENT_BYTES)

    def answer(self, kind: str, sizes: Sequence[int], *, times: int = 1) -> None:
        """A head, and an answer for each number of useful coefficients."""
        size_bytes = answer_bytes(self.degree) + sum(answer_bytes(size) for size in sizes)
        self.swap(kind, size_bytes, times=times)
        self.answered += times * sum(sizes)


# ---- before any input ------------------------------------------------------------------------------------


def _greeted(tally: _Tally) -> None:
    tally.begin("session")
    tally.swap("hello", _HELLO_BYTES)
    tally.swap("hello signature", _SIGNATURE_BYTES)


def _authenticated(plans: Sequence[Plan], needs: Demand) -> dict[str, int]:
    """Values of one party that get tags, in an order that does not matter."""
    fits, width = needs.fits, needs.columns
    square, rounded = fits * width * (width + 1) // 2, fits * (needs.steps + 1) * width
    vectors, relaxed = fits * needs.vectors * width, fits * needs.rounds * width
    pool = sum(pool_needed(plan) for plan in plans) + pool_for_masks(needs)
    return {
        "matrices, masks of vectors": square + vectors,
        "roundings": rounded + fits * width + relaxed * (1 + RELAXATION_BITS),
        "comparisons": sum(kind.count * (kind.below + 1) for kind in needs.comparisons) + needs.bits + needs.tests,
        "inputs and proofs": pool + 1,
        "products": vectors,
    }


def _groups(tally: _Tally, width: int, many: int) -> None:
    size_bytes = many * group_bytes(width, degree=tally.degree)
    if not tally.malicious:
        tally.swap("groups", size_bytes)
        return
    tally.broadcast("groups", DIGEST_BYTES + size_bytes)
    tally.toss()
    tally.broadcast("proof", response_bytes(width, many, degree=tally.degree))


def _answers(tally: _Tally, used: dict[str, int], batches: int, needs: Demand, packing: Packing) -> int:
    """On the keys: what is sacrificed for their shape, all values but products, b, c and ĉ of each batch, products."""
    made = used["products"]
    polynomials = 1 + _up(sum(used.values()) - made, packing.degree) + 3 * batches + _up(made, packing.degree)
    tally.answer("values", [packing.degree], times=polynomials)
    return polynomials


def _constant(tally: _Tally) -> None:
    tally.swap("shape", SEED_BYTES + ELEMENT_BYTES)
    tally.swap("shape commitment", DIGEST_BYTES)
    tally.swap("shape tag", ELEMENT_BYTES)
    tally.swap("shape opening", ELEMENT_BYTES + NONCE_BYTES)


def _consistent(tally: _Tally) -> None:
    tally.toss()
    tally.broadcast("consistency", ELEMENT_BYTES)
    tally.swap("consistency tags", ELEMENT_BYTES)


def _checked(tally: _Tally, batches: int, needs: Demand) -> None:
    _constant(tally)
    _consistent(tally)
    tally.toss()
    tally.open(tally.degree, times=batches)
    tally.is_zero()
    for _ in range(needs.fits):
        tally.toss()
        tally.open(needs.columns)
        tally.is_zero()
    tally.toss()
    tally.commit("projections of masks", pool_for_masks(needs) - masks_needed(needs.parties))
    tally.prove("masks")


# ---- with inputs -----------------------------------------------------------------------------------------


def _shared(tally: _Tally, plan: Plan) -> None:
    tally.begin("inputs")
    if not tally.malicious:
        return
    entries = 2 * (_triangle(plan.columns + 1) + _triangle(plan.columns))
    bits = pool_needed(plan) - masks_needed(plan.parties) - entries
    tally.commit("inputs", entries)
    tally.commit("bits of inputs", 0)  # of what their bounds leave, and of projections: together
    tally.toss()
    tally.commit("bits of inputs", bits)
    tally.prove("inputs")


def _program(tally: _Tally, plan: Plan, needs: Demand) -> None:
    tally.begin("online")
    columns, features = plan.columns, plan.features
    tally.open(_triangle(columns))
    tally.open(columns, times=needs.steps)
    for _ in range(needs.rounds):
        tally.open(columns)
        _thresholded(tally, needs.coarse, features)
    tally.open(columns, times=2)
    if needs.rounds:
        _thresholded(tally, needs.fine, features)
    tally.open(2 * columns)
    _compared(tally, needs.wide, 1)
    tally.open(1)
    tally.open(columns)


def _thresholded(tally: _Tally, kind: Comparisons, many: int) -> None:
    _compared(tally, kind, many)
    tally.open(2 * kind.sides * many)


def _compared(tally: _Tally, kind: Comparisons, many: int) -> None:
    """A masked value; on each side the factors of its test, in pairs; the test."""
    tally.open(many)
    factors = kind.digits + 2
    while factors > 1:
        tally.open(2 * (factors // 2) * kind.sides * many)
        factors -= factors // 2
    tally.open(kind.sides * many)


def _released(tally: _Tally) -> None:
    tally.begin("release")
    tally.swap("signature", _SIGNATURE_BYTES)


def _triangle(size: int) -> int:
    return size * (size + 1) // 2


def _up(many: int, degree: int) -> int:
    """Polynomials for so many values."""
    return -(-many // degree)
