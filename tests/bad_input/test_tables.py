"""pandas tables as data: their columns' names become product names, and errors name the column."""

import numpy as np
import pandas as pd
import pytest
import sympy as sp

from dynalyze import predict_stages
from dynalyze.errors import InvalidInputError
from dynalyze.models import DiagonalLinear, SymbolicModel, TorchModel


@pytest.fixture
def table():
    X = np.random.default_rng(0).standard_normal((12, 3))
    frame = pd.DataFrame(X, columns=["age", "bmi", "bp"], index=list("abcdefghijkl"))
    return frame, pd.Series(X @ [2.0, -1.0, 0.4], index=frame.index, name="y")


def test_columns_name_the_products_of_a_linear_model(table):
    X, y = table
    prediction = predict_stages(DiagonalLinear(3), table)
    assert prediction.product_names == ("age", "bmi", "bp")
    plain = predict_stages(DiagonalLinear(3), (X.to_numpy(), y.to_numpy()))
    np.testing.assert_array_equal(prediction.times, plain.times)
    assert plain.product_names == ("theta[0]", "theta[1]", "theta[2]")


def test_names_of_the_model_and_columns_without_names_stay(table):
    X, y = table
    named = DiagonalLinear(3, feature_names=("a", "b", "c"))
    assert named.bind(table).product_names == ("a", "b", "c")
    numbered = X.set_axis(range(3), axis=1)
    assert DiagonalLinear(3).bind((numbered, y)).product_names[0] == "theta[0]"


def test_formulas_and_torch_modules_take_tables_too(table):
    torch = pytest.importorskip("torch")
    x, a = sp.symbols("x0:3"), sp.symbols("a0:3")
    formula = SymbolicModel(sum(p * q for p, q in zip(x, a, strict=True)), inputs=x, products=a)
    expected = DiagonalLinear(3).bind(table).field(np.zeros(3))
    np.testing.assert_allclose(formula.bind(table).field(np.zeros(3)), expected, rtol=1e-12)

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            ones = torch.ones(3, dtype=torch.float64)
            self.u, self.v = torch.nn.Parameter(ones), torch.nn.Parameter(ones.clone())

        def forward(self, inputs):
            return inputs @ (self.u * self.v)

    bound = TorchModel(Linear(), products=[("u", "v")]).bind(table)
    np.testing.assert_allclose(bound.field(np.zeros(3)), expected, rtol=1e-12)


def test_integer_boolean_and_nullable_columns_are_numbers(table):
    X, y = table
    mixed = X.assign(
        age=np.arange(12), bmi=np.arange(12) % 2 == 0, bp=pd.array([0.5] * 11 + [1], "Float64")
    )
    bound = DiagonalLinear(3).bind((mixed, y))
    np.testing.assert_array_equal(bound.X[:, 0], np.arange(12))
    np.testing.assert_array_equal(bound.X[:, 1], np.arange(12) % 2 == 0)
    np.testing.assert_array_equal(bound.X[:, 2], [0.5] * 11 + [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X.assign(bmi="high"), y), r"column 'bmi' of X has dtype (object|str)"),
        (lambda X, y: (X.assign(bp=pd.Timestamp(0)), y), "column 'bp' of X has dtype datetime64"),
        (
            lambda X, y: (X.assign(bmi=X.bmi.where(X.index != "c")), y),
            "column 'bmi' of X has 1 missing values, the first in row 'c': fill or drop them",
        ),
        (
            lambda X, y: (X.assign(bmi=pd.array([1] * 11 + [None], "Int64")), y),
            "column 'bmi' of X has 1 missing values, the first in row 'l'",
        ),
        (lambda X, y: (X, y.astype(str)), "y, a Series, has dtype"),
        (lambda X, y: (X, y.where(y < 0)), r"y, a Series, has \d+ missing values"),
        (lambda X, y: (X, y[::-1]), "the rows of X and y have different labels"),
        (lambda X, y: (X, y[1:]), "X has 12 samples and y has 11"),
        (lambda X, y: (X[["age"]], y), "X has 1 columns for n_features=3"),
    ],
)
def test_unusable_tables_are_one_clear_error(table, change, message):
    with pytest.raises(InvalidInputError, match=message):
        predict_stages(DiagonalLinear(3), change(*table))
