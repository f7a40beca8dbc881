"""Where masks come from: one keystream a role, each mask the next value of a 64-bit counter.

* A role's key is drawn from the operating system when its source is made, at every start of an enclave, and is never
  saved: after a crash, a resume, a fork or a rolled-back checkpoint there is another key, so no mask can come twice.
* A mask is the role's next counter, and its words are the keystream under that counter: one fresh uniform 32-bit word
  an element. The counter never wraps.
* Whoever was dealt the key (a dealer, the other share's worker) expands the same words from the counter alone.
* Rounding has its own stream and key. Its bytes may be known to anybody without harm; a mask's may not, so they never
  come from one stream: rounding by a mask's own words would make what is sent depend on what it hides.

Layout, so that two implementations agree. Words are little-endian. AES-256-CTR: the first block counter is the mask's
counter and a block index from zero, 64 bits each, big-endian. ChaCha20: the mask's counter is the 64-bit nonce and the
64-bit block counter begins at zero, both little-endian.

The keystream is made ahead by a thread; the cipher runs without the GIL.

>>> source = MaskSource("x")
>>> mask = source.next((2, 3))
>>> mask
<Mask x:0 (2, 3)>
>>> bool((expand(source.key, 0, (2, 3)) == mask.words).all())
True
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, NoReturn

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from cloister.errors import InputError, InternalError
from cloister.ring._process import ThisProcess
from cloister.ring._words import Guarded, Mask, MaskId
from cloister.wire import Secret

__all__ = ["KEY_BYTES", "CipherName", "MaskKey", "MaskSource", "RoundingStream", "StreamAhead", "cipher_for", "expand"]

CipherName = Literal["aes-256-ctr", "chacha20"]

KEY_BYTES = 32
_COUNTERS = 1 << 64
_SLACK = 64  # bytes beyond the end that an encryptor's output buffer must have
_ZEROS = memoryview(bytes(1 << 18))  # stays in a core's cache, so that only the keystream itself crosses memory
_AHEAD_BYTES = 1 << 30


def cipher_for(device: str) -> CipherName:
    """Whose keystream is expanded on a device, ``cpu`` or ``cuda:0``: AES where a CPU has instructions for it."""
    return "chacha20" if device.partition(":")[0] == "cuda" else "aes-256-ctr"


class MaskKey(Guarded):
    """The key of one role's masks. Secret: it is revealed to whoever is dealt it, and never saved.

    Args:
        role: Whose masks these are, for example ``"x"``, ``"w"``, ``"dy"``.
        key: 32 bytes that somebody dealt; a fresh key when left out.
        cipher: ``chacha20`` where masks are expanded on a GPU.

    Raises:
        InputError: 2704 when the key has another length, or the cipher another name.
    """

    __slots__ = ("_key", "cipher", "role")

    def __init__(self, role: str, key: Secret | None = None, *, cipher: CipherName = "aes-256-ctr") -> None:
        self._key = Secret.random(KEY_BYTES) if key is None else key
        if len(self._key) != KEY_BYTES or cipher not in _CIPHERS:
            raise InputError(2704, expected=f"{KEY_BYTES} bytes for one of {', '.join(_CIPHERS)}", got=cipher)
        self.role, self.cipher = role, cipher

    def reveal(self) -> Secret:
        """The key, for the worker that it is dealt to; :meth:`MaskLedger.deal` comes first."""
        return self._key

    def on(self, device: str) -> MaskKey:
        """The same key, for masks that are expanded on ``device``: both ends go by the name of the device."""
        return MaskKey(self.role, self._key, cipher=cipher_for(device))

    def __repr__(self) -> str:
        return f"<MaskKey {self.role}>"


def expand(key: MaskKey, counter: int, shape: tuple[int, ...], *, device: str = "cpu") -> Tensor:
    """The words of one mask, for whoever has the key.

    Args:
        key: The role's.
        counter: The mask's, in ``[0, 2^64)``.
        shape: The tensor's. A smaller tensor's words are the first of a larger one's.
        device: Where the words shall be. A CUDA device makes ChaCha20's itself; AES's are made here and copied there.

    Returns:
        ``int32`` words of that shape. Secret.

    Raises:
        InputError: 2704 when the counter is outside its range.
    """
    if not 0 <= counter < _COUNTERS:
        raise InputError(2704, expected="a counter of 64 bits", got=counter)
    if key.cipher == "chacha20" and torch.device(device).type == "cuda":
        from cloister.ring._chacha import chacha_words  # needs Triton

        return chacha_words(key.reveal(), counter, math.prod(shape), device=device).reshape(shape)
    words = _keystream(key, counter, 4 * math.prod(shape)).view(torch.int32)
    return words.to(device).reshape(shape)


class StreamAhead:
    """How much keystream may wait that was made ahead, of all sources that share it. Safe to use from several threads.

    Args:
        most_bytes: 1 GiB unless told otherwise. What is beyond it is made when it is asked for.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most_bytes = _AHEAD_BYTES if most_bytes is None else most_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What waits now."""
        return self._used_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether so many bytes more may wait; they are counted then."""
        with self._lock:
            if self._used_bytes + size_bytes > self._most_bytes:
                return False
            self._used_bytes += size_bytes
            return True

    def give(self, size_bytes: int) -> None:
        """So many bytes wait no longer."""
        with self._lock:
            self._used_bytes -= size_bytes


