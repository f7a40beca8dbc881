"""Answers: what owner and answerer hold adds up to the products, the head is its equation, and how both are sent."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.exact_numbers import EDGES, field_integers, negacyclic, refused
from tests.linear_lattice import SESSION, centred, integers, plain, sum_of_products

from cloister.linear import _answers, _ntt
from cloister.linear._answers import Answer, Head, answer, answer_bytes, flood_of, head, result
from cloister.linear._budget import Lattice, budget_of
from cloister.linear._elements import P
from cloister.linear._field import Elements, add, equal, from_ints, to_ints
from cloister.linear._field_ntt import to_coefficients, to_slots
from cloister.linear._groups import Wide, encrypt, publics
from cloister.linear._limbs import switch
from cloister.linear._plan import Plan
from cloister.linear._primes import FULL
from cloister.linear._streams import SecretStream, elements

PLAN = Plan(method="ridge", rows=(500,) * 4, curvature=Fraction(20), mean_squares=(Fraction(2),) * 91)
LATTICES: tuple[Lattice, Lattice] = (budget_of(PLAN).scalars, budget_of(PLAN).matrix)
FLOOD = flood_of(max(x.flood for x in LATTICES))
RINGS = Wide.of(64)
A = publics(SESSION, 3, degree=64)
Q = FULL.modulus


def polynomials(width: int, seed: int) -> Elements:
    return from_ints(np.array(field_integers(64 * width, seed=seed), object).reshape(width, 64))


@pytest.mark.parametrize("width", [1, 2, 3])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_both_parts_add_up_to_the_products(width: int, seed: int) -> None:
    x, messages = polynomials(width, seed), polynomials(width, seed + 1)
    secrets, group = encrypt(A, messages)
    kept, d1 = head(A, x)
    d0, own = answer(kept, group, flood=FLOOD)
    assert to_ints(add(result(secrets, d1, d0), own)).tolist() == sum_of_products(x, messages)


@pytest.mark.parametrize("x", [0, 1, P - 1, P // 2, P // 2 + 1])
@pytest.mark.parametrize("message", [0, 1, P - 1, P // 2, P // 2 + 1])
def test_the_edges_of_the_field(x: int, message: int) -> None:
    left, right = (from_ints([[value] * 64] * 2) for value in (x, message))
    secrets, group = encrypt(A, right)
    kept, d1 = head(A, left)
    d0, own = answer(kept, group, flood=FLOOD)
    assert to_ints(add(result(secrets, d1, d0), own)).tolist() == sum_of_products(left, right)


def test_useful_coefficients_alone() -> None:
    x, messages = polynomials(2, 3), from_ints([(EDGES * 2)[:64], EDGES[::-1][:32] * 2])
    useful = np.array([63, 0, 17, 5])
    secrets, group = encrypt(A, messages)
    kept, d1 = head(A, x)
    d0, own = answer(kept, group, flood=FLOOD, useful=useful)
    assert d0.coefficients.shape == (4, 4)
    assert own.shape == (4, 3)
    expected = np.array(sum_of_products(x, messages), object)[useful].tolist()
    assert to_ints(add(result(secrets, d1, d0, useful=useful), own)).tolist() == expected


def test_one_head_serves_all_groups_of_its_width() -> None:
    x = polynomials(2, 5)
    kept, d1 = head(A, x)
    for seed in (6, 7, 8):
        messages = polynomials(2, seed)
        secrets, group = encrypt(A, messages)
        d0, own = answer(kept, group, flood=FLOOD)
        assert to_ints(add(result(secrets, d1, d0), own)).tolist() == sum_of_products(x, messages)


def test_slots_multiply_elementwise() -> None:
    a, b = (elements(SecretStream("test"), 1, 64) for _ in range(2))
    secrets, group = encrypt(A, to_coefficients(b))
    kept, d1 = head(A, to_coefficients(a))
    d0, own = answer(kept, group, flood=FLOOD)
    sums = to_slots(add(result(secrets, d1, d0), own))
    assert to_ints(sums).tolist() == (to_ints(a)[0] * to_ints(b)[0] % P).tolist()


def test_a_head_is_its_equation() -> None:
    """``⌊(Σ ŵ_l·a_l + e)/q″⌉``, with ŵ_l the centred multiplicand over p and something ternary, e small."""
    x = polynomials(2, 9)
    kept, d1 = head(A, x)
    total = [0] * 64
    for masked, a, wanted in zip(kept.masked, A.first(2), to_ints(x).tolist(), strict=True):
        values = plain(masked, RINGS.full)
        shares = centred([v - pow(P, -1, Q) * c for v, c in zip(values, centred(wanted, P), strict=True)], Q)
        assert set(shares) == {-1, 0, 1}
        product = negacyclic(values, plain(a, RINGS.full), Q)
        total = [sum_ + term for sum_, term in zip(total, product, strict=True)]
    off = RINGS.dropped.modulus
    expected = [round(Fraction(value % Q, off)) % RINGS.kept.modulus for value in total]
    assert plain(d1.values, RINGS.kept) == expected  # e is far below q″, and moves no rounding here


def test_what_a_head_rounds_has_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modulo q′ the noise alone, the rest comes transformed; modulo q″ the sum and the noise."""
    noise, given = np.arange(-21, 43).astype(np.int8), []
    monkeypatch.setattr(_answers, "binomial", lambda stream, degree: noise)
    monkeypatch.setattr(_answers, "switch", lambda x, kept, dropped: given.append(x.copy()) or switch(x, kept, dropped))
    values = [int(value) % Q for value in field_integers(64, seed=2)]
    rows = np.array([[value % q for value in values] for q in RINGS.full.primes], np.uint64)
    _answers._switched(_ntt.forward(rows, RINGS.full), SecretStream("test"), RINGS)
    (whole,) = given
    assert centred(integers(whole[:4], RINGS.kept), RINGS.kept.modulus) == noise.tolist()
    assert integers(whole[4:], RINGS.dropped) == [
        (value + e) % RINGS.dropped.modulus for value, e in zip(values, noise.tolist(), strict=True)
    ]


