"""Freivalds checks: one scalar identity in F_p for every product, whatever its operator and role.

A product is a partial derivative of a trilinear form: for any tensor R of the result's shape, ``<result, R>`` is the
form ``T(x, w, y)`` with R in the result's place. A check draws a *rank-one* R, computes ``<answer, R>`` and, without
the product, ``T`` (:mod:`cloister.ring._form`), both in F_p with p = 2^61 - 1, and compares two numbers.

**R** is the outer product of k vectors, each fresh, uniform over F_p and independent of the others: for a convolution
one vector an axis of the result (k = 4), for a matrix product one over all its rows and one over its columns (k = 2).

**Soundness.** Let E be the answer minus the product, over the integers, chosen without knowledge of the vectors. If
``0 < |E[e]| < p`` in some place e, the check holds with probability at most k/p, below 2^-58.

*Proof.* ``<E, R>`` is a polynomial in the vectors' entries of total degree k. R has one factor an axis, so each place
of E has a monomial of its own, with ``E[e]`` as its coefficient; ``E[e]`` is not zero modulo p, so the polynomial is
not zero. By Schwartz and Zippel it vanishes at a uniform point of F_p with probability at most k/p.

**Why E does not vanish modulo p.** An ``int32`` answer and a product below 2^31 in magnitude differ by less than 2^32.
An ``int64`` answer is a sum of ``int32`` ones; a word that reaches 2^60 in magnitude lets no check hold, and a product
of ``int8`` operands stays below 2^60 for up to 2^45 terms, more than a memory holds: they differ by at most
2^61 - 2 < p. Modulo 2^k there is no such bound: an error of 2^(k-1) survives every second check.

**Obligations.** A challenge is drawn when the answer is there, or kept secret until then, and judges one answer.
Nothing here raises for a wrong answer: the caller records that the check does not hold. Both sides are always computed.

>>> import torch
>>> from cloister.ring._operators import MatMul
>>> product = Product(MatMul(), "forward", x=(2, 3), w=(1, 3))
>>> x, w = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int8), torch.tensor([[7, 8, 9]], dtype=torch.int8)
>>> check(product, x, w, torch.tensor([[50], [122]], dtype=torch.int32)).holds
True
>>> check(product, x, w, torch.tensor([[50], [123]], dtype=torch.int32)).holds
False
"""

from __future__ import annotations