class MaskSource:
    """Fresh masks of one role. Safe to use from several threads; refuses to work in a fork.

    Args:
        role: Whose masks these are.
        cipher: As for :class:`MaskKey`.
        ahead: Shared with other sources, where they are to be bounded together.
        dangerous_key: For tests only: a key that was used before makes masks that were used before.
    """

    def __init__(
        self,
        role: str,
        *,
        cipher: CipherName = "aes-256-ctr",
        ahead: StreamAhead | None = None,
        dangerous_key: MaskKey | None = None,
    ) -> None:
        self.key = dangerous_key or MaskKey(role, cipher=cipher)
        self.role = role
        self._ahead = ahead or StreamAhead()
        self._stream = _Stream(self.key, ahead=self._ahead)

    def next(self, shape: tuple[int, ...]) -> Mask:
        """A mask that nothing was hidden by.

        Raises:
            InternalError: 9701 when all 2^64 are used, or in a fork of the process that the key was drawn in.
        """
        counter, stream = self._stream.draw(4 * math.prod(shape))
        return Mask(MaskId(self.role, counter), stream.view(torch.int32).reshape(shape))

    def on(self, device: str) -> MaskSource:
        """The same source for masks that another expands on ``device``; this one gives none any more.

        Raises:
            InternalError: 9701 when it has given some.
        """
        if self._stream.counter:
            raise InternalError(9701, "masks were made before it was known where they are expanded")
        self._stream.counter = _COUNTERS
        return MaskSource(self.role, ahead=self._ahead, dangerous_key=self.key.on(device))

    def prefetch(self, *sizes: int) -> None:
        """Begins to make the words of the next masks, of so many elements each; the order is that of :meth:`next`.

        What turns out too short is made anew; what is too long is cut.
        """
        self._stream.prefetch([4 * size for size in sizes])

    def forget(self) -> None:
        """Gives up what was made ahead."""
        self._stream.forget()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a source of masks is neither pickled nor copied")


class RoundingState(NamedTuple):
    """What a checkpoint keeps so that a run goes on with the same rounding. No secret of the masks.

    Attributes:
        key: 32 bytes in hexadecimal.
        counter: Of the next draw.
    """

    key: str
    counter: int


