"""Two gloo processes under torchrun give what one process gives."""

import os
import runpy
import subprocess
import sys

import numpy as np
import pytest

from dynalyze.errors import InvalidInputError
from dynalyze.training import process_group

SCRIPT = """
import sys
import numpy as np
from dynalyze import Initialization, predict_stages
from dynalyze.models import AttentionHead
from dynalyze.training import DiagonalHead, FullHead, process_group, train, train_many

D, teacher = 3, np.array([0.9, 0.0, -0.7, 1.1, 0.0, -0.8])
X = np.random.default_rng(0).standard_normal((25, 4, D))
data = X, AttentionHead(D).predict(teacher, X)
init = Initialization.gaussian(2 * D, log10_alpha=-2, rng=1)
out, folder = sys.argv[1:]
with process_group(device="cpu") as process:
    results = {"size": process.size}
    objective = DiagonalHead(D).bind(data, sample_weight=np.linspace(0.5, 1, 25))
    theta = np.linspace(-1, 1, 2 * D)
    results["value"] = objective.value(theta)
    results["field"] = objective.field(theta)
    results["columns"] = objective.hessian_columns(theta, np.arange(2 * D))
    lonely = DiagonalHead(D).bind((X[:1], data[1][:1]))
    results["one_sample"] = lonely.field(theta)
    prediction = predict_stages(DiagonalHead(D), data, max_stages=3)
    results["times"], results["coordinates"] = prediction.times, prediction.coordinates
    results["plateaus"] = prediction.theta
    run = train(DiagonalHead(D), data, init=init, lr=0.05, steps=80)
    results["gd"], results["losses"] = run.theta, run.losses
    half = {"init": init, "lr": 0.05, "optimizer": "sgd", "batch_size": 7, "rng": 5}
    train(DiagonalHead(D), data, steps=20, checkpoint=folder, **half)
    results["sgd"] = train(DiagonalHead(D), data, steps=40, checkpoint=folder, **half).theta[-1]
    head = FullHead(D, 2)
    inits = [Initialization.gaussian(head.n_weights, log10_alpha=-1, rng=s) for s in (0, 1)]
    many = train_many(head, data, inits, lr=0.05, steps=20)
    results["many"] = np.array([run.theta[-1] for run in many])
    np.savez(f"{out}.{process.rank}.npz", **results)
"""


def test_two_processes_equal_one(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path / "one"), str(tmp_path / "run-1")])
    runpy.run_path(str(script))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", script, tmp_path / "two", tmp_path / "run-2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = np.load(tmp_path / "one.0.npz")
    first, second = (np.load(tmp_path / f"two.{rank}.npz") for rank in (0, 1))
    assert (alone["size"], first["size"]) == (1, 2)
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])  # ranks agree bit for bit
        if name != "size":
            np.testing.assert_allclose(first[name], alone[name], rtol=1e-12, atol=1e-12)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with process_group(device="cpu") as process:
        assert (process.rank, process.size, process.is_first) == (0, 1, True)
        assert process.device.type == "cpu"


def test_wrong_devices(monkeypatch):
    with pytest.raises(InvalidInputError, match="device='tpu' is not known: choose \"auto\""):
        process_group(device="tpu").__enter__()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    with pytest.raises(InvalidInputError, match="1000 processes on this machine and"):
        process_group(device="cuda").__enter__()
