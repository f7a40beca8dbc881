"""Noise that does not hide: used twice, guessed, taken off again, rounded away, or shown by its timing.

First what an attacker gains where a rule is broken, then that it cannot be.
"""

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from cloister._compiled import _OPTIONS
from cloister.errors import CloisterError
from cloister.privacy import _discrete
from cloister.privacy._discrete import discrete_gaussian
from cloister.privacy._grid import GRID_SIGMA, Grid
from cloister.privacy._noise import CHUNK_DRAWS, DangerousFloatNoise, NoiseSource, ResumableNoise
from cloister.privacy._run_key import RunKey, StreamState
from cloister.privacy._sampling import PoissonSampler
from cloister.privacy._stream import Numbers
from cloister.wire import Secret

SIGMA = GRID_SIGMA
COUNT = 5000
ORDINARY = float(SIGMA) / 100  # far below what honest noise makes of one entry


def refused(act: Callable[[], object], code: int) -> None:
    with pytest.raises(CloisterError) as caught:
        act()
    assert caught.value.code == code


def gradient(seed: int = 1) -> Tensor:
    return torch.randint(-(1 << 20), 1 << 20, (COUNT,), generator=torch.Generator().manual_seed(seed))


def released(noise: Any, total: Tensor) -> Tensor:
    out = total.clone()
    noise.add_to(out)
    return out


# ---- noise that comes twice ------------------------------------------------------------------------------


def test_why_noise_may_not_come_twice() -> None:
    """Two sums under one noise: their difference is bare, and the second sum may be one record's alone."""
    key = RunKey()
    one, two = (released(NoiseSource(SIGMA, dangerous_key=key), gradient(seed)) for seed in (1, 2))
    assert torch.equal(one - two, gradient(1) - gradient(2))


def test_a_run_that_is_started_again_with_another_setting() -> None:
    """A resume under another clip, data set or thread count: same step, other sums. Nothing cancels."""
    key = RunKey()
    state = ResumableNoise(key, SIGMA, context=b"run").state
    for change in (
        torch.ones(COUNT, dtype=torch.int64),
        torch.zeros(COUNT, dtype=torch.int64).index_fill_(0, torch.tensor([7]), 1),
    ):
        one = released(ResumableNoise(key, SIGMA, context=b"run", state=state), gradient())
        two = released(ResumableNoise(key, SIGMA, context=b"run", state=state), gradient() + change)
        left = (one - two - change).abs().double()
        assert left.mean() > float(SIGMA)  # of two independent draws: 1.128 σ
        assert (left < ORDINARY).float().mean() < 0.02


def test_a_run_that_is_rolled_back_again_and_again() -> None:
    """Fresh noise each time would average out; the same release says nothing new."""
    key = RunKey()
    fresh = torch.stack([released(NoiseSource(SIGMA), gradient()) for _ in range(64)]).double().mean(dim=0)
    assert (fresh - gradient()).std() < float(SIGMA) / 7  # why: an eighth of the noise is left
    first = ResumableNoise(key, SIGMA, context=b"run")
    saved = first.state
    again = [released(ResumableNoise(key, SIGMA, context=b"run", state=saved), gradient()) for _ in range(4)]
    assert all(torch.equal(release, again[0]) for release in again)


def test_two_empty_batches() -> None:
    """Equal noise on equal sums of two steps would show that both were empty."""
    noise = ResumableNoise(RunKey(), SIGMA, context=b"")
    one, two = (released(noise, torch.zeros(COUNT, dtype=torch.int64)) for _ in range(2))
    assert (one == two).float().mean() < 0.01


