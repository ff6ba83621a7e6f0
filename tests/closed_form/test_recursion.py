"""Eqs. (8)–(10) on numbers that can be checked by hand."""

import numpy as np

from dynalyze.stages.equations import activation, log_scale, time_until_active

B = np.array([1.0, 0.5, 1.5, 0.0, 2.0, 1.0])
FIELD = np.array([0.5, -0.5, 3.0, -4.0, 1.0, 0.0])
ACTIVE = np.zeros(6, dtype=bool)


def test_time_until_active_is_b_over_g_or_two_minus_b_over_minus_g():
    waits = time_until_active(B, FIELD, ACTIVE)
    np.testing.assert_array_equal(waits, [2.0, 3.0, 0.5, 0.5, 2.0, np.inf])


def test_a_product_that_left_comes_back_with_the_other_sign_after_two_over_g():
    positive_before, negative_before = 0.0, 2.0
    waits = time_until_active(
        np.array([positive_before, negative_before]), np.array([-0.25, 0.5]), ACTIVE[:2]
    )
    np.testing.assert_array_equal(waits, [8.0, 4.0])


def test_active_products_and_fields_that_count_as_zero_wait_forever():
    active = np.array([False, False, True, True, False, False])
    waits = time_until_active(B, FIELD, active, negligible=0.5)
    np.testing.assert_array_equal(waits, [np.inf, np.inf, np.inf, np.inf, 2.0, np.inf])


def test_activation_names_winner_sign_and_runner_up():
    waits = np.array([2.0, 3.0, 0.75, 0.5, 2.0, np.inf])
    winner = activation(waits, FIELD)
    assert winner == (3, -1, 0.5, 2, 0.75)


def test_activation_without_rival_and_without_anyone():
    winner = activation(np.array([np.inf, 1.0]), np.array([0.0, 1.0]))
    assert (winner.coordinate, winner.runner_up, winner.runner_up_wait) == (1, -1, np.inf)
    assert activation(np.full(3, np.inf), np.zeros(3)) is None


def test_log_scale_drifts_off_the_support_only_and_stays_in_its_range():
    active = np.array([False, False, False, False, True, False])
    b = log_scale(B, FIELD, active, 0.5)
    np.testing.assert_array_equal(b, [0.75, 0.75, 0.0, 2.0, 2.0, 1.0])
