"""What coalitions receive in honest sessions with different inputs, every message and every opened value: statistics.

Each session is run with two sets of inputs. *Exchanged*: two honest parties change places, so the sum is the same, and
the third sees the same model. *Another*: one honest party among two cheats has other rows; then everything but the bit
and the model must look the same. Values are compared step by step (two samples, Kolmogorov and Smirnov), and what is
uniform in theory is held against that. All tests of a session together fail by chance once in a million times.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.linear_mesh import Message, together
from tests.unit.linear.test_online import plan

from cloister.linear import _products, _proof, _triples, _values
from cloister.linear._answered import Answered
from cloister.linear._answers import answer_bytes
from cloister.linear._boxes import boxed_bits
from cloister.linear._compute import Job, compute
from cloister.linear._elements import P
from cloister.linear._field import ELEMENT_BYTES, from_bytes, to_centred, to_ints
from cloister.linear._groups import Wide, group_bytes
from cloister.linear._packed import residue_bits, unpack, unpack_residues
from cloister.linear._party import Party
from cloister.linear._plan import Plan
from cloister.linear._primes import KEPT
from cloister.linear._shared import Shared
from cloister.linear._summary import Summary

DEGREE = 1024
RUNS, BULKY = 8, 2
CHANCE = 1e-6
CASES = {
    "lasso": plan("lasso", rounds=2, half=3, tolerance=1),
    "ridge": plan("ridge", steps=6, tolerance=1),
}
Floats = np.ndarray


def summary(seed: int, slope: float) -> Summary:
    """Of rows whose response all features move the same way, strongly."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(14, 3))
    rows = np.column_stack([np.ones(14), table, slope * (2 + table.sum(axis=1))])
    factor = np.linalg.qr(rows / np.sqrt(42 * 4), mode="r")
    factor *= np.where(np.diag(factor) < 0, -1, 1)[:, None]
    whole = np.rint(factor * 2**23).astype(np.int64)
    return Summary(whole, whole.T @ whole, np.zeros_like(whole))


HIGH, LOW, LAST, OTHER = summary(1, 0.5), summary(2, -0.4), summary(3, 0.1), summary(4, -0.5)
INPUTS = {
    "exchanged": ((HIGH, LOW, LAST), (LOW, HIGH, LAST), (2,)),
    "another": ((HIGH, LOW, LAST), (OTHER, LOW, LAST), (1, 2)),
}


@dataclass
class View:
    """Of all runs with one set of inputs: numbers, by what and when they are."""

    numbers: dict[tuple[Any, ...], list[Floats]] = field(default_factory=lambda: defaultdict(list))
    uniform: dict[tuple[Any, ...], list[Floats]] = field(default_factory=lambda: defaultdict(list))
    zeros: list[bool] = field(default_factory=list)

    def add(self, name: tuple[Any, ...], values: Any, *, uniform: bool = False) -> None:
        """Numbers of which only the order counts; uniform ones are in [0, 1), and compared over all steps."""
        numbers = np.asarray(values, np.float64).reshape(-1)
        if uniform:
            self.uniform[name].append(numbers)
        else:
            self.numbers[name].append(numbers)


def residues(values: Any) -> Floats:
    return np.array([int(value) / P for value in np.ravel(to_ints(values))])


# ---- opened values ---------------------------------------------------------------------------------------

UNIFORM = {"take", "multiply_by", "random_bits", "require_triples", "require_products"}
MASKED = {"_kept": "bits", "_masked": "kind"}


