"""Runs that the system kills at random moments end with the same numbers, and leave nothing.

The processes are forked from one that has imported everything and computed nothing, which is as
quick to start as to kill.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training_kills as t, test_training_resume, test_vit_training
from dynalyze.training.checkpoints import latest_checkpoint
folder, case, n_kills, seed = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
chance = random.Random(seed)
seen, steps = set(), []

def step():
    place = latest_checkpoint(folder)
    return -1 if place is None else int(place.name[5:])

for _ in range(n_kills):
    child = os.fork()
    if child == 0:
        t.RUNS[case](folder)
        os._exit(0)
    # After some more checkpoints, half of the kills in the middle of a write.
    enough = step() + chance.randint(0, t.MOST_STEPS[case])
    writing, delay = chance.random() < 0.5, chance.uniform(0.0, 0.01)
    while True:
        died, status = os.waitpid(child, os.WNOHANG)
        if died:
            assert status == 0, status
            break
        hidden = {place.name for place in folder.glob(".*")}
        busy = any(name.startswith(".step") for name in hidden)
        if hidden and step() >= enough and (busy or not writing):
            time.sleep(0.0 if writing else delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.0005)
    seen |= {place.name for place in folder.glob(".*")}
    steps.append(step())
print(json.dumps({"seen": sorted(seen), "steps": steps}))
"""


def plain(folder):
    """A run of SGD; quick enough to be cut in many places."""
    from test_training_resume import D, DiagonalHead, data, start, train

    options = {"optimizer": "sgd", "batch_size": 7, "optimizer_options": {"momentum": 0.9}}
    return train(
        DiagonalHead(D), data(), init=start(), lr=0.01, steps=100, rng=3, checkpoint=folder,
        checkpoint_every=1, **options,
    )  # fmt: skip


def vision(folder):
    """A vision transformer with its spectra."""
    from test_vit_training import _train

    return _train(folder, checkpoint_every=1)


RUNS = {"train": plain, "train_vit": vision}
MOST_STEPS = {"train": 12, "train_vit": 3}  # between two kills


def killed(folder, case, n_kills, seed):
    """Start a run `n_kills` times and kill it; what was seen lying about, and the steps made."""
    folder.mkdir()
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [
            *(sys.executable, "-c", KILLER, os.path.dirname(__file__), folder, case),
            *(str(n_kills), str(seed)),
        ],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same_end(folder, case):
    again, whole = RUNS[case](folder), RUNS[case](None)
    for name, value in whole.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)
    if case == "train":
        np.testing.assert_array_equal(again.theta, whole.theta)
        np.testing.assert_array_equal(again.steps, whole.steps)
    else:
        np.testing.assert_array_equal(again.history.singular_values, whole.history.singular_values)
        np.testing.assert_array_equal(again.train_losses, whole.train_losses)
    left = {place.name for place in folder.iterdir() if not place.name.startswith("step-")}
    assert left <= {"initial.safetensors"}
    assert len([place for place in folder.iterdir() if place.name.startswith("step-")]) == 2


@pytest.mark.parametrize("case", RUNS)
def test_killed_some_times_and_resumed(case, tmp_path):
    found = killed(tmp_path / "run", case, 5, 1)
    assert found["steps"] == sorted(found["steps"])  # no kill loses a checkpoint
    assert found["steps"][-1] > 1
    assert any(name.startswith(".step-") for name in found["seen"])  # there was what to clean up
    assert_same_end(tmp_path / "run", case)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("case", RUNS)
def test_killed_at_random_moments_and_resumed(case, seed, tmp_path):
    found = killed(tmp_path / "run", case, 10, seed)
    assert found["steps"] == sorted(found["steps"])
    assert_same_end(tmp_path / "run", case)
