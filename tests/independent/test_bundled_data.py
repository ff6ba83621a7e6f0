"""The bundled data sets against the copies that scikit-learn distributes."""

import numpy as np
import pytest

from dynalyze import datasets

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def test_bundled_tables_are_those_of_scikit_learn():
    diabetes, digits = sklearn_datasets.load_diabetes(scaled=False), sklearn_datasets.load_digits()
    ours = datasets.bundled("diabetes")
    np.testing.assert_array_equal(ours["data"], diabetes.data)
    np.testing.assert_array_equal(ours["target"], diabetes.target)
    assert ours["feature_names"].tolist() == diabetes.feature_names
    ours = datasets.bundled("digits")
    np.testing.assert_array_equal(ours["images"], digits.images)
    np.testing.assert_array_equal(ours["target"], digits.target)
