"""Training on a device that refuses NumPy, mixed operands and silent copies."""

import numpy as np
import pytest
from fake_device import fake_device

from dynalyze import Initialization
from dynalyze.ranks import simulate as simulate_full
from dynalyze.training import DiagonalHead, FullHead, Recording, process_group, train_many
from dynalyze.training.vit import ViTOptions, ViTShape, train_vit

D = 3
X = np.random.default_rng(0).standard_normal((20, 4, D))
DATA = X, X * [0.5, -1.0, 0.2]
CASES = {
    "gd": {},
    "sgd": {"optimizer": "sgd", "batch_size": 7},
    "adam": {"optimizer": "adam", "batch_size": 6},
    "float32": {"precision": "float32"},
}


def start(n, seed=1, log10_alpha=-1.5):
    return Initialization.gaussian(n, log10_alpha=log10_alpha, rng=seed)


@pytest.mark.parametrize("model", [DiagonalHead(D), FullHead(D, 2)], ids=["diagonal", "full"])
@pytest.mark.parametrize("case", CASES)
def test_many_runs_on_a_device_equal_those_on_the_cpu(model, case, tmp_path):
    n = model.n_weights if isinstance(model, FullHead) else 2 * D
    inits = [start(n, seed) for seed in range(3)]
    options = {"lr": 0.01, "steps": 20, "rngs": range(3), **CASES[case]}
    expected = train_many(model, DATA, inits, **options)
    with fake_device():
        first = {**options, "steps": 10, "recording": None}
        train_many(model, DATA, inits, device="cuda", checkpoint=tmp_path, **first)
        runs = train_many(model, DATA, inits, device="cuda", checkpoint=tmp_path, **options)
    for run, other in zip(runs, expected, strict=True):
        tolerance = 1e-5 if case == "float32" else 1e-12
        np.testing.assert_allclose(run.values[-1], other.values[-1], atol=tolerance)
        for name, value in run.weights.items():
            np.testing.assert_allclose(value, other.weights[name], atol=tolerance)


def test_the_flow_of_full_weights_runs_on_a_device():
    head = FullHead(D, 2)
    init = start(head.n_weights, log10_alpha=-14)
    expected = simulate_full(head, DATA, init, until=2.0)
    with fake_device():
        flow = simulate_full(head.to("cuda"), DATA, init, until=2.0)
    np.testing.assert_allclose(flow.values, expected.values, rtol=1e-9)
    assert isinstance(flow.weights["w_k"], np.ndarray)


def waits_and_copies(n_runs, batch_size=None, steps=40):
    """How often the device is waited for, and what is copied to it, in so many steps."""
    inits = [start(2 * D, seed) for seed in range(n_runs)]
    batches = {"optimizer": "sgd", "batch_size": batch_size} if batch_size else {}
    with fake_device() as device:
        recording = Recording(every=1, check_every=1)
        train_many(
            DiagonalHead(D), DATA, inits, lr=0.01, steps=steps, device="cuda",
            recording=recording, rngs=range(n_runs), **batches,
        )  # fmt: skip
        return device.waits, device.copies_to_host, device.copies_to_device


def test_records_wait_for_the_device_as_often_for_many_runs_as_for_one():
    one, many = waits_and_copies(1), waits_and_copies(8)
    assert many[:2] == pytest.approx(one[:2], abs=30)  # at the end each run's weights are copied


def test_the_order_of_the_batches_is_copied_once_per_epoch():
    epochs = 40 // 4
    few, many = waits_and_copies(2, 5), waits_and_copies(2, 5, steps=80)
    assert many[2] - few[2] == epochs


def test_a_vision_transformer_trains_on_a_device_as_on_the_cpu():
    shape = ViTShape(
        image_size=8, n_channels=1, patch_size=4, n_layers=1, n_heads=2, width=8, mlp_width=8,
        head_width=4,
    )  # fmt: skip
    options = ViTOptions(optimizer="sgd", lr=0.1, batch_size=500, n_epochs=1, warmup_epochs=0)
    expected = train_vit(None, shape, options, track_every=2, device="cpu")
    with fake_device() as device:
        run = train_vit(None, shape, options, track_every=2, device="cuda")
        assert device.copies_to_device > 2 * 3  # images and labels of every step
        with process_group(device="cpu"):
            assert train_vit(None, shape, options).configuration["device"] == "cpu"
    assert run.configuration["device"] == "cuda"
    for name, weight in run.weights.items():
        np.testing.assert_allclose(weight, expected.weights[name], atol=1e-6)
