"""Factors that move while their product stays: W_Q G and W_K G⁻ᵀ, for any invertible G per head."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from attention_modules import SeparateProjections  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dynalyze import spectra  # noqa: E402

COLUMNS = 8  # of each head
WIDTHS = [16, 96]  # measured in the factors themselves, and in bases of their columns
DTYPES = [torch.float32, torch.float64]
SIZES = {"power of 2": 4.0, "factor": 3.0, "near 1": 1.001, "far from 1": 1e4}


def _model(width: int, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(SeparateProjections(width, width // COLUMNS)).to(dtype)


def _turn(model: Any, kind: str) -> None:
    """Change the factors of both products by G and G⁻ᵀ, in double precision."""
    layer = model[0]
    gauge = SIZES.get(kind, 1.0) * torch.eye(COLUMNS).double()
    if kind == "rotation":
        gauge = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS).double())[0]
    with torch.no_grad():
        for rows, by in (
            (layer.q_proj.weight, gauge.mT),
            (layer.k_proj.weight, torch.linalg.inv(gauge)),
            (layer.o_proj.weight.mT, gauge.mT),
            (layer.v_proj.weight, torch.linalg.inv(gauge)),
        ):
            heads = rows.double().reshape(-1, COLUMNS, rows.shape[1])
            rows.copy_((by @ heads).flatten(0, 1))


@pytest.mark.parametrize("spectrum", ["leading", "full"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", [*SIZES, "rotation"])
def test_factors_that_move_while_their_product_stays_are_no_change(
    kind: str, width: int, dtype: torch.dtype, spectrum: str
) -> None:
    model = _model(width, dtype)
    tracker = spectra.track(model, spectrum=spectrum)
    _turn(model, kind)
    tracker.step()
    history = tracker.history
    for name in ("singular_values", "frobenius_norm", "numerical_rank", "effective_rank_bound"):
        np.testing.assert_array_equal(getattr(history, name), 0.0, err_msg=name)
    assert np.isnan(history.left_angles).all()


@pytest.mark.parametrize("kind", ["power of 2", "rotation"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_small_change_under_factors_that_move_has_its_own_rank(
    width: int, dtype: torch.dtype, kind: str
) -> None:
    model = _model(width, dtype)
    tracker = spectra.track(model, n_values=4)
    before = spectra.attention_products(model)[0].key_query().double()
    move = torch.randn(width, 1, dtype=dtype) @ torch.randn(1, width, dtype=dtype)
    with torch.no_grad():
        model[0].q_proj.weight += 1e4 * torch.finfo(dtype).eps * move
    change = spectra.attention_products(model)[0].key_query().double() - before
    _turn(model, kind)
    tracker.step()
    history = tracker.history
    np.testing.assert_array_equal(history.numerical_rank[1, 0], 1)
    np.testing.assert_array_equal(history.numerical_rank[1, 1], 0)
    found, expected = history.singular_values[1, 0, :, 0], torch.linalg.matrix_norm(change, 2)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-2)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_change_of_a_single_weight_is_seen_to_its_last_digits(width: int) -> None:
    model = _model(width, torch.float32)
    tracker = spectra.track(model, n_values=2)
    weight = model[0].q_proj.weight
    with torch.no_grad():
        before = weight[0, 0].item()
        weight[0, 0] *= 1 + 1e-5
    tracker.step()
    row = model[0].k_proj.weight[0].detach().double()
    size = abs(weight[0, 0].item() - before) * float(row.norm())
    history = tracker.history
    np.testing.assert_allclose(history.singular_values[1, 0, 0], [size, 0.0], atol=1e-5 * size)
    assert history.numerical_rank[1, 0, 0] == 1
    np.testing.assert_array_equal(history.numerical_rank[1, 0, 1:], 0)


def test_coordinates_of_columns_that_shrink_are_no_worse_than_the_bound_says() -> None:
    # A column that shrinks is the small difference of its start and its change.
    model = _model(96, torch.float64)
    layer: Any = model[0]
    tracker = spectra.track(model)
    sizes: Tensor = 10 ** (4 * torch.rand(96, 1).double() - 2)
    with torch.no_grad():
        layer.q_proj.weight *= sizes
        layer.k_proj.weight /= sizes
    tracker.step()
    np.testing.assert_array_equal(tracker.history.frobenius_norm, 0.0)