def test_a_position_that_is_put_back() -> None:
    key = RunKey()
    noise = ResumableNoise(key, SIGMA, context=b"run")
    for _ in range(3):
        released(noise, gradient())
    position, proof = noise.state
    for changed in ((0, proof), (position - 1, proof), (position, proof[::-1]), (position, ""), (position, "é")):
        refused(lambda changed=changed: ResumableNoise(key, SIGMA, context=b"run", state=changed), 5810)
    for other in ({"context": b"walk"}, {"sigma": SIGMA + 1}, {"key": RunKey()}):
        terms = {"key": key, "sigma": SIGMA, "context": b"run"} | other
        refused(
            lambda terms=terms: ResumableNoise(terms.pop("key"), terms.pop("sigma"), state=noise.state, **terms), 5810
        )
    assert ResumableNoise(key, SIGMA, context=b"run", state=noise.state).state == noise.state


def test_a_source_that_draws_ahead_cannot_be_resumed() -> None:
    """It has no state at all: whoever starts again has another key."""
    source = NoiseSource(SIGMA)
    assert not hasattr(source, "state")
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            act(source)
    assert not torch.equal(NoiseSource(SIGMA).draw(4), NoiseSource(SIGMA).draw(4))


def test_what_waits_is_given_once() -> None:
    source = NoiseSource(SIGMA)
    source.prefetch(*[CHUNK_DRAWS + 5] * 4)
    made = [tuple(source.draw(count).tolist()) for count in (10, CHUNK_DRAWS + 5, 3, CHUNK_DRAWS * 2)]
    flat = [value for draws in made for value in draws]
    assert len(set(flat)) > 0.999 * len(flat)
    assert source.waiting_bytes == 0


def test_a_counter_that_wraps() -> None:
    source = NoiseSource(SIGMA)
    source._numbers = Numbers(2**64 - 1)
    source.draw(1)
    refused(lambda: source.draw(1), 9810)
    source._numbers = Numbers(2**64 - 1)
    source.prefetch(5, 5, 5)
    source.draw(5)
    refused(lambda: source.draw(5), 9810)


FORKED = """
import os, sys, torch
from fractions import Fraction
from cloister.errors import InternalError
from cloister.privacy._noise import NoiseSource

source = NoiseSource(Fraction(2**24))
source.prefetch(5)
child = os.fork()
if child == 0:
    try:
        source.draw(5)
    except InternalError as error:
        os._exit(0 if error.code == 9810 else 2)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork() -> None:
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=100, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()


# ---- noise that is known ---------------------------------------------------------------------------------


def test_why_torchs_generator_is_no_source() -> None:
    """Who knows or sets the seed takes the noise off."""
    out = []
    for total in (gradient(), torch.zeros(COUNT, dtype=torch.int64)):
        torch.manual_seed(7)
        out.append(released(DangerousFloatNoise(SIGMA), total))
    assert torch.equal(out[0] - out[1], gradient())


def test_no_seed_reaches_the_noise() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        drawn.append(
            [
                NoiseSource(SIGMA).draw(4).tolist(),
                PoissonSampler(50, probability=Fraction(1, 2), key=RunKey()).sample(0).tolist(),
            ]
        )
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_sampling_and_noise_of_one_key_share_nothing() -> None:
    """Who sees which records were read learns no bit of the noise's stream."""
    key = RunKey(Secret(bytes(range(32))))
    derived = {
        key.derive(label, *context).reveal()
        for label in ("noise", "sampling", "state", "noise binding", "bound noise")
        for context in ((), (b"run",))
    }
    assert len(derived) == 10


def test_what_is_saved_does_not_take_the_noise_off() -> None:
    key = RunKey()
    noise = ResumableNoise(key, SIGMA, context=b"run")
    out = released(noise, gradient())
    state = noise.state
    assert set(state._fields) == {"position", "proof"}
    for guess in (bytes.fromhex(state.proof), bytes(32)):
        taken = ResumableNoise(RunKey(Secret(guess)), SIGMA, context=b"run")
        refused(lambda taken=taken, guess=guess: StreamState.read(state, RunKey(Secret(guess))), 5810)
        probe = torch.zeros(COUNT, dtype=torch.int64)
        assert (out - released(taken, gradient()) - probe).abs().double().mean() > float(SIGMA)
    assert "RunKey" in repr(key)
    assert len(repr(key)) < 20


