"""What `tol` bounds, on a few of the random problems of `validation.integrator`."""

import numpy as np
import pytest

from validation.integrator import problem, worst_errors

TOLS = np.array([1e-4, 1e-6, 1e-8])


@pytest.mark.parametrize("seed", [3, 7, 9, 10, 17, 25])
def test_errors_of_crossings_keep_to_3_tol(seed):
    errors = worst_errors(problem(seed), tuple(TOLS))
    assert np.all(errors < 3 * TOLS[:, None])