def opened(view: View, place: int, caller: Any, values: Any, bit_and_model: bool) -> None:
    name, found = caller.f_code.co_name, to_ints(values).reshape(-1)
    if name in UNIFORM:
        view.add(("opened", name), residues(values), uniform=True)
        if name != "random_bits":  # squares
            view.add(("low bits", name), [int(value) % 256 / 256 for value in found], uniform=True)
    elif name in MASKED:
        local = caller.f_locals[MASKED[name]]
        below = local if name == "_kept" else local.below
        top = caller.f_locals["top"] if name == "_kept" else caller.f_locals["self"].top
        view.add(("opened", name, place), [(int(value) >> below) - (1 << top - below) for value in found])
        if below:
            low = [int(value) % (1 << below) / (1 << below) for value in found]
            view.add(("low bits", name, below), low, uniform=True)
    elif name == "_less":
        view.zeros.extend(value == 0 for value in found)
        view.add(("opened", name), [int(value) / P for value in found if value], uniform=True)
    elif name == "is_zero":
        assert not any(found)
    else:
        assert name == "open"
        if bit_and_model:
            view.add(("opened", name, place), to_centred(values).astype(np.float64))


def recorded(monkeypatch: pytest.MonkeyPatch, view: View, coalition: tuple[int, ...], bit_and_model: bool) -> None:
    """Lets what the last member of the coalition opens and decodes be seen."""
    original, member = Party.open, coalition[-1]

    def see(party: Party, values: Shared) -> Any:
        place, found = party._openings, original(party, values)
        if party.number == member:
            caller = sys._getframe(1)
            caller = caller.f_back if caller.f_code.co_name == "_opened" else caller
            opened(view, place, caller, found, bit_and_model)
        return found

    monkeypatch.setattr(Party, "open", see)
    for module in (_values, _triples, _products):
        decode = module.answer_all  # pyright: ignore[reportPrivateImportUsage]

        def seen(party: Party, kind: str, *rest: Any, decode: Any = decode) -> list[Answered]:
            made = decode(party, kind, *rest)
            if party.number == member:
                for answered in made:
                    view.add(("decoded", kind), residues(answered.got[0][:64]), uniform=True)  # of party 0
            return made

        monkeypatch.setattr(module, "answer_all", seen)


# ---- messages --------------------------------------------------------------------------------------------

HEAD = answer_bytes(DEGREE)
RAW = {"coin", "coin commitment", "shape commitment"}
ELEMENTS = {
    "consistency", "consistency tags", "shape tag", "projections of masks", "relations of masks", "inputs",
    "bounds of inputs", "projections of inputs", "relations of inputs",
}  # fmt: skip


