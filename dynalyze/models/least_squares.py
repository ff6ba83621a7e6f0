"""Least squares on a support that gains and loses one column at a time.

For a loss that is quadratic in θ the minimum over a support S solves H_SS θ_S = g_S(0), with one
H for all supports. Its Cholesky factor R, H_SS = RᵀR in units in which H has a unit diagonal, is
updated with the support; the answers are refined by the residual, so that they are as accurate as
those of an orthogonal factorization (Björck, Numerical Methods for Least Squares Problems, 1996,
sections 2.9.4 and 3.2: corrected seminormal equations, and modified QR factorizations).
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.linalg.blas import dtrsm, dtrsv

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.errors import FlowError

_OUT_OF_RANGE = "the curvature of the loss is beyond the range of floats: rescale the data"
_ROUNDING = 32 * np.finfo(float).eps  # of a sum, in units of the sum of its terms' sizes
_REFINEMENTS = 4
_REORTHOGONALIZE = 0.5  # part of a column that must be left for one projection to suffice


class SupportMinimizer(Protocol):
    """The minimum of a quadratic loss on a support, kept factorized."""

    @property
    def support(self) -> list[int]:
        """Coordinates in the order in which they were added."""

    @property
    def lengths(self) -> FloatArray:
        """√H_ii on the support, the inverse units of its products; shape (k,)."""

    def add(self, coordinate: int) -> bool:
        """Append a coordinate; False, and nothing happens, if it depends on the others.

        Raises
        ------
        FlowError
            If its curvature is beyond the range of floats.
        """

    def remove(self, coordinate: int) -> None:
        """Take a coordinate out."""

    def minimum(self, start: FloatArray) -> FloatArray:
        """θ_S at the minimum on the support, refined from `start`; both of shape (k,)."""

    def rounding(self, theta: FloatArray, which: IntArray) -> FloatArray:
        """Error that rounding may make of some entries of `minimum`; shape of `which`."""


class _Factor:
    """The triangular factor R of a Gram matrix, whose columns come and go."""

    def __init__(self) -> None:
        self._storage = np.zeros((8, 8), order="F")
        self.size = 0

    @property
    def triangle(self) -> FloatArray:
        """R, shape (k, k)."""
        return self._storage[: self.size, : self.size]

    def solve(self, right: FloatArray, *, transposed: bool) -> FloatArray:
        """R⁻¹ or R⁻ᵀ applied to a vector of shape (k,)."""
        if not self.size:
            return np.zeros(0)
        solution: FloatArray = dtrsv(self.triangle, right, trans=int(transposed))
        return solution

    def solve_gram(self, right: FloatArray) -> FloatArray:
        """(RᵀR)⁻¹ applied to a vector of shape (k,)."""
        return self.solve(self.solve(right, transposed=True), transposed=False)

    def append(self, above: FloatArray, diagonal: float) -> None:
        """Append the column (above, diagonal), shapes (k,) and ()."""
        k = self.size
        if k == len(self._storage):
            grown = np.zeros((2 * k, 2 * k), order="F")
            grown[:k, :k] = self._storage
            self._storage = grown
        self._storage[: k + 1, k] = 0.0
        self._storage[:k, k] = above
        self._storage[k, k] = diagonal
        self._storage[k, :k] = 0.0
        self.size = k + 1

    def delete(self, position: int) -> None:
        """Take a column out, and rotate the rows below back to a triangle."""
        k, rows = self.size, self._storage
        rows[:k, position : k - 1] = rows[:k, position + 1 : k]
        self.size = k - 1
        for i in range(position, k - 1):
            length = np.hypot(rows[i, i], rows[i + 1, i])
            cosine, sine = rows[i, i] / length, rows[i + 1, i] / length
            pair = rows[i : i + 2, i : k - 1]
            rotated = np.array([[cosine, sine], [-sine, cosine]]) @ pair
            rotated[1, 0] = 0.0
            rows[i : i + 2, i : k - 1] = rotated

    def inverse_rows(self, which: IntArray) -> tuple[FloatArray, FloatArray]:
        """‖e_iᵀ R⁻¹‖ and ‖e_iᵀ (RᵀR)⁻¹‖ for some i; shape of `which`, each."""
        units = np.zeros((self.size, len(which)), order="F")
        units[which, np.arange(len(which))] = 1.0
        half = dtrsm(1.0, self.triangle, units, trans_a=1)
        whole = dtrsm(1.0, self.triangle, half)
        return np.linalg.norm(half, axis=0), np.linalg.norm(whole, axis=0)


class DesignMinimizer:
    """Minimizer of ½ ‖t − Aθ‖² on a support, from the columns of A alone.

    Parameters
    ----------
    X : ndarray, shape (n, p)
        A up to the factors of its rows.
    root_weights : ndarray, shape (n,)
        A = diag(root_weights) X.
    target : ndarray, shape (n,)
        t.
    """

    def __init__(self, X: FloatArray, root_weights: FloatArray, target: FloatArray) -> None:
        self._X, self._root, self._target = X, root_weights, target
        self._factor = _Factor()
        self._storage = np.zeros((len(target), 8), order="F")  # columns of unit length
        self._lengths = np.zeros(8)
        self.support: list[int] = []

    @property
    def _columns(self) -> FloatArray:
        return self._storage[:, : len(self.support)]

    @property
    def lengths(self) -> FloatArray:
        """√H_ii on the support, the inverse units of its products; shape (k,)."""
        return self._lengths[: len(self.support)]

    def add(self, coordinate: int) -> bool:
        """Append a coordinate; False, and nothing happens, if it depends on the others."""
        column = self._root * self._X[:, coordinate]
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(column))
        if not 0 < length < np.inf:
            raise FlowError(_OUT_OF_RANGE)
        column /= length
        rest, above = column, np.zeros(len(self.support))
        before = 1.0
        for _ in range(2):
            projection = self._factor.solve(self._columns.T @ rest, transposed=True)
            rest = rest - self._columns @ self._factor.solve(projection, transposed=False)
            above += projection
            left = float(np.linalg.norm(rest))
            if left > _REORTHOGONALIZE * before:
                break
            before = left
        if left <= _ROUNDING:
            return False
        k = len(self.support)
        if k == self._storage.shape[1]:
            grown = np.zeros((len(column), min(2 * k, max(len(column), k + 1))), order="F")
            grown[:, :k] = self._storage
            self._storage, self._lengths = grown, np.resize(self._lengths, grown.shape[1])
        self._storage[:, k], self._lengths[k] = column, length
        self._factor.append(above, left)
        self.support.append(coordinate)
        return True

    def remove(self, coordinate: int) -> None:
        """Take a coordinate out."""
        position, k = self.support.index(coordinate), len(self.support)
        for i in range(position, k - 1):
            self._storage[:, i] = self._storage[:, i + 1]
        self._lengths[position : k - 1] = self._lengths[position + 1 : k]
        self._factor.delete(position)
        del self.support[position]

    def minimum(self, start: FloatArray) -> FloatArray:
        """θ_S at the minimum on the support, refined from `start`; both of shape (k,)."""
        lengths = self.lengths
        scaled = start * lengths
        residual = self._target - self._columns @ scaled
        for _ in range(2):
            step = self._factor.solve_gram(self._columns.T @ residual)
            scaled = scaled + step
            residual = residual - self._columns @ step
        self._residual = float(np.linalg.norm(residual))
        return scaled / lengths

    def rounding(self, theta: FloatArray, which: IntArray) -> FloatArray:
        """Error that rounding may make of some entries of `minimum`; shape of `which`."""
        lengths = self.lengths
        terms = float(np.linalg.norm(self._target) + np.abs(theta) @ lengths)
        half, whole = self._factor.inverse_rows(which)
        return _ROUNDING * (half * terms + whole * self._residual) / lengths[which]


class HessianMinimizer:
    """Minimizer of a quadratic loss on a support, from columns of its Hessian.

    Parameters
    ----------
    columns : callable
        Columns of the Hessian, shape (p, k), at θ and k indices.
    field : callable
        g(θ), shape (p,); it refines what the rounding of the Hessian leaves.
    n_products : int
        Number p of products.
    """

    def __init__(
        self,
        columns: Callable[[FloatArray, IntArray], FloatArray],
        field: Callable[[FloatArray], FloatArray],
        n_products: int,
    ) -> None:
        self._evaluate, self._field, self._p = columns, field, n_products
        self._known: dict[int, FloatArray] = {}
        self._factor = _Factor()
        self.support: list[int] = []

    def _column(self, coordinate: int) -> FloatArray:
        if coordinate not in self._known:
            columns = self._evaluate(np.zeros(self._p), np.array([coordinate]))
            self._known[coordinate] = columns[:, 0]
        return self._known[coordinate]

    @property
    def lengths(self) -> FloatArray:
        """√H_ii on the support, the inverse units of its products; shape (k,)."""
        return np.sqrt([self._known[i][i] for i in self.support])

    def add(self, coordinate: int) -> bool:
        """Append a coordinate; False, and nothing happens, if it depends on the others."""
        column = self._column(coordinate)
        if not 0 < column[coordinate] < np.inf:
            raise FlowError(_OUT_OF_RANGE)
        unit = np.sqrt(column[coordinate])
        above = self._factor.solve(column[self.support] / self.lengths / unit, transposed=True)
        left = 1.0 - float(above @ above)
        if left <= _ROUNDING * (1 + len(self.support)):
            return False
        self._factor.append(above, float(np.sqrt(left)))
        self.support.append(coordinate)
        return True

    def remove(self, coordinate: int) -> None:
        """Take a coordinate out."""
        position = self.support.index(coordinate)
        self._factor.delete(position)
        del self.support[position]

    def minimum(self, start: FloatArray) -> FloatArray:
        """θ_S at the minimum on the support, refined from `start`; both of shape (k,)."""
        scale, S = self.lengths, self.support
        theta = np.zeros(self._p)
        theta[S] = start
        for _ in range(_REFINEMENTS):
            theta[S] += self._factor.solve_gram(self._field(theta)[S] / scale) / scale
        return theta[S]

    def rounding(self, theta: FloatArray, which: IntArray) -> FloatArray:
        """Error that rounding may make of some entries of `minimum`; shape of `which`."""
        scale = self.lengths
        at_origin = self._field(np.zeros(self._p))[self.support]
        terms = float(np.linalg.norm(at_origin / scale) + np.abs(theta) @ scale)
        _, whole = self._factor.inverse_rows(which)
        return _ROUNDING * whole * terms / scale[which]
