"""Two and three gloo processes under torchrun give what one process gives."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchrun_jobs
from fake_device import fake_device

from dynalyze.errors import InvalidInputError
from dynalyze.training import process_group
from dynalyze.training.distributed import default_device

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
    results["many"] = np.array([run.values[-1] for run in many])
    np.savez(f"{out}.{process.rank}.npz", **results)
"""


def launched(script, n_processes, *arguments):
    """Run a script under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, f"--nproc-per-node={n_processes}", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def read(path):
    with np.load(path) as file:
        return dict(file)


def test_two_processes_equal_one(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path / "one"), str(tmp_path / "run-1")])
    runpy.run_path(str(script))
    launched(script, 2, tmp_path / "two", tmp_path / "run-2")
    alone = read(tmp_path / "one.0.npz")
    first, second = (read(tmp_path / f"two.{rank}.npz") for rank in (0, 1))
    assert (alone["size"], first["size"]) == (1, 2)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])  # ranks agree bit for bit
        if name != "size":
            np.testing.assert_allclose(first[name], alone[name], rtol=1e-12, atol=1e-12)


def assert_equal_to_one(tmp_path, job, cases, n_processes):
    launched(torchrun_jobs.__file__, n_processes, job, tmp_path / "job")
    ranks = [read(tmp_path / f"job.{rank}.npz") for rank in range(n_processes)]
    assert ranks[0]["size"] == n_processes
    # What rank 0 drew without rng is given to the one process.
    seeds = {
        name: np.array([int(seed) for seed in ranks[0].get(f"seeds of {name}", [])], dtype=object)
        for name in ranks[0]
    }
    alone = torchrun_jobs.matrix(cases, seeds)
    assert len(alone) > 5
    for name, expected in alone.items():
        for other in ranks[1:]:
            np.testing.assert_array_equal(other[name], ranks[0][name], err_msg=name)
        if name.startswith("seeds of "):
            assert ranks[0][name].tolist() == expected.tolist()
            continue
        tolerance = 1e-5 if "float32" in name else 1e-12
        np.testing.assert_allclose(
            ranks[0][name], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_three_processes_equal_one_in_every_optimizer_and_with_every_rng(tmp_path):
    assert_equal_to_one(tmp_path, "quick", torchrun_jobs.quick_cases(), 3)


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_equal_one_in_every_combination(n_processes, tmp_path):
    assert_equal_to_one(tmp_path, "all", torchrun_jobs.all_cases(), n_processes)


EXPECTED = {
    "lr": "lr is 0.2 in process 0 and 0.1 in process 1 of 2: every process must give the same",
    "steps": "n_steps is 5 in process 0 and 6 in process 1",
    "optimizer": "optimizer is 'gd' in process 0 and 'adam' in process 1",
    "rng": "random order.0 is 'PCG64 ",
    "generator": "random order.0 is 'PCG64 ",
    "init": "initial weights is '",
    "own weights": "initial weights is '",
    "values": "data y is '",
    "samples": "data X is '",
    "loader": "data X is '",
    "loss": "loss.function is 'cubes' in process 0 and 'squares' in process 1",
    "one fails": "X contains NaN or infinity",
    "one has a wrong option": "lr=-1.0 must be a positive number",
    "precision": "precision is 'float64' in process 0 and 'float32' in process 1",
    "checkpoint": "checkpoint is True in process 0 and False in process 1",
    "bound data": "data y is '",
    "bound loader": "data X is '",
    "bound weights": "sample_weight is '",
    "bound module": "fixed weights is '",
    "one is bound to NaN": "X contains NaN or infinity",
    "many": "runs is 1 in process 0 and 2 in process 1",
}


def test_what_differs_between_processes_is_an_error_on_each_in_words(tmp_path):
    launched(torchrun_jobs.__file__, 2, "differing", tmp_path / "job")
    ranks = [read(tmp_path / f"job.{rank}.npz") for rank in (0, 1)]
    for rank, results in enumerate(ranks):
        messages = json.loads(str(results["messages"]))
        assert messages.keys() == EXPECTED.keys()
        for name, text in EXPECTED.items():
            prefix = "process 1 of 2 failed: " if rank == 0 and "one" in name.split() else ""
            assert text in messages[name], name
            assert messages[name].startswith(prefix)
    # A callback and a limit on rank 0 alone end the run of both.
    assert ranks[0]["called"] == ranks[1]["called"] == 7
    assert ranks[0]["status"] == ranks[1]["status"] == "max_seconds"
    np.testing.assert_array_equal(ranks[0]["late"], ranks[1]["late"])


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


def test_a_group_on_gpus_sums_tensors_on_the_cpu_as_well(monkeypatch):
    joined = []
    monkeypatch.setattr(torch.distributed, "init_process_group", joined.append)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda: None)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with fake_device():
        for device in ("cuda", "auto", "cpu"):
            with process_group(device=device):
                pass
    assert joined == ["cpu:gloo,cuda:nccl", "cpu:gloo,cuda:nccl", "gloo"]


def test_the_default_device_is_what_the_group_chose(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert default_device() == torch.device("cpu")
    with fake_device():
        assert default_device() == torch.device("cuda", 0)
        with process_group(device="cpu") as process:
            assert default_device() == process.device == torch.device("cpu")
        with process_group() as process:
            assert default_device() == process.device == torch.device("cuda", 0)
        assert default_device() == torch.device("cuda", 0)


def test_in_a_group_of_the_callers_own_without_gpus_the_default_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with fake_device():
        for backends, expected in (("cpu:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cuda")):
            monkeypatch.setattr(
                torch.distributed, "get_backend_config", lambda chosen=backends: chosen
            )
            assert default_device().type == expected
