"""F_p: every kernel against plain integers, at the ends of every range, and draws that are uniform and fresh."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError
from cloister.ring import _field
from cloister.ring._field import (
    WIDEST,
    Elements,
    P,
    addmod,
    correlate,
    dot_fields,
    limbs,
    mulmod,
    outer_product,
    reduce_signed,
    rotate,
    uniform,
    weigh,
    weigh_wide,
)

ELEMENTS = st.integers(0, P - 1) | st.sampled_from((0, 1, 2, P - 1, P - 2, 2**60, 2**31, 2**31 - 1))
WORDS = st.integers(0, 2**64 - 1) | st.sampled_from((0, 2**64 - 1, 2**61 - 1, 2**61, 2**58, 2**58 - 1))
INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [sign * (k * P + d) for k in range(5) for d in (-1, 0, 1) for sign in (1, -1) if k * P + d < 2**63]
)


def array(shape: tuple[int, ...], seed: int) -> Elements:
    """Random elements with the greatest and the least among them."""
    generator = random.Random(seed)
    size = int(np.prod(shape))
    chosen = [generator.choice((0, 1, P - 1, generator.randrange(P), generator.randrange(P))) for _ in range(size)]
    return np.array(chosen, np.uint64).reshape(shape)


def integers(elements: np.ndarray) -> np.ndarray:
    """The same as Python's integers, which do not wrap."""
    return elements.astype(object)


@given(ELEMENTS, ELEMENTS)
def test_sums_and_products_are_those_of_the_integers_modulo_p(a: int, b: int) -> None:
    assert int(addmod(np.uint64(a), np.uint64(b))) == (a + b) % P
    assert int(mulmod(np.uint64(a), np.uint64(b))) == a * b % P


@given(INTEGERS)
def test_signed_words_reduce_into_the_field(x: int) -> None:
    assert int(reduce_signed(np.int64(x))) == x % P


@given(ELEMENTS, st.integers(0, 60))
def test_multiplying_by_a_power_of_two_rotates(x: int, by: int) -> None:
    assert int(rotate(np.uint64(x), np.uint64(by))) == x * 2**by % P


@given(WORDS, WORDS)
def test_two_words_fold_into_the_field(high: int, low: int) -> None:
    assert int(_field._fold(np.uint64(high), np.uint64(low))) == (high * 2**64 + low) % P


def test_limbs_are_21_bits_and_make_up_the_element() -> None:
    elements = array((50,), 1)
    cut = limbs(elements)
    assert cut.dtype == np.int64
    assert cut.shape == (3, 50)
    assert cut.min() >= 0
    assert cut.max() < 2**21
    assert (integers(cut[0]) + integers(cut[1]) * 2**21 + integers(cut[2]) * 2**42 == integers(elements)).all()


@pytest.mark.parametrize("length", [1, 31, 32, 33, 200])
def test_products_of_rows_are_exact_at_every_length(length: int) -> None:
    left, right = array((3, length), length), array((2, length), -length)
    assert (integers(dot_fields(left, right)) == integers(left) @ integers(right).T % P).all()


def test_longest_run_of_greatest_elements_does_not_wrap() -> None:
    greatest = np.full((1, 1000), P - 1, np.uint64)
    assert int(dot_fields(greatest, greatest)[0, 0]) == 1000


def test_outer_product_is_row_major() -> None:
    left, right = array((4,), 1), array((3,), 2)
    assert (integers(outer_product(left, right)) == np.outer(integers(left), integers(right)).reshape(-1) % P).all()


@given(st.integers(1, 3), st.integers(0, 9), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3), st.integers(1, 4))
def test_correlation_is_its_definition(
    stride: int, slack: int, dilation: int, padding: int, width: int, length: int
) -> None:
    height = max(1, dilation * (width - 1) + 1 - 2 * padding) + slack
    size = (height + 2 * padding - dilation * (width - 1) - 1) // stride + 1
    images, taps = array((2, height, length), slack), array((width,), stride)
    out = np.zeros((2, size, length), object)
    for i in range(size):
        for a in range(width):
            place = i * stride + a * dilation - padding
            if 0 <= place < height:
                out[:, i] += int(taps[a]) * integers(images[:, place])
    assert (integers(correlate(images, taps, stride, padding, dilation, size)) == out % P).all()


