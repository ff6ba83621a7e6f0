"""Perturbed runs against SciPy on the raw weights, and on a loss where some do not return."""

import numpy as np
import pytest
from claims import every
from objectives import Quadratic
from scipy.integrate import solve_ivp

from dynalyze import Initialization, Trajectory, simulate
from dynalyze.checks import perturb
from dynalyze.errors import InvalidInputError

HESSIAN = np.array([[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.6]])
OBJECTIVE = Quadratic([2.0, -1.0, 0.5], HESSIAN)


@pytest.fixture(scope="module")
def run():
    init = Initialization.gaussian(3, log10_alpha=-32, rng=0)
    return simulate(OBJECTIVE, init=init, until_rescaled=6, tol=1e-8)


@pytest.mark.parametrize("newly_active", [False, True])
def test_perturbed_run_is_the_flow_of_the_perturbed_weights(run, newly_active):
    t, coordinates, _ = run.crossings(1e-10)
    time = float(t[1]) if newly_active else float(t[:2].mean())
    sd, window = (0.01, 40.0) if newly_active else (0.05, 15.0)
    (found,) = perturb(run, times=time, newly_active=newly_active, window=window, tol=1e-9, rng=7)
    assert found.perturbed.tolist() == [coordinates[int(newly_active)]]
    # The same noise on the raw weights, of which those of size 1e-32 are followed as they are.
    noise = sd * np.random.default_rng(7).standard_normal((2, 3))
    mask = np.isin(np.arange(3), found.perturbed)
    u, v = (w + mask * n for w, n in zip(run.weights_at(time), noise, strict=True))

    def velocity(_, weights):
        u, v = np.split(weights, 2)
        g = OBJECTIVE.field(u * v)
        return np.concatenate([v * g, u * g])

    raw = solve_ivp(
        velocity,
        (0, window),
        np.concatenate([u, v]),
        "DOP853",
        np.minimum(found.t - time, window),
        rtol=1e-10,
        atol=1e-60,
    )
    expected = raw.y[:3].T * raw.y[3:].T
    np.testing.assert_allclose(found.theta, expected, atol=1e-5)
    np.testing.assert_array_equal(found.reference, run.theta_at(found.t))
    assert found.distances[0] > 1e-6
    assert found.returned


def test_times_are_drawn_where_something_is_active(run):
    arrivals = run.crossings(1e-10)[0]
    drawn = perturb(run, n_times=4, window=10.0, rng=0)
    assert len(drawn) == 4
    assert every(arrivals[0] <= p.time <= run.t[-1] - 10 for p in drawn)
    new = perturb(run, n_times=2, newly_active=True, window=10.0, rng=0)
    assert every(np.isclose(p.time, arrivals).any() for p in new)
    again = perturb(run, n_times=2, newly_active=True, window=10.0, rng=0)
    np.testing.assert_array_equal(new[0].theta, again[0].theta)


def test_what_arrives_at_the_very_time_is_perturbed_too(run):
    arrivals, coordinates, _ = run.crossings(1e-10)
    for k, found in enumerate(perturb(run, times=arrivals, window=1.0, rng=0)):
        assert found.perturbed.tolist() == sorted(coordinates[: k + 1])


class TwoWells(Quadratic):
    """L' = −(1 − θ)(2 − θ)(3 − θ)."""

    def __init__(self):
        super().__init__([0.0])
        self.slope = np.polynomial.Polynomial.fromroots([1, 2, 3])

    def value_and_field(self, theta):
        return float(self.slope.integ()(theta[0])), -self.slope(theta)

    def hessian_columns(self, theta, indices):
        return np.array([[self.slope.deriv()(theta[0])]])[:, indices]


def test_a_run_pushed_over_the_divide_does_not_return():
    init = Initialization.gaussian(1, log10_alpha=-32, rng=0)
    run = simulate(TwoWells(), init=init, until_rescaled=2)
    pushed = perturb(run, times=np.full(12, 60.0), sd=0.6, window=30.0, rng=0)
    beyond = np.array([p.theta[0, 0] > 2 for p in pushed])
    assert 0 < np.count_nonzero(beyond) < 12
    np.testing.assert_array_equal([p.returned for p in pushed], ~beyond)
    np.testing.assert_allclose([p.theta[-1, 0] for p in pushed], np.where(beyond, 3, 1), atol=1e-3)


def test_bad_input(run, tmp_path):
    with pytest.raises(InvalidInputError, match="a perturbation needs an active product, from"):
        perturb(run, times=[1.0])
    with pytest.raises(InvalidInputError, match=r"sd=-1\.0 must be positive"):
        perturb(run, sd=-1.0)
    with pytest.raises(InvalidInputError, match="simulate further, or give a shorter window"):
        perturb(run, window=0.999 * run.t[-1])
    run.save(tmp_path / "run.npz")
    with pytest.raises(InvalidInputError, match="give objective="):
        perturb(Trajectory.load(tmp_path / "run.npz"))
