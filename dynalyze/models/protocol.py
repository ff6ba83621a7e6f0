"""What the library asks of a model, and of a model bound to data.

A `Model` is an architecture whose weights enter as products, f(x; u, v) = h(x; u ⊙ v)
(Definition 3.1 of arXiv 2306.07042). Bound to data and a loss it becomes an `Objective`:
the loss as a function of the products θ = u ⊙ v alone. Flow, stages and checks know
nothing else of what is trained.
"""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray, IntArray


@runtime_checkable
class Objective(Protocol):
    """The loss L as a function of the products θ, with its field and Hessian columns.

    Whatever satisfies this protocol can be given to `predict_stages` and `simulate` as the
    model, with ``data=None``.

    An objective may know more of itself, and is then served better:

    - ``field_units``, shape (p,): the size that each g_i has by the units of its data alone. A
      field counts as zero by its ratio to them; see `relative_field_units`.
    - ``field_rounding(theta)``, shape (p,): the error that rounding makes of g(θ).
    - ``is_quadratic``: True where the loss is quadratic in θ. Limit points are then found without
      following the flow.
    - ``support_minimizer()`` of a quadratic loss: a `SupportMinimizer` that is better than
      `HessianMinimizer`, which is used otherwise.
    - ``compiled``: True where calls run Numba kernels. Ctrl-C never ends such a call, as a second
      one does where a call in Python takes long.
    - ``rounding``: relative error of g where it is computed in less than float64.
    """

    @property
    def n_products(self) -> int:
        """Number p of products."""

    @property
    def product_names(self) -> tuple[str, ...]:
        """Readable name of each product, such as ``W_K W_Q[7]``; length p."""

    def value(self, theta: FloatArray) -> float:
        """Loss L(θ); θ has shape (p,)."""

    def field(self, theta: FloatArray) -> FloatArray:
        """Field g(θ) = −∂L/∂θ of eq. (4), shape (p,)."""

    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return L(θ) and g(θ) together, for little more than the cost of g alone."""

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns ∂²L/∂θ∂θ_i for i in `indices`; shape (p, len(indices))."""


class CheckedObjective(ABC):
    """Base of the library's own objectives, whose shapes were checked where data were bound."""

    compiled = False
    product_names: tuple[str, ...]

    @property
    def n_products(self) -> int:
        """Number p of products."""
        return len(self.product_names)

    def value(self, theta: FloatArray) -> float:
        """Loss L(θ); θ has shape (p,)."""
        return self.value_and_field(theta)[0]

    def field(self, theta: FloatArray) -> FloatArray:
        """Field g(θ) = −∂L/∂θ of eq. (4), shape (p,)."""
        return self.value_and_field(theta)[1]

    @abstractmethod
    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return L(θ) and g(θ)."""


def relative_field_units(objective: Objective) -> FloatArray:
    """Units of the fields relative to the largest, shape (p,): 1 where none are known.

    They keep a product of a feature in small units from counting as at rest beside one in large
    units: with x_i a factor s smaller, g_i is s times smaller, and θ_i as much larger.
    """
    units = getattr(objective, "field_units", None)
    if units is None or not 0 < np.max(units) < np.inf:
        return np.ones(objective.n_products)
    return np.where(units > 0, units / np.max(units), 1.0)


@runtime_checkable
class Model(Protocol):
    """An architecture h(x; θ) that enters its weights as products, not yet bound to data."""

    @property
    def n_products(self) -> int:
        """Number p of products."""

    @property
    def product_names(self) -> tuple[str, ...]:
        """Readable name of each product; length p."""

    def bind(
        self, data: Data, *, loss: str = "squared", sample_weight: ArrayLike | None = None
    ) -> Objective:
        """Return the loss of this model on `data` as a function of its products.

        Parameters
        ----------
        data : pair of arrays (X, y)
            Inputs and targets; the first axis counts the samples.
        loss : {"squared", "mse"}
            ``"squared"`` is the mean over samples of ½‖y − f(x)‖², summed over output entries;
            ``"mse"`` is the mean over all entries without the ½ (torch.nn.MSELoss).
        sample_weight : array_like, shape (n_samples,), optional
            Non-negative weights; the mean over samples becomes a weighted mean.
        """