def sent(view: View, case: Plan, message: Message, seen: dict[str, int]) -> None:
    """What one honest party sent to a member, taken apart by its kind."""
    kind, body = message.kind, message.body
    seen[kind] = place = seen.get(kind, -1) + 1
    name = ("sent", kind, message.sender)
    if kind.endswith(" echo") or kind in RAW:
        view.add(name, np.frombuffer(body, np.uint8) / 256, uniform=True)
    elif kind in ELEMENTS:
        view.add(name, residues(from_bytes(body, (len(body) // ELEMENT_BYTES,))), uniform=True)
    elif kind == "open":
        shares = from_bytes(body, (len(body) // ELEMENT_BYTES,))
        view.add((*name, place), to_centred(shares[:-1]).astype(np.float64))
        view.add((*name, "tag"), residues(shares[-1]), uniform=True)
    elif kind == "shape":
        view.add(name, residues(from_bytes(body[32:], ())), uniform=True)
        view.add((*name, "seed"), np.frombuffer(body[:32], np.uint8) / 256, uniform=True)
    elif kind == "shape opening":
        view.add(name, residues(from_bytes(body[:ELEMENT_BYTES], ())), uniform=True)
    elif kind in ("values", "products", "matrix"):
        for number, part in enumerate(parts_of(kind, body)):
            view.add((*name, number), part, uniform=True)
    elif kind == "groups":
        full = Wide.of(DEGREE).full
        rows = unpack(
            body[32:], residue_bits(full) * ((len(body) - 32) // group_bytes(1, degree=DEGREE)), DEGREE, party=0
        )
        view.add(name, rows[:, :16] / np.array(full.primes * (len(rows) // len(full.primes)))[:, None], uniform=True)
    else:
        assert kind == "proof", kind
        view.add(name, list(boxed(body)), uniform=True)


def parts_of(kind: str, body: bytes) -> Iterator[Floats]:
    """The head, and the answers behind it: residues over their primes."""
    pieces = [body[:HEAD], *(body[at : at + HEAD] for at in range(HEAD, len(body), HEAD))]
    for piece in pieces:
        count = len(piece) * 8 // sum(residue_bits(KEPT))
        found = unpack_residues(piece, KEPT, count, party=0)[0]
        yield found[:, :64] / np.array(KEPT.primes)[:, None]


def boxed(body: bytes) -> Iterator[float]:
    """Of some coefficients of a proof, where they are in their box."""
    for width, groups in ((w, g) for w in range(1, 5) for g in range(1, 6)):
        shape = _proof._Shape(DEGREE, width, groups)
        if _proof.response_bytes(width, groups, degree=DEGREE) == len(body):
            break
    else:
        raise AssertionError(len(body))
    rows, start = unpack(body[: -_proof.NONCE_BYTES], shape.bits, DEGREE, party=0), 0
    for _ in range(_proof.ROWS):
        for (many, _), most in zip(shape.parts, shape.boxes, strict=True):
            words = len(boxed_bits(most))
            for _ in range(many):
                whole = [
                    sum(int(row[i]) << 64 * k for k, row in enumerate(rows[start : start + words])) for i in range(64)
                ]
                yield from (value / (2 * most + 1) for value in whole)
                start += words
    assert start == len(rows)


# ---- sessions --------------------------------------------------------------------------------------------


def view_of(case: Plan, inputs: tuple[Summary, ...], coalition: tuple[int, ...], *, bit_and_model: bool) -> View:
    view = View()
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorded(monkeypatch, view, coalition, bit_and_model)
        for run in range(RUNS):
            mesh: list[Any] = []
            together(
                3, lambda party: compute(party, Job(case), lambda _: inputs[party.number], degree=DEGREE), mesh_out=mesh
            )
            seen: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
            last = max(message.step for message in mesh[0].heard if message.kind == "open")
            for message in sorted(mesh[0].heard, key=lambda message: message.step):
                honest = message.sender not in coalition
                bulky = message.kind in ("values", "products", "matrix", "groups", "proof")
                of_model = message.kind == "open" and message.step == last and not bit_and_model
                if honest and message.receiver == coalition[-1] and not of_model and (run < BULKY or not bulky):
                    sent(view, case, message, seen[message.sender, message.receiver])
    return view


def chances(first: View, second: View) -> dict[tuple[Any, ...], float]:
    """How likely each difference is where there is none."""
    found: dict[tuple[Any, ...], float] = {}
    assert first.numbers.keys() == second.numbers.keys()
    assert first.uniform.keys() == second.uniform.keys()
    for values in (lambda view: view.numbers, lambda view: view.uniform):
        for name in values(first):
            one, two = (np.concatenate(values(view)[name]) for view in (first, second))
            if len(one):
                found["same", *name] = float(stats.ks_2samp(one, two).pvalue)  # pyright: ignore
    for name in first.uniform:
        one, two = (np.concatenate(view.uniform[name]) for view in (first, second))
        for side, values in (("first", one), ("second", two)):
            assert values.min() >= 0
            assert values.max() <= 1
            bins = np.bincount(np.minimum(values * 16, 15).astype(np.int64), minlength=16)
            found["uniform", side, *name] = float(stats.chisquare(bins).pvalue)
    for side, view in (("first", first), ("second", second)):
        if view.zeros:
            found["fair", side] = float(stats.binomtest(sum(view.zeros), len(view.zeros)).pvalue)
    return found


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize(
    "inputs", [pytest.param(name, marks=[] if name != "exchanged" else pytest.mark.slow) for name in INPUTS]
)
def test_views_of_different_inputs_are_alike(method: str, inputs: str) -> None:
    one, two, coalition = INPUTS[inputs]
    case, same = CASES[method], inputs == "exchanged"
    found = chances(*(view_of(case, each, coalition, bit_and_model=same) for each in (one, two)))
    assert len(found) > 100
    unlikely = {name: chance for name, chance in found.items() if chance < CHANCE / len(found)}
    assert not unlikely
