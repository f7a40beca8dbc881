"""What a broker keeps for its script: so much of each kind, whatever the script asks for and never gives up.

The broker's memory is the launcher's, which no limit of the stage covers. A script that could have it take memory
without end could kill the launcher, and the verdict on a worker that lied would die with it: of a launcher that died
the host learns no more than that, and may try again. So sizes are bounded before memory is taken, by shapes alone.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import TYPE_CHECKING

from cloister.errors import InputError, PeerError
from cloister.ring import Conv2d, StreamAhead

if TYPE_CHECKING:
    from cloister.offload._operands import Operand
    from cloister.ring import Product

__all__ = ["Allowance"]

_WORD, _ELEMENT = 4, 8  # bytes: of the ring, of the field that checks are made in


class Allowance:
    """What all models of one script may take together.

    Args:
        most_bytes: Of the integers of hidden tensors; the same of results that were asked for and not fetched; the same
            of products of masks that were made ahead; the same of keystream that was made ahead, beyond which it is
            made when it is needed; the same for making and checking one product.

    Attributes:
        ahead: The keystream's.
        ended: Whether nobody waits for anything any longer; what is being made ahead ends then.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self.ended = most_bytes, False
        self.ahead = StreamAhead(most_bytes)
        self._held_bytes = self._promised_bytes = self._stored_bytes = 0
        self._released: deque[int] = deque()  # filled by finalisers

    def require_operand(self, size_bytes: int) -> None:
        """Returns when a tensor of so many integers may be hidden.

        Raises:
            InputError: 2729 otherwise.
        """
        while self._released:
            self._held_bytes -= self._released.popleft()
        self._require("hidden tensors", self._held_bytes + size_bytes)

    def hold(self, operand: Operand, size_bytes: int) -> None:
        """Counts a hidden tensor for as long as it is there: a product that needs it may outlive its number."""
        self._held_bytes += size_bytes
        weakref.finalize(operand, self._released.append, size_bytes).atexit = False

    def require_product(self, product: Product) -> None:
        """Returns when a product may be asked for.

        Raises:
            InputError: 2729 otherwise.
        """
        self._require("a product", _made_bytes(product))
        self._require("results", self._promised_bytes + _result_bytes(product))

    def promise(self, product: Product) -> None:
        """Counts a result that was asked for."""
        self._promised_bytes += _result_bytes(product)

    def release(self, product: Product) -> None:
        """It was fetched, or nobody wants it any more."""
        self._promised_bytes -= _result_bytes(product)

    def store(self) -> dict[str, bytes]:
        """Where one model's products of masks are kept."""
        return _Store(self)

    def stored(self, size_bytes: int) -> None:
        """Counts what was made ahead, or, below 0, what is gone; ends who makes more when nobody waits for it.

        Raises:
            InputError: 2729 when it is too much.
            PeerError: 6712 when nobody waits.
        """
        if size_bytes > 0:
            if self.ended:
                raise PeerError(6712)
            self._require("what is made ahead", self._stored_bytes + size_bytes)
        self._stored_bytes += size_bytes

    def _require(self, what: str, size_bytes: int) -> None:
        if size_bytes > self._most_bytes:
            raise InputError(2729, expected=f"{what} of at most {self._most_bytes} bytes", got=f"{size_bytes} bytes")


class _Store(dict[str, bytes]):
    """Ciphertexts by name."""

    def __init__(self, allowance: Allowance) -> None:
        super().__init__()
        self._allowance = allowance

    def __setitem__(self, name: str, value: bytes) -> None:
        self._allowance.stored(len(value))
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self._allowance.stored(-len(self[name]))
        super().__delitem__(name)


def _result_bytes(product: Product) -> int:
    return _WORD * math.prod(product.result)


def _made_bytes(product: Product) -> int:
    """What making a product and checking it takes besides its operands: borders, and sums by taps."""
    made = _result_bytes(product)
    if not isinstance(product.operator, Conv2d):
        return made
    batch, channels, height, width = product.x
    rows, columns = (size + 2 * border for size, border in zip((height, width), product.operator.padding, strict=True))
    bordered = _WORD * batch * channels * rows * columns
    taps = sum(product.w[axis] * (product.x[axis] + product.y[axis]) for axis in (2, 3))
    if product.role == "weight_gradient":
        lines = product.operator.groups * height * product.y[3]  # of one sample
    else:
        lines = math.prod(product.left[:3]) * product.w[3]
    return max(made, bordered, _ELEMENT * (taps + lines))
