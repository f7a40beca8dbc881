"""Poisson sampling: in every step each record, or group, is in by itself, by 64 bits of its own.

* A record is in where its word of the stream is below ``T = floor(2^64 q)``. So it is in with probability exactly
  ``T/2^64``, which is q or less by under 2^-64; :attr:`PoissonSampler.probability` is that fraction. Less is never
  worse: who samples less mixes who samples more with somebody who ignores the record.
* A step's words are the stream's of the step's number. So a resumed run samples what it would have sampled, whatever
  was prepared ahead, and no step's words are another's.
* A batch has room for ``capacity`` records: a public number, so that a batch's shape says nothing of who was sampled.
  Where more are drawn, those of highest number are left out; that happens with the probability ``overflow`` at most,
  and a run of T steps differs from the ideal by ``T · overflow`` in total variation, which is charged to δ. So which
  ones are left out does not matter.

The guarantee supposes that nobody learns who was sampled. All words are made and compared whatever comes of it, but who
watches which records are read from storage, or how long that takes, learns something: keep the data in the enclave.

How many records there are is treated as public.

>>> sampler = PoissonSampler(1000, probability=Fraction(1, 20), key=RunKey())
>>> sampler.expected, sampler.capacity, sampler.overflow < Fraction(1, 2**50)
(Fraction(50, 1), 113, True)
>>> bool((sampler.sample(3) == sampler.sample(3)).all())
True

*Source*: B. Balle, G. Barthe, M. Gaboardi, "Privacy Amplification by Subsampling", NeurIPS 2018, for Poisson sampling.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy._binomial import capacity, overflow
from cloister.privacy._run_key import POSITIONS, RunKey
from cloister.privacy._stream import CHUNK_BYTES, Chunks

__all__ = ["TAIL", "PoissonSampler"]

TAIL = Fraction(1, 1 << 50)
"""With this probability at most a step draws more than fit: 10^4 steps at ε = 8 cost 3·10^-8 of δ."""

_LEAST_TAIL = Fraction(1, 10**50)
_WORDS = 1 << 64
_CHUNK_WORDS = CHUNK_BYTES // 8


class PoissonSampler:
    """Draws each of ``count`` records or groups by itself, the same again for the same step and key.

    Args:
        count: Records or groups; public.
        probability: q, above 0 and at most 1, exactly.
        key: The run's.
        capacity: Room in a batch; the least that ``tail`` allows when left out.
        tail: Greatest probability that a step draws more than fit.

    Attributes:
        count: As given.
        probability: The one that is drawn with: ``floor(2^64 q) / 2^64``.
        expected: ``q · count``: what sums are divided by. Never the number that was drawn.
        capacity: Room in a batch.
        overflow: Probability that more are drawn than that, at most.

    Raises:
        InputError: 2811 when a number is out of range, or the capacity is exceeded more often than ``tail`` says.
    """

    def __init__(
        self,
        count: int,
        *,
        probability: Fraction,
        key: RunKey,
        capacity: int | None = None,
        tail: Fraction = TAIL,
    ) -> None:
        threshold = int(probability * _WORDS) if 0 < probability <= 1 else 0
        if count < 1 or not threshold:
            raise InputError(
                2811, expected="a record, and a probability from 2^-64 to 1", got=f"{count}, {float(probability)}"
            )
        if not _LEAST_TAIL <= tail < 1:
            raise InputError(2811, expected="a tail probability from 10^-50 on, below 1", got=float(tail))
        self.count = count
        self.expected = probability * count
        self.probability = Fraction(threshold, _WORDS)
        self.capacity = _least(count, self.probability, tail) if capacity is None else min(capacity, count)
        self.overflow = overflow(count, self.probability, self.capacity) if self.capacity >= 0 else Fraction(1)
        if self.overflow > tail:
            raise InputError(
                2811,
                "a batch has too little room",
                expected=f"a capacity of {_least(count, self.probability, tail)} or more",
                got=capacity,
            )
        self._last = np.uint64(threshold - 1)
        self._key = key.derive("sampling")

    def sample(self, step: int) -> NDArray[np.int64]:
        """Who is in, ascending: at most ``capacity`` numbers below ``count``. Secret.

        Args:
            step: From 0 on.

        Raises:
            InputError: 2811 when the step is outside 64 bits.
        """
        if not 0 <= step < POSITIONS:
            raise InputError(2811, expected="a step of 64 bits", got=step)
        stream = Chunks(self._key)
        found: list[NDArray[np.int64]] = []
        for chunk, start in enumerate(range(0, self.count, _CHUNK_WORDS)):
            words = stream.words(step, chunk, min(_CHUNK_WORDS, self.count - start))
            found.append(np.flatnonzero(words <= self._last) + start)
        return np.concatenate(found)[: self.capacity]


def _least(count: int, probability: Fraction, tail: Fraction) -> int:
    return capacity(count, probability, tail=tail)
