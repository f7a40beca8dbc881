"""Inputs that are not legal, and proofs that are not of them: each is refused by every honest party, by its code."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np
import pytest
from tests.linear_dealer import Dealer
from tests.linear_inputs import PLAN, acting, four_squares, of_factor, only, proven, witnesses
from tests.linear_mesh import Message, codes, run_parties, together

from cloister.linear import _field as field
from cloister.linear import _inputs
from cloister.linear import _projection as projection
from cloister.linear._commitments import commit
from cloister.linear._field import ELEMENT_BYTES, P, from_ints, to_ints
from cloister.linear._inputs import Witness, limits
from cloister.linear._party import Party
from cloister.linear._projection import Group, prove_ranges, proven_bits, range_bits
from cloister.linear._quadratic import QuadraticCheck, masks_needed
from cloister.linear._roots import square_roots
from cloister.linear._shared import peer_row
from cloister.linear._streams import PublicStream, elements
from cloister.linear._supply import Pool

CAUGHT = [None, 5907, 5907]
COLUMNS = PLAN.columns
ROOT = pow(next(base for base in range(2, P) if pow(base, (P - 1) // 2, P) == P - 1), (P - 1) // 4, P)  # of -1


@pytest.fixture(autouse=True)
def no_check_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cheater leaves out whatever would keep it from sending; the honest parties' own checks never fail here."""
    monkeypatch.setattr(_inputs, "_require_limits", lambda *_: None)
    monkeypatch.setattr(projection, "_require_range", lambda *_: None)


def forged(own: Witness, monkeypatch: pytest.MonkeyPatch, **integers: Any) -> list[Witness]:
    """Party 0 puts in ``own``, but matrices of any integers where they are given."""

    def triangles(_: Witness) -> list[Any]:
        names = ("factor", "statistics", "slack_factor", "rest")
        parts = [np.asarray(integers.get(name, getattr(own, name)), object) for name in names]
        return [from_ints(part[np.triu_indices(len(part))]) for part in parts]

    monkeypatch.setattr(_inputs, "_triangles", only(0, triangles, _inputs._triangles))
    return [own, *witnesses()[1:]]


def whole(part: np.ndarray) -> np.ndarray:
    return part.astype(object)


def test_what_is_forged_here_would_pass_if_it_were_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert codes(proven(forged(witnesses()[0], monkeypatch))) == [None] * 3


# ---- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", range(3, COLUMNS + 1))
def test_5907_a_column_one_unit_above_its_mean_square(column: int) -> None:
    factor = witnesses()[0].factor.copy()
    factor[:, 1:] = 0
    factor[:4, column] = [*reversed(four_squares(limits(PLAN, 0).squares[column - 1] + 1))]
    assert codes(proven([of_factor(factor, 0), *witnesses()[1:]])) == CAUGHT


@pytest.mark.parametrize("end", [0, 1])
def test_5907_a_corner_one_step_beyond_the_number_of_rows(end: int) -> None:
    least, most = limits(PLAN, 0).corner
    factor = witnesses()[0].factor.copy()
    factor[0, 0] = (isqrt(least - 1), isqrt(most) + 1)[end]
    assert codes(proven([of_factor(factor, 0), *witnesses()[1:]])) == CAUGHT


def strained(more: int = 0) -> tuple[Witness, np.ndarray]:
    """Legal but for a curvature that is 2^-10 too large; and ``2^34·(D - S)``, which is not positive."""
    own, most = witnesses()[0], limits(PLAN, 0).curvature
    factor = own.factor.copy()
    factor[:, 1:] = 0
    factor[1, 1:4] = round((most * (1 + 2**-10) / 3) ** 0.5) + more
    factor[0, 0] += more % 16
    factor[2, 2:] = more
    left = whole(np.eye(COLUMNS, dtype=int)) * most - whole(factor.T @ factor)[:COLUMNS, :COLUMNS]
    return Witness(factor, factor.T @ factor, own.slack_factor, own.rest), left << 34


