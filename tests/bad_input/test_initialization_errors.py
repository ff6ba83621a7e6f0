import numpy as np
import pytest

from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization


@pytest.mark.parametrize(
    ("u0", "v0", "log10_alpha", "text"),
    [
        ([1.0, 2.0], [0.5], -3, r"u0 has shape \(2,\) and v0 has shape \(1,\)"),
        ([[1.0]], [[2.0]], -3, r"u0 has shape \(1, 1\): give a vector"),
        ([], [], -3, r"u0 has shape \(0,\): give a vector"),
        ([1.0, np.nan], [2.0, 1.0], -3, r"u0\[1\] = nan: weights must be finite"),
        ([1.0, 2.0], [np.inf, 1.0], -3, r"v0\[0\] = inf"),
        ([1.0, 2.0, 3.0], [-1.0, 2.5, 3.0], -3, r"at coordinates 0, 2: .*Change one of the two"),
        ([0.0], [0.0], -3, r"\|u0\| = \|v0\| at coordinates 0:"),
        ([1.0], [2.0], 0, r"log10_alpha=0.0 must be negative"),
        ([1.0], [2.0], 3, r"log10_alpha=3.0 must be negative"),
        ([1.0], [2.0], np.nan, r"log10_alpha=nan must be negative and finite"),
        ([1.0], [2.0], -np.inf, r"log10_alpha=-inf must be negative and finite"),
    ],
)
def test_refused(u0, v0, log10_alpha, text):
    with pytest.raises(InvalidInputError, match=text):
        Initialization(u0, v0, log10_alpha=log10_alpha)


def test_many_balanced_coordinates_are_counted():
    with pytest.raises(InvalidInputError, match=r"0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 90 more"):
        Initialization(np.ones(100), np.ones(100), log10_alpha=-3)


def test_from_weights_refuses_what_is_not_small():
    with pytest.raises(InvalidInputError, match=r"all of u and v are 0"):
        Initialization.from_weights([0.0], [0.0])
    with pytest.raises(InvalidInputError, match=r"root mean square of u and v is 1.58.*below 1"):
        Initialization.from_weights([1.0], [2.0])
    with pytest.raises(InvalidInputError, match=r"log10_alpha=-1000 is too far below the size"):
        Initialization.from_weights([1e-5], [2e-5], log10_alpha=-1000)
    with pytest.raises(InvalidInputError, match=r"u has shape \(\)"):
        Initialization.from_weights(1e-5, 2e-5)


@pytest.mark.parametrize("rng", ["a", -1, 0.5])
def test_what_is_no_seed(rng):
    with pytest.raises(InvalidInputError, match=r"rng=.* must be a numpy\.random\.Generator or a"):
        Initialization.gaussian(3, log10_alpha=-2, rng=rng)