# ---- noise that is too small, or of another grid ---------------------------------------------------------


def test_a_row_that_is_no_number_counts_for_nothing() -> None:
    """Not a number, rounded to an integer, is -2^63: one record would be seen through all noise."""
    grid = Grid(clip=1, dimension=3, noise_multiplier=1)
    rows = torch.tensor([[1.0, torch.nan, 0.0], [torch.inf, 0.0, 1.0], [0.1, 0.2, 0.3]])
    factors = grid.factors(rows.double().square().sum(dim=1))
    assert factors[:2].tolist() == [0.0, 0.0]
    assert factors[2] > 0


def test_rounding_cannot_push_a_row_beyond_the_clip() -> None:
    """Clipped first and rounded then, a row of equal entries grows by up to √P/2: the radius leaves room for it."""
    dimension = 250_000
    grids = (Grid(clip=1, dimension=dimension, noise_multiplier=Fraction(9000 + i, 1000)) for i in range(3000))
    grid = next(grid for grid in grids if 0.5 < grid.sensitivity / 500 % 1 < 0.51)
    naive = round(grid.sensitivity / 500)
    assert naive**2 * dimension > grid.sensitivity**2  # why
    row = torch.ones(1, dimension, dtype=torch.float64)
    value = int((row * grid.factors(row.square().sum(dim=1))[:, None]).round()[0, 0])
    assert value**2 * dimension <= grid.sensitivity**2


def test_the_noise_is_as_wide_as_the_grid_says() -> None:
    grid = Grid(clip="0.3", dimension=100, noise_multiplier="1.7")
    made = NoiseSource(grid.sigma).draw(1 << 16).double()
    measured = made.std().item() * float(grid.step)
    assert abs(measured / (0.3 * 1.7) - 1) < 4.5 / (1 << 17) ** 0.5


# ---- noise that shows by how it is made ------------------------------------------------------------------


def decided_by_secrets(function: Callable[..., Any], *arguments: Any) -> tuple[list[str], int]:
    """Jumps of a compiled function that follow from what it loaded, and jumps that codegen added to those it was given.

    Compiled anew with the room's options: what numba kept on disk cannot be looked into.
    """
    compiled: Any = njit(**_OPTIONS)(function)
    compiled(*arguments)
    (signature,) = compiled.signatures
    body = re.search(r"^define .*?^}", compiled.inspect_llvm(signature), re.MULTILINE | re.DOTALL)
    assert body is not None
    steps = re.findall(r"^\s*(%\S+) = (.*)$", body.group(), re.MULTILINE)
    secret = {name for name, made in steps if made.startswith("load ")}
    while True:
        more = {name for name, made in steps if set(re.findall(r"%[\w.]+", made)) & secret} - secret
        if not more:
            break
        secret |= more
    decided = re.findall(r"(?:br i1|switch i\d+) (%[\w.]+)", body.group())
    assembly = compiled.inspect_asm(signature).split(".Lfunc_end0")[0]
    jumps = re.findall(r"^\s+(?:j(?!mp)[a-z]+|b\.[a-z]+|t?cbn?z|tbn?z)\s", assembly, re.MULTILINE)
    return [name for name in decided if name in secret], len(jumps) - len(decided)


def test_the_sampler_branches_on_no_secret() -> None:
    table = discrete_gaussian(SIGMA).table
    arrays = np.zeros(32, np.uint64), table.high, table.packed, np.zeros(8, np.int64)
    dispatcher: Any = _discrete._add_beside
    addresses = (array.ctypes.data for array in arrays)
    secret, added = decided_by_secrets(dispatcher.py_func, *addresses, table.bits, 214, 8)
    assert secret == []
    assert added <= 0


def test_a_sampler_that_branches_would_be_seen() -> None:
    def branching(words: Any, total: Any) -> None:
        for i in range(total.shape[0]):
            while words[i] > 5:
                words[i] >>= 1
                total[i] += 1

    assert decided_by_secrets(branching, np.zeros(3, np.uint64), np.zeros(3, np.int64))[0]