def test_correlation_with_many_taps_does_not_wrap() -> None:
    images, taps = np.full((1, 300, 1), P - 1, np.uint64), np.full(300, P - 1, np.uint64)
    assert int(correlate(images, taps, 1, 0, 1, 1)[0, 0, 0]) == 300


@pytest.mark.parametrize("inner", [1, 7, 2047, 2048, 2049, 9000])
@pytest.mark.parametrize("word", [-(2**31), 2**31 - 1, None], ids=["least", "greatest", "random"])
def test_functional_of_an_int32_answer_is_exact(inner: int, word: int | None) -> None:
    rows, columns = array((3,), 1), array((inner,), 2)
    words = np.random.default_rng(inner).integers(-(2**31), 2**31, (3, inner)).astype(np.int32)
    if word is not None:
        words[:] = word
        columns[:] = P - 1
        columns[::2] = 2**42 - 1  # the two lower limbs at their greatest
    expected = sum(integers(rows) * (integers(words) @ integers(columns))) % P
    assert int(weigh(words, rows, limbs(columns))) == expected


def test_longest_run_of_greatest_limbs_does_not_wrap() -> None:
    columns = np.full(5000, 2**42 - 1, np.uint64)  # two limbs of 2^21 - 1
    words = np.full((1, 5000), -(2**31), np.int32)
    assert int(weigh(words, np.ones(1, np.uint64), limbs(columns))) == -(2**31) * 5000 * (2**42 - 1) % P


def test_functional_of_an_int64_answer_is_exact() -> None:
    rows, columns = array((4,), 1), array((50,), 2)
    words = np.random.default_rng(1).integers(-WIDEST + 1, WIDEST, (4, 50))
    words[0, :2] = WIDEST - 1, -WIDEST + 1
    expected = sum(integers(rows) * (integers(words) @ integers(columns))) % P
    assert int(weigh_wide(words, rows, columns)) == expected


@pytest.mark.parametrize("word", [WIDEST, -WIDEST, P, -P, 2**63 - 1, -(2**63)])
def test_a_word_that_could_hide_a_multiple_of_p_gives_no_element(word: int) -> None:
    words = np.zeros((2, 3), np.int64)
    words[1, 2] = word
    assert int(weigh_wide(words, array((2,), 1), array((3,), 2))) == P


def test_draws_are_fresh_elements() -> None:
    first, second = uniform(1000), uniform(1000)
    assert first.dtype == np.uint64
    assert first.max() < P
    assert not (first == second).any()
    assert len(np.unique(first)) == 1000
    assert uniform(0).shape == (0,)


def test_every_bit_of_a_draw_is_fair() -> None:
    count = 1 << 16
    bits = (uniform(count)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    ones = bits.sum(axis=0).astype(np.int64)
    assert (ones[61:] == 0).all()
    assert (abs(ones[:61] - count // 2) < 8 * count**0.5 / 2).all()  # eight standard deviations


def test_a_word_that_is_p_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter([[P, 5, 2**64 - 1], [7, P], [9]])  # the third word's low bits are p as well

    class Stream:
        def __init__(self, *_: object) -> None: ...

        def encryptor(self) -> "Stream":
            return self

        def update(self, zeros: bytes) -> bytes:
            block = np.array(next(words), np.uint64).tobytes()
            assert len(block) == len(zeros)
            return block

    monkeypatch.setattr(_field, "Cipher", Stream)
    assert uniform(3).tolist() == [7, 5, 9]


@pytest.mark.parametrize("count", [(1 << 24) + 1, -1])
def test_a_draw_is_bounded(count: int) -> None:
    with pytest.raises(InputError) as caught:
        uniform(count)
    assert caught.value.code == 2708
