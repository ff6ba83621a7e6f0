"""The kernels' own exponential against mpmath's."""

import mpmath
import numba
import numpy as np

from dynalyze.models._vector_math import LANES, VECTOR_BYTES, address, exp, load, store


@numba.njit
def exponentials(values, out):
    for i in range(len(values) // LANES):
        store(address(out) + i * VECTOR_BYTES, exp(load(address(values) + i * VECTOR_BYTES)))


def evaluate(values):
    values = np.asarray(values, dtype=np.float64)
    padding = -len(values) % LANES
    source = np.concatenate([values, np.zeros(padding)])
    out = np.empty_like(source)
    exponentials(source, out)
    return out[: len(values)]


def test_exponential_is_within_two_units_in_the_last_place():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            -rng.uniform(0.0, 1.0, 2000),
            -rng.uniform(0.0, 708.0, 2000),
            -(10.0 ** rng.uniform(-18, 0, 500)),
            # where the rounding of x / ln 2 changes, the reduced argument is largest
            (np.arange(-1020, 1) + 0.5) * np.log(2.0),
        ]
    )
    values = values[values > -708.0]
    actual = evaluate(values)
    with mpmath.workdps(40):
        errors = [
            abs(float((mpmath.mpf(float(a)) - mpmath.exp(mpmath.mpf(float(x)))) / np.spacing(a)))
            for x, a in zip(values, actual, strict=True)
        ]
    assert max(errors) < 2.0


def test_exponential_of_zero_of_very_negative_numbers_and_of_nan():
    np.testing.assert_array_equal(
        evaluate([0.0, -0.0, -709.0, -1e4, -1e300, -np.inf]), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    )
    assert np.isnan(evaluate([np.nan])[0])
