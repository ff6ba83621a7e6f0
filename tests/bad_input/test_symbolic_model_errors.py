"""What SymbolicModel refuses, and the words that it uses."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import sympy as sp

from dynalyze.errors import InvalidInputError, KernelCacheWarning
from dynalyze.models import SymbolicLoss, SymbolicModel

X, A, B, Y, F, K = sp.symbols("x a b y f k")
LINEAR = SymbolicModel(A * X, [X], [A])


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    ("h", "named"),
    [
        (sp.Abs(A * X) + A, "Abs(a*x)"),
        (sp.Max(A, 0) * X, "Max(0, a)"),
        (sp.Min(A, X), "Min(a, x)"),
        (sp.Piecewise((A, A > 0), (0, True)), "Piecewise((a, a > 0), (0, True))"),
        (sp.Piecewise((A, X > 0), (0, True)), "Piecewise((a, x > 0), (0, True))"),
        (sp.sqrt(A**2) * X, "Abs(a)"),
        (sp.floor(A), "floor(a)"),
        (sp.sign(A * X) + A, "sign(a*x)"),
        (sp.exp(A * sp.Heaviside(A + X)), "Heaviside(a + x)"),
    ],
)
def test_non_smooth_formulas_name_the_subexpression_and_the_definition(h, named):
    with pytest.raises(InvalidInputError) as error:
        SymbolicModel(h, [X], [A])
    assert f"h contains {named}, which is not smooth in a: Definition 3.1" in str(error.value)


def test_a_function_that_is_not_smooth_in_the_inputs_alone_is_fine():
    model = SymbolicModel(A * sp.Max(X, 0), [X], [A])
    objective = model.bind((np.array([[-1.0], [2.0]]), np.zeros(2)))
    assert objective.value(np.ones(1)) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A * K, [X], [A]), r"h has the symbols k, .*: add them, or substitute values"),
        ((A * X, [X], [A, B]), r"h does not depend on the products b: remove them"),
        ((A * X, [X], [A, X]), r"the symbols x are declared more than once"),
        (("a*x", [X], [A]), r"h is 'a\*x' of type str: give a SymPy expression"),
        ((A * X, "x", [A]), r"inputs='x': give a sequence of SymPy symbols"),
        ((A * X, [X], [A + 1]), r"products contains a \+ 1: each entry must be a SymPy Symbol"),
        (([], [X], [A]), r"h is empty: give at least one output"),
        ((X, [X], []), r"products is empty: name the symbols"),
        ((A * sp.I, [X], [A]), r"h contains I: it must be a real, finite expression"),
        ((sp.Function("q")(A), [X], [A]), r"h contains q\(a\), which has no formula to compute"),
    ],
)
def test_what_cannot_be_a_model(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        SymbolicModel(*arguments)


ONES = np.ones((3, 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.ones((3, 2)), np.ones(3)), r"X has shape \(3, 2\): expected \(n_samples, 1\)"),
        ((np.ones(3), np.ones(3)), r"X has shape \(3,\): expected 2 axes, \(n_samples, n_inputs"),
        ((ONES, np.ones(4)), r"y has shape \(4, 1\): expected \(3, 1\)"),
        ((ONES, np.ones((3, 2))), r"y has shape \(3, 2\): expected \(3, 1\)"),
        ((ONES, np.array([0, np.nan, 0])), r"y\[1\] is nan, .* not finite: remove or impute them"),
        ((ONES * np.inf, np.ones(3)), r"X\[0, 0\] is inf, .* not finite: remove or impute them"),
        ((np.ones((0, 1)), np.ones(0)), r"X is empty, with shape \(0, 1\)"),
        (7, r"data must be a pair of arrays \(X, y\), received int"),
        ((ONES, ["a", "b", "c"]), r"y has dtype <U1: convert it to real numbers"),
    ],
)
def test_data_that_cannot_be_used(data, message):
    with pytest.raises(InvalidInputError, match=message):
        LINEAR.bind(data)


def test_losses_that_cannot_be_used():
    with pytest.raises(InvalidInputError, match=r"loss='huber' is not known"):
        LINEAR.bind((ONES, np.ones(3)), loss="huber")
    with pytest.raises(InvalidInputError, match=r"the loss contains Abs\(f - y\), which is not"):
        SymbolicLoss(sp.Abs(Y - F), Y, F)
    with pytest.raises(InvalidInputError, match=r"the loss has the symbols k, which are in"):
        SymbolicLoss(K * (Y - F) ** 2, Y, F)
    two = SymbolicLoss((Y - F) ** 2 + K**2, Y, [F, K])
    with pytest.raises(InvalidInputError, match=r"loss has 2 outputs \(f, k\), the model has 1"):
        LINEAR.bind((ONES, np.ones(3)), loss=two)


@pytest.mark.parametrize("h", [sp.sqrt(A) * X, sp.log(A) * X, A * X / (A - A * X)])
def test_a_formula_that_is_singular_where_training_starts(h):
    with pytest.raises(InvalidInputError, match=r"at θ = 0, where training starts, the loss is"):
        SymbolicModel(h, [X], [A]).bind((ONES, np.ones(3)))


def test_a_function_without_code_is_named():
    model = SymbolicModel(A * sp.LambertW(2 + X**2), [X], [A])
    with pytest.raises(InvalidInputError, match=r"LambertW.*for which no code can be generated"):
        model.bind((ONES, np.ones(3)))


def test_theta_of_the_wrong_length():
    objective = LINEAR.bind((ONES, np.ones(3)))
    with pytest.raises(InvalidInputError, match=r"theta has shape \(2,\): the model has 1"):
        objective.value(np.zeros(2))


def test_indices_outside_the_products():
    objective = LINEAR.bind((ONES, np.ones(3)))
    with pytest.raises(InvalidInputError, match=r"indices contains 1: the model has 1 products"):
        objective.hessian_columns(np.zeros(1), np.array([1]))


@pytest.mark.skipif(os.name == "nt", reason="folder permissions are POSIX's")
def test_a_cache_folder_that_cannot_be_written_warns_and_still_works(tmp_path, monkeypatch):
    (tmp_path / "dynalyze").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = SymbolicModel(A * X + A * X**2 / 7, [X], [A])
    with pytest.warns(KernelCacheWarning, match=r"cannot be written .* set XDG_CACHE_HOME"):
        objective = model.bind((ONES, np.ones(3)))
    assert objective.value(np.zeros(1)) == 0.5
