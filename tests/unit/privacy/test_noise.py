"""Sources of noise: bytes a draw, numbers used once, the same made ahead or not, a resume that goes on exactly."""

import copy
import hashlib
import hmac
import pickle
import subprocess
import sys
import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from cloister.errors import CloisterError, InputError, InternalError
from cloister.privacy import _stream as stream_module
from cloister.privacy._discrete import DRAW_BYTES, discrete_gaussian
from cloister.privacy._noise import CHUNK_DRAWS, DangerousFloatNoise, NoiseSource, ResumableNoise
from cloister.privacy._run_key import RunKey, StreamState
from cloister.privacy._stream import CHUNK_BYTES, Chunks, Numbers
from cloister.wire import Secret

SIGMA = Fraction(1 << 24)
KEY = bytes(range(32))
COUNTS = [1, 5, CHUNK_DRAWS - 1, CHUNK_DRAWS, CHUNK_DRAWS + 1, 3 * CHUNK_DRAWS + 7]


def key(secret: bytes = KEY) -> RunKey:
    return RunKey(Secret(secret))


def source(**options: Any) -> NoiseSource:
    return NoiseSource(SIGMA, dangerous_key=key(), **options)


def resumable(secret: bytes = KEY, context: bytes = b"run", **options: Any) -> ResumableNoise:
    return ResumableNoise(key(secret), SIGMA, context=context, **options)


def noise_of(held: Any, total: torch.Tensor) -> list[int]:
    noised = total.clone()
    held.add_to(noised)
    return (noised - total).tolist()


def code(act: Any) -> int:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value.code


# ---- the stream ------------------------------------------------------------------------------------------


