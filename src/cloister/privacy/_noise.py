"""The noise that a release is hidden by: discrete Gaussians, added to integer sums in place.

Noise that is used twice hides nothing: the difference of two releases is the difference of what they hide. So

* a :class:`NoiseSource` has a key that is drawn when it is made and never leaves the process. After a crash, a resume,
  a fork or a rolled-back checkpoint there is another key. Each release takes the next number; what waits ahead for
  it was made by a thread, and is the same as if it were made when it is asked for.
* a :class:`ResumableNoise` has a key that is kept, so a number may come again: after a crash the same step is done
  again. Its noise is therefore bound to what it hides: its key follows from the kept one, the release's number, the
  context and the *exact integers* of the sum (as RFC 6979 does it for signatures). The same sum gets the same noise,
  so the same bytes go out a second time and say nothing new; another sum (another thread count rounded differently, a
  setting was changed, a record was withdrawn) gets noise that is independent of the first. It cannot be made ahead.

A release that was made twice with two different sums is two releases, and two are to be charged, from one batch: as
one with ``1/√2`` of the noise at the same sampling probability.

Each draw is of :class:`cloister.privacy._discrete.DiscreteGaussian`, takes 32 bytes of stream whatever it gives, and is
within ``distance`` of the ideal; whoever makes n draws charges ``n · distance`` to δ.

>>> total = torch.zeros(3, dtype=torch.int64)
>>> NoiseSource(Fraction(2**24)).add_to(total)
>>> bool((total != 0).any())
True
"""

from __future__ import annotations

import hmac
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.poly1305 import Poly1305
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import InputError
from cloister.privacy._discrete import DRAW_BYTES, DiscreteGaussian, discrete_gaussian
from cloister.privacy._run_key import RunKey, StreamState
from cloister.privacy._stream import CHUNK_BYTES, Chunks, Numbers
from cloister.privacy._threads import share
from cloister.wire import Secret

__all__ = ["DangerousFloatNoise", "Noise", "NoiseSource", "ResumableNoise"]

Integers = NDArray[np.int64]

CHUNK_DRAWS = CHUNK_BYTES // DRAW_BYTES
_AHEAD_BYTES = 1 << 26
_AHEAD_CHUNK_BYTES = 8 * CHUNK_DRAWS


class Noise(Protocol):
    """What adds noise to a sum before it is released.

    Attributes:
        sigma: Its standard deviation, in steps of the grid.
        distance: Total variation distance of one draw from the discrete Gaussian; None where nothing is known, and then
            no guarantee may be stated.
    """

    @property
    def sigma(self) -> Fraction: ...

    @property
    def distance(self) -> Fraction | None: ...

    def add_to(self, total: Tensor) -> None:
        """Adds a draw to each of ``total``, ``(P,)`` int64, in place: one release."""
        ...

    def prefetch(self, *counts: int) -> None:
        """May begin to make the noise of the next releases, of so many draws each; changes nothing of it."""
        ...


