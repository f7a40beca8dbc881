"""A worker's inside: tensors under handles, keystreams, products. No socket, no clock, no secret of its own.

Rules:

* Every command is checked against what is kept before anything is allocated; what does not fit is refused by code and
  changes nothing.
* Memory is bounded by the operator: an enclave cannot make a worker swap. What a product needs while it is made, its
  result and its padded images, counts as if it were kept.
* A product with the same right operand in two terms is made once, on the terms' sum: Goten's second server then needs
  two products where its publication made three.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from cloister.errors import InputError, PeerError
from cloister.offload._commands import MAX_ELEMENTS, Command, Compute, Cut, Drop, Expand, Put, Stream
from cloister.ring import Conv2d, MaskKey, RingKernels, expand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from cloister.ring import Product

__all__ = ["DEFAULT_MEMORY_BYTES", "Coprocessor"]

DEFAULT_MEMORY_BYTES = 8 << 30
_DTYPES = {"int8": torch.int8, "int32": torch.int32}


class Coprocessor:
    """What one worker keeps and computes for one enclave.

    Args:
        kernels: Who multiplies, and on which device.
        keys: Of the streams that this worker may expand; a dealer has those of the masks, others at most the pad's.
        memory_bytes: How much it keeps at most.

    Security: what it is given is masked, shared or public, as the mode's page says; it is trusted for nothing, and what
    it answers is checked by the enclave.
    """

    def __init__(
        self,
        kernels: RingKernels,
        *,
        keys: Mapping[Stream, MaskKey] | None = None,
        device: torch.device | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._kernels = kernels
        self._device = device or torch.device("cpu")
        self._keys = {stream: key.on(str(self._device)) for stream, key in (keys or {}).items()}
        self._memory_bytes = memory_bytes
        self._kept: dict[int, Tensor] = {}
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the tensors that are kept now."""
        return self._used_bytes

    def execute(self, command: Command, tensor: Tensor | None = None) -> Tensor | None:
        """Does what one command says.

        Args:
            command: Any of the four.
            tensor: What follows a ``put``; nothing else has one.

        Returns:
            ``compute``'s answer, ``int32``; nothing for the others.

        Raises:
            InputError: 2710 for a handle that is not kept, or kept already; 2711 when a shape, a type or a cut does not
                fit; 2712 for a stream whose key this worker was not given.
            PeerError: 6701 when the worker's memory is full.
        """
        if tensor is not None and not isinstance(command, Put):
            raise InputError(2711, expected="no tensor", got=f"one with a {command.verb}")
        match command:
            case Put():
                self._put(command, tensor)
            case Expand():
                self._expand(command)
            case Drop():
                self._drop(command)
            case Compute():
                return self._compute(command)
        return None

    def _put(self, command: Put, tensor: Tensor | None) -> None:
        wanted = (_DTYPES[command.dtype], command.shape)
        if tensor is None or (tensor.dtype, tuple(tensor.shape)) != wanted:
            got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
            raise InputError(2711, expected=f"{command.dtype} {command.shape}", got=got)
        self._require_new(command.handle)
        self.require_room(_bytes(tensor))
        self._keep(command.handle, tensor.to(self._device))

    def _drop(self, command: Drop) -> None:
        if len(set(command.handles)) != len(command.handles):
            raise InputError(2710, expected="each handle once", got=f"{len(command.handles)} handles")
        freed = sum(_bytes(self._take(handle)) for handle in command.handles)
        for handle in command.handles:
            del self._kept[handle]
        self._used_bytes -= freed

    def _expand(self, command: Expand) -> None:
        key = self._key(command.stream)
        self._require_new(command.handle)
        count = math.prod(command.shape)
        if count > MAX_ELEMENTS:
            raise InputError(2711, expected=f"at most {MAX_ELEMENTS} elements", got=f"shape {command.shape}")
        self.require_room(4 * count)
        self._keep(command.handle, expand(key, command.counter, command.shape, device=str(self._device)))

    def _compute(self, command: Compute) -> Tensor:
        product = command.form.product()
        if command.pad is not None:
            self._key("pad")
        for term in command.terms:
            _require_fit(self._take(term.left), command.left, product.left)
            _require_fit(self._take(term.right), command.right, product.right)
        self.require_room(_made_bytes(product, command))
        sums: dict[int, Tensor] = {}
        for term in command.terms:
            left = _sliced(self._take(term.left), command.left)
            if term.right in sums or term.sign < 0:
                left = left.to(torch.int32)
                before = sums.get(term.right)
                signed = left if term.sign > 0 else -left
                sums[term.right] = signed if before is None else before + signed
            else:
                sums[term.right] = left
        answer: Tensor | None = None
        for handle, left in sums.items():
            part = self._kernels.product(product, left, _sliced(self._take(handle), command.right))
            answer = part if answer is None else answer.add_(part)
        assert answer is not None  # noqa: S101 - the message has at least one term
        return answer if command.pad is None else answer.add_(self._pad(product, command.pad))

    def _pad(self, product: Product, counter: int) -> Tensor:
        return expand(self._key("pad"), counter, product.result, device=str(self._device))

    def _key(self, stream: Stream) -> MaskKey:
        key = self._keys.get(stream)
        if key is None:
            raise InputError(2712, got=stream)
        return key

    def _take(self, handle: int) -> Tensor:
        tensor = self._kept.get(handle)
        if tensor is None:
            raise InputError(2710, expected="a handle that is kept", got=str(handle))
        return tensor

    def require_room(self, size_bytes: int) -> None:
        """Returns when so many bytes more may be kept.

        Raises:
            PeerError: 6701 otherwise.
        """
        wanted = self._used_bytes + size_bytes
        if wanted > self._memory_bytes:
            raise PeerError(6701, expected=f"at most {self._memory_bytes} bytes kept", got=f"{wanted}")

    def _require_new(self, handle: int) -> None:
        if handle in self._kept:
            raise InputError(2710, expected="a handle that is not kept yet", got=str(handle))

    def _keep(self, handle: int, tensor: Tensor) -> None:
        self._kept[handle] = tensor
        self._used_bytes += _bytes(tensor)


def _made_bytes(product: Product, command: Compute) -> int:
    """What making a product takes besides its operands: results, sums of operands, and images with their borders."""
    rights = {term.right for term in command.terms}
    words = math.prod(product.result) * (1 if len(rights) == 1 and command.pad is None else 2)
    if len(rights) < len(command.terms) or any(term.sign < 0 for term in command.terms):
        words += math.prod(product.left) * (len(rights) + 2)  # a sum for each, and one being made of two
    operator = product.operator
    if isinstance(operator, Conv2d):
        batch, channels, height, width = product.x
        words += batch * channels * (height + 2 * operator.padding[0]) * (width + 2 * operator.padding[1])
    return 4 * words


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _require_fit(operand: Tensor, cut: Cut | None, shape: tuple[int, ...]) -> None:
    """The operand, sliced, has the form's shape; checked on sizes alone."""
    have = list(operand.shape)
    if cut is not None:
        if len(have) < -cut.axis or not cut.start < cut.stop <= have[cut.axis]:
            raise InputError(2711, expected=f"a slice within {tuple(have)}", got=cut.model_dump_json())
        have[cut.axis] = cut.stop - cut.start
    if tuple(have) != shape:
        raise InputError(2711, expected=f"an operand of shape {shape}", got=f"{tuple(have)}")


def _sliced(operand: Tensor, cut: Cut | None) -> Tensor:
    return operand if cut is None else operand.narrow(cut.axis, cut.start, cut.stop - cut.start)
