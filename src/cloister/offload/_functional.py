"""The offloaded forms of torch's functions: the same result, with the multiplier's product in it.

Rules:

* Biases, scales and sums are the enclave's; a product's answer is the caller's own and may be changed in place.
* A weight is passed as itself or as a view of itself, so that whoever shares it once a step can know it again.
* A product that sums nothing, or multiplies a single vector, stays: checking it costs as much as making it.
* Arithmetic that is not ``float32`` stays: integers have no scale, and whoever writes ``float64`` wants its digits.
* A call that torch itself would refuse goes to torch, for torch's own message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from cloister.offload._passes import MATRIX_VECTOR, Call
from cloister.offload._router import weight_of
from cloister.ring import Conv2d, MatMul

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.offload._router import Route

    Sizes = int | Sequence[int]
    Edges = tuple[int, int, int, int]

__all__ = ["FUNCTIONS", "MatrixProduct", "matrix_product", "stays"]

_TRANSPOSED = "a convolution that is transposed, or runs along more than two axes"
_OUTER = "an outer product: nothing is summed"


def stays(call: Call, *operands: Any) -> bool:
    """Whether the operands themselves keep a call in the enclave; recorded where there is anything to multiply."""
    if any(not isinstance(operand, Tensor) or operand.numel() == 0 for operand in operands):
        return True
    for operand in operands:
        reason = _oddity(operand)
        if reason is not None:
            call.keep(reason, reached=False)
            return True
    other = next((operand.dtype for operand in operands if operand.dtype != torch.float32), None)
    if other is not None:
        call.keep(f"{str(other).removeprefix('torch.')} arithmetic")
    return other is not None


def _oddity(operand: Tensor) -> str | None:
    if type(operand) not in (Tensor, nn.Parameter):
        return f"an operand is a {type(operand).__name__}"
    if operand.is_nested or operand.layout is not torch.strided:
        return "an operand is nested or sparse"
    if is_functorch_wrapped_tensor(operand):
        return "it runs inside a transform of torch.func"
    return None if operand.device.type == "cpu" else f"an operand is on {operand.device.type}"


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """A product of matrices that was decided on and not made yet.

    Attributes:
        route: Where it is made.
        batch: Leading axes of the answer.
        swapped: The left operand is the weight, so :meth:`make` wants the right one.
    """

    route: Route
    batch: tuple[int, ...]
    swapped: bool
    _call: Call
    _w: Tensor
    _order: tuple[int, ...]
    _sizes: tuple[int, ...]

    def make(self, a: Tensor) -> Tensor:
        """The product, wherever it is made; contiguous, as torch's own.

        Args:
            a: The operand that is not the weight, of the shape that was said when the product was decided on.
        """
        if self.swapped:
            a = a.mT
        if tuple(a.shape[:-2]) == self._sizes == self.batch:  # nothing is broadcast
            y = self._call.multiply(self.route, a, self._w)
            return (y.mT if self.swapped else y).contiguous()
        count, (height, terms) = len(self.batch), a.shape[-2:]
        x = a.expand(*self.batch, height, terms).permute(*self._order, count, count + 1)
        y = self._call.multiply(self.route, x.reshape(*self._sizes, -1, terms), self._w)
        y = y.reshape(*(self.batch[axis] for axis in self._order), height, self._w.shape[-2])
        back = [self._order.index(axis) for axis in range(count)]
        y = y.permute(*back, count, count + 1)
        return (y.mT if self.swapped else y).contiguous()


def matrix_product(
    call: Call, a: Sequence[int], b: Tensor, what: str | None = None, *, left: Tensor | None = None
) -> MatrixProduct | None:
    """Decides on ``a @ b``, two or more dimensions each, leading ones broadcast.

    Leading axes that only the left operand has are rows: a weight, or a key that heads share, is then sent once and not
    once for each. A parameter on the left is the product's weight all the same: ``W @ x`` is ``(xᵀ @ Wᵀ)ᵀ``.

    Args:
        call: Who asks.
        a: Shape of the left operand.
        b: The right operand.
        what: What the product is there.
        left: The left operand where it is known; a parameter changes sides.

    Returns:
        None when torch has to answer: the shapes do not fit, or nothing is summed.
    """
    if a[-1] != b.shape[-2]:
        return None
    if a[-1] == 1:
        call.keep(_OUTER)
        return None
    swapped = False
    if left is not None and weight_of(b) is None and weight_of(left) is not None:
        swapped = True
        a, b = (*b.shape[:-2], b.shape[-1], b.shape[-2]), left.mT
    batch = _broadcast(a[:-2], b.shape[:-2])
    if batch is None:
        return None
    own = (1,) * (len(batch) - b.dim() + 2) + tuple(b.shape[:-2])
    order = sorted(range(len(batch)), key=lambda axis: own[axis] == 1)
    sizes = tuple(batch[axis] for axis in order if own[axis] > 1)
    w = b.reshape(*sizes, *b.shape[-2:]).mT
    rows = math.prod(batch) // math.prod(sizes) * a[-2]
    route = call.route(MatMul(), (*sizes, rows, a[-1]), w, what)
    return MatrixProduct(route, batch, swapped, call, w, tuple(order), sizes)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """As ``torch.broadcast_shapes``, which takes twenty times as long; None where the two do not fit."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    ones = (1,) * (len(longer) - len(shorter))
    batch: list[int] = []
    for one, other in zip(longer, (*ones, *shorter), strict=True):
        if one != other and 1 not in (one, other):
            return None
        batch.append(other if one == 1 else one)
    return tuple(batch)


