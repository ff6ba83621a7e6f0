"""The diagonal linear network f(x) = ⟨x, u ⊙ v⟩ (Pesme & Flammarion 2023, arXiv 2304.00488)."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import (
    as_finite_array,
    as_pair,
    as_positive_int,
    normalized_sample_weight,
    warn_of_constant_features,
)
from dynalyze.models.least_squares import DesignMinimizer
from dynalyze.models.losses import squared_loss_factor
from dynalyze.models.protocol import CheckedObjective
from dynalyze.models.tables import column_names

_FEW = 0.05  # share of products up to which gathering their columns is cheaper than all of X
_ROUNDING = 1e-14  # of a sum over the samples, relative to the sizes of its terms


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
class DiagonalLinearObjective(CheckedObjective):
    """L(θ) = ½ Σ_s w_s (y_s − ⟨x_s, θ⟩)², with its field and its constant Hessian."""

    compiled = True
    X: FloatArray  # (n_samples, p)
    y: FloatArray  # (n_samples,)
    weights: FloatArray  # (n_samples,), the loss's factor included
    product_names: tuple[str, ...]  # p names
    is_quadratic = True

    @cached_property
    def _lengths(self) -> FloatArray:
        """√(Σ_s w_s x_si²), shape (p,)."""
        with np.errstate(over="ignore"):
            return np.sqrt(np.einsum("s,si,si->i", self.weights, self.X, self.X))

    @cached_property
    def field_units(self) -> FloatArray:
        """√(Σ_s w_s x_si² · Σ_s w_s y_s²), which |g_i(0)| cannot exceed; shape (p,)."""
        with np.errstate(over="ignore"):
            return self._lengths * np.linalg.norm(self.y * np.sqrt(self.weights))

    def value(self, theta: FloatArray) -> float:
        """Loss at θ, shape (p,)."""
        return self._value_and_weighted_residual(theta)[0]

    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """L(θ) and g(θ) = Σ_s w_s x_s (y_s − ⟨x_s, θ⟩), in two passes over the samples."""
        value, weighted = self._value_and_weighted_residual(theta)
        return value, weighted @ self.X

    def _value_and_weighted_residual(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """L(θ) and w (y − Xθ), shape (n_samples,); inactive products cost nothing."""
        active = np.flatnonzero(theta)
        few = active.size <= _FEW * self.n_products
        with np.errstate(over="ignore", invalid="ignore"):  # infinite, where it is reported
            outputs = self.X[:, active] @ theta[active] if few else self.X @ theta
            residual = self.y - outputs
            weighted = self.weights * residual
            return 0.5 * float(weighted @ residual), weighted

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns of Xᵀ W X, which do not depend on θ; shape (p, len(indices))."""
        known = self._known_columns
        new = [i for i in np.unique(indices) if i not in known]
        if new:
            with np.errstate(over="ignore", invalid="ignore"):  # infinite, where it is reported
                columns = (self.weights[:, None] * self.X[:, new]).T @ self.X
            known.update(zip(new, columns, strict=True))
        return np.array([known[i] for i in indices]).reshape(len(indices), -1).T

    @cached_property
    def _known_columns(self) -> dict[int, FloatArray]:
        """Columns of the Hessian that were asked for so far; all p × p are seldom needed."""
        return {}

    def field_rounding(self, theta: FloatArray) -> FloatArray:
        """Error that rounding makes of g(θ), shape (p,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = np.sum(self._lengths * np.abs(theta))
            return _ROUNDING * (self.field_units + self._lengths * outputs)

    def support_minimizer(self) -> DesignMinimizer:
        """Minimum of the loss on supports, of which it is a least-squares problem."""
        root = np.sqrt(self.weights)
        return DesignMinimizer(self.X, root, root * self.y)
