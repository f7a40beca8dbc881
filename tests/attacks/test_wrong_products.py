"""A worker answers something else than the product: every such answer is caught, for every operator and gradient.

Errors are put in after the product is made, as a worker would that knows operands, shapes and every rule but not the
challenge. Each forged answer meets the check by itself and the one that the enclave makes while it unmasks. The last
tests show why the check is over F_p: the same errors get by a check modulo 2^32, a small prime, or in floats.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.ringworld import oracle
from torch import Tensor

from cloister.errors import InputError
from cloister.ring import Conv2d, MatMul, Product, check, draw, magnitude, recover
from cloister.ring._field import WIDEST, P

GEOMETRIES: dict[str, Any] = {
    "linear": (MatMul(), (6, 7), (5, 7)),
    "long linear": (MatMul(), (70, 9), (80, 9)),
    "attention": (MatMul(), (2, 3, 4, 5), (2, 3, 6, 5)),
    "convolution": (Conv2d(padding=(1, 1)), (3, 4, 6, 5), (4, 4, 3, 3)),
    "strided": (Conv2d((2, 2), (1, 0), (1, 2)), (2, 3, 9, 10), (4, 3, 3, 2)),
    "grouped": (Conv2d(padding=(1, 1), groups=2), (2, 4, 5, 5), (6, 2, 3, 3)),
    "depthwise": (Conv2d(padding=(1, 1), groups=4), (2, 4, 6, 6), (4, 1, 3, 3)),
    "pointwise": (Conv2d(), (2, 5, 4, 4), (6, 5, 1, 1)),
}
ROLES: Any = ("forward", "input_gradient", "weight_gradient")
PRODUCTS = {
    f"{name} {role}": Product(operator, role, x=x, w=w)
    for name, (operator, x, w) in GEOMETRIES.items()
    for role in ROLES
}


class Work:
    """One product, its operands and the right answer."""

    def __init__(self, product: Product, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.product = product
        self.left, self.right = (
            torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
            for shape in (product.left, product.right)
        )
        self.answer = oracle(product, self.left, self.right)

    def holds(self, answer: Tensor) -> bool:
        """Whether any check lets the answer pass: by itself, summed in int64, and in the pass that unmasks."""
        alone = check(self.product, self.left, self.right, answer).holds
        wide = check(self.product, self.left, self.right, answer.to(torch.int64)).holds
        challenge = draw(self.product)
        bound = magnitude(self.product.terms, 8, 8)
        value = recover([(1, answer)], bound=bound, functional=challenge, exponents=[-7]).functional
        assert value is not None
        fused = challenge.judge(self.left, self.right, value=value).holds
        assert alone == wide == fused
        return fused


@pytest.fixture(params=PRODUCTS.values(), ids=PRODUCTS.keys())
def work(request: pytest.FixtureRequest) -> Work:
    return Work(request.param)


def forged(work: Work, place: int, error: int) -> Tensor:
    """The answer with an error in one place, modulo 2^32 as a word holds it."""
    answer = work.answer.reshape(-1).clone()
    word = (int(answer[place]) + error + 2**31) % 2**32 - 2**31
    answer[place] = word
    return answer.reshape(work.answer.shape)


def places(work: Work) -> Iterator[int]:
    size = work.answer.numel()
    yield from sorted({0, 1, size // 2, size - 2, size - 1})


def test_the_right_answer_holds(work: Work) -> None:
    assert work.holds(work.answer)


def test_one_bit_is_flipped(work: Work) -> None:
    for place in places(work):
        for bit in range(32):
            answer = work.answer.numpy().copy()
            answer.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
            assert not work.holds(torch.from_numpy(answer))


def test_an_error_is_a_power_of_two_or_next_to_it(work: Work) -> None:
    for error in (2**30, -(2**30), 2**31, 2**31 - 1, -(2**31) + 1, 2**24, 2**21 - 1):
        for place in places(work):
            assert not work.holds(forged(work, place, error))
        everywhere = (work.answer.to(torch.int64) + error + 2**31) % 2**32 - 2**31
        assert not work.holds(everywhere.to(torch.int32))


def test_an_error_is_a_multiple_of_a_small_prime(work: Work) -> None:
    for prime in (2, 3, 5, 7, 11, 13, 241, 247, 251, 253, 65_521, 10_485_767, 16_777_213, 2**31 - 1):
        for factor in (1, -1, (2**31 - 1) // prime):
            assert not work.holds(forged(work, work.answer.numel() // 2, factor * prime))


def test_something_moves_from_one_place_to_another(work: Work) -> None:
    """Along each axis by itself: a sum with equal factors there would not see it."""
    for axis, size in enumerate(work.answer.shape):
        if size > 1:
            answer = work.answer.clone()
            answer.select(axis, 0).add_(1)
            answer.select(axis, size - 1).sub_(1)
            assert not work.holds(answer)
            alone = work.answer.clone()
            first = [0] * alone.ndim
            last = [size - 1 if i == axis else 0 for i in range(alone.ndim)]
            alone[tuple(first)] += 12345
            alone[tuple(last)] -= 12345
            assert not work.holds(alone)


def test_a_row_a_column_or_a_pixel_is_wrong(work: Work) -> None:
    for axis, size in enumerate(work.answer.shape):
        answer = work.answer.clone()
        answer.select(axis, size - 1).zero_()
        assert torch.equal(answer, work.answer) or not work.holds(answer)


def test_answers_are_swapped(work: Work) -> None:
    """Along an axis, between products, and read in another order."""
    for axis, size in enumerate(work.answer.shape):
        if size > 1:
            assert not work.holds(work.answer.roll(1, axis))
            assert not work.holds(work.answer.flip(axis))
    other = Work(work.product, seed=2)
    assert not work.holds(other.answer)
    assert not other.holds(work.answer)
    turned = work.answer.mT.contiguous().reshape(work.answer.shape)
    assert torch.equal(turned, work.answer) or not work.holds(turned)


def test_an_answer_is_replayed(work: Work) -> None:
    """The right answer of the step before; one operand is the same, and the challenge is fresh."""
    before = work.answer
    work.left = work.left.flip(0) if work.left.shape[0] > 1 else -(work.left // 2)
    work.answer = oracle(work.product, work.left, work.right)
    assert not torch.equal(before, work.answer)
    assert not work.holds(before)
    assert work.holds(work.answer)


def test_a_lazy_worker_answers_zeros_or_noise(work: Work) -> None:
    assert not work.holds(torch.zeros_like(work.answer))
    assert not work.holds(torch.ones_like(work.answer))
    assert not work.holds(-work.answer)
    noise = torch.randint(-(2**31), 2**31, work.answer.shape, dtype=torch.int32)
    assert not work.holds(noise)


def test_a_lazy_worker_rounds_or_leaves_terms_out(work: Work) -> None:
    """Cheaper work that is nearly right: fewer bits, half of an operand, another rounding of the answer."""
    coarse = oracle(work.product, (work.left >> 1) << 1, work.right)
    assert not work.holds(coarse)
    fewer = work.left.clone()
    fewer.reshape(-1)[-(fewer.numel() // 3) :] = 0
    assert not work.holds(oracle(work.product, fewer, work.right))
    assert not work.holds((work.answer >> 4) << 4)
    assert not work.holds(work.answer.to(torch.float16).nan_to_num(posinf=65504, neginf=-65504).to(torch.int32))


WIDE = [P, -P, P + 1, 2 * P, 3 * P, -4 * P, 2**61, 2**62, WIDEST, -WIDEST, 2**32, -(2**32), 2**33 + 2**32]


def test_an_error_in_a_sum_of_parts_is_a_multiple_of_the_modulus(work: Work) -> None:
    """In int64 there is room for p itself, and for what a word of 32 bits would not see."""
    for error in WIDE:
        for place in places(work):
            answer = work.answer.to(torch.int64).reshape(-1)
            answer[place] += error
            assert not check(work.product, work.left, work.right, answer.reshape(work.answer.shape)).holds


def test_an_error_hides_in_two_words_as_a_multiple_of_the_modulus() -> None:
    """Two words below the limit whose difference is p, where the functional has equal factors: it never has."""
    work = Work(PRODUCTS["linear forward"])
    answer = work.answer.to(torch.int64)
    answer[0, 0] += 2**60 - 1 - int(answer[0, 0])
    answer[0, 1] -= 2**60 - 1 + int(answer[0, 1])
    assert not check(work.product, work.left, work.right, answer).holds


def test_a_challenge_judges_once(work: Work) -> None:
    """Whoever learns how one answer fared under a challenge could craft the next."""
    challenge = draw(work.product)
    wrong = forged(work, 0, 1)
    assert not challenge.judge(work.left, work.right, value=challenge.value(wrong)).holds
    for answer in (work.answer, wrong):
        with pytest.raises(InputError) as caught:
            challenge.judge(work.left, work.right, value=challenge.value(answer))
        assert caught.value.code == 2709


def small_relation(first: int, second: int) -> tuple[int, int]:
    """Two numbers of about 31 bits with ``a · first + b · second = 0`` modulo p: Euclid's algorithm, halfway."""
    before, now = (P, 0), (second * pow(first, -1, P) % P, 1)
    while now[0] >= 2**31:
        quotient = before[0] // now[0]
        before, now = now, (before[0] - quotient * now[0], before[1] - quotient * now[1])
    return -now[0], now[1]


