"""How a tensor of any rank lies before a pass: as rows of words, in order, with a scale a row, a column, or one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import InputError

__all__ = ["Channels", "Scaling", "channels", "flat", "scaling"]

_SHORT = 64  # channels that are shorter runs than this in memory are scaled by columns


def flat(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int], *, written: bool = False) -> NDArray[Any]:
    """The words of a tensor, in order."""
    fits = tensor.dtype == dtype and tuple(tensor.shape) == tuple(shape) and tensor.device.type == "cpu"
    if not fits or (written and not tensor.is_contiguous()):
        raise InputError(
            2702,
            expected=f"{dtype} {tuple(shape)} in this machine's memory{', contiguous' if written else ''}",
            got=f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}",
        )
    return tensor.detach().contiguous().reshape(-1).numpy()


class Channels(NamedTuple):
    """A tensor as ``(rows, inner)``, where channels are rows (again after every ``period``) or columns.

    Attributes:
        rows: Number of rows.
        inner: Words of a row.
        period: Channels among the rows, 1 where they are among the columns.
        repeats: Columns of a channel; 0 where channels are rows.
    """

    rows: int
    inner: int
    period: int
    repeats: int


def channels(shape: Sequence[int], axis: int | None) -> Channels:
    """The view of a contiguous tensor whose scales lie along ``axis``."""
    if axis is None:
        return Channels(1, math.prod(shape), 1, 0)
    place = axis % len(shape)
    outer, count, inner = math.prod(shape[:place]), shape[place], math.prod(shape[place + 1 :])
    if inner < _SHORT:
        return Channels(outer, count * inner, 1, inner)
    return Channels(outer * count, inner, count, 0)


class Scaling(NamedTuple):
    """What takes an integer answer, seen as ``(rows, inner)``, to fp32: ``fp32(y · row · column) + bias``.

    Attributes:
        rows: Number of rows.
        inner: Words of a row.
        row_scales: float64 powers of two, one or one a row.
        column_scales: The same of columns.
        row_bias: float32, one or one a row.
        column_bias: The same of columns.
    """

    rows: int
    inner: int
    row_scales: NDArray[np.float64]
    column_scales: NDArray[np.float64]
    row_bias: NDArray[np.float32]
    column_bias: NDArray[np.float32]


def scaling(
    shape: Sequence[int], inner: int | None, exponents: Sequence[int | Tensor], bias: Tensor | None
) -> Scaling | None:
    """The scaling of an answer whose exponents are summands that broadcast to ``shape``.

    Args:
        shape: Of the answer.
        inner: Words of a row, where a check fixes them; else what makes the vectors shortest.
        exponents: Numbers, or integer tensors.
        bias: float32, broadcasts to ``shape``.

    Returns:
        None where a summand varies along rows and columns at once.
    """
    given = [e for e in exponents if isinstance(e, Tensor)] + ([] if bias is None else [bias])
    places = [_padded(tensor, len(shape)) for tensor in given]
    best: tuple[int, int] | None = None
    for place in range(len(shape) + 1):
        rows, columns = math.prod(shape[:place]), math.prod(shape[place:])
        kinds = [_kind(padded, place) for padded in places]
        if (inner is None or columns == inner) and None not in kinds:
            cost = rows * ("row" in kinds) + columns * ("column" in kinds)
            best = min(best or (cost, place), (cost, place))
    if best is None:
        return None
    place = best[1]
    rows, columns = math.prod(shape[:place]), math.prod(shape[place:])
    scales: dict[str, NDArray[np.float64]] = {"row": np.ones(1), "column": np.ones(1)}
    for exponent in exponents:
        kind, lengths, values = _part(exponent, shape, place)
        power = np.ldexp(np.float64(1), values)  # of one operand, so there are few
        scales[kind] = scales[kind] * np.broadcast_to(power, lengths).reshape(-1)
    added: dict[str, NDArray[np.float32]] = {"row": np.zeros(1, np.float32), "column": np.zeros(1, np.float32)}
    if bias is not None:
        kind, lengths, values = _part(bias.detach(), shape, place)
        added[kind] = np.broadcast_to(values, lengths).reshape(-1)
    laid = np.ascontiguousarray  # broadcast vectors have no memory of their own
    return Scaling(
        rows, columns, laid(scales["row"]), laid(scales["column"]), laid(added["row"]), laid(added["column"])
    )


def _padded(tensor: Tensor, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - tensor.ndim) + tuple(tensor.shape)


def _kind(padded: tuple[int, ...], place: int) -> str | None:
    """Whether a tensor varies along the axes before ``place``, or those from there on; None for both."""
    if math.prod(padded[place:]) == 1:
        return "row"
    return "column" if math.prod(padded[:place]) == 1 else None


def _part(value: int | Tensor, shape: Sequence[int], place: int) -> tuple[str, tuple[int, ...], NDArray[Any]]:
    """What a summand varies along, the lengths of those axes, and its values, which broadcast to them."""
    if isinstance(value, int) or value.numel() == 1:
        return "row", (1,), np.array([int(value)]) if isinstance(value, int) else value.reshape(1).numpy()
    padded = _padded(value, len(shape))
    kind = _kind(padded, place) or "row"
    part = slice(0, place) if kind == "row" else slice(place, None)
    return kind, tuple(shape[part]), value.reshape(padded[part]).numpy()
