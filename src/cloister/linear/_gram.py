"""A party's rows, reduced to a triangular factor: R with ``RᵀR = [1 X y]ᵀ[1 X y]``, by QR of chunks as they come.

Orthogonal transformations lose nothing where a Gram matrix would lose half the digits, and they do not mind columns
that depend on each other. Memory is one chunk and one triangle, whatever the number of rows.

>>> factor = RowFactor(2)
>>> factor.add(np.array([[1.0, 3.0], [0.0, 4.0]]))
>>> factor.triangle
array([[1., 3.],
       [0., 4.]])
>>> factor.count, float(factor.mean_squares()[0]), factor.curvature()
(2, 0.5, 0.5)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowFactor"]


class RowFactor:
    """The factor of all rows so far.

    Args:
        width: Columns, D + 1.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.triangle: NDArray[np.float64] = np.zeros((width, width))

    def add(self, rows: NDArray[np.float64]) -> None:
        """Takes rows in, (rows, width)."""
        factor = np.linalg.qr(np.vstack([self.triangle, rows]), mode="r")
        signs = np.where(np.diag(factor) < 0, -1.0, 1.0)  # so that the same rows always give the same factor
        self.triangle = np.triu(factor * signs[:, None])
        self.count += len(rows)

    def mean_squares(self) -> NDArray[np.float64]:
        """Of each column, (width,)."""
        with np.errstate(over="ignore"):  # infinite exceeds every bound
            return (self.triangle**2).sum(axis=0) / self.count

    def curvature(self) -> float:
        """The greatest eigenvalue of the mean of ``[1 X]ᵀ[1 X]``."""
        return float(np.linalg.norm(self.triangle[:-1, :-1], 2) ** 2 / self.count)

    def __repr__(self) -> str:
        return f"<RowFactor of {self.count} rows>"