import hmac
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.ring import _form
from cloister.ring._field import Elements, P, Source, limbs, uniform, weigh, weigh_wide
from cloister.ring._form import axes, outer
from cloister.ring._operators import Conv2d, Product

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Challenge", "Check", "check", "draw", "multiplications"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found. Not a truth value by itself: ask ``holds``.

    Attributes:
        holds: Whether the two sides of the identity are equal.
        error: Greatest probability with which the check of a wrong answer holds.
        multiplications: Multiplications of 64-bit words that the check took.
    """

    holds: bool
    error: Fraction
    multiplications: int

    @property
    def soundness_bits(self) -> float:
        """``-log2(error)``: 59 or 60."""
        return math.log2(self.error.denominator / self.error.numerator)

    def __bool__(self) -> NoReturn:
        raise TypeError("a check has no truth value: ask .holds")


class Challenge:
    """The random functional of one check. Secret until the answer is there; judges one answer.

    The answer is seen as ``(rows, inner)``. Rows are all axes but the last of a matrix product, the first two of a
    convolution's images, the first of its weights.

    Attributes:
        product: What is checked.
        row_factors: ``(rows,)`` elements.
        inner: ``(inner,)`` elements, the same for all rows.
        inner_limbs: ``(3, inner)`` int64: the 21-bit limbs of ``inner``, the lowest first.
    """

    __slots__ = ("_spent", "_vectors", "inner", "inner_limbs", "product", "row_factors")

    def __init__(self, product: Product, vectors: tuple[Elements, ...]) -> None:
        """Use :func:`draw`."""
        self.product = product
        self._vectors = vectors
        self._spent = False
        split = _row_axes(product)
        self.row_factors = outer(vectors[:split])
        self.inner = outer(vectors[split:])
        self.inner_limbs = limbs(self.inner)

    @property
    def error(self) -> Fraction:
        """Greatest probability with which a wrong answer passes: the number of vectors over p."""
        return Fraction(len(self._vectors), P)

    def value(self, answer: Tensor) -> int:
        """``<answer, R>`` in ``[0, p)``; p, which no ``expected`` is, for an int64 answer with a word of 2^60 or more.

        Shapes: ``answer`` as ``product.result``; int32, or int64 for a sum of int32 answers.

        Raises:
            InputError: 2702 when the shape or dtype is another.
        """
        words = _words(answer, self.product.result, "torch.int32", "torch.int64")
        rows = words.reshape(self.row_factors.size, self.inner.size)
        if words.dtype == np.int32:
            return int(weigh(rows, self.row_factors, self.inner_limbs))
        return int(weigh_wide(rows, self.row_factors, self.inner))

    def expected(self, left: Tensor, right: Tensor) -> int:
        """What ``value`` of the true product is, from the operands alone, in ``[0, p)``.

        Shapes: int8, as ``product.left`` and ``product.right``.

        Raises:
            InputError: 2702 when a shape or dtype is another.
        """
        operands = (
            _words(left, self.product.left, "torch.int8"),
            _words(right, self.product.right, "torch.int8"),
        )
        return _form.evaluate(self.product, self._vectors, *operands)

    def judge(self, left: Tensor, right: Tensor, *, value: int) -> Check:
        """Compares the ``value`` of an answer, computed here or in a fused pass, with what the operands demand.

        Raises:
            InputError: 2702 as :meth:`expected`; 2709 when this challenge has judged already.
        """
        if self._spent:
            raise InputError(2709)
        self._spent = True
        sides = (side.to_bytes(8, "little") for side in (value, self.expected(left, right)))
        return Check(hmac.compare_digest(*sides), self.error, multiplications(self.product))

    def __repr__(self) -> str:
        return f"<Challenge of {len(self._vectors)} vectors>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a challenge cannot be pickled")

    def __copy__(self) -> NoReturn:
        raise TypeError("a challenge is not copied")


def draw(product: Product, source: Source = uniform) -> Challenge:
    """A fresh challenge.

    Args:
        product: What will be checked.
        source: Independent uniform elements. The default is a CSPRNG; another is for tests.

    Raises:
        InputError: 2708 when it needs longer vectors than one draw allows.
    """
    lengths = axes(product)
    vectors = np.split(source(sum(lengths)), np.cumsum(lengths)[:-1])
    return Challenge(product, tuple(vectors))


def check(product: Product, left: Tensor, right: Tensor, answer: Tensor, source: Source = uniform) -> Check:
    """Draws a challenge and judges one answer; raises as :func:`draw` and :class:`Challenge`'s methods do."""
    challenge = draw(product, source)
    return challenge.judge(left, right, value=challenge.value(answer))


def multiplications(product: Product) -> int:
    """Multiplications of 64-bit words in a check, from public shapes: the factors, ``value`` and ``expected``."""
    lengths, split = axes(product), _row_axes(product)
    factors = 0
    for part in (lengths[:split], lengths[split:]):
        factors += sum(math.prod(part[: count + 1]) for count in range(1, len(part)))
    value = 3 * math.prod(lengths) + math.prod(lengths[:split])
    return factors + value + _form.multiplications(product)


def _row_axes(product: Product) -> int:
    """How many of the vectors make the row factors; the fewer, the more of an answer is summed before a reduction."""
    images = isinstance(product.operator, Conv2d) and product.role != "weight_gradient"
    return 2 if images else 1


def _words(tensor: Tensor, shape: tuple[int, ...], *dtypes: str) -> NDArray[Any]:
    if tuple(tensor.shape) != shape or str(tensor.dtype) not in dtypes or tensor.device.type != "cpu":
        raise InputError(
            2702,
            expected=f"{' or '.join(dtypes)} of shape {shape} on a CPU",
            got=f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device.type}",
        )
    return tensor.detach().contiguous().numpy()
