"""How large an exact product can get, and into how many parts it is cut so that the ring holds each.

A product of operands of ``a`` and ``b`` bits with K terms is at most ``K · 2^(a-1) · 2^(b-1)`` in magnitude. That is
all that is used: shapes and bits, which are public. What the operands hold never decides a cut, a shape or an order.

>>> magnitude(25088, 8, 8)  # VGG's first linear layer
411041792
>>> magnitude(131071, 8, 8) < RING_LIMIT <= magnitude(131072, 8, 8)
True
>>> magnitude(65535, 8, 8) < HALVED_LIMIT <= magnitude(65536, 8, 8)
True
"""

from __future__ import annotations

from cloister.errors import InputError, UnsupportedError
from cloister.ring._operators import Part, Product

__all__ = ["HALVED_LIMIT", "RING_LIMIT", "magnitude", "parts"]

RING_LIMIT = 1 << 31  # a word that is the answer itself: modes verify, blind, blind2 and shared5
HALVED_LIMIT = 1 << 30  # shared3 gets twice the answer in a word, so one bit less


def magnitude(terms: int, left_bits: int, right_bits: int) -> int:
    """The greatest magnitude of a sum of ``terms`` products: the bound that every recovered answer is held to.

    Raises:
        InputError: 2705 when a number of bits is not 2 to 8.
    """
    if not (2 <= left_bits <= 8 and 2 <= right_bits <= 8):
        raise InputError(2705, expected="2 to 8 bits an operand", got=f"{left_bits} and {right_bits}")
    return terms << (left_bits + right_bits - 2)


def parts(
    product: Product, *, left_bits: int = 8, right_bits: int = 8, limit: int = RING_LIMIT, layer: str | None = None
) -> tuple[Part, ...]:
    """Cuts a product so that every part's magnitude is below ``limit``. A product that fits is one part.

    The parts' answers are summed over the integers, in ``int64``.

    Args:
        product: What is to be computed.
        left_bits: Of the left operand, 2 to 8.
        right_bits: Of the right operand, 2 to 8.
        limit: :data:`RING_LIMIT` or :data:`HALVED_LIMIT`.
        layer: Whose product it is, for the message.

    Raises:
        InputError: 2705 as :func:`magnitude`.
        UnsupportedError: 8701 when no cut along one axis makes the parts fit.
    """
    most = (limit - 1) // magnitude(1, left_bits, right_bits)
    try:
        return product.split(most)
    except InputError as error:
        name = f"layer '{layer}': " if layer else ""
        raise UnsupportedError(
            8701, f"{name}the sums of its {product.role} do not fit the ring", expected=error.expected, got=error.got
        ) from error
