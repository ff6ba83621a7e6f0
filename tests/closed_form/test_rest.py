"""One meaning of rest: what is flat follows what counts as zero, and no Hessian is made twice."""

import numpy as np
import pytest
from functions import Function
from objectives import OnlyObjective, Quadratic, small_head

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.flow.rest import newton_step, polish

INIT = Initialization([1.0, 0.4], [0.3, -0.2], log10_alpha=-6)
TAIL = Function(  # a minimum in one product, and a loss that falls for ever in the other
    2,
    lambda t: 0.5 * (t[0] - 1) ** 2 + np.exp(-t[1]),
    lambda t: [1 - t[0], np.exp(-t[1])],
    lambda t: np.diag([1.0, np.exp(-t[1])]),
)


@pytest.mark.parametrize("stationary_rtol", [1e-6, 1e-8, 1e-10, 1e-12])
def test_a_loss_that_falls_for_ever_is_no_limit_at_every_tolerance(stationary_rtol):
    trajectory = simulate(TAIL, init=INIT, stationary_rtol=stationary_rtol)
    assert trajectory.status == "no_limit"
    assert "the loss has no finite minimum within reach" in trajectory.message


@pytest.mark.parametrize("stationary_rtol", [1e-6, 1e-8, 1e-10])
def test_a_valley_is_rest_where_its_curvature_makes_no_field_that_counts(stationary_rtol):
    soft = 1e-3 * stationary_rtol
    hessian = np.array([[1.0, 1 - soft], [1 - soft, 1.0]])
    init = Initialization([1.0, 0.4], [0.3, 0.1], log10_alpha=-6)
    trajectory = simulate(
        OnlyObjective(Quadratic([1.0, 2.0], hessian)), init=init, stationary_rtol=stationary_rtol
    )
    assert trajectory.status == "stationary"


def test_the_step_does_not_depend_on_units_and_leaves_the_kernel_out():
    hessian, field = np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), np.ones(3)
    units = np.array([1.0, 1e6, 1e-6])
    for scale in (np.ones(3), units):
        scaled = Function(3, None, None, lambda _, s=scale: hessian * s[:, None] * s)
        step = newton_step(scaled, np.ones(3), field * scale, np.arange(3), 0.0)
        np.testing.assert_allclose(step * scale, [0.0, 1.0, 0.0], atol=1e-12)


class Recorded(OnlyObjective):
    """Remembers every Hessian column that it was asked for."""

    def __init__(self, objective):
        super().__init__(objective)
        self.asked = []

        def columns(theta, indices):
            self.asked += [(theta.tobytes(), int(i)) for i in indices]
            return objective.hessian_columns(theta, indices)

        self.hessian_columns = columns


def test_newtons_method_evaluates_no_hessian_column_twice():
    recorded = Recorded(small_head(0, d=2, samples=20))
    support = np.arange(4)
    near = predict_stages(recorded).theta[-1]
    recorded.asked.clear()
    point = polish(recorded, near * (1 + 1e-2), support, tolerance=1e-12)
    assert point.hessian.shape == (4, 4)
    assert len(set(recorded.asked)) == len(recorded.asked) > 4


def test_the_column_at_the_origin_that_sets_what_counts_as_zero_starts_the_first_orbit_too():
    recorded = Recorded(Quadratic([1.0, -2.0, 0.5]))
    prediction = predict_stages(recorded)
    assert prediction.stats.nhcol == len(recorded.asked) - 1  # one checks the objective's shapes
    at_origin = [i for theta, i in recorded.asked[1:] if not np.frombuffer(theta).any()]
    assert at_origin == [1]


def test_a_stage_carries_the_log_scales_of_the_plateau_that_it_leads_to():
    stages = []
    prediction = predict_stages(Quadratic([1.0, -2.0, 0.5]), callback=stages.append)
    assert len(stages) == prediction.n_stages == 3
    for k, stage in enumerate(stages):
        np.testing.assert_array_equal(stage.b, prediction.b[k + 1])
    np.testing.assert_allclose(stages[0].b, [0.5, 2.0, 0.75])


@pytest.mark.parametrize("log10_alpha", [None, -100])
def test_work_is_counted_once(log10_alpha):
    calls = []

    class Counting(OnlyObjective):
        def __init__(self, objective):
            super().__init__(objective)
            for name in ("value", "field", "value_and_field"):
                setattr(self, name, self.counting(getattr(objective, name)))

        def counting(self, call):
            def counted(theta):
                calls.append(theta)
                return call(theta)

            return counted

    init = log10_alpha and Initialization.gaussian(3, log10_alpha=log10_alpha, rng=0)
    objective = Counting(Quadratic([1.0, -2.0, 0.5], [[2, 0.7, 0.1], [0.7, 1.5, 0], [0.1, 0, 1]]))
    prediction = predict_stages(objective, init=init)
    assert prediction.stats.nfev == len(calls) - 2  # two check the objective's shapes
