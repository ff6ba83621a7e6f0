"""`detect_stages` on synthetic spectra whose jumps are known."""

import numpy as np
import pytest
from claims import every

pytest.importorskip("torch")

from dynalyze.spectra import detect_stages
from validation.stage_detection import as_history, error_rates, synthetic_spectra


def test_without_noise_the_crossing_of_the_threshold_is_exact() -> None:
    synthetic = synthetic_spectra(1e9, n_heads=20, rng=np.random.default_rng(1))
    found = detect_stages(synthetic.history, threshold=0.1)
    assert len(found) == 60
    assert every(np.diff(found.steps) >= 0)
    # size / (1 + exp(−(t − jump))) = size / 10; growth is exponential but for saturation
    truth = synthetic.jumps[found.head, found.component - 1] - np.log(9.0)
    np.testing.assert_allclose(found.steps / 100, truth, atol=0.05)
    assert set(found.product) == {0}
    np.testing.assert_allclose(found.size, 1e9, rtol=1e-3)
    np.testing.assert_array_equal(found.ranks[-1], [[3] * 20, [0] * 20])


@pytest.mark.parametrize("noise", ["white", "random walk", "product", "minibatch"])
def test_error_rates_in_noise(noise: str) -> None:
    rng = np.random.default_rng(2)
    noise_alone = synthetic_spectra(0.0, noise=noise, n_jumps=0, n_heads=40, rng=rng)
    assert len(detect_stages(noise_alone.history)) == 0
    rates = error_rates(synthetic_spectra(5.0, noise=noise, n_heads=40, rng=rng))
    assert rates.missed == 0.0
    assert rates.invented == 0.0
    assert abs(rates.delay) < 1.5
    assert rates.spread < 1.0


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_minibatch_noise_of_low_rank_is_not_taken_for_components(rank: int, width: int) -> None:
    # A change of N = rank · record outer products: 12 heads gave 120 components, ten of ten each.
    rng = np.random.default_rng(rank)
    change, values, norms = np.zeros((12, width, width)), [], []
    for record in range(40):
        a, b = rng.standard_normal((2, 12, width, rank))
        change = change + (a @ b.transpose(0, 2, 1) if record else 0.0)
        spectrum = np.linalg.svd(change, compute_uv=False)
        values.append(spectrum[:, :10])
        norms.append(np.linalg.norm(spectrum, axis=-1))
    history = as_history(np.array(values), np.array(norms), largest_rank=width)
    found = detect_stages(history)
    assert len(found) <= 1  # of 12 heads with 9 components each that could be found
    assert "at most 9 components per head" in found.summary()


def test_components_within_the_noise_are_missed_not_invented() -> None:
    rates = error_rates(synthetic_spectra(2.0, n_heads=30, rng=np.random.default_rng(3)))
    assert rates.missed == 1.0
    assert rates.invented == 0.0


def test_persistence_ignores_what_does_not_last() -> None:
    history = synthetic_spectra(1e9, n_heads=1, n_jumps=1, rng=np.random.default_rng(4)).history
    values = history.singular_values
    values[10] = values[-1]  # one record with the final spectrum, long before the jump
    history.frobenius_norm[10] = history.frobenius_norm[-1]
    assert detect_stages(history, persistence=1).records[0] == 1000
    assert detect_stages(history, persistence=2).records[0] > 1000


def test_summary_frame_and_plot_show_every_component() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    synthetic = synthetic_spectra(20.0, n_heads=4, rng=np.random.default_rng(5))
    found = detect_stages(synthetic.history)
    assert len(found.summary().splitlines()) == 1 + 12 + 1  # heading, components, limit
    frame = found.to_dataframe()
    assert frame["step"].is_monotonic_increasing
    ax = found.plot(predicted_steps=[100.0, np.nan, 300.0])
    counts = ax.lines[0].get_ydata()
    assert max(counts) == 12
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == 2
