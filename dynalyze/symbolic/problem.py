"""The expected loss as an expression in the products, and ways to write one down."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp

from dynalyze.errors import InvalidInputError


@dataclass(frozen=True)
class ExpectedLoss:
    """The loss L(θ) with its expectation taken: what Algorithm 1 needs to know of a problem.

    Parameters
    ----------
    loss : sympy expression
        L(θ), in the products and in any parameters; exact, without floating-point numbers.
    products : sequence of Symbol
        The products θ = u ⊙ v.

    Raises
    ------
    InvalidInputError
        If the loss has floating-point numbers, or a product is not a symbol.
    """

    loss: sp.Expr
    products: tuple[sp.Symbol, ...]  # (p,)

    def __post_init__(self) -> None:
        loss = sp.sympify(self.loss)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "products", tuple(self.products))
        floats = loss.atoms(sp.Float)
        if floats:
            raise InvalidInputError(
                f"the loss contains the floating-point number {min(floats)}: exact stages need "
                "exact numbers, such as sympy.Rational('0.1')"
            )
        for product in self.products:
            if not isinstance(product, sp.Symbol):
                raise InvalidInputError(
                    f"products contains {product!r}: each entry must be a SymPy Symbol"
                )

    @cached_property
    def field(self) -> tuple[sp.Expr, ...]:
        """g(θ) = −∂L/∂θ of eq. (4), one expression per product."""
        return tuple(-sp.diff(self.loss, product) for product in self.products)

    @property
    def parameters(self) -> tuple[sp.Symbol, ...]:
        """Symbols of the loss that are not products, by name."""
        return tuple(sorted(self.loss.free_symbols - set(self.products), key=str))

    def at(self, expression: sp.Expr, theta: Sequence[sp.Expr]) -> sp.Expr:
        """Return `expression` at the products `theta`."""
        return expression.subs(dict(zip(self.products, theta, strict=True)), simultaneous=True)


def mean_loss(
    h: sp.Expr | Sequence[sp.Expr],
    inputs: Sequence[sp.Symbol],
    products: Sequence[sp.Symbol],
    X: Sequence[Sequence[Any]],
    y: Sequence[Any],
) -> ExpectedLoss:
    """Mean over given samples of ½‖y − h(x; θ)‖²; the expectation of a finite data set.

    Parameters
    ----------
    h : sympy expression or sequence of them
        The model's outputs.
    inputs, products : sequence of Symbol
        As for `dynalyze.models.SymbolicModel`.
    X : sequence of rows, shape (n_samples, n_inputs)
        Inputs: integers, Rationals or expressions in parameters.
    y : sequence, shape (n_samples,) or (n_samples, n_outputs)
        Targets, likewise.

    Raises
    ------
    InvalidInputError
        If `X`, `y`, `inputs` and `h` do not match in length.
    """
    outputs = list(h) if isinstance(h, Sequence | sp.MatrixBase | sp.Tuple) else [h]
    total: sp.Expr = sp.S.Zero
    if len(X) == 0 or len(X) != len(y):
        raise InvalidInputError(f"X has {len(X)} rows and y {len(y)}: give as many of each")
    for sample, target in zip(X, y, strict=True):
        row, targets = _entries(sample), _entries(target)
        if len(row) != len(inputs) or len(targets) != len(outputs):
            raise InvalidInputError(
                f"a sample has {len(row)} inputs and {len(targets)} targets: the model has "
                f"{len(inputs)} and {len(outputs)}"
            )
        values = dict(zip(inputs, row, strict=True))
        for output, entry in zip(outputs, targets, strict=True):
            total += (entry - output.subs(values, simultaneous=True)) ** 2 / 2
    return ExpectedLoss(total / len(X), tuple(products))


def _entries(row: Any) -> list[sp.Expr]:
    return [sp.sympify(e) for e in (row if isinstance(row, Sequence | sp.MatrixBase) else [row])]


def expectation(
    expression: sp.Expr,
    variables: Sequence[sp.Symbol],
    moment: Callable[[tuple[int, ...]], Any] | Mapping[tuple[int, ...], Any],
) -> sp.Expr:
    """Expectation of a polynomial in random variables, given their moments.

    Parameters
    ----------
    expression : sympy expression
        Polynomial in `variables`, with any coefficients.
    variables : sequence of Symbol
        The random variables.
    moment : callable or mapping
        E[Π variables_i^{k_i}] for a tuple of exponents (k_1, …); that of zeros is taken to be 1.

    Raises
    ------
    InvalidInputError
        If the expression is not a polynomial in the variables, or a moment is missing.

    Examples
    --------
    >>> x, t = sp.symbols("x t")
    >>> expectation((1 - t * x) ** 2, [x], {(1,): 0, (2,): 3})
    3*t**2 + 1
    """
    try:
        polynomial = sp.Poly(sp.expand(expression), *variables)
    except sp.PolynomialError as error:
        raise InvalidInputError(
            f"{expression} is not a polynomial in {', '.join(map(str, variables))}: moments do not "
            "give its expectation; take it yourself"
        ) from error
    total: sp.Expr = sp.S.Zero
    for exponents, coefficient in polynomial.terms():
        if not any(exponents):
            total += coefficient
            continue
        try:
            value = moment(exponents) if callable(moment) else moment[exponents]
        except KeyError as error:
            raise InvalidInputError(
                f"the moment of exponents {exponents} of {tuple(variables)} is missing: add it"
            ) from error
        total += coefficient * sp.sympify(value)
    return total
