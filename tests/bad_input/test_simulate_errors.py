"""Arguments that cannot be used, and runs that end before their time."""

import builtins
import warnings

import numpy as np
import pytest
from claims import every
from objectives import Exponential, Failing, Linear, Quadratic

from dynalyze import Initialization, Trajectory, simulate
from dynalyze.errors import InvalidInputError, MissingDependencyError, SavedFileError
from dynalyze.flow.steppers.methods import METHODS
from dynalyze.models import DiagonalLinear

INIT = Initialization([1.0, -0.4], [0.3, 0.9], log10_alpha=-6)
OBJECTIVE = Quadratic([1.0, -0.5])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"until": 1.0, "until_rescaled": 1.0}, r"until=1.0 and until_rescaled=1.0 were both"),
        ({"until": 0.0}, r"until=0.0 must be finite and after the start, which is at 0"),
        ({"until": np.nan}, r"until=nan must be finite"),
        ({"until_rescaled": np.inf}, r"until_rescaled=inf must be finite"),
        ({"method": "RK45"}, r"method='RK45' is not known: choose one of .*'LSODA'"),
        ({"tol": 0.0}, r"tol=0.0 must be between 3.1e-13 and 1.*float64 resolves"),
        ({"tol": np.nan}, r"tol=nan must be between"),
        ({"stationary_rtol": 2.0}, r"stationary_rtol=2.0 must be between 0 and 1"),
        ({"max_steps": 0}, r"max_steps=0 must be at least 1"),
        ({"max_seconds": -1}, r"max_seconds=-1 must be positive"),
        ({"init": None}, r"init=None: .*Initialization.gaussian\(2, log10_alpha=-8"),
        (
            {"init": Initialization([1.0], [0.5], log10_alpha=-3)},
            r"the initialization has 1 products and the model has 2",
        ),
    ],
)
def test_refused(options, text):
    with pytest.raises(InvalidInputError, match=text):
        simulate(OBJECTIVE, **{"init": INIT, **options})


def test_start_is_checked():
    part = simulate(OBJECTIVE, init=INIT, until=5.0)
    with pytest.raises(InvalidInputError, match=r"until=5.0 must be .* which is at 5"):
        simulate(OBJECTIVE, start=part, until=5.0)
    other = Initialization([1.0, -0.4], [0.3, 0.8], log10_alpha=-6)
    with pytest.raises(InvalidInputError, match=r"init and start were both given"):
        simulate(OBJECTIVE, init=other, start=part, until=9.0)
    with pytest.raises(InvalidInputError, match=r"has 2 products and the model has 3"):
        simulate(Quadratic([1.0, 1.0, 1.0]), start=part, until=9.0)


def test_missing_sundials_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("sksundae"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r'pip install "dynalyze\[sundials\]"'):
        simulate(OBJECTIVE, init=INIT, until=1.0, method="CVODE")


@pytest.mark.parametrize("method", METHODS)
def test_not_a_number_fails_and_keeps_the_steps(method):
    trajectory = simulate(Failing([1.0, -0.5], "nan"), init=INIT, method=method)
    assert trajectory.status == "failed"
    assert not trajectory.success
    assert "the field g is nan at product w[0]" in trajectory.message
    assert "check the model's loss" in trajectory.message
    assert trajectory.n_steps >= 4
    assert every(np.isfinite(trajectory.z))
    assert np.max(np.abs(trajectory.theta)) < 0.5
    np.testing.assert_array_equal(trajectory.z_at(trajectory.t), trajectory.z)


