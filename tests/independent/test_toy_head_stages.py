"""The paper's toy head at its own size: 1000 samples, 10 tokens, d = 50."""

import numpy as np
import pytest
from claims import every, none

from dynalyze import datasets, predict_stages
from dynalyze.models import AttentionHead


def _stationary_to(prediction):
    """Largest |g| on a support over all plateaus, relative to max|g(0)|."""
    on_support = np.where(prediction.theta != 0, prediction.fields, 0.0)
    return np.abs(on_support).max() / np.abs(prediction.fields[0]).max()


def test_sparse_teacher_is_recovered_stage_by_stage():
    data = datasets.toy_head(rng=0)
    prediction = predict_stages(AttentionHead(50), (data.X, data.y), loss="mse")
    assert prediction.status == "converged"
    # the paper's figure starts at 0.0894; five fresh draws of the data span 0.087 to 0.092
    assert prediction.losses[0] == pytest.approx(0.0894, rel=0.03)
    teacher = datasets.sparse_teacher()
    assert set(prediction.coordinates) == set(np.flatnonzero(teacher))
    np.testing.assert_allclose(prediction.theta[-1], teacher, rtol=0, atol=1e-8)
    assert _stationary_to(prediction) <= 1e-10
    assert every(np.diff(prediction.losses) < 0)
    # W_V W_O[43], by far the largest, comes first, at 202 to 227 on the figure's axis
    assert prediction.product_names[prediction.coordinates[0]] == "W_V W_O[43]"
    assert 200 < prediction.times[0] * np.log(10) < 230


@pytest.mark.slow
def test_dense_teacher_goes_through_at_least_90_stages():
    data = datasets.toy_head(teacher="dense", rng=0)
    prediction = predict_stages(AttentionHead(50), (data.X, data.y), loss="mse")
    assert prediction.n_stages >= 90
    assert _stationary_to(prediction) <= 1e-10
    assert every(np.diff(prediction.losses) < 0)
    assert none(prediction.caveats)
    added = np.count_nonzero((prediction.theta[1:] != 0) & (prediction.theta[:-1] == 0), axis=1)
    assert added.max() <= 1