def test_5907_too_much_curvature_with_another_input_s_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = strained()
    assert codes(proven(forged(own, monkeypatch))) == CAUGHT


def test_5907_too_much_curvature_as_a_large_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """T = 0 and Z all that is left: the identity holds."""
    own, left = strained()
    nothing = np.zeros((COLUMNS, COLUMNS), object)
    assert codes(proven(forged(own, monkeypatch, slack_factor=nothing, rest=left))) == CAUGHT


def test_5907_too_much_curvature_as_squares_of_imaginary_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """-1 is a square modulo p: ``TᵀT`` is then any symmetric matrix, by entries that are not small."""
    found = ((own, left, imaginary_factor(left)) for own, left in map(strained, range(1000)))
    own, left, values = next(each for each in found if each[2] is not None)
    assert ((values.T.dot(values) - left) % P == 0).all()
    nothing = np.zeros((COLUMNS, COLUMNS), object)
    assert codes(proven(forged(own, monkeypatch, slack_factor=values, rest=nothing))) == CAUGHT


def imaginary_factor(matrix: np.ndarray) -> np.ndarray | None:
    """Upper triangular, of a symmetric matrix modulo p, where every pivot has a root there."""
    size, left = len(matrix), matrix % P
    factor = np.zeros((size, size), object)
    for k in range(size):
        root, exists = square_roots(from_ints([left[k, k]]))
        if not exists[0]:
            return None
        inverse = pow(int(to_ints(root)[0]), -1, P)
        factor[k, k:] = [int(entry) * inverse % P for entry in left[k, k:]]
        left = (left - np.outer(factor[k], factor[k])) % P
    return factor