class NoiseSource:
    """Fresh noise under a key of this process. Safe to use from several threads; refuses to work in a fork.

    Args:
        sigma: In steps of the grid, 2^8 to 2^34.
        ahead_bytes: How much may wait that was made ahead, 8 bytes a draw; what is beyond is made when asked for.
        threads: That make what is asked for; torch's number when left out.
        dangerous_key: For tests only: a key that was used before makes noise that was used before.

    Raises:
        InputError: 2810 when σ is out of range.
    """

    def __init__(
        self,
        sigma: Fraction,
        *,
        ahead_bytes: int = _AHEAD_BYTES,
        threads: int | None = None,
        dangerous_key: RunKey | None = None,
    ) -> None:
        self._gaussian = discrete_gaussian(Fraction(sigma))
        self._key = (dangerous_key or RunKey()).derive("noise")
        self._numbers = Numbers()
        self._ahead_bytes, self._threads = ahead_bytes, threads
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, int, Future[Integers]]] = deque()  # number, bytes, draws
        self._thread: ThreadPoolExecutor | None = None

    @property
    def sigma(self) -> Fraction:
        """In steps of the grid, exactly."""
        return self._gaussian.sigma

    @property
    def distance(self) -> Fraction:
        """Of one draw from the ideal, at most, in total variation."""
        return self._gaussian.distance

    @property
    def waiting_bytes(self) -> int:
        """What was made ahead, or is being made."""
        with self._lock:
            return sum(size for _, size, _ in self._waiting)

    def add_to(self, total: Tensor) -> None:
        """Adds noise that was never used to ``total``, ``(P,)`` int64, in place; no memory of its size is taken.

        Raises:
            InputError: 2810 when it is no such tensor.
            InternalError: 9810 when all 2^64 releases were made, or in a fork.
        """
        _require_integers(total)
        number = self._numbers.take()
        made = self._made_ahead(number)
        _on_cpu(total, lambda integers: self._add(number, integers, made))

    def draw(self, count: int) -> Tensor:
        """``(count,)`` int64: one release's noise by itself. Secret."""
        total = torch.zeros(_require_count(count), dtype=torch.int64)
        self.add_to(total)
        return total

    def prefetch(self, *counts: int) -> None:
        """Begins to make the noise of the next releases, of so many draws each, as far as may wait.

        Changes nothing of what a release gets. A second call adds nothing to a release that is being made already.
        """
        self._numbers.require()
        with self._lock:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="cloister-noise")
            first, used = self._numbers.next, sum(size for _, size, _ in self._waiting)
            begun = {number for number, _, _ in self._waiting}
            for place, count in enumerate(counts):
                chunks = min(_chunks(_require_count(count)), (self._ahead_bytes - used) // _AHEAD_CHUNK_BYTES)
                draws = min(count, chunks * CHUNK_DRAWS)
                if draws > 0 and first + place not in begun:
                    made = self._thread.submit(self._ahead, first + place, draws)
                    self._waiting.append((first + place, 8 * draws, made))
                    used += 8 * draws

    def _ahead(self, number: int, draws: int) -> Integers:
        integers = np.zeros(draws, np.int64)
        _add_chunks(self._gaussian, self._key, number, integers, range(_chunks(draws)))
        return integers

    def _made_ahead(self, number: int) -> Integers | None:
        found = None
        with self._lock:
            while self._waiting and self._waiting[0][0] <= number:
                waited, _, made = self._waiting.popleft()
                if waited == number:
                    found = made
                    break
                made.cancel()  # another thread's, who took its number first and makes it itself
        return None if found is None else found.result()

    def _add(self, number: int, integers: Integers, made: Integers | None) -> None:
        count = 0
        if made is not None:  # whole chunks of it, or all that is asked for
            count = min(made.size, integers.size)
            count -= count % CHUNK_DRAWS if count < integers.size else 0
            integers[:count] += made[:count]
        _add_in_threads(self._gaussian, self._key, number, integers, count // CHUNK_DRAWS, self._threads, done=count)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a source of noise is neither pickled nor copied")


class ResumableNoise:
    """Noise that is the same again for the same sum of the same release, and for nothing else. Refuses in a fork.

    Args:
        key: The run's, which the caller keeps.
        sigma: In steps of the grid, 2^8 to 2^34.
        context: What the run is, for example the digest of its settings: another has other noise.
        state: Where to go on, from :attr:`state`; at ``first`` when left out.
        first: Of the releases, where somebody else has proven that those before it were made.
        threads: That make it; torch's number when left out.

    Raises:
        InputError: 2810 when σ is out of range; 2812 when the state is none.
        IntegrityError: 5810 when it is of another key, another context or another σ, or was changed.
    """

    def __init__(
        self,
        key: RunKey,
        sigma: Fraction,
        *,
        context: bytes,
        state: Any | None = None,
        first: int = 0,
        threads: int | None = None,
    ) -> None:
        self._gaussian = discrete_gaussian(Fraction(sigma))
        self._context = b"noise", str(self._gaussian.sigma).encode(), context
        self._key = key
        self._numbers = Numbers(first if state is None else StreamState.read(state, key, *self._context))
        self._bind = key.derive("noise binding", *self._context)
        self._root = key.derive("bound noise", *self._context)
        self._threads = threads

    @property
    def sigma(self) -> Fraction:
        """In steps of the grid, exactly."""
        return self._gaussian.sigma

    @property
    def distance(self) -> Fraction:
        """Of one draw from the ideal, at most, in total variation."""
        return self._gaussian.distance

    @property
    def state(self) -> StreamState:
        """For a checkpoint: after the release that the checkpoint holds the result of. No secret."""
        return StreamState.make(self._numbers.next, self._key, *self._context)

    def add_to(self, total: Tensor) -> None:
        """Adds the noise of this release and these integers to ``total``, ``(P,)`` int64, in place.

        Raises:
            InputError: 2810 when it is no such tensor.
            InternalError: 9810 when all 2^64 releases were made, or in a fork.
        """
        _require_integers(total)
        number = self._numbers.take()
        _on_cpu(total, lambda integers: self._add(number, integers))

    def _add(self, number: int, integers: Integers) -> None:
        # Two sums of one release meet in the tag with probability below 2^-100 · bytes (Poly1305 as an almost universal
        # hash under a key of this release, whose tag nobody sees), so two of them have keys without relation.
        place = number.to_bytes(8, "big") + integers.size.to_bytes(8, "big")
        tag = Poly1305(hmac.digest(self._bind.reveal(), place, "sha256"))
        tag.update(integers.data.cast("B") if integers.size else b"")
        key = Secret(hmac.digest(self._root.reveal(), place + tag.finalize(), "sha256"))
        _add_in_threads(self._gaussian, key, 0, integers, 0, self._threads, done=0)

    def prefetch(self, *counts: int) -> None:
        """Begins nothing: this noise follows from the sum that it hides."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("a source of noise is neither pickled nor copied: save its state")


class DangerousFloatNoise:
    """Floating-point Gaussian noise from torch's generator, rounded to the grid. No guarantee follows from it.

    Its generator is no CSPRNG (a few hundred outputs give away its state, and so the noise), and which integers can
    come at all depends on the floating-point grid: I. Mironov, "On significance of the least significant bits for
    differential privacy", CCS 2012. For measuring what the real noise costs.

    Args:
        sigma: In steps of the grid.
        generator: torch's own when left out.
    """

    distance = None

    def __init__(self, sigma: Fraction, *, generator: torch.Generator | None = None) -> None:
        self.sigma, self._generator = Fraction(sigma), generator

    def add_to(self, total: Tensor) -> None:
        """Adds noise to ``total``, ``(P,)`` int64, in place."""
        _require_integers(total)
        made = torch.randn(total.shape, dtype=torch.float64, generator=self._generator)
        total += made.mul_(float(self.sigma)).round_().to(torch.int64).to(total.device)

    def prefetch(self, *counts: int) -> None:
        """Begins nothing."""


def _chunks(draws: int) -> int:
    return -(-draws // CHUNK_DRAWS)


def _add_chunks(gaussian: DiscreteGaussian, key: Secret, number: int, integers: Integers, chunks: range) -> None:
    stream = Chunks(key)
    for chunk in chunks:
        part = integers[chunk * CHUNK_DRAWS : (chunk + 1) * CHUNK_DRAWS]
        gaussian.add(stream.words(number, chunk, part.size * DRAW_BYTES // 8), part)


def _add_in_threads(
    gaussian: DiscreteGaussian,
    key: Secret,
    number: int,
    integers: Integers,
    first: int,
    threads: int | None,
    *,
    done: int,
) -> None:
    """The chunks from ``first`` on, shared out among threads; which thread makes one changes nothing of it."""
    last = _chunks(integers.size) if done < integers.size else first

    def work(start: int, end: int) -> None:
        _add_chunks(gaussian, key, number, integers, range(first + start, first + end))

    share(last - first, work, threads=threads)


def _on_cpu(total: Tensor, add: Callable[[Integers], None]) -> None:
    if total.device.type == "cpu":
        add(total.detach().numpy())
        return
    copied = total.detach().cpu()
    add(copied.numpy())
    total.copy_(copied)


def _require_integers(total: Tensor) -> None:
    if total.dtype != torch.int64 or total.dim() != 1 or not total.is_contiguous():
        got = f"{total.dtype}, {tuple(total.shape)}"
        raise InputError(2810, "noise goes on integers", expected="a contiguous vector of int64", got=got)


def _require_count(count: int) -> int:
    if count < 0:
        raise InputError(2810, expected="a number of draws", got=count)
    return count
