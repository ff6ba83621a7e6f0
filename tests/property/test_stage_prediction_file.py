"""A saved prediction comes back bit for bit, and anything else is refused."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalyze import Initialization, StagePrediction, predict_stages
from dynalyze.errors import SavedFileError
from dynalyze.models import DiagonalLinear


def _prediction(seed, *, with_init=True):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((12, 4)) @ rng.standard_normal((4, 4))
    init = Initialization.gaussian(4, log10_alpha=-1e5, rng=rng) if with_init else None
    return predict_stages(DiagonalLinear(4), (X, rng.standard_normal(12)), init=init)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_round_trip_is_exact(tmp_path_factory, seed, with_init):
    prediction = _prediction(seed, with_init=with_init)
    path = tmp_path_factory.mktemp("saved") / "prediction.npz"
    prediction.save(path)
    loaded = StagePrediction.load(path)
    for field in fields(StagePrediction):
        before, after = getattr(prediction, field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after, err_msg=field.name)
        elif field.name not in ("at_alpha", "objective", "known_durations"):
            assert before == after, field.name
    np.testing.assert_array_equal(loaded.durations, prediction.durations)
    assert loaded.objective is None
    assert loaded.summary() == prediction.summary()
    if with_init:
        np.testing.assert_array_equal(loaded.jump_times(0.01), prediction.jump_times(0.01))
        np.testing.assert_array_equal(loaded.at_alpha.init.u0, prediction.at_alpha.init.u0)
        np.testing.assert_array_equal(loaded.at_alpha.init.v0, prediction.at_alpha.init.v0)
    else:
        assert loaded.at_alpha is None


def test_file_is_stamped_with_version_configuration_and_time(tmp_path):
    from dynalyze import __version__
    from dynalyze._core.saved_files import read_saved
    from dynalyze.stages.saved import SCHEMA

    _prediction(0).save(tmp_path / "p.npz")
    _, stamp = read_saved(tmp_path / "p.npz", SCHEMA)
    assert stamp["dynalyze_version"] == __version__
    assert stamp["created"].startswith("20")
    assert stamp["metadata"]["configuration"]["loss"] == "squared"
    assert "DiagonalLinear" in stamp["metadata"]["configuration"]["model"]


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "p.npz"
    _prediction(0).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SavedFileError, match="truncated"):
        StagePrediction.load(path)


def test_dataframe_has_a_row_for_each_stage():
    prediction = _prediction(3)
    frame = prediction.to_dataframe()
    assert list(frame.index) == list(range(1, prediction.n_stages + 1))
    np.testing.assert_array_equal(frame["time"], prediction.times)
    np.testing.assert_array_equal(frame["jump_time"], prediction.jump_times())
    assert list(frame["product"]) == [prediction.product_names[i] for i in prediction.coordinates]


def test_repr_is_one_line():
    prediction = _prediction(3)
    assert (
        repr(prediction)
        == f"<StagePrediction: {prediction.n_stages} stages of 4 products, converged>"
    )


def test_plot_draws_one_staircase_for_the_loss_and_one_for_each_product():
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    prediction = _prediction(4)
    ax = prediction.plot()
    loss, products = ax.patches, ax.figure.axes[1].patches
    np.testing.assert_array_equal(loss[0].get_data().values, prediction.losses)
    assert len(products) == np.any(prediction.theta != 0, axis=0).sum()
    _, given_ax = plt.subplots()
    assert prediction.plot(ax=given_ax) is given_ax
    plt.close("all")
