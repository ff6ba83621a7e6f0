"""The plots of a history show its numbers."""

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from dynalyze import spectra  # noqa: E402


@pytest.fixture(scope="module")
def history() -> spectra.SpectraHistory:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.MultiheadAttention(16, 2) for _ in range(2)])
    tracker = spectra.track(model, every=2, n_values=6)
    for _ in range(8):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        tracker.step()
    return tracker.history


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    mpl.use("Agg")
    yield
    mpl.pyplot.close("all")


def test_spectra_of_one_head(history: spectra.SpectraHistory) -> None:
    ax = history.plot_spectra(layer=1, head=0, product="W_V W_O", n_values=3)
    drawn = sorted((line.get_ydata() for line in ax.lines), key=lambda y: -y[-1])
    np.testing.assert_array_equal(np.array(drawn).T, history.singular_values[:, 1, 2, :3])
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), history.steps)
    assert ax.get_title() == "1 head 0"


def test_stable_ranks_of_layers(history: spectra.SpectraHistory) -> None:
    ax = history.plot_stable_rank([0], product=1)
    (line,) = ax.lines
    # Nothing has moved at step 0: there is no rank to draw.
    np.testing.assert_array_equal(line.get_xdata(), [2, 4, 6, 8])
    np.testing.assert_allclose(line.get_ydata(), history.stable_rank[1:, 1, :2].mean(-1))
    own = mpl.pyplot.subplots()[1]
    assert history.plot_stable_rank(ax=own) is own
    assert len(own.lines) == 2


def test_the_band_of_stable_ranks_stays_above_one() -> None:
    # Nine heads whose change has rank 1 and one whose change has rank 8, and one that never moves.
    torch.manual_seed(0)
    model = nn.ModuleList([nn.MultiheadAttention(88, 11)])
    tracker = spectra.track(model, every=1)
    for _ in range(2):
        with torch.no_grad():
            for head in range(10):
                rows = torch.randn(1 if head else 8, 88).expand(8, 88)
                model[0].in_proj_weight[8 * head : 8 * head + 8] += rows
        tracker.step()
    ax = tracker.history.plot_stable_rank(product="W_K W_Q")
    band = ax.collections[0].get_paths()[0].vertices
    ranks = tracker.history.stable_rank[1:, 0]
    assert ranks[:, :10].mean(-1).min() - ranks[:, :10].std(-1).max() < 1  # the paper's band
    assert band[:, 1].min() >= 1 - 1e-6
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(ranks[:, :10], axis=-1))
    assert "quartiles" in ax.get_ylabel()


def test_final_spectrum_beside_the_initial_one(history: spectra.SpectraHistory) -> None:
    ax = spectra.plot_final_spectrum(history, layer=1)
    initial, final = (line.get_ydata() for line in ax.lines)
    heads = history.layer == 1
    values = history.singular_values[-1, 0, heads]
    np.testing.assert_allclose(final, (values / values[:, :1]).mean(0))
    values = history.initial_singular_values[0, heads]
    np.testing.assert_allclose(initial, (values / values[:, :1]).mean(0))


def test_many_layers_are_named_by_what_differs() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 30, enable_nested_tensor=False))
    tracker = spectra.track(model, every=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    tracker.step()
    ax = tracker.history.plot_stable_rank()
    legend = ax.get_legend()
    assert legend.get_title().get_text() == "0.layers.*.self_attn"
    assert [text.get_text() for text in legend.get_texts()] == [str(i) for i in range(0, 30, 3)]
    assert len({tuple(line.get_color()) for line in ax.lines}) == 30
    few = tracker.history.plot_stable_rank([0, 12]).get_legend()
    assert [text.get_text() for text in few.get_texts()] == ["0", "12"]
    one = tracker.history.plot_stable_rank([12]).get_legend()
    assert one.get_texts()[0].get_text() == "0.layers.12.self_attn"