def _product(call: Call, a: Tensor, b: Tensor) -> Tensor | None:
    planned = matrix_product(call, a.shape, b, left=a)
    if planned is None or planned.route.reason is not None:
        return None
    return planned.make(b if planned.swapped else a)


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if stays(call, input, weight):
        return None
    if weight.dim() == 1:
        call.keep(MATRIX_VECTOR)
    if weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        return None
    x = input.reshape(-1, input.shape[-1])
    route = call.route(MatMul(), x.shape, weight)
    if route.reason is not None:
        return None
    y = call.multiply(route, x, weight)
    if bias is not None:
        y.add_(bias)
    return y.reshape(*input.shape[:-1], weight.shape[0])


def _matmul(call: Call, input: Tensor, other: Tensor) -> Tensor | None:
    if stays(call, input, other):
        return None
    if min(input.dim(), other.dim()) < 2:
        call.keep(MATRIX_VECTOR)
        return None
    return _product(call, input, other)


def _of_dimensions(dimensions: int) -> Callable[[Call, Tensor, Tensor], Tensor | None]:
    def handler(call: Call, input: Tensor, mat2: Tensor) -> Tensor | None:
        if stays(call, input, mat2) or not input.dim() == mat2.dim() == dimensions:
            return None
        if input.shape[:-2] != mat2.shape[:-2]:
            return None
        return _product(call, input, mat2)

    return handler