def test_every_answer_has_a_share_of_its_own() -> None:
    _, group = encrypt(A, polynomials(1, 1))
    kept, _ = head(A, polynomials(1, 2))
    made = [answer(kept, group, flood=FLOOD) for _ in range(3)]
    assert len({own.tobytes() for _, own in made}) == len({d0.coefficients.tobytes() for d0, _ in made}) == 3
    assert max(to_ints(made[0][1]).tolist()) > P // 4


def test_bytes() -> None:
    _, group = encrypt(A, polynomials(1, 1))
    kept, d1 = head(A, polynomials(1, 2))
    useful = np.arange(5)
    d0, _ = answer(kept, group, flood=FLOOD, useful=useful)
    data, body = d1.to_bytes(), d0.to_bytes()
    assert (len(data), len(body)) == (answer_bytes(64), answer_bytes(5)) == (64 * 212 // 8, math.ceil(5 * 212 / 8))
    assert (Head.from_bytes(data, party=1, degree=64).values == d1.values).all()
    assert (Answer.from_bytes(body, 5, party=1).coefficients == d0.coefficients).all()
    for other in (data[:-1], data + b"\0", b"", b"\xff" * len(data)):
        refused(lambda other=other: Head.from_bytes(other, party=1, degree=64), 6903)
    for other in (body[:-1], body + b"\0", b"", b"\xff" * len(body)):
        refused(lambda other=other: Answer.from_bytes(other, 5, party=1), 6903)
    refused(lambda: Answer.from_bytes(body[:-1] + bytes([body[-1] | 0xF0]), 5, party=1), 6903)


@given(bits=st.floats(0, 400))
def test_a_flood_of_its_logarithm(bits: float) -> None:
    found = flood_of(bits)
    assert found > 2.0**bits * (1 - 2.0**-50)
    assert found <= 2.0**bits * (1 + 2.0**-50) + 2


def test_how_great_a_flood_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood at its greatest decodes while it is below q/4p, as the budget requires; at q/p it does not."""
    x, messages = polynomials(1, 3), polynomials(1, 4)
    secrets, group = encrypt(A, messages)
    kept, d1 = head(A, x)
    drawn = _answers.box
    monkeypatch.setattr(_answers, "box", lambda stream, count, least, most: drawn(stream, count, most, most))
    for flood, fits in ((Q // (4 * P), True), (Q // P, False)):
        d0, own = answer(kept, group, flood=flood)
        found = to_ints(add(result(secrets, d1, d0), own)).tolist()
        assert (found == sum_of_products(x, messages)) == fits
    assert Q // (4 * P) > FLOOD


def test_at_the_degree_of_the_protocol() -> None:
    a = publics(SESSION, 2)
    stream = SecretStream("test")
    x, messages = elements(stream, 2, a.degree), elements(stream, 2, a.degree)
    secrets, group = encrypt(a, messages)
    kept, d1 = head(a, x)
    d0, own = answer(kept, group, flood=FLOOD)
    d1, d0 = Head.from_bytes(d1.to_bytes(), party=1), Answer.from_bytes(d0.to_bytes(), party=1)
    slots = [(to_slots(left), to_slots(right)) for left, right in zip(x, messages, strict=True)]
    total = sum(
        (to_ints(left) * to_ints(right) for left, right in slots[1:]), to_ints(slots[0][0]) * to_ints(slots[0][1])
    )
    assert equal(add(result(secrets, d1, d0), own), to_coefficients(from_ints(total)))


def test_2911_other_shapes() -> None:
    x = polynomials(1, 1)
    secrets, group = encrypt(A, x)
    kept, d1 = head(A, polynomials(2, 1))
    refused(lambda: answer(kept, group, flood=FLOOD), 2911)
    refused(lambda: head(A, x[0]), 2911)
    refused(lambda: head(A, x[:, :32]), 2911)
    refused(lambda: result(secrets, d1, Answer(np.zeros((4, 5), np.uint64))), 2911)


def test_what_is_kept_of_multiplicands() -> None:
    kept, _ = head(A, polynomials(1, 1))
    assert repr(kept) == "<Multiplicands>"
    with pytest.raises(TypeError):
        kept.__reduce_ex__(4)
    kept.wipe()
    assert not kept.masked.any()
