"""Interrupted runs go on bit for bit, whatever interrupted them."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dynalyze import Initialization
from dynalyze.errors import InvalidInputError, SavedFileError
from dynalyze.training import DiagonalHead, FullHead, Recording, train, train_many
from dynalyze.training.checkpoints import latest_checkpoint

D = 3
CASES = {
    "gd": {"optimizer": "gd"},
    "sgd": {"optimizer": "sgd", "batch_size": 7, "optimizer_options": {"momentum": 0.9}},
    "adam": {"optimizer": "adam", "batch_size": 10},
}


class CrashError(Exception):
    pass


def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((24, 4, D))
    return X, X * [0.5, -1.0, 0.2]


def start(n=2 * D, seed=1):
    return Initialization.gaussian(n, log10_alpha=-1.5, rng=seed)


def assert_same(a, b):
    for name in ("steps", "values", "losses"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name, value in a.weights.items():
        np.testing.assert_array_equal(b.weights[name], value)
    assert a.loss_rises == b.loss_rises


@pytest.mark.parametrize("case", CASES)
def test_a_crash_leaves_a_run_that_goes_on_bit_for_bit(case, tmp_path):
    options = {"init": start(), "lr": 0.01, "steps": 230, "rng": 3, **CASES[case]}
    whole = train(DiagonalHead(D), data(), **options)

    def crash(step, losses):
        if step == 157:
            raise CrashError

    folder = {"checkpoint": tmp_path, "checkpoint_every": 40}
    with pytest.raises(CrashError):
        train(DiagonalHead(D), data(), callback=crash, **folder, **options)
    assert latest_checkpoint(tmp_path).name == "step-000000120"
    steps = []
    again = train(
        DiagonalHead(D), data(), callback=lambda step, _: steps.append(step), **folder, **options
    )
    assert steps[0] == 121
    assert_same(whole, again)


def test_many_runs_of_full_heads_go_on_bit_for_bit(tmp_path):
    head = FullHead(D, 2)
    inits = [start(head.n_weights, seed) for seed in range(3)]
    options = {"lr": 0.01, "steps": 120, "optimizer": "sgd", "batch_size": 6, "rngs": range(3)}
    whole = train_many(head, data(), inits, **options)
    first = train_many(
        head, data(), inits, checkpoint=tmp_path, callback=lambda step, _: step >= 70, **options
    )
    assert first[0].status == "callback"
    assert first[0].steps[-1] == 70
    again = train_many(head, data(), inits, checkpoint=tmp_path, **options)
    for one, other in zip(whole, again, strict=True):
        assert_same(one, other)


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(tmp_path):
    options = {"init": start(), "lr": 0.01, "steps": 200, "checkpoint": tmp_path}
    options["recording"] = Recording(every=10)

    def interrupt(step, losses):
        if step == 50:
            os.kill(os.getpid(), signal.SIGINT)

    first = train(DiagonalHead(D), data(), callback=interrupt, **options)
    assert first.status == "interrupted"
    assert "interrupted after 51 steps: call again with the same checkpoint" in first.message
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = train(DiagonalHead(D), data(), **options)
    assert_same(train(DiagonalHead(D), data(), **{**options, "checkpoint": None}), again)


SCRIPT = """
import sys, numpy as np
sys.path.insert(0, sys.argv[2])
from test_training_resume import D, data, start, train, DiagonalHead
train(DiagonalHead(D), data(), init=start(), lr=0.01, steps=10**6, checkpoint=sys.argv[1],
      checkpoint_every=50)
"""


def test_a_killed_process_leaves_a_run_that_goes_on(tmp_path):
    here = os.path.dirname(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path, here], env=environment)
    try:
        deadline = time.monotonic() + 60
        while latest_checkpoint(tmp_path) is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    reached = int(latest_checkpoint(tmp_path).name.removeprefix("step-"))
    options = {"init": start(), "lr": 0.01, "steps": reached + 130, "checkpoint_every": 50}
    # The killed run would have made 10**6 steps: its schedule of records is another.
    options["recording"] = None
    again = train(DiagonalHead(D), data(), checkpoint=tmp_path, **options)
    whole = train(DiagonalHead(D), data(), **options)
    np.testing.assert_array_equal(again.theta[-1], whole.theta[-1])
    np.testing.assert_array_equal(again.weights["w_q"], whole.weights["w_q"])
    assert again.steps[-1] == reached + 130


def test_a_finished_run_can_be_made_longer(tmp_path):
    options = {"init": start(), "lr": 0.01, "recording": Recording(every=10)}
    train(DiagonalHead(D), data(), steps=60, checkpoint=tmp_path, **options)
    longer = train(DiagonalHead(D), data(), steps=100, checkpoint=tmp_path, **options)
    assert_same(train(DiagonalHead(D), data(), steps=100, **options), longer)
    with pytest.raises(InvalidInputError, match="has made 100 steps, and only 60 are asked for"):
        train(DiagonalHead(D), data(), steps=60, checkpoint=tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lr": 0.02}, "lr was 0.01 and is now 0.02"),
        ({"optimizer": "adam"}, "optimizer was 'gd' and is now 'adam'"),
        ({"init": start(seed=9)}, "initial weights was"),
        ({"loss": "mse"}, "loss was 'squared' and is now 'mse'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, text, tmp_path):
    options = {"init": start(), "lr": 0.01, "steps": 5, "checkpoint": tmp_path}
    train(DiagonalHead(D), data(), **options)
    with pytest.raises(InvalidInputError, match=f"is of another run: {text}.*another folder"):
        train(DiagonalHead(D), data(), **(options | change))


def test_other_data_are_another_run(tmp_path):
    options = {"init": start(), "lr": 0.01, "steps": 5, "checkpoint": tmp_path}
    train(DiagonalHead(D), data(), **options)
    X, y = data()
    with pytest.raises(InvalidInputError, match="is of another run: data was"):
        train(DiagonalHead(D), (X, y + 1e-9), **options)


def test_a_damaged_checkpoint_is_not_taken_for_none(tmp_path):
    options = {"init": start(), "lr": 0.01, "steps": 5, "checkpoint": tmp_path}
    train(DiagonalHead(D), data(), **options)
    (latest_checkpoint(tmp_path) / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(SavedFileError, match="missing, truncated or damaged"):
        train(DiagonalHead(D), data(), **options)


def test_out_of_memory_halves_the_batch_and_goes_on():
    class Small(DiagonalHead):
        failures = 0

        def forward(self, x):
            if x.shape[0] > 5:
                Small.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return super().forward(x)

    options = {"init": start(), "lr": 0.01, "steps": 30}
    X, y = data()
    Small.__name__ = "DiagonalHead"
    limited = train(Small(D), (X, y), **options)
    whole = train(DiagonalHead(D), (X, y), **options)
    np.testing.assert_allclose(limited.theta, whole.theta, atol=1e-14)
    assert 0 < Small.failures < 5  # remembered from step to step
