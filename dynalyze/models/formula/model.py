"""A model given as a SymPy formula h(x; θ), compiled to kernels like the built-in ones.

The generated source and its compiled code are kept in the user's cache folder
(``$XDG_CACHE_HOME/dynalyze/kernels``, or the platform's custom), under a name that depends on the
formula and on the versions of SymPy and dynalyze.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import sympy as sp

from dynalyze._core.arrays import ArrayLike, Data, FloatArray, IntArray
from dynalyze._version import __version__
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import (
    as_finite_array,
    as_pair,
    as_product_indices,
    as_products,
    normalized_sample_weight,
)
from dynalyze.models.formula import codegen
from dynalyze.models.formula.cache import load_module
from dynalyze.models.formula.expressions import (
    degree,
    digest,
    free_symbols,
    rebuild,
    refuse_unusable,
)
from dynalyze.models.formula.loss import (
    SymbolicLoss,
    as_expression,
    as_symbols,
    names_of,
    real_symbols,
    refuse_repeated,
)
from dynalyze.models.losses import squared_loss_factor
from dynalyze.models.protocol import CheckedObjective

if TYPE_CHECKING:
    from dynalyze.models.protocol import Model, Objective


class SymbolicModel:
    """The model f(x; u, v) = h(x; u ⊙ v) for a formula h (Definition 3.1).

    Parameters
    ----------
    h : sympy expression, or sequence or Matrix of them
        Output, or outputs, as a function of `inputs` and `products`; it must be twice continuously
        differentiable in the products.
    inputs : sequence of Symbol
        Symbols of the input's entries, in the order of the columns of X.
    products : sequence of Symbol
        Symbols of the products θ = u ⊙ v; each must appear in `h`.

    Raises
    ------
    InvalidInputError
        If h is not smooth in the products, has symbols that were not declared, or does not
        depend on a product.

    Notes
    -----
    Formulas are computed as they are written: exp overflows where it overflows. Write softmax
    weights as 1/(1 + Σ exp(a_j − a_i)), and they stay finite.

    Samples are summed in their order, on one thread: equal data give equal bits.

    Examples
    --------
    >>> import sympy as sp
    >>> x, a, b = sp.symbols("x a b")
    >>> model = SymbolicModel(a * sp.tanh(b * x), inputs=[x], products=[a, b])
    >>> objective = model.bind((np.array([[1.0], [2.0]]), np.array([0.5, 1.0])))
    >>> objective.value(np.zeros(2))
    0.3125
    """

    def __init__(
        self,
        h: sp.Expr | Sequence[sp.Expr] | sp.MatrixBase,
        inputs: sp.Symbol | Sequence[sp.Symbol],
        products: sp.Symbol | Sequence[sp.Symbol],
    ) -> None:
        outputs = list(h) if isinstance(h, sp.MatrixBase | list | tuple | sp.Tuple) else [h]
        if not outputs:
            raise InvalidInputError("h is empty: give at least one output expression")
        self.outputs: tuple[sp.Expr, ...] = tuple(as_expression(e, "h") for e in outputs)
        self.inputs = as_symbols(inputs, "inputs")
        self.products = as_symbols(products, "products")
        refuse_repeated(self.inputs + self.products)
        if not self.products:
            raise InvalidInputError("products is empty: name the symbols that are products u ⊙ v")
        self._check_symbols()
        named = real_symbols(self.inputs + self.products)
        refuse_unusable(
            rebuild(self.outputs, named), [named[x] for x in self.products], parameter="h"
        )

    def _check_symbols(self) -> None:
        used = free_symbols(self.outputs)
        undeclared = used - {*self.inputs, *self.products}
        if undeclared:
            raise InvalidInputError(
                f"h has the symbols {names_of(undeclared)}, which are in neither inputs="
                f"{self.inputs} nor products={self.products}: add them, or substitute values"
            )
        unused = [symbol for symbol in self.products if symbol not in used]
        if unused:
            raise InvalidInputError(
                f"h does not depend on the products {names_of(unused)}: remove them, they would "
                "never be learned"
            )

    def __repr__(self) -> str:
        return f"SymbolicModel({self.n_outputs} outputs, {self.inputs}, {self.products})"

    @property
    def n_inputs(self) -> int:
        """Number of entries of one input."""
        return len(self.inputs)

    @property
    def n_outputs(self) -> int:
        """Number of entries of one output."""
        return len(self.outputs)

    @property
    def n_products(self) -> int:
        """Number p of products."""
        return len(self.products)

    @property
    def product_names(self) -> tuple[str, ...]:
        """Names of the product symbols, length p."""
        return tuple(str(symbol) for symbol in self.products)

    @cached_property
    def _canonical_outputs(self) -> tuple[sp.Expr, ...]:
        x, p = codegen.symbols("x", self.n_inputs), codegen.symbols("p", self.n_products)
        exchange = dict(zip(self.inputs + self.products, x + p, strict=True))
        return tuple(rebuild(self.outputs, exchange))

    def bind(
        self,
        data: Data,
        *,
        loss: str | SymbolicLoss = "squared",
        sample_weight: ArrayLike | None = None,
    ) -> "SymbolicObjective":
        """Return the loss of this model on `data` as a function of its products.

        The first call for a formula derives and compiles its kernels, which takes seconds; later
        ones, in this process or another, take them from the cache.

        Parameters
        ----------
        data : pair of arrays (X, y)
            X of shape (n_samples, n_inputs); y of shape (n_samples, n_outputs), or (n_samples,) for
            one output. With a `SymbolicLoss` y has as many columns as the loss has targets.
        loss : {"squared", "mse"} or SymbolicLoss
            ``"squared"`` is the mean over samples of ½‖y − f(x)‖², ``"mse"`` the mean over all
            entries without the ½.
        sample_weight : array_like, shape (n_samples,), optional
            Non-negative weights; the mean over samples becomes a weighted mean.

        Raises
        ------
        InvalidInputError
            For data of the wrong shape, empty or not finite, unusable weights, an unknown loss, or
            a formula that is not finite at θ = 0, where training starts.
        """
        expression, n_targets, factor = self._loss(loss)
        X, y = _data(data, self.n_inputs, n_targets)
        weights = factor * normalized_sample_weight(sample_weight, len(X))
        formula = codegen.Formula(
            self._canonical_outputs, expression, self.n_inputs, self.n_products, n_targets
        )
        objective = SymbolicObjective(
            self.product_names, X, y, weights, _kernels(formula), _is_quadratic(formula)
        )
        value, field = objective.value_and_field(np.zeros(self.n_products))
        if not (np.isfinite(value) and np.all(np.isfinite(field))):
            raise InvalidInputError(
                f"at θ = 0, where training starts, the loss is {value} and the field {field}: the "
                "formula must be finite and differentiable there on every sample"
            )
        return objective

    def _loss(self, loss: str | SymbolicLoss) -> tuple[sp.Expr, int, float]:
        """Return ℓ in canonical symbols, the number of its targets, and a factor."""
        if isinstance(loss, SymbolicLoss):
            if len(loss.outputs) != self.n_outputs:
                raise InvalidInputError(
                    f"loss has {len(loss.outputs)} outputs {loss.outputs}, the model has "
                    f"{self.n_outputs}: name one symbol per output"
                )
            return loss.canonical, len(loss.targets), 1.0
        factor = squared_loss_factor(loss, self.n_outputs)
        y, f = codegen.symbols("y", self.n_outputs), codegen.symbols("f", self.n_outputs)
        halves = [(yi - fi) ** 2 / 2 for yi, fi in zip(y, f, strict=True)]
        return sp.Add(*halves), self.n_outputs, factor


@dataclass(frozen=True, eq=False)
class SymbolicObjective(CheckedObjective):
    """Loss, field and Hessian columns of a `SymbolicModel` on data; see `SymbolicModel.bind`."""

    compiled = True
    product_names: tuple[str, ...]  # (p,)
    X: FloatArray  # (n_samples, n_inputs)
    y: FloatArray  # (n_samples, n_targets)
    weights: FloatArray  # (n_samples,), the loss's constant factor included
    kernels: ModuleType
    is_quadratic: bool  # in the products

    def __repr__(self) -> str:
        return f"SymbolicObjective({', '.join(self.product_names)}; {len(self.X)} samples)"

    def value(self, theta: FloatArray) -> float:
        """Loss L(θ); θ has shape (p,)."""
        return float(
            self.kernels.value(as_products(theta, self.n_products), self.X, self.y, self.weights)
        )

    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return L(θ) and g(θ), shape (p,)."""
        field = np.empty(self.n_products)
        value = self.kernels.value_and_field(
            as_products(theta, self.n_products), self.X, self.y, self.weights, field
        )
        return float(value), field

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns ∂²L/∂θ∂θ_i for i in `indices`; shape (p, len(indices))."""
        indices = as_product_indices(indices, self.n_products)
        columns = np.empty((self.n_products, indices.size))
        self.kernels.hessian_columns(
            as_products(theta, self.n_products), self.X, self.y, self.weights, indices, columns
        )
        return columns


def _is_quadratic(formula: codegen.Formula) -> bool:
    """Whether the outputs are linear in the products, and the loss quadratic in the outputs."""
    products = codegen.symbols("p", formula.n_products)
    outputs = codegen.symbols("f", len(formula.outputs))
    linear = all(degree(h, products) <= 1 for h in formula.outputs)
    return linear and degree(formula.loss, outputs) <= 2


def _kernels(formula: codegen.Formula) -> ModuleType:
    generator = Path(codegen.__file__).read_bytes()
    key = "|".join(
        [
            digest([*formula.outputs, formula.loss]),
            f"{formula.n_inputs} {formula.n_products} {formula.n_targets}",
            f"sympy {sp.__version__} dynalyze {__version__}",
            generator.hex(),
        ]
    )
    return load_module(key, lambda: codegen.generate(formula))


def _data(data: Data, n_inputs: int, n_targets: int) -> tuple[FloatArray, FloatArray]:
    given_X, given_y = as_pair(data)
    X = as_finite_array(given_X, "X", ("n_samples", "n_inputs"))
    if X.shape[1] != n_inputs:
        raise InvalidInputError(
            f"X has shape {X.shape}: expected (n_samples, {n_inputs}), one column per input symbol"
        )
    if n_targets == 1 and np.ndim(given_y) == 1:
        y = as_finite_array(given_y, "y", ("n_samples",))[:, None]
    else:
        y = as_finite_array(given_y, "y", ("n_samples", "n_targets"))
    if y.shape != (len(X), n_targets):
        raise InvalidInputError(
            f"y has shape {y.shape}: expected ({len(X)}, {n_targets}), one row per sample of X and "
            "one column per target"
        )
    return X, y


if TYPE_CHECKING:

    def _satisfies_protocols(model: SymbolicModel, objective: SymbolicObjective) -> None:
        _model: Model = model
        _objective: Objective = objective
