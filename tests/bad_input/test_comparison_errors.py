"""Pairs that cannot be compared, each refused with what differs and the remedy."""

import dataclasses

import numpy as np
import pytest
from objectives import Quadratic

from dynalyze import (
    Initialization,
    StagePrediction,
    Trajectory,
    compare,
    predict_stages,
    simulate,
)
from dynalyze.errors import InvalidInputError
from dynalyze.models import DiagonalLinear

INIT = Initialization([1.0, 0.8], [0.5, -0.3], log10_alpha=-20)


@pytest.fixture(scope="module")
def run():
    return simulate(Quadratic([1.0, -2.0]), init=INIT, until_rescaled=1.0)


@pytest.fixture(scope="module")
def prediction():
    return predict_stages(Quadratic([1.0, -2.0]), init=INIT)


def test_different_scales(run):
    other = Initialization(INIT.u0, INIT.v0, log10_alpha=-30)
    prediction = predict_stages(Quadratic([1.0, -2.0]), init=other)
    with pytest.raises(InvalidInputError, match=r"made for α = 1e-30 .* has α = 1e-20: give"):
        compare(prediction, run)


def test_different_weights(run):
    other = Initialization([1.0, 0.7], INIT.v0, log10_alpha=-20)
    prediction = predict_stages(Quadratic([1.0, -2.0]), init=other)
    message = r"other initial weights .* w\[1\] .* = \(0.7, -0.3\) where .* \(0.8, -0.3\): give"
    with pytest.raises(InvalidInputError, match=message):
        compare(prediction, run)
    # The leading order is that of all initial weights.
    assert compare(predict_stages(Quadratic([1.0, -2.0])), run).n_stages == 2


def test_the_same_weights_up_to_rounding_and_signs(run):
    same = Initialization(-INIT.u0, np.float32(-INIT.v0), log10_alpha=-20)
    assert compare(predict_stages(Quadratic([1.0, -2.0]), init=same), run).n_stages == 2


def test_arguments_in_the_wrong_order(run, prediction):
    with pytest.raises(InvalidInputError, match="prediction is a Trajectory: give a StagePredicti"):
        compare(run, prediction)


def test_different_products(run):
    prediction = predict_stages(Quadratic([1.0, -2.0, 0.5]))
    with pytest.raises(InvalidInputError, match="has 3 products and the trajectory 2: compare"):
        compare(prediction, run)


def test_different_losses(run, prediction):
    other = dataclasses.replace(run, configuration=run.configuration | {"loss": "mse"})
    with pytest.raises(InvalidInputError, match=r"loss='squared' and the trajectory .*'mse'"):
        compare(prediction, other)


def test_another_data_set(tmp_path):
    rng = np.random.default_rng(0)
    X, noise = rng.standard_normal((2, 30, 3))
    y = X @ np.array([1.0, -0.5, 0.2])
    init = Initialization.gaussian(3, log10_alpha=-20, rng=0)
    prediction = predict_stages(DiagonalLinear(3), (X, y), init=init)
    prediction.save(tmp_path / "prediction.npz")
    loaded = StagePrediction.load(tmp_path / "prediction.npz")
    # Other targets, inputs that leave the loss at θ = 0 what it is, and another order of columns.
    others = [(X, y + 0.1 * noise[:, 0]), (X + 0.1 * noise, y), (X[:, [1, 0, 2]], y)]
    for other in others:
        run = simulate(DiagonalLinear(3), other, init, until_rescaled=0.5)
        run.save(tmp_path / "run.npz")
        for mine in (prediction, loaded):
            for theirs in (run, Trajectory.load(tmp_path / "run.npz")):
                with pytest.raises(InvalidInputError, match="run is on other data than the pred"):
                    compare(mine, theirs)
    same = simulate(DiagonalLinear(3), (X, y), init, until_rescaled=0.5)
    assert compare(loaded, same).n_stages == 3


@pytest.mark.parametrize("loaded", [True, False])
def test_a_training_run_on_other_targets(tmp_path, loaded):
    pytest.importorskip("torch")
    from dynalyze.models import AttentionHead
    from dynalyze.training import DiagonalHead, train

    X = np.random.default_rng(0).standard_normal((10, 3, 2))
    y = AttentionHead(2).predict(np.array([1.0, -0.8, 0.9, -1.1]), X)
    init = Initialization.gaussian(4, log10_alpha=-6, rng=1)
    prediction = predict_stages(AttentionHead(2, threads=1), (X, y), max_stages=1)
    if loaded:
        prediction.save(tmp_path / "prediction.npz")
        prediction = StagePrediction.load(tmp_path / "prediction.npz")
    run = train(DiagonalHead(2), (X, 1.1 * y), init=init, lr=0.05, steps=20)
    with pytest.raises(InvalidInputError, match="other data than the prediction: the loss at the"):
        compare(prediction, run)
    run = train(DiagonalHead(2), (X, y), init=init, lr=0.05, steps=20)
    assert compare(prediction, run).n_stages == 1


@pytest.mark.parametrize("threshold", [0, -1.0, float("nan"), float("inf")])
def test_threshold(run, prediction, threshold):
    with pytest.raises(InvalidInputError, match=f"threshold={threshold} must be positive"):
        compare(prediction, run, threshold=threshold)


def test_singular_values_of_full_weights(run, prediction):
    class Full:
        singular_values = True
        theta, init, configuration = run.theta, run.init, run.configuration

    with pytest.raises(InvalidInputError, match="records singular values of full weights"):
        compare(prediction, Full())


def test_separation_needs_an_initialization():
    with pytest.raises(InvalidInputError, match=r"which stages are separated .* init="):
        _ = predict_stages(Quadratic([1.0, -2.0])).separated