@pytest.mark.parametrize("method", METHODS)
def test_not_a_number_from_the_start(method):
    trajectory = simulate(Failing([1.0, -0.5], "nan", size=0.0), init=INIT, method=method)
    assert trajectory.status == "failed"
    assert trajectory.n_steps == 0
    np.testing.assert_array_equal(trajectory.z_at(0.0), INIT.z0)
    np.testing.assert_array_equal(trajectory.theta_at([0.0]), [INIT.theta0])
    assert len(trajectory.crossings(0.1)[0]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_keeps_the_steps_which_can_be_continued(method):
    trajectory = simulate(Failing([1.0, -0.5], "interrupt"), init=INIT, method=method)
    assert trajectory.status == "interrupted"
    assert "continue from here by simulate(..., start=trajectory)" in trajectory.message
    assert len(trajectory.t) > 4
    whole = simulate(OBJECTIVE, start=trajectory, method=method)
    assert whole.status == "stationary"
    np.testing.assert_allclose(whole.theta[-1], OBJECTIVE.a, rtol=1e-5)


def test_rising_loss_is_an_error():
    class Ascending(Quadratic):
        def field(self, theta):
            return -super().field(theta)

    trajectory = simulate(Ascending([1.0, -0.5]), init=INIT, until=14.1)
    assert trajectory.status == "failed"
    assert "the loss rose from 0.6" in trajectory.message
    assert "minus the derivative of its loss" in trajectory.message


@pytest.mark.parametrize("method", METHODS)
def test_unbounded_descent_is_called_divergence(method):
    trajectory = simulate(Linear([1.0, -0.5]), init=INIT, method=method, max_steps=3000)
    assert not trajectory.success
    assert np.max(np.abs(trajectory.theta[-1])) > 1e5
    if trajectory.status == "max_steps":  # a method that resolves every change of θ
        assert "The largest |g| is 1.0e+00 of the largest seen" in trajectory.message
        return
    assert trajectory.status == "diverged"
    assert "has passed 1e+15" in trajectory.message
    assert "end before by until=" in trajectory.message


@pytest.mark.parametrize("method", METHODS)
def test_exponential_tail_is_no_limit(method):
    trajectory = simulate(Exponential(2), init=INIT, method=method)
    assert trajectory.status == "no_limit"
    assert "no finite minimum within reach" in trajectory.message
    assert "until=" in trajectory.message


@pytest.mark.parametrize("method", METHODS)
def test_warnings_of_the_objective_reach_the_user(method):
    class Chatty(Quadratic):
        def field(self, theta):
            warnings.warn("look here", RuntimeWarning, stacklevel=1)
            return super().field(theta)

    with pytest.warns(RuntimeWarning, match="look here"):
        simulate(Chatty([1.0, -0.5]), init=INIT, until=1.0, method=method)


@pytest.mark.parametrize("method", ["LSODA", "BDF", "Radau", "CVODE"])
def test_vanishing_step_fails_with_the_next_action(method, capfd):
    class Rough(Quadratic):
        rng = np.random.default_rng(0)
        calls = 0

        def field(self, theta):
            self.calls += 1
            noise = 1e9 * self.rng.standard_normal(2) if self.calls > 40 else 0.0
            return super().field(theta) + noise

    trajectory = simulate(Rough([1.0, -0.5]), init=INIT, until=50.0, method=method)
    assert trajectory.status == "failed"
    assert f"{method} cannot continue from t = " in trajectory.message
    assert "try a larger tol, or another method" in trajectory.message.replace("Try", "try")
    assert trajectory.n_steps >= 1


def test_zero_field_is_stationary_at_once():
    trajectory = simulate(Quadratic([0.0, 0.0], np.zeros((2, 2))), init=INIT)
    assert trajectory.status == "stationary"
    assert trajectory.n_steps == 0


def test_a_tolerance_below_the_rounding_of_z_is_refused_with_the_smallest_there_is():
    init = Initialization.gaussian(2, log10_alpha=-1000, rng=1)
    with pytest.raises(InvalidInputError, match=r"tol=1e-12 must be between 5\.1e-11 and 1"):
        simulate(OBJECTIVE, init=init, tol=1e-12)


def test_steps_are_those_of_the_method_not_the_segments_of_its_path():
    # A quadratic loss needs a step for each product that becomes active, and a few more.
    states = []
    trajectory = simulate(OBJECTIVE, init=INIT, until=100.0, callback=states.append)
    assert trajectory.n_steps == states[-1].n_steps < 12 < len(trajectory.t)


def test_a_flow_at_rest_reaches_the_latest_time_in_a_few_steps():
    trajectory = simulate(OBJECTIVE, init=INIT, until=1e300, max_steps=40)
    assert trajectory.status == "finished"
    assert trajectory.t[-1] == 1e300


def test_budgets_stop_and_can_be_continued():
    trajectory = simulate(OBJECTIVE, init=INIT, max_steps=2)
    assert trajectory.status == "max_steps"
    assert trajectory.n_steps == 2
    assert "max_steps=2 were made up to flow time" in trajectory.message
    assert "try a larger max_steps" in trajectory.message
    assert "The largest |g| is" in trajectory.message
    segments = len(trajectory.t)
    trajectory = simulate(OBJECTIVE, start=trajectory, max_seconds=1e-9)
    assert trajectory.status == "max_seconds"
    assert len(trajectory.t) == segments + 1
    assert "max_seconds=1e-09 passed at flow time" in trajectory.message
    trajectory = simulate(OBJECTIVE, start=trajectory)
    assert trajectory.status == "stationary"


def test_callback_sees_each_step_and_may_stop():
    states = []

    def callback(state):
        states.append(state)
        return state.n_steps == 3

    trajectory = simulate(OBJECTIVE, init=INIT, until=100.0, callback=callback)
    assert trajectory.status == "callback"
    assert trajectory.n_steps == 3
    np.testing.assert_array_equal([state.t for state in states], trajectory.t[1:])
    np.testing.assert_array_equal([state.theta for state in states], trajectory.theta[1:])
    np.testing.assert_array_equal([state.t_rescaled for state in states], trajectory.t_rescaled[1:])
    assert 1 <= states[-1].nfev == trajectory.stats.nfev


def test_quiet_unless_progress_is_asked_for(capfd):
    simulate(OBJECTIVE, init=INIT, until_rescaled=2.0)
    assert capfd.readouterr() == ("", "")
    simulate(OBJECTIVE, init=INIT, until_rescaled=2.0, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err
    assert "2.0/2.0" in err


def test_loss_between_the_steps_needs_the_objective(tmp_path):
    path = tmp_path / "run.npz"
    simulate(OBJECTIVE, init=INIT, until=5.0).save(path)
    loaded = Trajectory.load(path)
    with pytest.raises(InvalidInputError, match=r"Trajectory.load\(path, objective=model.bind"):
        loaded.loss_at(1.0)
    assert Trajectory.load(path, objective=OBJECTIVE).loss_at(0.0) == loaded.losses[0]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    simulate(OBJECTIVE, init=INIT, until=5.0).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SavedFileError, match="truncated"):
        Trajectory.load(path)


def test_threshold_and_times_are_checked():
    trajectory = simulate(OBJECTIVE, init=INIT, until=5.0)
    for threshold in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InvalidInputError, match=r"threshold=\S+ must be positive"):
            trajectory.crossings(threshold)
    with pytest.raises(InvalidInputError, match=r"t=6.0 is outside the flow times 0.0 … 5.0"):
        trajectory.theta_at([1.0, 6.0])


def test_a_number_in_place_of_an_initialization():
    with pytest.raises(InvalidInputError, match=r"init=1e-08 must be an Initialization: give"):
        simulate(OBJECTIVE, init=1e-8)


def test_continuing_with_other_data(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3)), rng.standard_normal(20)
    model, init = DiagonalLinear(3), Initialization.gaussian(3, log10_alpha=-20, rng=0)
    part = simulate(model, (X, y), init, until_rescaled=20)
    path = tmp_path / "part.npz"
    part.save(path)
    for start in (part, Trajectory.load(path)):
        for data, loss in (((X, 2 * y), "squared"), ((2 * X, y), "squared"), ((X, y), "mse")):
            with pytest.raises(
                InvalidInputError, match=r"start ends at the loss .*continue with the"
            ):
                simulate(model, data, start=start, until_rescaled=30, loss=loss)
        assert simulate(model, (X, y), start=start, until_rescaled=30).status == "finished"
