"""Steppers of the user's own that cannot be used are refused in one sentence, by both drivers."""

from types import SimpleNamespace

import numpy as np
import pytest
from objectives import OnlyObjective, Quadratic

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.errors import InvalidInputError

INIT = Initialization([1.0, -0.4], [0.3, 0.9], log10_alpha=-6)
OBJECTIVE = OnlyObjective(Quadratic([1.0, -0.5]))


class Euler:
    """A stepper in order, with one thing wrong in each class below."""

    def __init__(self, objective, chart, z, *, t, t_bound, tol):
        self.rate = lambda z: objective.field(chart.theta(z))
        self.t, self.z, self.n_steps, self.field = t, z, 0, self.rate(z)

    def step(self):
        start, before, slope = self.t, self.z.copy(), self.field
        self.t += 0.01
        self.z += 0.01 * slope
        self.field, self.n_steps = self.rate(self.z), self.n_steps + 1
        return SimpleNamespace(
            t_start=start,
            t_end=self.t,
            z=lambda t: before + (np.asarray(t) - start)[..., None] * slope,
        )


class StandsStill(Euler):
    def step(self):
        return SimpleNamespace(t_start=self.t, t_end=self.t, z=lambda t: self.z)


class ReturnsNothing(Euler):
    def step(self):
        super().step()


class OneState(Euler):
    def step(self):
        made = super().step()
        made.z = lambda t: np.zeros(2)
        return made


class NarrowField(Euler):
    field = 1.0

    def __setattr__(self, name, value):
        if name != "field":
            super().__setattr__(name, value)

    def step(self):
        return SimpleNamespace(t_start=self.t, t_end=self.t, z=None)


class FromZero(Euler):
    def __init__(self, objective, chart, z, **options):
        super().__init__(objective, chart, 0 * z, **options)


class Forgetful(Euler):
    def step(self):
        made = super().step()
        self.n_steps = -1
        return made


def without_tol(objective, chart, z, *, t, t_bound):
    """Take no tolerance."""


def nothing(objective, chart, z, *, t, t_bound, tol):
    """Make no stepper."""


FAULTS = [
    (5, r"method=5 is not known: .* or give a stepper factory; see .*CONTRIBUTING"),
    ("RK45", r"method='RK45' is not known"),
    (without_tol, r"without_tol takes \(objective, chart, z, \*, t, t_bound\), and would be"),
    (nothing, r"nothing returned a NoneType without t, z, field, n_steps, step, where a Stepper"),
    (StandsStill, r"StandsStill made a step from t = 0.0 to t = 0.0"),
    (ReturnsNothing, r"ReturnsNothing made .* a segment \(NoneType\) from t_start=None"),
    (OneState, r"OneState returned a segment whose z\(t\) has the shape \(2,\).* \(2, 2\)"),
    (FromZero, r"FromZero begins at t = 0.0, or not at the z given, where a start from t = 0.0"),
    (Forgetful, r"Forgetful counted n_steps=0, then -1"),
]


@pytest.mark.parametrize(("method", "text"), FAULTS)
def test_simulate_refuses(method, text):
    with pytest.raises(InvalidInputError, match=text):
        simulate(OBJECTIVE, init=INIT, until=1.0, method=method)


@pytest.mark.parametrize(("method", "text"), FAULTS)
def test_predict_stages_refuses(method, text):
    with pytest.raises(InvalidInputError, match=text):
        predict_stages(OBJECTIVE, method=method)


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(
        InvalidInputError, match=r"NarrowField has field of shape \(\), where shape \(2,\)"
    ):
        simulate(OBJECTIVE, init=INIT, method=NarrowField)


def test_a_stepper_that_steps_in_place_moves_nothing_that_was_kept():
    trajectory = simulate(OBJECTIVE, init=INIT, until=0.05, method=Euler)
    np.testing.assert_allclose(trajectory.z[0], INIT.z0, rtol=0)
    assert len(np.unique(trajectory.z[:, 0])) == len(trajectory.t) > 4


def test_a_run_is_continued_by_a_stepper_of_ones_own():
    part = simulate(OBJECTIVE, init=INIT, until=1.0)
    whole = simulate(OBJECTIVE, start=part, until=2.0, method=Euler)
    np.testing.assert_allclose(
        whole.z[-1], simulate(OBJECTIVE, init=INIT, until=2.0).z[-1], rtol=1e-3
    )
