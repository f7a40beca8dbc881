"""Products of masks, made ahead: what the mode ``blind`` subtracts from its one worker's answer.

A worker that has ``x + r`` and a public W answers ``(x + r)·W``; the enclave knows ``r·W`` beforehand, because r does
not depend on x. Making it costs as much as the product itself, in the enclave, at a time when nobody waits. It is kept
outside, sealed: AES-256-GCM under a key of this start, bound to mask, product and place. Each is used once, and gone
then. What is left at the end is useless without the key, which nobody has kept.

While a layer is multiplied, a thread opens what the next ones need, in the order in which it was made ahead.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import IntegrityError
from cloister.ring import Mask, MaskId, MaskKey, expand, kernels_for
from cloister.wire import write_private

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.offload._operands import Operand
    from cloister.ring import MaskSource, Part, Product, RingKernels, Shape

__all__ = ["Blinding", "Folder", "Stored"]

_NONCE_BYTES, _TAG_BYTES = 12, 16
_OPEN_BYTES = 1 << 28  # of words that lie open before they are needed

Stored = MutableMapping[str, bytes]
"""Untrusted storage: names and ciphertexts. A ``dict`` in this process, or a :class:`Folder`."""


class Folder(MutableMapping[str, bytes]):
    """Ciphertexts as files of a folder."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: bytes) -> None:
        write_private(self._path / name, value)

    def __delitem__(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in self._path.iterdir())

    def __len__(self) -> int:
        return sum(1 for _ in self._path.iterdir())


@dataclass(frozen=True, slots=True)
class _Sealed:
    """What one part's answer has to have subtracted."""

    name: str
    place: bytes
    shape: Shape


@dataclass(frozen=True, slots=True)
class _Ready:
    """A mask whose products with one weight are made."""

    mask: MaskId
    shape: Shape
    weight: weakref.ref[Operand]
    parts: tuple[_Sealed, ...]

    @property
    def size_bytes(self) -> int:
        """Of all its words."""
        return 4 * (math.prod(self.shape) + sum(math.prod(part.shape) for part in self.parts))


@dataclass(frozen=True, slots=True)
class _Opened:
    """The words of a mask and of its products, as a thread makes them."""

    mask: Future[Tensor]
    parts: tuple[Future[Tensor], ...]
    size_bytes: int


