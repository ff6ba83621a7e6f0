"""Ctrl-C at random moments of the commands: what was found is printed, and written to --out."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dynalyze.flow.trajectory import Trajectory
from dynalyze.stages.prediction import StagePrediction

# It says when it has begun: before that no program can do anything about a signal.
START = "from dynalyze.__main__ import run; print('ready', flush=True); run()"
PROBLEM = ("--data", "data.npz", "--log10-alpha", "-20", "--out", "found.npz")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 12)) @ (np.eye(12) + 0.4 * rng.standard_normal((12, 12)))
    np.savez(tmp_path / "data.npz", X=X, y=X @ rng.standard_normal(12))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def interrupted(arguments, seconds, times=1):
    """Run the command, press Ctrl-C after some seconds; returns exit code and output."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    for _ in range(times):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors, errors
    return process.returncode, output, errors


@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize("command", ["predict", "simulate"])
def test_commands_print_and_write_what_was_found(folder, command, moment):
    seconds = 0.3 + random.Random(f"{command} {moment}").uniform(0, 4)
    code, output, errors = interrupted([command, *PROBLEM], seconds)
    assert code in (0, 130)
    kind = {"predict": StagePrediction, "simulate": Trajectory}[command]
    found = kind.load(folder / "found.npz")
    assert f"status: {found.status}" in output
    assert code == 130 or found.status != "interrupted"
    assert (errors == f"dynalyze {command}: interrupted\n") == (code == 130)


@pytest.mark.parametrize("moment", range(2))
def test_training_prints_and_writes_what_was_found(folder, moment):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    seconds = 0.3 + random.Random(f"train {moment}").uniform(0, 8)
    arguments = ["train", "vit", "--epochs", "2", "--layers", "1", "--track-every", "5"]
    code, output, _ = interrupted([*arguments, "--out", "found.npz"], seconds)
    assert code in (0, 130)
    assert (folder / "found.npz").exists()
    assert f"status: {'interrupted' if code == 130 else 'finished'}" in output


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.5])
def test_two_at_once_end_the_command_by_its_own_exit_code(folder, seconds):
    code, _, errors = interrupted(["predict", *PROBLEM], seconds, times=2)
    assert code in (0, 130)
    assert "interrupted" in errors
