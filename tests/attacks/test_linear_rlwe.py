"""Ciphertexts, proofs and answers of parties that cheat: large keys, noises and messages, other witnesses, other bytes.

Also what the protocol relies on where nobody cheats: that two answers of a prover give away a short witness of 2c, that
noise stays below what floods hide, and that no time depends on a secret.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from copy import deepcopy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from tests.branches import compiled_code, secret_conditions, secret_instructions
from tests.exact_numbers import negacyclic, refused
from tests.linear_lattice import SESSION, centred, forged, integers, plain, signed, sum_of_products, words

from cloister.linear import _answers, _boxes, _limbs, _ntt, _polynomials, _proof
from cloister.linear._answers import answer, flood_of, head, result
from cloister.linear._budget import Lattice, budget_of
from cloister.linear._elements import P
from cloister.linear._field import add, from_ints, to_ints
from cloister.linear._field import multiply as times
from cloister.linear._field_ntt import to_coefficients, to_slots
from cloister.linear._groups import Group, Secrets, Wide, encrypt, image, publics
from cloister.linear._limbs import from_small, from_words
from cloister.linear._plan import Plan
from cloister.linear._polynomials import products
from cloister.linear._primes import FULL
from cloister.linear._proof import NONCE_BYTES, Prover, challenges, verify
from cloister.linear._residues import moduli, multiply, scale, subtract
from cloister.linear._streams import SecretStream, binomial, elements

A = publics(SESSION, 2, degree=64)
RINGS = Wide.of(64)
Q = FULL.modulus
COIN, OTHER = bytes(range(100, 132)), bytes(range(50, 82))
SLACK = 1 << 40
"""What is this many times its honest bound leaves the box of three groups' proof whatever the mask."""


def honest(count: int = 1, width: int = 1) -> tuple[list[Secrets], list[Group]]:
    made = [encrypt(A, elements(SecretStream("test"), width, 64)) for _ in range(count)]
    return [secrets for secrets, _ in made], [group for _, group in made]


def some(value: int) -> list[int]:
    """A polynomial with one large coefficient."""
    return [0] * 20 + [value] + [0] * 43


def proven(secrets: Sequence[Secrets], coin: bytes = COIN) -> tuple[bytes, bytes]:
    prover = Prover(A, secrets, 1)
    return prover.commitment, prover.respond(coin)


# ---- ciphertexts of large things -------------------------------------------------------------------------

LARGE: dict[str, tuple[list[int], list[int], list[int]]] = {
    "secret": (some(2 * SLACK), [0] * 64, [0] * 64),
    "noise": ([1] * 64, some(-42 * SLACK), [0] * 64),
    "message": ([1] * 64, [0] * 64, some(P * SLACK)),
}