class Blinding:
    """Products of masks with public weights.

    Args:
        stored: Where they are kept, sealed.
        kernels: Who makes them.
    """

    def __init__(self, stored: Stored | None = None, *, kernels: RingKernels | None = None) -> None:
        self._stored: Stored = {} if stored is None else stored
        self._kernels = kernels or kernels_for(torch.device("cpu"))
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._sealed = 0
        self._lock = threading.Lock()
        self._ready: dict[Product, deque[_Ready]] = defaultdict(deque)
        self._in_use: dict[MaskId, _Ready] = {}
        self._waiting: dict[MaskId, _Ready] = {}  # in the order in which they were made
        self._opened: dict[MaskId, _Opened] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._keys: dict[str, MaskKey] = {}
        self.made_late = 0
        """How many were not ready when they were needed, and were made while somebody waited."""

    def prepare(self, source: MaskSource, product: Product, parts: tuple[Part, ...], weight: Operand) -> None:
        """Draws a mask for a product with one weight, and makes what has to be subtracted from its answer."""
        mask = source.next(product.left)
        self._keys[mask.id.role] = source.key
        made: list[_Sealed] = []
        for index, part in enumerate(parts):
            z = self._multiply(part, mask.words, weight)
            with self._lock:
                nonce = self._sealed.to_bytes(_NONCE_BYTES, "big")
                self._sealed += 1
            name = nonce.hex()
            place = _place(mask.id, product, index)
            self._stored[name] = nonce + self._cipher.encrypt(nonce, z.numpy().tobytes(), place)
            made.append(_Sealed(name, place, part.product.result))
        ready = _Ready(mask.id, product.left, weakref.ref(weight), tuple(made))
        with self._lock:
            self._ready[product].append(ready)
            self._waiting[mask.id] = ready

    def ready(self, product: Product) -> int:
        """How many are made for a product and wait."""
        return len(self._ready[product])

    def mask(self, source: MaskSource, shape: Shape, product: Product) -> Mask:
        """The mask for the left operand of a product: one that was prepared for, or the next."""
        self._keys[source.role] = source.key
        with self._lock:
            ready = self._ready[product].popleft() if self._ready[product] else None
            if ready is not None:
                self._in_use[ready.mask] = ready
                self._waiting.pop(ready.mask, None)
            opened = None if ready is None else self._opened.get(ready.mask)
            self._open_next()
        if ready is None:
            return source.next(shape)
        words = expand(source.key, ready.mask.counter, shape) if opened is None else opened.mask.result()
        return Mask(ready.mask, words)

    def take(self, part: Part, index: int, product: Product, left: Operand, right: Operand) -> Tensor:
        """What has to be subtracted from the answer to one part. Each is given once.

        Raises:
            IntegrityError: 5702 when what was kept outside is not what was put there.
        """
        assert left.mask is not None  # noqa: S101 - the mode masks every left operand
        with self._lock:
            ready = self._in_use.get(left.mask)
            opened = self._opened.get(left.mask)
            if ready is not None and index == len(ready.parts) - 1:
                del self._in_use[left.mask]
                self._opened.pop(left.mask, None)
        place = _place(left.mask, product, index)  # the script may ask for another product than it hid the tensor for
        fits = ready is not None and any(part.place == place for part in ready.parts)
        if ready is not None and fits and ready.weight() is right:
            sealed = ready.parts[index]
            words = self._open(sealed) if opened is None else opened.parts[index].result()
            with suppress(KeyError):
                del self._stored[sealed.name]
            return words
        self.made_late += 1
        words = expand(self._keys[left.mask.role], left.mask.counter, left.quantised.shape)
        return self._multiply(part, words, right)

    def _open_next(self) -> None:
        """Has the thread open what comes next, as far as it may."""
        room = _OPEN_BYTES - sum(opened.size_bytes for opened in self._opened.values())
        for mask, ready in list(self._waiting.items()):
            if ready.weight() is None:
                del self._waiting[mask]
                continue
            room -= ready.size_bytes
            if room < 0:
                return
            del self._waiting[mask]
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="cloister-blinding")
            self._opened[mask] = _Opened(
                self._thread.submit(expand, self._keys[mask.role], mask.counter, ready.shape),
                tuple(self._thread.submit(self._open, part) for part in ready.parts),
                ready.size_bytes,
            )

    def _open(self, part: _Sealed) -> Tensor:
        with torch.inference_mode(False):
            words = torch.empty(part.shape, dtype=torch.int32)
        try:
            sealed = memoryview(self._stored[part.name])[_NONCE_BYTES:]
            if len(sealed) != words.nbytes + _TAG_BYTES:
                raise IntegrityError(5702)
            nonce = bytes.fromhex(part.name)
            self._cipher.decrypt_into(nonce, sealed, part.place, words.reshape(-1).numpy().view("u1").data)
        except (KeyError, InvalidTag) as error:
            raise IntegrityError(5702) from error
        return words

    def _multiply(self, part: Part, words: Tensor, weight: Operand) -> Tensor:
        (axis, start, stop), (right_axis, right_start, right_stop) = part.left, part.right
        return self._kernels.product(
            part.product,
            words.narrow(axis, start, stop - start),
            weight.quantised.values.narrow(right_axis, right_start, right_stop - right_start),
        )


def _place(mask: MaskId, product: Product, index: int) -> bytes:
    return f"{mask.role}:{mask.counter}:{product!r}:{index}".encode()