def _sum_of(call: Call, added: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor | None:
    """``beta * added + alpha * (a @ b)``; nothing is read from ``added`` where ``beta`` is zero."""
    if stays(call, a, b) or added.dtype != torch.float32 or a.shape[:-2] != b.shape[:-2]:
        return None
    y = _product(call, a, b)
    if y is None:
        return None
    if alpha != 1:
        y = y * alpha
    return y if beta == 0 else y.add_(added, alpha=beta)


def _addmm(
    call: Call,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor | None:
    return None if not mat1.dim() == mat2.dim() == 2 else _sum_of(call, input, mat1, mat2, beta, alpha)


def _baddbmm(
    call: Call,
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor | None:
    return None if not batch1.dim() == batch2.dim() == 3 else _sum_of(call, input, batch1, batch2, beta, alpha)


def _conv2d(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor | None:
    if stays(call, input, weight) or weight.dim() != 4 or input.dim() not in (3, 4):
        return None
    edges = _padding(padding, stride, dilation, weight.shape[2:])
    if edges is None:
        return None
    x = input if input.dim() == 4 else input.unsqueeze(0)
    y = _convolved(call, x, weight, bias, _pair(stride), edges, _pair(dilation), groups)
    return y if y is None or input.dim() == 4 else y.squeeze(0)


def _conv1d(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor | None:
    """An image of one row."""
    if stays(call, input, weight) or weight.dim() != 3 or input.dim() not in (2, 3):
        return None
    (step,), (reach,) = _single(stride), _single(dilation)
    edge = padding if isinstance(padding, str) else (0, *_single(padding))
    edges = _padding(edge, (1, step), (1, reach), (1, weight.shape[2]))
    if edges is None:
        return None
    x = (input if input.dim() == 3 else input.unsqueeze(0)).unsqueeze(2)
    y = _convolved(call, x, weight.unsqueeze(2), bias, (1, step), edges, (1, reach), groups)
    if y is None:
        return None
    return y.squeeze(2) if input.dim() == 3 else y.squeeze(2).squeeze(0)


def _convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor | None:
    if transposed or weight.dim() not in (3, 4):
        call.keep(_TRANSPOSED)
        return None
    convolve = _conv2d if weight.dim() == 4 else _conv1d
    return convolve(call, input, weight, bias, stride, padding, dilation, groups)


def _convolved(
    call: Call,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    edges: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor | None:
    top, bottom, left, right = edges
    operator = Conv2d(stride, (min(top, bottom), min(left, right)), dilation, groups)
    wider = (0, abs(right - left), 0, abs(bottom - top))  # an even kernel's 'same' has one more zero at the far edges
    height, width = x.shape[2] + wider[3], x.shape[3] + wider[1]
    fits = x.shape[1] == w.shape[1] * groups and w.shape[0] % groups == 0
    for axis, size in ((0, height), (1, width)):
        fits = fits and size + 2 * operator.padding[axis] > dilation[axis] * (w.shape[2 + axis] - 1)
    if not fits or min(*stride, *dilation, groups) < 1 or min(edges) < 0:
        return None
    route = call.route(operator, (x.shape[0], x.shape[1], height, width), w)
    if route.reason is not None:
        return None
    y = call.multiply(route, F.pad(x, wider) if any(wider) else x, w)
    return y if bias is None else y.add_(bias.reshape(-1, 1, 1))


def _padding(padding: Sizes | str, stride: Sizes, dilation: Sizes, kernel: Sequence[int]) -> Edges | None:
    """Zeros above, below, left and right; None where torch will refuse the words."""
    if not isinstance(padding, str):
        height, width = _pair(padding)
        return (height, height, width, width)
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding != "same" or _pair(stride) != (1, 1):
        return None
    total = [reach * (size - 1) for reach, size in zip(_pair(dilation), kernel, strict=True)]
    top, left = (each // 2 for each in total)
    return (top, total[0] - top, left, total[1] - left)


def _pair(sizes: Sizes) -> tuple[int, int]:
    if isinstance(sizes, int):
        return (sizes, sizes)
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _single(sizes: Sizes) -> tuple[int]:
    return (sizes,) if isinstance(sizes, int) else (sizes[0],)


_mm, _bmm = _of_dimensions(2), _of_dimensions(3)

_ATEN = torch.ops.aten

FUNCTIONS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.conv1d: _conv1d,
    F.conv2d: _conv2d,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    torch.linalg.matmul: _matmul,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.bmm: _bmm,
    Tensor.bmm: _bmm,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.baddbmm: _baddbmm,
    Tensor.baddbmm: _baddbmm,
    _ATEN.linear.default: _linear,
    _ATEN.conv1d.default: _conv1d,
    _ATEN.conv1d.padding: _conv1d,
    _ATEN.conv2d.default: _conv2d,
    _ATEN.conv2d.padding: _conv2d,
    _ATEN.convolution.default: _convolution,
    _ATEN.matmul.default: _matmul,
    _ATEN.mm.default: _mm,
    _ATEN.bmm.default: _bmm,
    _ATEN.addmm.default: _addmm,
    _ATEN.baddbmm.default: _baddbmm,
}
"""Offloaded forms, by function as torch hands it over; parameters are named as torch names them. Operators of ATen are
what a graph that was traced calls (:func:`cloister.privacy.bind`)."""