@pytest.mark.parametrize("what", LARGE)
def test_5901_a_large_witness(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest prover would not answer; one that brings its answer back into the box is refused, and so is one that
    shows it as it is, as far as the wire has bits."""
    key, noise, half = LARGE[what]
    witness, group = forged(A, key, [noise], [half])
    assert (challenges(A, 1, COIN, 1, 1) >= 0).all()
    refused(lambda: proven([witness]), 6906)
    monkeypatch.setattr(_proof, "is_within", lambda x, most: True)
    wrapped = proven([witness])
    monkeypatch.setattr(_proof, "to_box", lambda x, most: _boxes.to_box(clamped(x, most), most))
    brought_back = proven([witness])
    monkeypatch.undo()
    for commitment, response in (wrapped, brought_back):
        refused(lambda c=commitment, r=response: verify(A, [group], 1, c, COIN, r), 5901)


def clamped(x: np.ndarray, most: int) -> np.ndarray:
    return words([min(max(value, -most), most) for value in signed(x)], x.shape[1])


@pytest.mark.parametrize("what", LARGE)
def test_a_large_witness_among_honest_ones(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, noise, half = LARGE[what]
    witness, group = forged(A, key, [noise], [half])
    secrets, groups = honest(2)
    monkeypatch.setattr(_proof, "is_within", lambda x, most: True)
    commitment, response = proven([secrets[0], witness, secrets[1]])
    monkeypatch.undo()
    refused(lambda: verify(A, [groups[0], group, groups[1]], 1, commitment, COIN, response), 5901)


# ---- proofs of something else ----------------------------------------------------------------------------


def test_5901_a_witness_of_another_ciphertext() -> None:
    secrets, groups = honest(3)
    commitment, response = proven(secrets[:2])
    verify(A, groups[:2], 1, commitment, COIN, response)
    for others in ([groups[0], groups[2]], [groups[2], groups[1]], [groups[1], groups[0]]):
        refused(lambda others=others: verify(A, others, 1, commitment, COIN, response), 5901)


@pytest.mark.parametrize("place", [0, 40])
@pytest.mark.parametrize("limb", [0, 8])
def test_5901_a_ciphertext_altered_after_the_commitment(limb: int, place: int) -> None:
    secrets, groups = honest(2)
    commitment, response = proven(secrets)
    altered = Group(groups[1].polynomials.copy())
    altered.polynomials[0, limb, place] ^= np.uint64(1)
    refused(lambda: verify(A, [groups[0], altered], 1, commitment, COIN, response), 5901)


def test_5901_a_proof_of_another_party_coin_or_session() -> None:
    secrets, groups = honest()
    commitment, response = proven(secrets)
    other = publics(bytes(32), 1, degree=64)
    for a, party, coin in ((A, 2, COIN), (A, 1, OTHER), (other, 1, COIN)):
        refused(lambda a=a, party=party, coin=coin: verify(a, groups, party, commitment, coin, response), 5901)


def simulated(group: Group, coin: bytes, key: int = 7) -> tuple[bytes, bytes]:
    """Without any witness, by who knows the coin before committing."""
    shape, stream = _proof._Shape(64, 1, 1), SecretStream("test")
    rows = [[_boxes.masks(stream, many, 64, most) for (many, _), most in zip(shape.parts, shape.boxes, strict=True)]
            for _ in range(3)]  # fmt: skip
    rows[1][0][0, 9] = np.uint64(key)
    images = _proof._images(A, [group], rows, challenges(A, 1, coin, 1, 1))
    nonce = bytes(NONCE_BYTES)
    planes = [_boxes.to_box(x, most) for row in rows for part, most in zip(row, shape.boxes, strict=True) for x in part]
    response = _proof.pack(np.concatenate(planes), shape.bits) + nonce
    return _proof._commitment(A, 1, images, nonce), response


def test_why_the_coin_is_tossed_after_the_commitment() -> None:
    """Who knows the challenges proves anything: here that uniform residues are a ciphertext."""
    group = Group(A.polynomials[1:].copy())
    commitment, response = simulated(group, COIN)
    verify(A, [group], 1, commitment, COIN, response)
    refused(lambda: verify(A, [group], 1, commitment, OTHER, response), 5901)


def test_5901_a_response_outside_the_box() -> None:
    _, (group,) = honest()
    most = (1 << 38) - 1
    for key in (most, most + 1):
        commitment, response = simulated(group, COIN, key)
        if key == most:
            verify(A, [group], 1, commitment, COIN, response)
    refused(lambda: verify(A, [group], 1, commitment, COIN, response), 5901)


def test_6903_a_response_of_another_length() -> None:
    secrets, groups = honest()
    commitment, response = proven(secrets)
    for other in (b"", response[:-1], response + b"\0", response[:NONCE_BYTES], response * 2):
        refused(lambda other=other: verify(A, groups, 1, commitment, COIN, other), 6903)


def test_5901_a_response_with_one_bit_changed() -> None:
    secrets, groups = honest()
    commitment, response = proven(secrets)
    for place in (0, 100, 1000, len(response) - NONCE_BYTES - 1, len(response) - 1):
        other = bytearray(response)
        other[place] ^= 1
        refused(lambda other=other: verify(A, groups, 1, commitment, COIN, bytes(other)), 5901)


# ---- what two responses give away ------------------------------------------------------------------------


def quotient_of_two(first: int, second: int) -> list[int]:
    """``2 / (W - W′)``; -1 is the challenge 0."""
    if -1 in (first, second):
        power, sign = (second, -2) if first < 0 else (first, 2)
        return monomial(-power % 128, sign)
    if (first - second) % 128 == 64:
        return monomial(-first % 128, 1)
    step = (second - first) % 128  # X^i - X^j = X^i·(1 - X^step); (1 - X^step)·Σ X^(step·k) = 1 - X^(step·M) = 2
    out = [0] * 64
    for k in range(64 // math.gcd(step, 64)):
        out = [a + b for a, b in zip(out, monomial((step * k - first) % 128, 1), strict=True)]
    return out


def monomial(exponent: int, factor: int) -> list[int]:
    out = [0] * 64
    out[exponent % 64] = -factor if exponent >= 64 else factor
    return out


def long(x: Sequence[int], y: Sequence[int]) -> list[int]:
    """The product over the integers."""
    return centred(negacyclic(x, y, Q), Q)


@pytest.mark.parametrize(("first", "second"), [(3, 40), (100, 5), (127, 3), (9, 73), (9, -1), (-1, 77), (10, 42)])
def test_two_responses_give_a_short_witness_of_twice_the_ciphertext(
    first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewound to its commitment, whoever answers two coins knows what an answer needs to be safe: also a cheat whose
    noise is a million times too large."""
    (secret,), (group,) = honest(width=2)
    cheat, large = forged(A, [1, 0] * 32, [some(1 << 25), [5] * 64], [[P // 2] * 64, some(3 * P)])
    base = challenges(A, 1, COIN, 2, 2)
    tossed = {coin: base.copy() for coin in (COIN, OTHER)}
    tossed[COIN][1, 1], tossed[OTHER][1, 1] = first, second
    monkeypatch.setattr(_proof, "challenges", lambda a, party, coin, width, groups: tossed[coin])
    prover = Prover(A, [secret, cheat], 1)
    masks, responses = deepcopy(prover._rows), []
    for coin in tossed:
        prover._rows = deepcopy(masks)
        responses.append(prover.respond(coin))
        verify(A, [group, large], 1, prover.commitment, coin, responses[-1])

    shape = _proof._Shape(64, 2, 2)
    read = [_proof._parsed(_proof.unpack(data[:-NONCE_BYTES], shape.bits, 64, party=1), shape)[1] for data in responses]
    factor = quotient_of_two(first, second)
    assert set(factor) <= {-2, -1, 0, 1, 2}
    extracted = [
        [long(factor, [a - b for a, b in zip(signed(x), signed(y), strict=True)]) for x, y in zip(*parts, strict=True)]
        for parts in zip(*read, strict=True)
    ]
    for part, bound in zip(extracted, (1, 21, P // 2), strict=True):
        assert max(abs(value) for x in part for value in x) <= 2 * 64 * (1 << 38) * 2 * bound
    parts = words(extracted[0][0], 5)[None], *(np.stack([words(x, 5) for x in part]) for part in extracted[1:])
    assert (image(A.first(2), parts, RINGS.full) == scale(large.polynomials, 2, RINGS.full)).all()


# ---- what answers show -----------------------------------------------------------------------------------

PLAN = Plan(
    method="lasso",
    rows=(10_000,) * 4,
    curvature=Fraction(20),
    mean_squares=(Fraction(2),) * 91,
    l1=Fraction(1, 100),
)
LATTICES: dict[str, tuple[int, Lattice]] = {
    "scalars": (1, budget_of(PLAN).scalars),
    "matrix": (budget_of(PLAN).tiles.tiles, budget_of(PLAN).matrix),
}


def hidden_term(
    x: np.ndarray, masked: np.ndarray, parts: tuple[np.ndarray, np.ndarray, np.ndarray], noise: np.ndarray
) -> list[int]:
    """``Σ ŵ_l·(p·e′_l + m′_l) - p^-1·(Σ x_l·m′_l mod p) - s′·e``: what the flood hides; with ω in ŵ, x centred."""
    full = Wide.of(x.shape[1]).full
    key, noises, halves = parts
    short = image(np.zeros_like(masked), (np.zeros_like(key), noises, halves), full)
    total = products(masked, short, full)
    messages = [centred([value % P for value in signed(m)], P) for m in halves]
    residue = _field_products(x, messages)
    total = subtract(total, _ntt.forward(_scaled(residue, full), full), full)
    tail = multiply(_ntt.forward(from_words(key[0], full), full), _ntt.forward(from_small(noise, full), full), full)
    return centred(plain(subtract(total, tail, full), full), Q)


def _field_products(x: np.ndarray, messages: list[list[int]]) -> np.ndarray:
    total = np.zeros(x.shape[1:], np.uint64)
    for left, right in zip(x, messages, strict=True):
        total = add(total, times(to_slots(left), to_slots(from_ints(right))))
    return to_coefficients(total)


def _scaled(x: np.ndarray, full: Any) -> np.ndarray:
    return scale(_limbs.from_centred(x, full), pow(P, -1, Q), full)


@pytest.mark.parametrize("kind", LATTICES)
def test_what_the_flood_hides_is_within_the_budget(kind: str) -> None:
    """Of an honest owner by far; of the worst one that a proof lets pass, with multiplicands to its liking, just so."""
    width, lattice = LATTICES[kind]
    a = publics(SESSION, width)
    noise = binomial(SecretStream("test"), a.degree)
    x = elements(SecretStream("test"), width, a.degree)
    secrets, _ = encrypt(a, elements(SecretStream("test"), width, a.degree))
    kept, _ = head(a, x)
    usual = max(map(abs, hidden_term(x, kept.masked, secrets.parts, noise)))
    assert usual.bit_length() < lattice.hidden - lattice.slack

    slack = int(2.0**lattice.slack)
    worst = from_ints([P // 2] * a.degree)
    x = np.broadcast_to(worst, (width, a.degree, 3)).copy()
    kept, _ = head(a, x)
    parts = tuple(
        np.broadcast_to(words([bound * slack], 4), (many, a.degree, 4)).copy()
        for many, bound in ((1, 1), (width, 21), (width, P // 2))
    )
    found = max(map(abs, hidden_term(x, kept.masked, parts, noise)))  # pyright: ignore[reportArgumentType]
    assert lattice.hidden - 2 < math.log2(found) <= lattice.hidden
    assert flood_of(lattice.flood) > found << 41
    assert 4 * P * (flood_of(lattice.flood) + found) < Q


def test_a_flood_and_a_share_cover_every_coefficient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the rounding, an answer is the products, what the answerer keeps over p, and a flood as wide as asked."""
    given: list[np.ndarray] = []
    monkeypatch.setattr(_answers, "switch", lambda x, *bases: given.append(x.copy()) or _limbs.switch(x, *bases))
    _, (group,) = honest()
    flood = flood_of(LATTICES["scalars"][1].flood)
    kept, _ = head(A, elements(SecretStream("test"), 1, 64))
    _, own = answer(kept, group, flood=flood)
    product = plain(products(kept.masked, group.polynomials, RINGS.full, multiple=2), RINGS.full)
    shares = [-value % P for value in to_ints(own).tolist()]
    inverse = pow(P, -1, Q)
    floods = centred(
        [d - x - inverse * r for d, x, r in zip(integers(given[-1], RINGS.full), product, shares, strict=True)], Q
    )
    assert all(-flood <= f < flood for f in floods)
    assert max(floods) > flood // 2 > -flood // 2 > min(floods)
    assert max(shares) > P // 2 > min(shares)


def test_a_multiplicand_is_masked_in_every_coefficient() -> None:
    """Without ω a head were a product with a public polynomial, and its noise alone would hide the multiplicand."""
    x = elements(SecretStream("test"), 2, 64)
    made = [head(A, x)[0].masked for _ in range(2)]
    for masked in made:
        for values, wanted in zip(masked, to_ints(x).tolist(), strict=True):
            plainly = [pow(P, -1, Q) * value for value in centred(wanted, P)]
            rest = centred([v - c for v, c in zip(plain(values, RINGS.full), plainly, strict=True)], Q)
            assert set(rest) == {-1, 0, 1}
    assert (made[0] != made[1]).any()


def test_the_noise_of_ciphertexts_and_heads_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets,), _ = honest(width=2)
    assert all(len(set(noise.tolist())) > 5 for noise in secrets.noises)
    given: list[np.ndarray] = []
    monkeypatch.setattr(_answers, "switch", lambda x, *bases: given.append(x.copy()) or _limbs.switch(x, *bases))
    head(A, elements(SecretStream("test"), 1, 64))
    noise = centred(integers(given[0][:4], RINGS.kept), RINGS.kept.modulus)
    assert len(set(noise)) > 5
    assert max(map(abs, noise)) <= 21


def test_a_witness_of_twice_the_ciphertext_alone_is_enough() -> None:
    """Proofs show no more: c = (a·s′ + p·e′ + m′)/2 with an odd s′ has no short witness itself. Answers use 2c."""
    messages = elements(SecretStream("test"), 1, 64)
    (secrets,), _ = honest()
    odd = Secrets(np.ones(64, np.int8), secrets.noises, _centred(messages), RINGS.kept)
    odd.doubled = _ntt.forward(from_small(odd.key, RINGS.kept), RINGS.kept)
    group = Group(scale(image(A.first(1), odd.parts, RINGS.full), pow(2, -1, Q), RINGS.full))
    x = elements(SecretStream("test"), 1, 64)
    kept, d1 = head(A, x)
    d0, own = answer(kept, group, flood=flood_of(LATTICES["scalars"][1].flood))
    assert to_ints(add(result(odd, d1, d0), own)).tolist() == sum_of_products(x, messages)


def _centred(x: np.ndarray) -> np.ndarray:
    return np.stack([words(centred(row, P), 3) for row in to_ints(x).tolist()])


# ---- bytes of others -------------------------------------------------------------------------------------


def test_6903_residues_have_one_name() -> None:
    """A group with q in the place of 0 would be the same ciphertext under another hash."""
    _, (group,) = honest()
    group.polynomials[0, 3, 5] = 0
    Group.from_bytes(group.to_bytes(), 1, party=1, degree=64)
    group.polynomials[0, 3, 5] = RINGS.full.primes[3]
    refused(lambda: Group.from_bytes(group.to_bytes(), 1, party=1, degree=64), 6903)


# ---- numbers that show by how long they take -------------------------------------------------------------

ROWS = np.zeros(RINGS.full.shape, np.uint64)
WORDS = np.zeros((64, 4), np.uint64)
KERNELS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "multiples": lambda: (
        _polynomials._add_multiple, WORDS, *_polynomials._weights(RINGS.full, 4, 1), moduli(RINGS.full),
        np.zeros((4, 1024), np.uint64), ROWS
    ),
    "products": lambda: (_polynomials._products, ROWS[None], ROWS[None], 2, moduli(RINGS.full), ROWS),
    "turned": lambda: (_boxes._add_turned, WORDS.copy(), WORDS, 5, True),
    "box": lambda: (_boxes._outside, WORDS, WORDS[0]),
    "shift": lambda: (_boxes._shift, WORDS.copy(), WORDS[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_no_jump_follows_from_a_number(name: str) -> None:
    function, *arguments = KERNELS[name]()
    text, assembly = compiled_code(function, *arguments)
    assert secret_conditions(text) == []
    if platform.machine() in ("x86_64", "AMD64"):
        assert secret_instructions(text, assembly) == ([], [])


def test_all_of_a_response_is_looked_at_before_it_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it leaves the box is not shown by the time that it takes to find out."""
    (secrets,), _ = honest()
    looked: list[int] = []
    monkeypatch.setattr(_proof, "is_within", lambda x, most: looked.append(most) or False)
    refused(lambda: proven([secrets]), 6906)
    assert len(looked) == 9


@pytest.mark.parametrize("key", [0, 1])
def test_a_ciphertext_of_zeros_tells_its_owner_nothing(key: int) -> None:
    """There is no public key to malform. c = 0, or c = a, is provable: an encryption of 0; what it gets is uniform."""
    short = np.zeros((1, 64), np.int8)
    halves = np.zeros((1, 64, 3), np.uint64)
    own = Secrets(np.array([key] + [0] * 63, np.int8), short, halves, RINGS.kept)
    group = Group(image(A.first(1), own.parts, RINGS.full))
    assert group.polynomials.any() == bool(key)
    commitment, response = proven([own])
    verify(A, [group], 1, commitment, COIN, response)

    multiplicands = elements(SecretStream("test"), 1, 64)
    kept, public = head(A, multiplicands)
    found, share = answer(kept, group, flood=flood_of(budget_of(PLAN).scalars.flood))
    decoded = result(own, public, found)
    assert not add(decoded, share).any()  # r alone, whatever is multiplied