class RoundingStream:
    """Uniform bytes for stochastic rounding, the same again for the same seed and the same order of draws.

    Args:
        state: Where to go on; a fresh key when left out.
        ahead: As for :class:`MaskSource`.

    Raises:
        InputError: 2704 when the state is none: another key, or a counter beyond 64 bits.
    """

    def __init__(self, state: RoundingState | None = None, *, ahead: StreamAhead | None = None) -> None:
        self._key = MaskKey("rounding", None if state is None else _unhex(state.key))
        counter = 0 if state is None else state.counter
        if not 0 <= counter < _COUNTERS:
            raise InputError(2704, expected="a counter of 64 bits", got=counter)
        self._stream = _Stream(self._key, counter, ahead=ahead or StreamAhead())

    @classmethod
    def seeded(cls, generator: torch.Generator | None = None, *, ahead: StreamAhead | None = None) -> RoundingStream:
        """A stream that ``torch.manual_seed`` fixes: the key is drawn from torch's generator."""
        words = torch.randint(-(1 << 31), 1 << 31, (KEY_BYTES // 4,), generator=generator, dtype=torch.int64)
        return cls(RoundingState(words.to(torch.int32).numpy().tobytes().hex(), 0), ahead=ahead)

    def next(self, size: int) -> Tensor:
        """``size`` fresh bytes, ``uint8``."""
        return self._stream.draw(size)[1]

    def prefetch(self, *sizes: int) -> None:
        """Begins to make the bytes of the next draws, in the order of :meth:`next`."""
        self._stream.prefetch(list(sizes))

    def forget(self) -> None:
        """Gives up what was made ahead."""
        self._stream.forget()

    @property
    def state(self) -> RoundingState:
        """For a checkpoint."""
        return RoundingState(self._key.reveal().reveal().hex(), self._stream.counter)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a stream is neither pickled nor copied: save its state")


def _unhex(key: str) -> Secret:
    try:
        return Secret(bytes.fromhex(key))
    except ValueError:
        raise InputError(2704, expected=f"{KEY_BYTES} bytes in hexadecimal", got=f"{len(key)} characters") from None


class _Stream:
    """Keystream by consecutive counters, some of it made ahead by a thread.

    A counter belongs to a draw, whatever was made ahead, so the same draws give the same bytes with or without it.
    """

    def __init__(self, key: MaskKey, counter: int = 0, *, ahead: StreamAhead) -> None:
        self._budget = ahead
        self._process = ThisProcess()
        self.counter = counter
        self._key = key
        self._lock = threading.Lock()
        self._ahead: deque[Future[Tensor]] = deque()  # of counter, counter + 1, ...
        self._sizes: deque[int] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def draw(self, size: int) -> tuple[int, Tensor]:
        self._process.require()
        with self._lock:
            if self.counter >= _COUNTERS:
                raise InternalError(9701, "every mask of a role is used up")
            counter = self.counter
            self.counter += 1
            ahead = self._ahead.popleft() if self._ahead else None
            made = self._sizes.popleft() if ahead else 0
        self._budget.give(made)
        if ahead is None or made < size:
            return counter, _keystream(self._key, counter, size)
        return counter, ahead.result()[:size]

    def forget(self) -> None:
        with self._lock:
            for made, size in zip(self._ahead, self._sizes, strict=True):
                made.cancel()
                self._budget.give(size)
            self._ahead.clear()
            self._sizes.clear()

    def prefetch(self, sizes: list[int]) -> None:
        self._process.require()
        with self._lock:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="cloister-keystream")
            for place, size in enumerate(sizes):
                counter = self.counter + place
                if place < len(self._sizes) and self._sizes[place] >= size:
                    continue  # made already, by an earlier call
                if counter >= _COUNTERS or not self._budget.take(size):
                    return
                made = self._thread.submit(_keystream, self._key, counter, size)
                if place < len(self._sizes):
                    self._budget.give(self._sizes[place])
                    self._ahead[place], self._sizes[place] = made, size
                else:
                    self._ahead.append(made)
                    self._sizes.append(size)


def _aes(key: bytes, counter: int) -> CipherContext:
    start = counter.to_bytes(8, "big") + bytes(8)
    return Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()


def _chacha(key: bytes, counter: int) -> CipherContext:
    start = bytes(8) + counter.to_bytes(8, "little")
    return Cipher(algorithms.ChaCha20(key, start), mode=None).encryptor()


_CIPHERS: dict[str, Callable[[bytes, int], CipherContext]] = {"aes-256-ctr": _aes, "chacha20": _chacha}


def _keystream(key: MaskKey, counter: int, size: int) -> Tensor:
    """``size`` bytes of one counter's keystream, ``uint8``, at an address that ``int32`` may have."""
    with torch.inference_mode(False):  # so that who writes into it is counted
        stream = torch.empty(size + _SLACK, dtype=torch.uint8)
    cipher = _CIPHERS[key.cipher](key.reveal().reveal(), counter)
    out = stream.numpy().data
    for start in range(0, size, len(_ZEROS)):
        length = min(len(_ZEROS), size - start)
        cipher.update_into(_ZEROS[:length], out[start:])
    return stream[:size]
