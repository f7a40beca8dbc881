"""The seam to whatever makes rows: per-example gradients, their squared norms, and their rounded sum.

=========  =========================================================================================================
name       makes rows with
=========  =========================================================================================================
``cpu``    register-blocked vector instructions that numba compiles for this processor (``_cpu``)
``torch``  matrix products of torch's, on any device, without numba (``_torch``)
=========  =========================================================================================================

Rows agree to rounding; the sum of given rows is the same to the last bit. Row ``b`` depends on example ``b`` alone, so
nothing depends on the number of threads or on who else is in the micro-batch. Which instructions run, and on which
addresses, follows from shapes, never from values; only embeddings' addresses follow tokens, as in their forward.

Rows are written fastest where each begins at a multiple of 64 bytes.

Squares: a row's squared norm is that of its float32 values, wrong by at most 2^-18 of itself and 2^-94 more: products
are summed in float32, at most 25 in a row (each of which adds 2^-24), and from there in float64; a square below
float32's smallest normal number may be lost, which is less than 2^-125 for each of at most 2^31 values. A norm of
2^-28 or more is therefore right to 2^-18. A row that is not finite has a square that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch

from cloister.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LIMIT", "Biases", "NormGradients", "Order", "Pair", "RowKernels", "conv2d_weight", "row_kernels"]

Pair = tuple[int, int]
Order = Literal["weight", "kernel"]
"""``weight``: (output, input, kernel row, kernel column), as the weight lies in memory. ``kernel``: (kernel row, kernel
column, input, output), which is faster, the more so the fewer positions an example has; see ``conv2d_weight``."""

LIMIT = 1 << 27
"""A scaled coordinate whose magnitude is larger, or that is no number, counts as 0 in a rounded sum."""


class Biases(NamedTuple):
    """Where gradients of biases go.

    Attributes:
        rows: ``(B, O)``; see :class:`RowKernels`.
        squares: ``(B,)``, likewise.
    """

    rows: Tensor
    squares: Tensor | None


class NormGradients(NamedTuple):
    """What a norm's backward makes.

    Attributes:
        weight: ``(B, C)``, each example's own: sums of ``dy · (x - mean) · deviation`` over positions.
        bias: ``(B, C)``, likewise: sums of ``dy``.
        input: The input's, laid out as it is, or None.
        summand: What was added to the result, its own, laid out as the input; or None.
    """

    weight: Tensor
    bias: Tensor
    input: Tensor | None
    summand: Tensor | None = None


class RowKernels(Protocol):
    """Makes and sums rows.

    Throughout: ``rows`` is ``(B, P)`` float32, its columns adjacent, its rows anywhere, and is overwritten, or added to
    with ``add``. ``squares`` is ``(B,)`` float64, or None; the squared norms of the *finished* rows are added to it.
    ``factors`` is ``(B,)`` float64, ``total`` ``(P,)`` int64; both in steps of the grid. B may be 0. Inputs are float32
    of any strides; those whose examples lie channels first or channels last are read where they are.

    Raises (all):
        InputError: 2821 when a shape, a dtype or a device is another; 2822 for a geometry that there is not.
    """

    name: str

    def conv2d_rows(
        self,
        x: Tensor,
        dy: Tensor,
        rows: Tensor,
        squares: Tensor | None,
        *,
        kernel: Pair,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        add: bool = False,
        order: Order = "weight",
        biases: Biases | None = None,
    ) -> None:
        """Weight gradients of a convolution: x ``(B, C, H, W)``, dy ``(B, O, H', W')``, P = O · C/groups · taps.

        With ``biases``, on the way what :meth:`bias_rows` makes of the same dy.
        """
        ...

    def linear_rows(self, x: Tensor, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False) -> None:
        """Weight gradients of a Linear: x ``(B, …, I)``, dy ``(B, …, O)``; P = O · I, outputs first."""
        ...

    def outer_squares(self, x: Tensor, dy: Tensor, squares: Tensor) -> None:
        """The squared norms of ``dy ⊗ x``, x ``(B, I)`` and dy ``(B, O)``, without any row."""
        ...

    def outer_sum_rounded(self, x: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        """Adds ``Σ rint((dy · factor) ⊗ x)``, outputs first, without any row; see :meth:`sum_rounded`."""
        ...

    def embedding_rows(
        self, tokens: Tensor, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False
    ) -> None:
        """Weight gradients of an embedding: tokens ``(B, T)`` int64, dy ``(B, T, D)``; P = vocabulary · D."""
        ...

    def embedding_squares(self, tokens: Tensor, dy: Tensor, squares: Tensor) -> None:
        """The squared norms of an embedding's rows, without any row."""
        ...

    def embedding_sum_rounded(self, tokens: Tensor, dy: Tensor, factors: Tensor, total: Tensor) -> None:
        """Adds an embedding's scaled, rounded rows, without any row; see :meth:`sum_rounded`."""
        ...

    def bias_rows(self, dy: Tensor, rows: Tensor, squares: Tensor | None, *, add: bool = False) -> None:
        """Sums of dy ``(B, C, …)`` over positions; P = C. Where channels are the last axis, move it."""
        ...

    def group_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        groups: int,
        eps: float,
        rectified: bool = False,
        summand: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A group norm of x ``(B, C, …)``, as ``torch.native_group_norm`` makes it.

        Args:
            x: What is normalised.
            weight: ``(C,)`` factors, or None.
            bias: ``(C,)`` summands, or None.
            groups: How many groups of channels there are; each is normalised with all its positions.
            eps: Added to the variances.
            rectified: Whether a ReLU follows.
            summand: What is added before it, alike; or None.

        Returns:
            The result, laid out as x; ``(B, groups)`` means and reciprocals of standard deviations.
        """
        ...

    def group_norm_backward(
        self,
        x: Tensor,
        dy: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        deviation: Tensor,
        *,
        input: bool = True,
        rectified: Tensor | None = None,
        summand: bool = False,
    ) -> NormGradients:
        """Gradients of a group norm.

        Args:
            x: What was normalised, ``(B, C, …)``.
            dy: The gradient of the result, alike.
            weight: See :meth:`group_norm`.
            mean: See :meth:`group_norm`.
            deviation: See :meth:`group_norm`.
            input: Whether the input's gradient is wanted.
            rectified: The result, where a ReLU was its end; or None.
            summand: Whether its gradient is wanted; only where a ReLU was.
        """
        ...

    def layer_norm_backward(
        self, x: Tensor, dy: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor, *, input: bool = True
    ) -> NormGradients:
        """Gradients of a norm of each position.

        Args:
            x: What was normalised, ``(B, …, C)``.
            dy: The gradient of the result, alike.
            weight: ``(C,)`` factors, or None.
            mean: Of each position, ``(B, …)``.
            deviation: The reciprocals of the standard deviations, likewise.
            input: Whether the input's gradient is wanted; it comes contiguous.
        """
        ...

    def square_rows(self, rows: Tensor, squares: Tensor) -> None:
        """Adds the squared norms of rows."""
        ...

    def sum_rounded(self, rows: Tensor, factors: Tensor, total: Tensor) -> None:
        """Adds ``Σ_b rint(rows[b] · factors[b])``: factors and products in float32, halves to even.

        A product larger than ``LIMIT``, or that is no number, counts as 0: no row can do more to a coordinate, and one
        with a factor of 0 does nothing, whatever is in it.
        """
        ...

    def release(self, total: Tensor, scale: float, released: Tensor) -> None:
        """Writes ``total · scale``, rounded to float32 once, and empties the total.

        Args:
            total: ``(P,)`` int64.
            scale: What a step of the grid is worth.
            released: ``(P,)`` float32, adjacent.
        """
        ...


def conv2d_weight(row: Tensor, *, inputs: int, kernel: Pair) -> Tensor:
    """A row of the order ``kernel``, or a sum of such, as a view of the weight's shape.

    Args:
        row: ``(…, kernel row · kernel column · inputs · outputs)``.
        inputs: Of a group.
        kernel: Height and width.

    Returns:
        ``(…, outputs, inputs, height, width)``.
    """
    view = row.unflatten(-1, (*kernel, inputs, -1))
    return view.movedim((-1, -2), (-4, -3))


def row_kernels(device: torch.device, *, prefer: str | None = None) -> RowKernels:
    """The kernels for a device.

    Args:
        device: Where rows will lie.
        prefer: A name of the table above. By default ``cpu`` on a CPU with numba, else ``torch``.

    Raises:
        InputError: 2820 for a name or a device that there are no kernels for; 2823 when ``cpu`` is asked for and numba
            is not installed.
    """
    if prefer is not None and prefer not in _NAMED:
        raise InputError(2820, f"there are no row kernels called '{prefer}'", expected=", ".join(_NAMED), got=prefer)
    if device.type not in ("cpu", "cuda"):
        raise InputError(2820, expected="a CPU or CUDA device", got=device)
    if prefer is not None:
        return _NAMED[prefer](device)
    if device.type != "cpu":
        return _torch(device)
    try:
        return _cpu(device)
    except InputError as error:
        if error.code != _NO_NUMBA:
            raise
        return _torch(device)


_NO_NUMBA = 2823


def _cpu(device: torch.device) -> RowKernels:
    if device.type != "cpu":
        raise InputError(2820, "the row kernels 'cpu' run on CPUs only", got=device)
    try:
        import numba  # noqa: F401  only asks whether it is there: our modules would hide which import failed
    except ImportError:
        raise InputError(_NO_NUMBA) from None
    from cloister.privacy._cpu import CpuRowKernels

    return CpuRowKernels()


def _torch(device: torch.device) -> RowKernels:
    from cloister.privacy._torch import TorchRowKernels

    return TorchRowKernels(device)


_NAMED: dict[str, Callable[[torch.device], RowKernels]] = {"cpu": _cpu, "torch": _torch}
