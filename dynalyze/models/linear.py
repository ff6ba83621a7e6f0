"""The diagonal linear network f(x) = ⟨x, u ⊙ v⟩ (Pesme & Flammarion 2023, arXiv 2304.00488)."""

from dataclasses import dataclass, field
from functools import cached_property

import numba
import numpy as np

from dynalyze._compiled import njit
from dynalyze._typing import ArrayLike, Data, FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import (
    as_finite_array,
    as_pair,
    as_positive_int,
    normalized_sample_weight,
    warn_of_constant_features,
)
from dynalyze.models.losses import squared_loss_factor
from dynalyze.models.tables import column_names

_BLOCK = 1024  # samples per partial sum: fixed, so that results do not depend on the threads
_PARALLEL_FROM = 1_000_000  # entries of X from which two threads pay for their start


@dataclass(frozen=True)
class DiagonalLinear:
    """A linear model whose coefficients are products, f(x) = ⟨x, θ⟩ with θ = u ⊙ v.

    Parameters
    ----------
    n_features : int
        Number of features, which is the number p of products.
    feature_names : sequence of str, optional
        Readable names of the products; by default the columns' names if the data are a pandas
        DataFrame, else ``theta[i]``.
    """

    n_features: int
    feature_names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_features", as_positive_int(self.n_features, "n_features"))
        names = tuple(str(name) for name in self.feature_names)
        if names and len(names) != self.n_features:
            raise InvalidInputError(
                f"feature_names has {len(names)} entries for n_features={self.n_features}: "
                "give one name per feature, or none"
            )
        object.__setattr__(self, "feature_names", names)

    @property
    def n_products(self) -> int:
        """Number p of products: one per feature."""
        return self.n_features

    @property
    def product_names(self) -> tuple[str, ...]:
        """The feature names, or ``theta[i]``."""
        return self.feature_names or tuple(f"theta[{i}]" for i in range(self.n_features))

    def predict(self, theta: ArrayLike, X: ArrayLike) -> FloatArray:
        """Outputs ⟨x, θ⟩ for X of shape (n_samples, p); shape (n_samples,)."""
        return np.asarray(X, dtype=float) @ np.asarray(theta, dtype=float)

    def bind(
        self, data: Data, *, loss: str = "squared", sample_weight: ArrayLike | None = None
    ) -> "DiagonalLinearObjective":
        """Return the loss on `data` = (X, y), X of shape (n_samples, p), y (n_samples,).

        See `Model.bind` for the losses and the weights. The field is
        g(θ) = Xᵀ W (y − Xθ), times 2 under ``"mse"``.

        Raises
        ------
        InvalidInputError
            If the shapes do not fit, or values are not finite.

        Warns
        -----
        ConstantFeatureWarning
            If a feature has the same value in every sample.
        """
        inputs, targets = as_pair(data)
        X = as_finite_array(inputs, "X", ["n_samples", "n_features"])
        y = as_finite_array(targets, "y", ["n_samples"])
        if X.shape[1] != self.n_features:
            raise InvalidInputError(
                f"X has {X.shape[1]} columns for n_features={self.n_features}: "
                f"use DiagonalLinear({X.shape[1]}), or give X that many columns"
            )
        if len(X) != len(y):
            raise InvalidInputError(
                f"X has {len(X)} samples and y has {len(y)}: give one target per sample"
            )
        warn_of_constant_features(
            X, "its product is never learned if that is 0, and acts as an intercept otherwise"
        )
        weights = normalized_sample_weight(sample_weight, len(X)) * squared_loss_factor(loss, 1)
        names = self.feature_names or column_names(data) or self.product_names
        return DiagonalLinearObjective(X, y, weights, names)


@dataclass(frozen=True, eq=False)
class DiagonalLinearObjective:
    """L(θ) = ½ Σ_s w_s (y_s − ⟨x_s, θ⟩)², with its field and its constant Hessian."""

    compiled = True
    X: FloatArray  # (n_samples, p)
    y: FloatArray  # (n_samples,)
    weights: FloatArray  # (n_samples,), the loss's factor included
    product_names: tuple[str, ...]  # p names

    @property
    def n_products(self) -> int:
        """Number p of products."""
        return self.X.shape[1]

    @cached_property
    def field_units(self) -> FloatArray:
        """√(Σ_s w_s x_si² · Σ_s w_s y_s²), which |g_i(0)| cannot exceed; shape (p,)."""
        root = np.sqrt(self.weights)
        with np.errstate(over="ignore"):
            sizes = np.linalg.norm(self.X * root[:, None], axis=0)
            return np.asarray(sizes * np.linalg.norm(self.y * root))

    def value(self, theta: FloatArray) -> float:
        """Loss at θ, shape (p,)."""
        return self.value_and_field(theta)[0]

    def field(self, theta: FloatArray) -> FloatArray:
        """g(θ) = Σ_s w_s x_s (y_s − ⟨x_s, θ⟩), shape (p,)."""
        return self.value_and_field(theta)[1]

    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Loss and field in one pass over the samples."""
        kernel = _loss_and_field_parallel if self.X.size >= _PARALLEL_FROM else _loss_and_field
        value, field = kernel(self.X, self.y, self.weights, np.ascontiguousarray(theta, float))
        return float(value), field

    @cached_property
    def _hessian(self) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):  # infinite, where it is reported
            return (self.X * self.weights[:, None]).T @ self.X

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns of Xᵀ W X, which do not depend on θ; shape (p, len(indices))."""
        return self._hessian[:, indices]


@njit(cache=True, error_model="numpy")
def _sum_block(X, y, weights, theta, start, stop, gradient):  # type: ignore[no-untyped-def]
    loss = 0.0
    for s in range(start, stop):
        residual = y[s]
        for i in range(theta.size):
            residual -= X[s, i] * theta[i]
        weighted = weights[s] * residual
        loss += 0.5 * weighted * residual
        for i in range(theta.size):
            gradient[i] += weighted * X[s, i]
    return loss


@njit(cache=True, error_model="numpy")
def _loss_and_field(X, y, weights, theta):  # type: ignore[no-untyped-def]
    field = np.zeros(theta.size)
    loss = 0.0
    partial = np.empty(theta.size)
    for start in range(0, y.size, _BLOCK):
        partial[:] = 0.0
        loss += _sum_block(X, y, weights, theta, start, min(start + _BLOCK, y.size), partial)
        field += partial
    return loss, field


@njit(cache=True, parallel=True, error_model="numpy")
def _loss_and_field_parallel(X, y, weights, theta):  # type: ignore[no-untyped-def]
    n_blocks = (y.size + _BLOCK - 1) // _BLOCK
    losses = np.zeros(n_blocks)
    partial = np.zeros((n_blocks, theta.size))
    for block in numba.prange(n_blocks):
        start = block * _BLOCK
        stop = min(start + _BLOCK, y.size)
        losses[block] = _sum_block(X, y, weights, theta, start, stop, partial[block])
    loss = 0.0
    field = np.zeros(theta.size)
    for block in range(n_blocks):
        loss += losses[block]
        field += partial[block]
    return loss, field
