"""The discrete Gaussian: tables exact to the last of 84 bits, distances against brute force, draws against a pmf."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloister.errors import InputError
from cloister.privacy._alias import FIELD_BITS, RESOLUTION_BITS, AliasTable, alias_table
from cloister.privacy._discrete import DRAW_BYTES, WORDS, DiscreteGaussian, discrete_gaussian
from cloister.privacy._run_key import RunKey
from cloister.privacy._stream import Chunks
from cloister.wire import Secret

WHOLE = 1 << RESOLUTION_BITS
ENGINE = Fraction(1 << 24)
SIGMAS = [Fraction(256), Fraction(12345, 7), Fraction(1 << 20), Fraction(1 << 24), Fraction(3_333_333_333, 100)]


def draws(gaussian: DiscreteGaussian, count: int, seed: int = 1) -> np.ndarray:
    stream = Chunks(Secret(bytes([seed]) * 32))
    total = np.zeros(count, np.int64)
    each = 4096
    for chunk, start in enumerate(range(0, count, each)):
        part = total[start : start + each]
        gaussian.add(stream.words(0, chunk, WORDS * part.size), part)
    return total


def narrow(gaussian: DiscreteGaussian) -> Fraction:
    """s²."""
    k = gaussian.factor
    return gaussian.sigma**2 / (1 + k**2 + k**4)


def size_masses(variance: Fraction, sizes: int) -> list[mpmath.mpf]:
    """Probabilities of |x| under the discrete Gaussian, by mpmath at 120 digits, normalised over all integers."""
    with mpmath.workdps(120):
        exact = mpmath.mpf(variance.numerator) / variance.denominator
        masses = [mpmath.exp(-mpmath.mpf(size * size) / (2 * exact)) * (2 if size else 1) for size in range(2 * sizes)]
        total = mpmath.fsum(masses)
        return [mass / total for mass in masses]


# ---- tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS, ids=str)
def test_a_table_has_the_true_probabilities_to_the_last_bit(sigma: Fraction) -> None:
    gaussian = discrete_gaussian(sigma)
    found = gaussian.table.probabilities()
    assert sum(found) == 1
    for size, mass in enumerate(size_masses(narrow(gaussian), len(found))[: len(found)]):
        assert found[size].denominator <= WHOLE
        with mpmath.workdps(120):  # one unit in the last place, plus what the cut tail is spread over
            assert abs(mpmath.mpf(found[size].numerator) / found[size].denominator - mass) < mpmath.mpf(1.01) / WHOLE


@pytest.mark.parametrize("sigma", SIGMAS, ids=str)
def test_the_distance_is_the_one_that_an_independent_sum_has(sigma: Fraction) -> None:
    gaussian = discrete_gaussian(sigma)
    found, k = gaussian.table.probabilities(), gaussian.factor
    with mpmath.workdps(120):
        true = size_masses(narrow(gaussian), len(found))
        held = [mpmath.mpf(own.numerator) / own.denominator for own in found] + [mpmath.mpf(0)] * len(found)
        table = mpmath.fsum(abs(own - mass) for own, mass in zip(held, true, strict=True)) / 2
        tau = mpmath.mpf(narrow(gaussian).numerator) / narrow(gaussian).denominator / (1 + k**2)
        epsilon = 2 * mpmath.nsum(lambda m: mpmath.exp(-2 * mpmath.pi**2 * tau * m**2), [1, mpmath.inf])
        expected = 3 * table + 2 * epsilon / (1 - epsilon)
        claimed = mpmath.mpf(gaussian.distance.numerator) / gaussian.distance.denominator
        assert expected <= claimed <= expected * mpmath.mpf(1.01)
    assert gaussian.distance < Fraction(1, 2**70)


def test_the_engines_noise_costs_less_than_one_in_2_to_73() -> None:
    gaussian = discrete_gaussian(ENGINE)
    assert gaussian.distance < Fraction(1, 2**73)
    assert (gaussian.table.bits, gaussian.most) == (12, max_size(gaussian) * (1 + 214 + 214**2))
    assert gaussian.most < 2**31  # far from where sums of int64 would wrap


def max_size(gaussian: DiscreteGaussian) -> int:
    return max(size for size, mass in enumerate(gaussian.table.probabilities()) if mass)


@given(st.lists(st.integers(0, 1 << 40), min_size=16, max_size=16), st.integers(0, 15))
@settings(max_examples=200)
def test_any_table_has_exactly_its_weights(weights: list[int], filler: int) -> None:
    weights[filler] += (1 << 45) - sum(weights)
    found = alias_table(weights).probabilities()
    assert found == [Fraction(weight, 1 << 45) for weight in weights]


@pytest.mark.parametrize(
    "weights",
    [[], [1] * 8, [1] * 24, [1] * (1 << 17), [1] * 15 + [2], [-1] + [1] * 14 + [3], [1 << 85] + [0] * 15, [0] * 16],
    ids=["none", "few", "no power", "many", "sum", "negative", "beyond 84 bits", "nothing"],
)
def test_other_weights_make_no_table(weights: list[int]) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        alias_table(weights)


def test_a_threshold_that_would_wrap_makes_no_table() -> None:
    capacity = 1 << 80
    assert alias_table([capacity] * 16).probabilities() == [Fraction(1, 16)] * 16
    with pytest.raises(ValueError, match="wrap"):
        alias_table([capacity - 1, capacity + 1, *[capacity] * 14])
    last = capacity - (1 << 16) - 1  # the greatest that does not: all but the last of 2^64
    assert alias_table([last, 2 * capacity - last, *[capacity] * 14]).probabilities()[0] == Fraction(last, 1 << 84)


# ---- the theorem, by brute force -------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [Fraction(256), Fraction(1000, 3)], ids=str)
def test_three_draws_together_are_the_wide_one_within_the_stated_distance(sigma: Fraction) -> None:
    """The exact distribution of what the sampler gives, convolved in integers, against the exact pmf."""
    gaussian = discrete_gaussian(sigma)
    k = gaussian.factor
    sizes = [int(mass * WHOLE) for mass in gaussian.table.probabilities()]
    level = {0: 2 * sizes[0]} | {sign * size: sizes[size] for size in range(1, len(sizes)) for sign in (1, -1)}
    level = {x: weight for x, weight in level.items() if weight}  # over 2·2^84
    assert sum(level.values()) == 2 * WHOLE
    made = {0: 1}
    for _ in range(3):
        wider: dict[int, int] = {}
        for x, weight in made.items():
            for y, other in level.items():
                wider[x * k + y] = wider.get(x * k + y, 0) + weight * other
        made = wider
    assert max(made) == gaussian.most
    whole = (2 * WHOLE) ** 3
    assert sum(made.values()) == whole
    with mpmath.workdps(120):
        variance = mpmath.mpf(sigma.numerator) ** 2 / mpmath.mpf(sigma.denominator) ** 2
        reach = 30 * math.ceil(sigma)
        true = [mpmath.exp(-mpmath.mpf(x * x) / (2 * variance)) for x in range(reach)]
        total = 2 * mpmath.fsum(true) - true[0]
        off = mpmath.fsum(
            abs(mpmath.mpf(made.get(x, 0)) / whole - true[x] / total) * (2 if x else 1) for x in range(reach)
        )
        distance = off / 2
        claimed = mpmath.mpf(gaussian.distance.numerator) / gaussian.distance.denominator
        assert claimed / 20 < distance <= claimed
    assert all(made[x] == made[-x] for x in made)  # the signs are exactly fair


# ---- the compiled sampler --------------------------------------------------------------------------------


def by_definition(table: AliasTable, factor: int, words: list[int]) -> int:
    """A draw in plain integers of any size: cell, fraction of 84 - bits bits, compare."""
    rest = FIELD_BITS - 1 - table.bits
    fields, x = words[3], 0
    for level in range(3):
        field = fields >> (FIELD_BITS * level) & ((1 << FIELD_BITS) - 1)
        cell, low, sign = field & ((1 << table.bits) - 1), (field >> table.bits) & ((1 << rest) - 1), field >> 20
        fraction = words[level] << rest | low
        threshold = int(table.high[cell]) << rest | int(table.packed[cell]) >> 16
        size = cell if fraction < threshold else int(table.packed[cell]) & 0xFFFF
        x = x * factor + (-size if sign else size)
    return x


@pytest.mark.parametrize("sigma", [*SIGMAS, Fraction(1 << 30)], ids=str)
def test_the_sampler_does_what_its_definition_says(sigma: Fraction) -> None:
    gaussian = discrete_gaussian(sigma)
    table, k = gaussian.table, gaussian.factor
    rows = np.random.default_rng(5).integers(0, 1 << 64, (3000, WORDS), np.uint64)
    rows[0], rows[1] = 0, (1 << 64) - 1
    for row in range(2, 1500):  # words at the thresholds themselves, where the last bits decide
        cell = int(rows[row, 3]) & ((1 << table.bits) - 1)
        rows[row, 0] = (int(table.high[cell]) + row % 3 - 1) % (1 << 64)
    total = np.zeros(len(rows), np.int64)
    gaussian.add(rows.reshape(-1), total)
    assert total.tolist() == [by_definition(table, k, [int(word) for word in row]) for row in rows]


def test_the_last_bits_of_a_threshold_count() -> None:
    gaussian = discrete_gaussian(ENGINE)
    table, tried = gaussian.table, 0
    rest = FIELD_BITS - 1 - table.bits
    for cell in range(3000):
        high, last, alias = int(table.high[cell]), int(table.packed[cell]) >> 16, int(table.packed[cell]) & 0xFFFF
        if alias == cell or not 0 < last < 1 << rest:
            continue
        for low, expected in ((last - 1, cell), (last, alias)):
            assert by_levels(gaussian, [high, 0, 0, cell | low << table.bits])[0] == expected
        tried += 1
    assert tried > 1000


def test_a_draw_adds_to_what_is_there() -> None:
    gaussian = discrete_gaussian(ENGINE)
    words = np.random.default_rng(2).integers(0, 1 << 64, 40, np.uint64)
    alone, onto = np.zeros(10, np.int64), np.arange(10) * (1 << 40)
    gaussian.add(words, alone)
    gaussian.add(words, onto)
    assert (onto == alone + np.arange(10) * (1 << 40)).all()


def test_levels_share_no_bit() -> None:
    """A level's size stays what it is, whatever all the other levels' bits become."""
    gaussian = discrete_gaussian(ENGINE)
    generator = np.random.default_rng(8)
    for level in range(3):
        others = [place for place in range(3) if place != level]
        for _ in range(50):
            words = generator.integers(0, 1 << 64, WORDS, np.uint64)
            field = (int(words[3]) >> (FIELD_BITS * level)) & ((1 << FIELD_BITS) - 1)
            changed = words.copy()
            for other in others:
                changed[other] = generator.integers(0, 1 << 64, dtype=np.uint64)
            noise = int(generator.integers(0, 1 << 64, dtype=np.uint64))
            mask = ((1 << FIELD_BITS) - 1) << (FIELD_BITS * level)
            changed[3] = noise & ~mask | field << (FIELD_BITS * level)
            one, two = (by_levels(gaussian, [int(word) for word in row]) for row in (words, changed))
            assert one[level] == two[level]
    assert WORDS * 64 == DRAW_BYTES * 8 == 256


def by_levels(gaussian: DiscreteGaussian, words: list[int]) -> list[int]:
    """What each level gives: k is a number so large here that the compiled sampler's sum can be taken apart."""
    apart = 1 << 20
    taken = DiscreteGaussian(gaussian.sigma, apart, gaussian.table, gaussian.distance, gaussian.most)
    total = np.zeros(1, np.int64)
    taken.add(np.array(words, np.uint64), total)
    x, found = int(total[0]), []
    for _ in range(3):
        digit = (x + apart // 2) % apart - apart // 2
        found.insert(0, digit)
        x = (x - digit) // apart
    return found


@pytest.mark.parametrize("words", [39, 41, 0])
def test_words_of_another_number_are_refused(words: int) -> None:
    with pytest.raises(InputError) as caught:
        discrete_gaussian(ENGINE).add(np.zeros(words, np.uint64), np.zeros(10, np.int64))
    assert caught.value.code == 2810


@pytest.mark.parametrize("sigma", [0, -1, 255, (1 << 34) + 1, Fraction(1, 3)])
def test_another_sigma_is_refused(sigma: int) -> None:
    with pytest.raises(InputError) as caught:
        discrete_gaussian(Fraction(sigma))
    assert caught.value.code == 2810


# ---- draws -----------------------------------------------------------------------------------------------

COUNT = 1 << 19


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return draws(discrete_gaussian(ENGINE), COUNT)


def test_draws_follow_the_gaussian(drawn: np.ndarray) -> None:
    """Kolmogorov against the continuous one, which is within 2^-24 of it."""
    assert stats.kstest(drawn / float(ENGINE), "norm").pvalue > 1e-3


def test_draws_have_its_moments(drawn: np.ndarray) -> None:
    scaled = drawn / float(ENGINE)
    for power, true, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((scaled**power).mean() - true) < 4.5 * math.sqrt(spread / COUNT)


def test_draws_are_symmetric_far_out_too(drawn: np.ndarray) -> None:
    for beyond in (0.0, 1.0, 2.0, 3.0, 4.0):
        left, right = (drawn < -beyond * float(ENGINE)).sum(), (drawn > beyond * float(ENGINE)).sum()
        expected = COUNT * stats.norm.sf(beyond)
        assert abs(left - right) < 4.5 * math.sqrt(left + right + 1)
        assert abs(right - expected) < 4.5 * math.sqrt(expected)


def test_every_residue_is_as_likely(drawn: np.ndarray) -> None:
    """What a lattice would show: the sum of three levels modulo small numbers, k among them."""
    for modulus in (2, 3, 64, 214, 215, 213, 1 << 10):
        counts = np.bincount(drawn % modulus, minlength=modulus)
        assert stats.chisquare(counts).pvalue > 1e-4, modulus


def test_neighbours_are_independent(drawn: np.ndarray) -> None:
    scaled = drawn / float(ENGINE)
    for distance in (1, 2, 4095, 4096):
        assert abs((scaled[:-distance] * scaled[distance:]).mean()) < 4.5 / math.sqrt(COUNT)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_narrow_one_has_its_exact_pmf(seed: int) -> None:
    """Chi-square over every integer with a hundred draws or more, the tails in one."""
    sigma = Fraction(256)
    found = draws(discrete_gaussian(sigma), COUNT, seed)
    masses = np.array([float(mass) for mass in size_masses(sigma**2, 2000)])
    pmf = np.concatenate([masses[:0:-1] / 2, masses[:1], masses[1:] / 2])
    middle = len(pmf) // 2
    kept = 900
    expected = pmf[middle - kept : middle + kept + 1] * COUNT
    counts = np.bincount(np.clip(found, -kept - 1, kept + 1) + kept + 1, minlength=2 * kept + 3)
    rest = (COUNT - expected.sum()) / 2
    observed, expected = counts, np.concatenate([[rest], expected, [rest]])
    enough = expected >= 5
    observed = np.append(observed[enough], observed[~enough].sum())
    expected = np.append(expected[enough], expected[~enough].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_keys_give_unrelated_draws() -> None:
    gaussian = discrete_gaussian(ENGINE)
    one, two = draws(gaussian, 1 << 16, 1), draws(gaussian, 1 << 16, 2)
    assert abs(np.corrcoef(one, two)[0, 1]) < 4.5 / 256
    assert not RunKey().derive("noise").matches(RunKey().derive("noise"))