def test_who_knows_the_challenge_can_forge() -> None:
    """Why it is secret until the answer is there: this wrong answer passes the one check that it was made for."""
    work = Work(PRODUCTS["linear forward"])
    challenge = draw(work.product)
    one, other = small_relation(*(int(factor) for factor in challenge.inner[:2]))
    answer = work.answer.to(torch.int64)
    answer[0, 0] += one
    answer[0, 1] += other
    assert not torch.equal(answer, work.answer.to(torch.int64))
    assert challenge.judge(work.left, work.right, value=challenge.value(answer)).holds
    assert not check(work.product, work.left, work.right, answer).holds


def test_an_operand_of_the_check_is_not_the_one_that_was_multiplied(work: Work) -> None:
    for side in ("left", "right"):
        operand = getattr(work, side)
        changed = operand.clone()
        changed.reshape(-1)[changed.numel() // 2] += 1
        operands = {"left": work.left, "right": work.right} | {side: changed}
        answer = oracle(work.product, **operands)
        assert torch.equal(answer, work.answer) or not work.holds(answer)


# ---- masked answers --------------------------------------------------------------------------------------


def masked(work: Work, seed: int = 3) -> list[Tensor]:
    """What the three workers of shared3 answer: at +1, at -1, and the product of the masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = [
        torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32)
        for shape in (work.product.left, work.product.right)
    ]
    left, right = work.left.to(torch.int32), work.right.to(torch.int32)
    pairs = [(left + masks[0], right + masks[1]), (left - masks[0], right - masks[1]), (masks[0], masks[1])]
    return [oracle(work.product, *pair) for pair in pairs]


def unmasked(work: Work, answers: list[Tensor]) -> tuple[bool, int, int, bool]:
    """Whether the check holds, how many sums were odd, how many too large, and whether the integers are right."""
    challenge = draw(work.product)
    terms = list(zip((1, 1, -2), answers, strict=True))
    bound = magnitude(work.product.terms, 8, 8)
    found = recover(terms, bound=bound, halve=True, functional=challenge)
    assert found.functional is not None
    holds = challenge.judge(work.left, work.right, value=found.functional).holds
    return holds, found.odd, found.beyond, torch.equal(found.values, work.answer)


def test_right_masked_answers_hold(work: Work) -> None:
    assert unmasked(work, masked(work)) == (True, 0, 0, True)


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_a_masked_answer_has_a_flipped_bit(work: Work, worker: int) -> None:
    """Every flip is noticed but the one that changes nothing: the masks' product counts twice, so its top bit is lost.

    An odd sum is noticed as such; halved, it may be the right integer.
    """
    right = masked(work)
    for bit in range(32):
        answers = [answer.clone() for answer in right]
        answers[worker].numpy().view(np.uint32).reshape(-1)[-1] ^= np.uint32(1 << bit)
        holds, odd, beyond, same = unmasked(work, answers)
        assert holds == same
        assert odd == (bit == 0 and worker != 2)
        assert same == (worker == 2 and bit == 31) or odd
        assert not same or beyond == 0


def test_workers_answer_each_others_products(work: Work) -> None:
    right = masked(work)
    for order in ((2, 1, 0), (0, 2, 1), (1, 2, 0)):
        assert not unmasked(work, [right[i] for i in order])[0]
    stale = masked(work, seed=4)
    for worker in range(3):
        mixed = [stale[i] if i == worker else right[i] for i in range(3)]
        assert not unmasked(work, mixed)[0]


def test_a_masked_answer_is_zeros(work: Work) -> None:
    for worker in range(3):
        answers = masked(work)
        answers[worker] = torch.zeros_like(answers[worker])
        assert not unmasked(work, answers)[0]


# ---- why over a large field ------------------------------------------------------------------------------


def passes_modulo(error: Tensor, modulus: int, draws: int = 400) -> int:
    """How often a Freivalds check over the integers modulo ``modulus`` lets an error pass: of ``E · r = 0``."""
    generator = np.random.default_rng(1)
    plain = error.to(torch.int64).numpy().astype(object)
    return sum(
        not any((plain @ generator.integers(0, modulus, plain.shape[1]).astype(object)) % modulus) for _ in range(draws)
    )


def at(error: int) -> Tensor:
    tensor = torch.zeros(6, 7, dtype=torch.int64)
    tensor[2, 3] = error
    return tensor


def test_modulo_a_power_of_two_every_second_check_misses_the_top_bit() -> None:
    assert 140 < passes_modulo(at(2**31), 2**32) < 260  # of 400
    assert passes_modulo(at(2**30), 2**32) > 50
    assert passes_modulo(at(2**31), P) == 0


def test_modulo_a_small_prime_its_multiples_are_never_seen() -> None:
    for prime in (241, 10_485_767, 16_777_213):
        assert passes_modulo(at(prime), prime, 20) == 20
        assert passes_modulo(at(prime), P, 20) == 0
    assert passes_modulo(at(1), 241, 4000) > 4  # about one draw in 241


def test_in_floats_what_is_small_beside_the_sums_is_never_seen() -> None:
    """The right answer itself misses by more than the error, so a tolerance that lets it pass lets the error pass."""
    generator = torch.Generator().manual_seed(1)
    left = torch.randint(-128, 128, (64, 4096), generator=generator, dtype=torch.int8)
    right = torch.randint(-128, 128, (48, 4096), generator=generator, dtype=torch.int8)
    work = Product(MatMul(), "forward", x=(64, 4096), w=(48, 4096))
    answer = oracle(work, left, right)
    wrong = answer.clone()
    wrong[5, 6] += 1

    def gap(answer: Tensor, factors: Tensor) -> float:
        return float((answer.float() @ factors - left.float() @ (right.float().T @ factors)).abs().max())

    factors = [torch.rand(48, generator=generator) for _ in range(50)]
    tolerance = max(gap(answer, factor) for factor in factors)
    assert all(gap(wrong, factor) < 2 * tolerance + 1 for factor in factors)
    assert tolerance > 1
    assert not check(work, left, right, wrong).holds
