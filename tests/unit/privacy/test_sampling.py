"""Poisson samples: exact probabilities, independence, room with an exact tail, the same again for the same step."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cloister.errors import CloisterError
from cloister.privacy._binomial import capacity, overflow
from cloister.privacy._groups import Groups
from cloister.privacy._run_key import RunKey
from cloister.privacy._sampling import TAIL, PoissonSampler
from cloister.privacy._stream import CHUNK_BYTES, Chunks
from cloister.wire import Secret

KEY = RunKey(Secret(bytes(range(32))))
CHUNK_WORDS = CHUNK_BYTES // 8


def sampler(count: int = 1000, probability: Any = Fraction(1, 20), **options: Any) -> PoissonSampler:
    return PoissonSampler(count, probability=probability, key=options.pop("key", KEY), **options)


def code(act: Any) -> int:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value.code


# ---- who is in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, CHUNK_WORDS - 1, CHUNK_WORDS, CHUNK_WORDS + 1, 3 * CHUNK_WORDS + 5])
def test_a_sample_is_a_word_a_record_against_a_threshold(count: int) -> None:
    probability = Fraction(3, 7)
    stream, threshold = Chunks(KEY.derive("sampling")), int(probability * 2**64)
    held = sampler(count, probability)
    for step in (0, 5, 2**64 - 1):
        chunks = range(-(-count // CHUNK_WORDS))
        words = [int(word) for chunk in chunks for word in stream.words(step, chunk)][:count]
        assert held.sample(step).tolist() == [place for place, word in enumerate(words) if word < threshold]


@pytest.mark.parametrize("probability", [Fraction(1, 3), Fraction(64, 50_000), Fraction(1, 2**64), Fraction(1)])
def test_the_probability_is_exact_and_never_more_than_was_asked_for(probability: Fraction) -> None:
    held = sampler(10, probability, capacity=10)
    assert 0 <= probability - held.probability < Fraction(1, 2**64)
    assert held.probability.denominator <= 2**64
    assert held.expected == 10 * probability


class Planted:
    """Words of our choice in place of the stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, words: list[int]) -> None:
        def planted(_held: Chunks, _step: int, _chunk: int, count: int = CHUNK_WORDS) -> np.ndarray:
            return np.array(words[:count], np.uint64)

        monkeypatch.setattr(Chunks, "words", planted)


def test_the_last_word_that_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    threshold = 2**64 // 3
    Planted(monkeypatch, [threshold, threshold - 1, 0, 2**64 - 1, threshold + 1])
    assert sampler(5, Fraction(1, 3), capacity=5).sample(0).tolist() == [1, 2]
    Planted(monkeypatch, [1, 0, 2**64 - 1])
    assert sampler(3, Fraction(1, 2**64), capacity=3).sample(0).tolist() == [1]
    assert sampler(3, Fraction(1), capacity=3).sample(0).tolist() == [0, 1, 2]


def test_sizes_are_binomial() -> None:
    """Chi-square of the batch's size: it is not fixed, and not the size of a shuffle."""
    held, steps = sampler(200, Fraction(1, 10)), 4000
    sizes = np.bincount([len(held.sample(step)) for step in range(steps)], minlength=60)[:60]
    expected = stats.binom.pmf(np.arange(60), 200, 0.1) * steps
    low, high = 10, 31
    observed = [sizes[:low].sum(), *sizes[low:high], sizes[high:].sum()]
    expected = [expected[:low].sum(), *expected[low:high], expected[high:].sum()]
    assert stats.chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-3


def test_every_record_and_every_pair_is_as_likely() -> None:
    held, steps = sampler(40, Fraction(1, 4)), 6000
    drawn = np.zeros((steps, 40))
    for step in range(steps):
        drawn[step, held.sample(step)] = 1
    assert (abs(drawn.mean(axis=0) - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / steps)).all()
    both = drawn.T @ drawn / steps
    np.fill_diagonal(both, 1 / 16)
    assert (abs(both - 1 / 16) < 5 * math.sqrt(1 / 16 * 15 / 16 / steps)).all()


def test_steps_are_independent() -> None:
    """In a shuffled epoch who was in one batch is in no other; here that says nothing."""
    held, steps = sampler(500, Fraction(1, 5)), 400
    drawn = np.zeros((steps, 500))
    for step in range(steps):
        drawn[step, held.sample(step)] = 1
    together = (drawn[1:] * drawn[:-1]).mean()
    assert abs(together - 0.04) < 4.5 * math.sqrt(0.04 * 0.96 / drawn[1:].size)


def test_the_same_step_is_the_same_sample_and_keys_differ() -> None:
    one, again = sampler(), sampler()
    assert all((one.sample(step) == again.sample(step)).all() for step in (9, 3, 3, 0))
    assert len({tuple(one.sample(step)) for step in range(50)}) == 50
    assert tuple(sampler(key=RunKey()).sample(0)) != tuple(one.sample(0))


@pytest.mark.parametrize("step", [-1, 2**64])
def test_a_step_has_64_bits(step: int) -> None:
    assert code(lambda: sampler().sample(step)) == 2811


# ---- room ------------------------------------------------------------------------------------------------


