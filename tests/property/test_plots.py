"""Plots fit into any figure that they are drawn in, and label what they show."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from dynalyze import Initialization, compare, datasets, predict_stages, simulate
from dynalyze.models import DiagonalLinear


@pytest.fixture(autouse=True)
def _figures():
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def results():
    data = datasets.diabetes()
    model = DiagonalLinear(10, data.feature_names)
    init = Initialization.gaussian(10, log10_alpha=-100, rng=1)
    prediction = predict_stages(model, (data.X, data.y), init=init)
    trajectory = simulate(model, (data.X, data.y), init, until_rescaled=400)
    return {
        "stages": prediction,
        "trajectory": trajectory,
        "comparison": compare(prediction, trajectory),
    }


def assert_all_inside(figure):
    """Every label and legend lies on the canvas, to a pixel."""
    box, canvas = figure.get_tightbbox(), figure.get_size_inches()
    pixel = 1 / figure.dpi
    assert min(box.x0, box.y0) >= -pixel
    assert box.x1 <= canvas[0] + pixel
    assert box.y1 <= canvas[1] + pixel


@pytest.mark.parametrize("layout", [None, "tight", "constrained"])
@pytest.mark.parametrize("what", ["stages", "trajectory", "comparison"])
def test_a_figure_of_ones_own_holds_all_of_it(results, what, layout):
    figure, ax = plt.subplots(layout=layout)
    assert results[what].plot(ax=ax) is ax
    figure.canvas.draw()
    assert_all_inside(figure)


@pytest.mark.parametrize("what", ["stages", "trajectory", "comparison"])
def test_the_figure_that_is_made_holds_all_of_it(results, what):
    figure = results[what].plot().figure
    figure.canvas.draw()
    assert_all_inside(figure)


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_plots_beside_one_another_do_not_overlap(results, layout):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout=layout)
    results["stages"].plot(ax=axes[0])
    results["trajectory"].plot(ax=axes[1])
    figure.canvas.draw()
    assert_all_inside(figure)
    legend = next(a.get_legend() for a in figure.axes if a.get_legend())
    assert legend.get_window_extent().x1 < axes[1].get_tightbbox().x0


def test_time_is_logarithmic_for_late_stages_alone(results):
    late = [results[what].plot() for what in results]
    assert [ax.get_xscale() for ax in late] == ["log"] * 3
    # All activations of the run are on the axis.
    assert late[1].get_xlim()[0] < results["stages"].times[0] < late[1].get_xlim()[1]
    features = np.eye(3)
    early = predict_stages(DiagonalLinear(3), (features, [1.0, 0.8, 0.5]))
    assert early.plot().get_xscale() == "linear"
    assert early.plot().get_xlim()[0] == 0


def test_of_many_products_the_first_are_named_and_the_rest_counted():
    goals = np.linspace(2.0, 1.0, 30)
    prediction = predict_stages(DiagonalLinear(30), (np.eye(30), goals))
    names = [text.get_text() for text in prediction.plot().get_legend().get_texts()]
    assert names[:2] == [prediction.product_names[i] for i in prediction.coordinates[:2]]
    assert (len(names), names[-1]) == (21, "… 10 more")
    small = plt.subplots(3, 1)[1]
    names = [text.get_text() for text in prediction.plot(ax=small[0]).get_legend().get_texts()]
    assert names[-1] == f"… {31 - len(names)} more"
    assert 3 < len(names) < 20


def test_no_stage_at_all():
    prediction = predict_stages(DiagonalLinear(1), (np.array([[1.0], [-1.0]]), np.array([1.0, 1])))
    assert prediction.n_stages == 0
    ax = prediction.plot()
    np.testing.assert_array_equal(ax.patches[0].get_data().values, prediction.losses)
