from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BPoly

from dynalyze.errors import InvalidInputError
from dynalyze.flow.dense import DenseOutput, DenseOutputBuilder


class Curve:
    """A step along a given curve z(t), of shape (len(t), p)."""

    def __init__(self, curve, t_start, t_end):
        self.curve, self.t_start, self.t_end = curve, t_start, t_end

    def z(self, t):
        return self.curve(np.asarray(t))


def build(curve, joints, tol=1e-9):
    builder = DenseOutputBuilder(joints[0], curve(np.array(joints[0])), tol=tol)
    for left, right in pairwise(joints):
        builder.add(Curve(curve, left, right), right)
    return builder.build()


def waves(amplitudes, rates, phases):
    def curve(t):
        return amplitudes * np.sin(np.multiply.outer(t, rates) + phases)

    return curve


_wave = st.builds(
    lambda seed: waves(*np.random.default_rng(seed).uniform(0.1, 3, (3, 4))), st.integers(0, 10**6)
)


@settings(max_examples=30, deadline=None)
@given(curve=_wave, n=st.integers(1, 12), tol=st.sampled_from([1e-4, 1e-9, 1e-12]))
def test_reproduces_any_curve_to_its_tolerance(curve, n, tol):
    joints = np.linspace(0.5, 7, n + 1)
    dense = build(curve, joints, tol)
    t = np.linspace(0.5, 7, 501)
    np.testing.assert_allclose(dense(t), curve(t), atol=5 * tol + 1e-13)
    np.testing.assert_array_equal(dense(joints), curve(joints))
    # One time or many, in any order and shape, is the same.
    np.testing.assert_array_equal(dense(t[::-1].reshape(3, -1))[0, 5], dense(t[-6]))


@pytest.mark.parametrize(("power", "degree"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (7, 8)])
def test_lowest_degree_is_taken(power, degree):
    dense = build(lambda t: np.asarray(t)[..., None] ** power, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(dense.degrees, degree)


class Cubic(Curve):
    """A step that knows its coefficients, and must not be sampled."""

    def __init__(self, coefficients, t_start, t_end):
        super().__init__(None, t_start, t_end)
        self.coefficients = coefficients


def test_a_step_that_is_a_polynomial_is_kept_as_it_is():
    joints, pieces = [0.0, 1e-3, 1e6], np.random.default_rng(3).standard_normal((2, 4, 5))
    pieces[1, 0] = pieces[0, -1]
    builder = DenseOutputBuilder(0.0, pieces[0, 0], tol=1e-9)
    for left, right, piece in zip(joints[:-1], joints[1:], pieces, strict=True):
        builder.add(Cubic(piece.copy(), left, right), right)
    dense = builder.build()
    np.testing.assert_array_equal(dense.degrees, 3)
    t = np.linspace(0, 1, 31)
    for left, right, piece in zip(joints[:-1], joints[1:], pieces, strict=True):
        expected = BPoly(piece[:, None], [left, right])(left + (right - left) * t)
        np.testing.assert_allclose(dense(left + (right - left) * t), expected, atol=1e-14)


def test_the_coefficients_of_a_step_stay_its_own():
    piece = np.random.default_rng(4).standard_normal((4, 2))
    piece.flags.writeable = False  # as a stepper may share what it computed
    builder = DenseOutputBuilder(0.0, piece[0] + 1e-10, tol=1e-9)
    builder.add(Cubic(piece, 0.0, 1.0), 1.0)
    np.testing.assert_array_equal(builder.build()(0.0), piece[0] + 1e-10)


def test_exponential_relaxation_before_a_long_plateau_is_halved_not_lost():
    # What a step that jumps over a plateau looks like.
    dense = build(lambda t: np.exp(-np.asarray(t))[..., None] + 0.01, [0.0, 1e4])
    t = np.geomspace(1e-6, 1e4, 1000)
    np.testing.assert_allclose(dense(t)[:, 0], np.exp(-t) + 0.01, atol=2e-9)
    assert len(dense.degrees) < 40


@settings(max_examples=40, deadline=None)
@given(curve=_wave, level=st.floats(0.05, 2.5), n=st.integers(1, 30))
def test_every_crossing_is_found_however_few_the_steps(curve, level, n):
    dense = build(curve, np.linspace(0, 9, n + 1))
    t, coordinate, direction = dense.crossings(np.full(4, level))
    fine = np.linspace(0, 9, 4001)
    above = np.abs(dense(fine)) >= level
    changes = np.argwhere(above[1:] != above[:-1])
    expected = [(i, fine[k], fine[k + 1], 1 if above[k + 1, i] else -1) for k, i in changes]
    # The grid may miss a pair that lies within one of its cells; it must not find more.
    for i in range(4):
        mine = sorted(t[coordinate == i])
        grid = [(a, b, sign) for j, a, b, sign in expected if j == i]
        assert len(mine) >= len(grid)
        assert (len(mine) - len(grid)) % 2 == 0
        for a, b, sign in grid:
            inside = (coordinate == i) & (t >= a - 1e-12) & (t <= b + 1e-12)
            assert np.sum(direction[inside]) == sign
    assert np.all(np.diff(t) >= 0)
    np.testing.assert_allclose(np.abs(dense(t)[np.arange(len(t)), coordinate]), level, rtol=1e-9)


def test_up_and_down_within_one_step():
    dense = build(lambda t: (1 - np.asarray(t) ** 2)[..., None], [-2.0, 3.0])
    t, coordinate, direction = dense.crossings(np.array([0.75]))
    np.testing.assert_allclose(t, [-np.sqrt(1.75), -0.5, 0.5, np.sqrt(1.75)], rtol=1e-13)
    np.testing.assert_array_equal(direction, [-1, 1, -1, 1])
    np.testing.assert_array_equal(coordinate, 0)


def test_a_joint_crosses_once_and_touching_from_below_not_at_all():
    line = build(lambda t: np.asarray(t)[..., None], [0.0, 0.5, 1.0, 1.5])
    t, _, direction = line.crossings(np.array([1.0]))
    np.testing.assert_array_equal(t, [1.0])
    np.testing.assert_array_equal(direction, [1])
    hill = build(lambda t: (1 - np.asarray(t) ** 2)[..., None], [-0.9, 0.7])
    assert len(hill.crossings(np.array([1 + 1e-12]))[0]) == 0


def test_ten_thousand_steps_of_a_hundred_coordinates():
    rng = np.random.default_rng(0)
    m, p = 10_000, 100
    starts = np.cumsum(rng.uniform(-0.01, 0.02, (m + 1, p)), axis=0)
    nodes = np.stack([starts[:-1], (starts[:-1] + starts[1:]) / 2, starts[1:]], axis=1)
    dense = DenseOutput(np.arange(m + 1.0), np.full(m, 2), nodes.reshape(-1, p))
    t, _, direction = dense.crossings(np.full(p, 30.0))
    above = np.abs(starts) >= 30
    assert len(t) == np.sum(above[1:] != above[:-1])
    assert np.sum(direction) == np.sum(above[-1])


def test_outside_is_refused():
    dense = build(waves(1.0, np.ones(2), 0.0), [1.0, 2.0])
    with pytest.raises(InvalidInputError, match=r"t=2.5 is outside the flow times 1.0 … 2.0"):
        dense([1.5, 2.5])
    with pytest.raises(InvalidInputError, match=r"t=nan is outside"):
        dense(np.nan)