def blocks(secret: bytes, draw: int, chunk: int, size: int) -> bytes:
    """AES-GCM's keystream by its definition (NIST SP 800-38D, 7.1): the counter blocks from 2 on, each by itself."""
    block = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()  # noqa: S305
    start = draw.to_bytes(8, "big") + chunk.to_bytes(4, "big")
    return block.update(b"".join(start + (2 + i).to_bytes(4, "big") for i in range(-(-size // 16))))[:size]


@pytest.mark.parametrize("draw", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("chunk", [0, 7, 2**32 - 1])
def test_chunks_are_the_encrypted_counters(draw: int, chunk: int) -> None:
    stream = Chunks(Secret(KEY))
    for words in (1, 4, CHUNK_BYTES // 8):
        assert stream.words(draw, chunk, words).tobytes() == blocks(KEY, draw, chunk, 8 * words)


def test_every_key_label_and_context_has_its_own_stream() -> None:
    made = {key().derive(*parts).reveal() for parts in (("a",), ("b",), ("a", b""), ("a", b"b"), ("a", b"b", b""))}
    assert len(made | {key(bytes(32)).derive("a").reveal()}) == 6
    assert not key().derive("ab", b"c").matches(key().derive("a", b"bc"))
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in (b"cloister/privacy/run-key/v1", b"x", b"y"))
    assert key().derive("x", b"y").reveal() == hmac.digest(KEY, framed, hashlib.sha256)


def test_noise_is_the_sampler_over_the_stream() -> None:
    """From the definition: the key's label, the release's number, chunks in order."""
    held = source()
    for number in range(2):
        words = np.frombuffer(
            b"".join(blocks(key().derive("noise").reveal(), number, c, CHUNK_BYTES) for c in range(2)), "<u8"
        )
        count = CHUNK_DRAWS + 9
        expected = np.zeros(count, np.int64)
        discrete_gaussian(SIGMA).add(words[: 4 * count], expected)
        assert held.draw(count).tolist() == expected.tolist()


class Counted:
    """Counts the words that are taken from all streams, by draw and chunk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[tuple[int, int, int]] = []
        honest = Chunks.words

        def words(held: Chunks, draw: int, chunk: int, count: int = CHUNK_BYTES // 8) -> Any:
            self.taken.append((draw, chunk, count))
            return honest(held, draw, chunk, count)

        monkeypatch.setattr(stream_module.Chunks, "words", words)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_draw_takes_32_bytes_whatever_it_gives(count: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    for held in (source(threads=threads), resumable(threads=threads)):
        for _ in range(3):
            counted.taken.clear()
            held.add_to(torch.zeros(count, dtype=torch.int64))
            assert sum(8 * words for _, _, words in counted.taken) == DRAW_BYTES * count == 32 * count


def test_no_place_of_the_stream_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    held = source(threads=2)
    for count in (*COUNTS, 0, *COUNTS):
        held.add_to(torch.zeros(count, dtype=torch.int64))
    used = [(draw, chunk) for draw, chunk, _ in counted.taken]
    assert len(set(used)) == len(used) == 2 * sum(-(-count // CHUNK_DRAWS) for count in COUNTS)


# ---- fresh noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "ahead", [(), COUNTS, (3, 3, 3, 3, 3, 3), (10**5,) * 9, (0, 5, CHUNK_DRAWS), (CHUNK_DRAWS,) * 3]
)
def test_what_was_made_ahead_or_by_threads_changes_nothing(threads: int, ahead: tuple[int, ...]) -> None:
    plain, held = source(), source(threads=threads)
    held.prefetch(*ahead)
    for count in COUNTS:
        assert torch.equal(held.draw(count), plain.draw(count))
        held.prefetch(count)
        held.prefetch(9, count)


def test_what_waits_is_bounded() -> None:
    held = source(ahead_bytes=8 * CHUNK_DRAWS * 2 + 100)
    held.prefetch(*[CHUNK_DRAWS] * 5)
    assert held.waiting_bytes == 8 * CHUNK_DRAWS * 2
    held.draw(CHUNK_DRAWS)
    assert held.waiting_bytes == 8 * CHUNK_DRAWS
    held.prefetch(CHUNK_DRAWS * 9)
    held.prefetch(CHUNK_DRAWS * 9, CHUNK_DRAWS * 9)
    assert held.waiting_bytes == 8 * CHUNK_DRAWS * 2
    none = source(ahead_bytes=0)
    none.prefetch(100)
    assert none.waiting_bytes == 0


def test_every_source_has_its_own_key() -> None:
    assert len({tuple(NoiseSource(SIGMA).draw(4).tolist()) for _ in range(20)}) == 20


def test_releases_never_repeat() -> None:
    held = source()
    made = torch.cat([held.draw(500) for _ in range(40)])
    assert len(set(made.tolist())) > 19_900  # of 2^24 · 2.5 values, with a few met by chance


def test_threads_get_different_noise() -> None:
    held, made = NoiseSource(SIGMA), []
    held.prefetch(*[8] * 50)
    workers = [
        threading.Thread(target=lambda: made.extend(tuple(held.draw(8).tolist()) for _ in range(50))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(made)) == 200


def test_noise_goes_onto_a_sum_in_place() -> None:
    total = torch.arange(10_000) * (1 << 33)
    before, address = total.clone(), total.data_ptr()
    source().add_to(total)
    assert total.data_ptr() == address
    assert torch.equal(total - before, source().draw(10_000))
    part = torch.zeros(100, dtype=torch.int64)
    source().add_to(part[20:50])
    assert part[:20].abs().sum() == part[50:].abs().sum() == 0
    assert torch.equal(part[20:50], source().draw(30))


BAD = [
    torch.zeros(4, dtype=torch.int32),
    torch.zeros(4),
    torch.zeros(2, 2, dtype=torch.int64),
    torch.zeros(8, dtype=torch.int64)[::2],
    torch.tensor(3),
]


@pytest.mark.parametrize("total", BAD, ids=["int32", "float", "two axes", "strided", "none"])
def test_what_is_no_vector_of_integers_gets_no_noise(total: torch.Tensor) -> None:
    for held in (source(), resumable(), DangerousFloatNoise(SIGMA)):
        assert code(lambda held=held: held.add_to(total)) == 2810
        assert getattr(held, "state", StreamState(0, "")).position == 0  # nothing was used up


def test_a_number_of_draws_is_not_negative() -> None:
    assert code(lambda: source().draw(-1)) == code(lambda: source().prefetch(-1)) == 2810
    assert source().draw(0).shape == (0,)


@pytest.mark.parametrize("sigma", [0, 1, 2**35])
def test_another_sigma_is_refused(sigma: int) -> None:
    assert code(lambda: NoiseSource(Fraction(sigma))) == 2810
    assert code(lambda: ResumableNoise(key(), Fraction(sigma), context=b"")) == 2810


def test_numbers_run_out_and_never_wrap() -> None:
    numbers = Numbers(2**64 - 1)
    assert numbers.take() == 2**64 - 1
    for _ in range(2):
        with pytest.raises(InternalError) as caught:
            numbers.take()
        assert caught.value.code == 9810


def test_the_distance_is_the_samplers() -> None:
    for held in (source(), resumable()):
        assert (held.sigma, held.distance) == (SIGMA, discrete_gaussian(SIGMA).distance)


# ---- noise that a run goes on with -----------------------------------------------------------------------

SUMS = [torch.full((300,), value) for value in (0, 0, 5, -(1 << 40), 0)]


def test_a_resumed_run_has_the_same_noise() -> None:
    held = resumable()
    first = [noise_of(held, total) for total in SUMS[:2]]
    saved = StreamState(*held.state)
    rest = [noise_of(held, total) for total in SUMS[2:]]
    again = resumable(state=tuple(saved), threads=3)
    assert [noise_of(again, total) for total in SUMS[2:]] == rest
    assert again.state == held.state
    assert [noise_of(resumable(), total) for total in SUMS[:1]] == first[:1]


def test_equal_sums_of_two_releases_have_different_noise() -> None:
    """Two empty batches: equal noise would say that they were."""
    held = resumable()
    made = [noise_of(held, torch.zeros(8, dtype=torch.int64)) for _ in range(30)]
    assert len(set(map(tuple, made))) == 30


def test_the_sum_is_bound_whole() -> None:
    """One bit anywhere, or one entry more, and the noise has nothing to do with the other."""
    total = torch.arange(20_000)
    made = noise_of(resumable(), total)
    for place in (0, 1, 4095, 4096, 19_999):
        for bit in (0, 40, 63):
            other = total.clone()
            other[place] ^= -(1 << 63) if bit == 63 else 1 << bit
            found = noise_of(resumable(), other)
            assert sum(a == b for a, b in zip(found, made, strict=True)) < 5
            assert abs(np.corrcoef(found, made)[0, 1]) < 4.5 / 141
    longer = noise_of(resumable(), torch.cat([total, torch.zeros(1, dtype=torch.int64)]))
    assert sum(a == b for a, b in zip(longer[:-1], made, strict=True)) < 5


def test_key_context_and_sigma_are_bound() -> None:
    total = torch.zeros(100, dtype=torch.int64)
    found = {tuple(noise_of(held, total)) for held in (resumable(), resumable(bytes(32)), resumable(context=b"other"))}
    found.add(tuple(noise_of(ResumableNoise(key(), SIGMA + 1, context=b"run"), total)))
    found.add(tuple(noise_of(source(), total)))
    assert len(found) == 5


def test_bound_noise_is_gaussian() -> None:
    made = np.array(noise_of(resumable(), torch.zeros(1 << 17, dtype=torch.int64))) / float(SIGMA)
    assert stats.kstest(made, "norm").pvalue > 1e-3


def test_an_empty_sum_is_a_release_too() -> None:
    held = resumable()
    held.add_to(torch.zeros(0, dtype=torch.int64))
    assert held.state.position == 1


# ---- what may not get out --------------------------------------------------------------------------------


def test_a_state_holds_no_key() -> None:
    held = resumable()
    noise_of(held, SUMS[0])
    text = repr(held.state)
    root = key()
    secrets = [KEY, *(root.derive(label).reveal() for label in ("noise", "sampling", "state"))]
    secrets += [root.derive(label, *held._context).reveal() for label in ("noise binding", "bound noise")]
    assert not any(secret.hex() in text for secret in secrets)
    assert [type(part) for part in held.state] == [int, str]
    assert len(held.state.proof) == 64


def test_nothing_secret_is_printed_copied_or_pickled() -> None:
    for held in (key(), source(), resumable()):
        assert KEY.hex() not in repr(held)
        for act in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                act(held)


def test_a_wrapped_key_opens_under_its_key_only() -> None:
    under = Secret(bytes(32))
    wrapped = key().wrap(under)
    assert KEY not in wrapped
    assert wrapped != key().wrap(under)
    assert RunKey.unwrap(wrapped, under).derive("x").matches(key().derive("x"))
    assert code(lambda: RunKey.unwrap(wrapped, Secret(b"\1" * 32))) == 5810
    for place in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[place] ^= 1
        assert code(lambda changed=changed: RunKey.unwrap(bytes(changed), under)) == 5810
    for cut in (wrapped[:-1], wrapped + b"\0", b""):
        assert code(lambda cut=cut: RunKey.unwrap(cut, under)) == 2812


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(InputError) as caught:
        RunKey(Secret(bytes(size)))
    assert caught.value.code == 2812


@pytest.mark.parametrize(
    "saved", [None, 3, (), (1,), (1, 2, 3), ("x", "y"), (-1, "00"), (1 << 64, "00"), (1.5, "00"), {}]
)
def test_what_is_no_state_is_refused(saved: Any) -> None:
    if saved is not None:
        assert code(lambda: resumable(state=saved)) == 2812
    assert resumable(state=None).state.position == 0


# ---- the twin --------------------------------------------------------------------------------------------


def test_float_noise_states_no_guarantee() -> None:
    held = DangerousFloatNoise(SIGMA, generator=torch.Generator().manual_seed(3))
    total = torch.zeros(1 << 16, dtype=torch.int64)
    held.add_to(total)
    assert held.distance is None
    assert stats.kstest(total.numpy() / float(SIGMA), "norm").pvalue > 1e-3


FORKED = """
import os, sys, torch
from fractions import Fraction
from cloister.errors import InternalError
from cloister.privacy._noise import NoiseSource, ResumableNoise
from cloister.privacy._run_key import RunKey

held, bound = NoiseSource(Fraction(2**24)), ResumableNoise(RunKey(), Fraction(2**24), context=b"")
held.draw(3)
held.prefetch(3)
total = torch.zeros(3, dtype=torch.int64)
acts = [lambda: held.draw(3), lambda: held.prefetch(3), lambda: held.add_to(total), lambda: bound.add_to(total)]
def refused():
    for act in acts:
        try:
            act()
        except InternalError as error:
            if error.code == 9810 and "fork" in str(error) and not total.any():
                continue
        return 1
    return 0
child = os.fork()
if child == 0:
    os._exit(refused())
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
held.draw(3)
bound.add_to(total)
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_gets_no_noise() -> None:
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=100, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