# ---- a Gram matrix that is none --------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (2, 2), (1, COLUMNS), (COLUMNS, COLUMNS)])
def test_5907_statistics_of_another_factor(row: int, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = witnesses()[0]
    statistics = whole(own.statistics)
    statistics[row, column] -= 1
    statistics[column, row] = statistics[row, column]
    rest = whole(own.rest)
    if column < COLUMNS:  # the other identity holds
        rest[row, column] += 1 << 34
        rest[column, row] = rest[row, column]
    assert codes(proven(forged(own, monkeypatch, statistics=statistics, rest=rest))) == CAUGHT


def test_5907_statistics_that_are_not_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a factor ``i·r`` of a negative square: what the features leave of the response would have variance below 0.

    All bounds are kept; but ``i·r`` is no small integer.
    """
    own = witnesses()[0]
    factor, statistics = whole(own.factor), whole(own.statistics)
    last = int(factor[-1, -1])
    factor[-1, -1] = ROOT * (last // 4) % P
    statistics[-1, -1] -= last**2 + (last // 4) ** 2
    assert statistics[-1, -1] > 0 > np.linalg.eigvalsh(statistics.astype(float))[0]
    assert ((factor.T.dot(factor) - statistics) % P == 0).all()
    assert codes(proven(forged(own, monkeypatch, factor=factor, statistics=statistics))) == CAUGHT


def test_5907_statistics_that_are_off_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sum is right: what is compared are random combinations."""
    own = witnesses()[0]
    statistics = whole(own.statistics)
    for row, by in ((1, 1), (2, -1)):
        statistics[row, COLUMNS] += by
        statistics[COLUMNS, row] += by
    assert codes(proven(forged(own, monkeypatch, statistics=statistics))) == CAUGHT


def test_5907_an_identity_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    own = witnesses()[0]
    rest = whole(own.rest)
    rest[1, 2] += 1
    rest[2, 1] += 1
    assert codes(proven(forged(own, monkeypatch, rest=rest))) == CAUGHT


# ---- ranges and bits -------------------------------------------------------------------------------------


def checked(
    values: list[int], bound: int, monkeypatch: pytest.MonkeyPatch, bits: Callable[..., Any] | None = None
) -> Any:
    """Party 0 has these in a group, the others zeros."""
    if bits is not None:
        monkeypatch.setattr(projection, "_bits_of", only(0, bits, projection._bits_of))
    dealer, many = Dealer(3), len(values)

    def act(party: Party) -> None:
        acting.number = party.number
        pool = Pool(dealer.held(party, many + range_bits([(bound, many)]) + masks_needed(3)))
        known = commit(party, "values", pool, from_ints(values if party.number == 0 else [0] * many))
        check = QuadraticCheck()
        prove_ranges(party, pool, check, [Group("x", known, bound)], party.toss(), "test")
        check.run(party, pool, 5906, "masks")

    return codes(run_parties(3, act))


MANY, BOUND = 50, 2**30
BEYOND = 2 ** proven_bits(BOUND, MANY) + 1


@pytest.mark.parametrize("value", [BEYOND, -BEYOND, P // 2, P // 3, 2**100])
def test_5906_one_value_that_is_beyond_what_is_proven(value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [BOUND] * MANY
    assert checked(values, BOUND, monkeypatch) == [None] * 3
    values[7] = value
    assert checked(values, BOUND, monkeypatch) == [None, 5906, 5906]


def test_5906_a_value_that_is_small_once_it_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why groups are not scaled to one bound: 2^20 times half of 1 modulo p is small, and half of 1 is not."""
    half = pow(2, -1, P)
    assert half * 2**20 % P == 2**19
    assert checked([half] + [0] * (MANY - 1), BOUND, monkeypatch) == [None, 5906, 5906]


def test_5906_bits_that_are_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """They add up, and one is 2."""

    def twos(values: Any, bits: int) -> np.ndarray:
        found = HONEST_BITS(values, bits)
        for row in found:
            (place,) = np.flatnonzero((row[:-1] == 0) & (row[1:] == 1))[:1]
            row[place], row[place + 1] = 2, 0
        return found

    assert checked([BOUND] * MANY, BOUND, monkeypatch, twos) == [None, 5906, 5906]


def test_5906_bits_of_another_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(values: Any, bits: int) -> np.ndarray:
        found = HONEST_BITS(values, bits)
        found[3, 0] ^= 1
        return found

    assert checked([BOUND] * MANY, BOUND, monkeypatch, flipped) == [None, 5906, 5906]


HONEST_BITS = projection._bits_of


# ---- messages --------------------------------------------------------------------------------------------

KINDS = ("inputs", "bounds of inputs", "projections of inputs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, -1])
def test_5907_another_commitment_to_all(kind: str, place: int) -> None:
    """Party 0 says the changed bytes to itself, too, and so its echo is like the others'."""
    dealer, own = Dealer(3), witnesses()

    def act(party: Party) -> Any:
        if party.number == 0:
            plain = party.broadcast

            def altered(what: str, body: bytes, size_bytes: int) -> list[bytes]:
                return plain(what, changed(body, place) if what == kind else body, size_bytes)

            party.broadcast = altered  # type: ignore[method-assign]
        pool = Pool(dealer.held(party, _inputs.pool_needed(PLAN)))
        return _inputs.prove_inputs(party, PLAN, own[party.number], pool)

    assert codes(run_parties(3, act)) == CAUGHT


def changed(body: bytes, place: int) -> bytes:
    """One element is one more."""
    elements = field.from_bytes(body, (len(body) // ELEMENT_BYTES,))
    elements[place] = field.add(elements[place], from_ints(1))
    return field.to_bytes(elements)


@pytest.mark.parametrize("kind", KINDS)
def test_5909_a_commitment_that_differs_between_parties(kind: str) -> None:
    def cheat(message: Message) -> bytes:
        return changed(message.body, 0) if message[:3] == (0, 1, kind) else message.body

    assert set(codes(proven(witnesses(), cheat=cheat))) <= {5909, 6905}


@pytest.mark.parametrize("place", [0, 1])
def test_5907_another_proof(place: int) -> None:
    def cheat(message: Message) -> bytes:
        return changed(message.body, place) if message[:3] == (0, 2, "relations of inputs") else message.body

    assert codes(proven(witnesses(), cheat=cheat)) == [None, None, 5907]


@pytest.mark.parametrize("kind", [*KINDS, "relations of inputs"])
def test_6903_what_are_no_field_elements(kind: str) -> None:
    def cheat(message: Message) -> bytes:
        return b"\xff" * len(message.body) if message[:3] == (0, 1, kind) else message.body

    found = codes(proven(witnesses(), cheat=cheat))
    assert found[1] in ((6903,) if kind.startswith("relations") else (5909, 6905))


def test_6903_nonsense_that_all_were_told_alike() -> None:
    dealer, size = Dealer(3), 5 * ELEMENT_BYTES

    def act(party: Party) -> Any:
        pool = Pool(dealer.held(party, 5))
        if party.number == 0:
            return party.broadcast("inputs", b"\xff" * size, size) and None
        return commit(party, "inputs", pool, from_ints(range(5)))

    assert codes(run_parties(3, act)) == [None, 6903, 6903]


def test_everything_is_committed_before_its_challenge() -> None:
    meshes: list[Any] = []
    assert codes(proven(witnesses(), mesh_out=meshes)) == [None] * 3
    kinds = [message.kind for message in meshes[0].heard if message[:2] == (0, 1)]
    said = [kind for kind in kinds if kind != "coin commitment" and not kind.endswith("echo")]
    expected = ["inputs", "bounds of inputs", "coin", "projections of inputs", "coin", "relations of inputs"]
    assert said == expected


# ---- verifiers who compare notes -------------------------------------------------------------------------


def test_each_verifier_sees_another_mask() -> None:
    """With one mask, A_1 toward two verifiers differ by what they know and ``(Δ_1 - Δ_2)·Σχ(2αβ - γ)``: a leak."""
    dealer, meshes = Dealer(3), []

    def act(party: Party) -> Any:
        pool = Pool(dealer.held(party, 2 + masks_needed(3)))
        known = commit(party, "values", pool, from_ints([9, 81]))
        ahead = party.joined(pool._held)[2:]
        check = QuadraticCheck()
        check.require_products(known[:1].reshaped(1, 1), known[:1].reshaped(1, 1), known[1:])
        tossed = party.toss

        def toss() -> bytes:
            party.coin = tossed()  # type: ignore[attr-defined]
            return party.coin  # type: ignore[attr-defined]

        party.toss = toss  # type: ignore[method-assign]
        check.run(party, pool, 5906, "test")
        return known, ahead, party.coin, party.key.copy()  # type: ignore[attr-defined]

    outcomes = together(3, act, mesh_out=meshes)
    known, ahead, coin, _ = outcomes[0]
    sent = {
        message.receiver: to_ints(field.from_bytes(message.body, (2,))).tolist()
        for message in meshes[0].heard
        if message.sender == 0 and message.kind == "relations of test"
    }
    weight = int(to_ints(elements(PublicStream(coin, "relations of test"), 1)).item())
    tags = {peer: [int(x) for x in to_ints(known.tags(peer_row(0, peer)))] for peer in (1, 2)}
    masks = {peer: (sent[peer][1] - weight * (18 * tags[peer][0] - tags[peer][1])) % P for peer in (1, 2)}
    assert [masks[1], masks[2]] == [int(x) for x in to_ints(ahead.share)]
    assert masks[1] != masks[2]
    assert proof_holds(sent[1], outcomes[1], weight)


def proof_holds(sent: list[int], verifier: Any, weight: int) -> bool:
    """The verifier's equation, with Python's integers."""
    known, ahead, _, key = verifier
    delta = int(to_ints(key))
    k, k_square = (int(x) for x in to_ints(known.keys(0)))
    mask = int(to_ints(ahead.keys(0))[0])
    return (weight * (k * k + delta * k_square) + mask - sent[0] + delta * sent[1]) % P == 0


def test_9901_no_pool_element_serves_twice() -> None:
    dealer = Dealer(2)

    def act(party: Party) -> None:
        pool = Pool(dealer.held(party, 7))
        commit(party, "one", pool, from_ints(range(4)))
        commit(party, "two", pool, from_ints(range(4)))

    assert codes(run_parties(2, act)) == [9901, 9901]