def exact_tail(count: int, probability: Fraction, most: int) -> Fraction:
    return sum(
        (math.comb(count, j) * probability**j * (1 - probability) ** (count - j) for j in range(most + 1, count + 1)),
        Fraction(0),
    )


@pytest.mark.parametrize(("count", "probability"), [(1, Fraction(1, 2)), (30, Fraction(1, 7)), (300, Fraction(31, 64))])
def test_the_tail_is_above_the_exact_one_by_almost_nothing(count: int, probability: Fraction) -> None:
    for most in range(0, count, max(1, count // 20)):
        true = exact_tail(count, probability, most)
        if true >= Fraction(1, 10**58):
            assert true <= overflow(count, probability, most) <= min(1, true * (1 + Fraction(1, 10**15)))
        else:
            assert overflow(count, probability, most) >= true


@pytest.mark.parametrize(("count", "batch"), [(50_000, 64), (50_000, 256), (10**6, 4096), (10**9, 1000)])
def test_the_tail_agrees_with_another_library(count: int, batch: int) -> None:
    probability = Fraction(batch, count)
    for most in (batch, batch + 3 * math.isqrt(batch), batch + 8 * math.isqrt(batch)):
        assert float(overflow(count, probability, most)) == pytest.approx(
            stats.binom.sf(most, count, batch / count), 1e-6
        )


@pytest.mark.parametrize(
    ("count", "batch"), [(1, 1), (2, 1), (60, 3), (60, 59), (500, 100), (50_000, 250), (10**6, 1000)]
)
@pytest.mark.parametrize("tail", [Fraction(1, 2), Fraction(1, 1000), TAIL, Fraction(1, 10**40)])
def test_capacity_is_the_least_that_holds(count: int, batch: int, tail: Fraction) -> None:
    found = capacity(count, Fraction(batch, count), tail=tail)
    assert overflow(count, Fraction(batch, count), found) <= tail
    assert found == 0 or overflow(count, Fraction(batch, count), found - 1) > tail


def test_certain_and_impossible_tails() -> None:
    assert overflow(10, Fraction(1), 9) == 1
    assert overflow(10, Fraction(1), 10) == overflow(10, Fraction(1, 2), 11) == 0
    assert capacity(10, Fraction(1), tail=TAIL) == 10


def test_what_does_not_fit_is_left_out_and_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    held = sampler(100, Fraction(1, 100), tail=Fraction(1, 10))
    assert Fraction(1, 100) < held.overflow <= Fraction(1, 10)
    Planted(monkeypatch, [0] * 100)
    assert held.sample(0).tolist() == list(range(held.capacity))


def test_a_capacity_that_is_too_small_is_refused() -> None:
    least = sampler().capacity
    assert sampler(capacity=least).overflow == sampler().overflow
    assert sampler(capacity=least + 50).overflow < sampler().overflow
    assert sampler(capacity=10**9).overflow == 0
    assert code(lambda: sampler(capacity=least - 1)) == code(lambda: sampler(capacity=-1)) == 2811


@pytest.mark.parametrize(
    "given",
    [
        {"count": 0},
        {"probability": Fraction(0)},
        {"probability": Fraction(-1, 2)},
        {"probability": Fraction(3, 2)},
        {"probability": Fraction(1, 2**65)},
        {"tail": Fraction(0)},
        {"tail": Fraction(1)},
        {"tail": Fraction(1, 10**51)},
    ],
    ids=str,
)
def test_another_sampling_is_refused(given: dict[str, Any]) -> None:
    assert code(lambda: sampler(**given)) == 2811


# ---- groups ----------------------------------------------------------------------------------------------


def test_a_group_has_all_its_rows() -> None:
    labels = [7, "a", 7, ("b", 1), "a", 7, None]
    groups = Groups.of(labels, most_rows=3)
    assert [groups.rows(number).tolist() for number in range(len(groups))] == [[0, 2, 5], [1, 4], [3], [6]]
    assert (groups.total_rows, repr(groups)) == (7, "<Groups 4 of at most 3 rows>")


def test_a_group_beyond_the_bound_is_refused_or_cut() -> None:
    labels = ["ann"] * 5 + ["bob"]
    with pytest.raises(CloisterError) as caught:
        Groups.of(labels, most_rows=4)
    assert caught.value.code == 3811
    assert "ann" not in str(caught.value.as_json())  # neither whose
    assert "5" not in str(caught.value.as_json()["expected"])  # nor how many
    cut = Groups.of(labels, most_rows=2, beyond="truncate")
    assert [cut.rows(number).tolist() for number in range(2)] == [[0, 1], [5]]
    assert cut.total_rows == 6


def test_what_a_group_keeps_depends_on_no_other() -> None:
    one = Groups.of("aabbb", most_rows=2, beyond="truncate")
    two = Groups.of("aacccccccbbb", most_rows=2, beyond="truncate")
    assert one.rows(0).tolist() == two.rows(0).tolist()
    assert len(two.rows(2)) == len(one.rows(1)) == 2


@pytest.mark.parametrize(("labels", "most"), [([], 1), (["a"], 0), (["a"], -1)])
def test_groups_have_rows(labels: list[str], most: int) -> None:
    assert code(lambda: Groups.of(labels, most_rows=most)) == 2811
