import numpy as np
import pytest
from mpmath import mp, mpf

from dynalyze.flow.initialization import Initialization


@pytest.mark.parametrize("log10_alpha", [-0.5, -4, -20, -400, -1000])
def test_against_fifty_digits(log10_alpha):
    u0 = np.array([1.0, -0.3, 0.2, 1e-3, -2.0])
    v0 = np.array([0.5, 0.2, -0.7, 4.0, 2.0 - 1e-9])
    init = Initialization(u0, v0, log10_alpha=log10_alpha)
    mp.dps = 50
    alpha = mpf(10) ** mpf(log10_alpha)
    for i in range(5):
        u, v = alpha * mpf(u0[i]), alpha * mpf(v0[i])
        flip = mp.sign(u + v)
        c = u**2 - v**2
        assert init.log_abs_c[i] == pytest.approx(float(mp.log(abs(c))), rel=1e-13)
        z = mp.log(flip * (u + v) / mp.sqrt(abs(c)))
        assert init.z0[i] == pytest.approx(float(z), rel=1e-13)
        assert init.theta0[i] == pytest.approx(float(u * v), rel=1e-12)
        back = init.weights_at(init.z0)
        assert back[0][i] == pytest.approx(float(u), rel=1e-12, abs=1e-320)
        assert back[1][i] == pytest.approx(float(v), rel=1e-12, abs=1e-320)
    assert init.log_inverse_alpha == pytest.approx(-log10_alpha * np.log(10), rel=1e-15)


@pytest.mark.parametrize("log10_alpha", [-1, -30, -1000])
def test_weights_of_any_z_have_the_product_and_the_conserved_difference(log10_alpha):
    rng = np.random.default_rng(5)
    init = Initialization.gaussian(40, log10_alpha=log10_alpha, rng=rng)
    # active coordinates: log|θ| of order 1
    target = rng.standard_normal((3, 40))
    z = init.coordinates.z_of_theta(target)
    u, v = init.weights_at(z)
    np.testing.assert_allclose(u * v, target, rtol=1e-10)
    if log10_alpha == -1:
        c = 0.01 * (init.u0**2 - init.v0**2)
        np.testing.assert_allclose(u**2 - v**2, np.broadcast_to(c, u.shape), rtol=0, atol=1e-13)


def test_gaussian_is_reproducible_and_has_the_scale():
    one = Initialization.gaussian(20000, log10_alpha=-3, rng=7, scale=2.0)
    two = Initialization.gaussian(20000, log10_alpha=-3, rng=np.random.default_rng(7), scale=2.0)
    np.testing.assert_array_equal(one.u0, two.u0)
    assert np.std(one.u0) == pytest.approx(2, rel=0.02)
    assert np.std(one.v0) == pytest.approx(2, rel=0.02)
    assert abs(np.corrcoef(one.u0, one.v0)[0, 1]) < 0.03


@pytest.mark.parametrize("factor", [1.0, 1e-290])
def test_from_weights_keeps_the_weights(factor):
    u, v = np.array([1e-5, -3e-5]) * factor, np.array([2e-5, 4e-6]) * factor
    init = Initialization.from_weights(u, v)
    rms = factor * np.sqrt(np.mean((np.concatenate([u, v]) / factor) ** 2))
    assert init.log10_alpha == pytest.approx(np.log10(rms), rel=1e-14)
    np.testing.assert_allclose(init.weights_at(init.z0), [u, v], rtol=1e-12)
    renamed = Initialization.from_weights(u, v, log10_alpha=-2)
    np.testing.assert_allclose(renamed.log_abs_c, init.log_abs_c, rtol=1e-12)
    np.testing.assert_allclose(renamed.z0, init.z0, rtol=1e-12)


def test_from_torch_tensors():
    torch = pytest.importorskip("torch")
    u = torch.nn.Parameter(torch.tensor([0.01, -0.02], dtype=torch.bfloat16))
    v = torch.tensor([0.03, 0.01])
    init = Initialization.from_weights(u, v)
    np.testing.assert_allclose(init.weights_at(init.z0)[0], u.detach().double().numpy(), rtol=1e-12)
