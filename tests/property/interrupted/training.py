"""Interrupt `train` at random moments, each run going on from the one before; see test_interrupts.

Arguments: number of moments, folder of checkpoints, and what makes the steps, native or torch.

Prints how many were interrupted, and fails where they end otherwise than a run that was not.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback

import numpy as np

import dynalyze
from dynalyze.training import DiagonalHead, train

N_MOMENTS, FOLDER, ENGINE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
RNG = np.random.default_rng(1)
X = RNG.standard_normal((12, 3, 2))
OPTIONS = {
    "init": dynalyze.Initialization.gaussian(4, log10_alpha=-3, rng=0),
    "lr": 0.01,
} | {
    "native": {"steps": 300_000, "checkpoint_every": 20_000},
    "torch": {"steps": 800, "checkpoint_every": 100, "optimizer": "adam"},
}[ENGINE]


def interrupt_after(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGINT)


def run(folder):
    return train(DiagonalHead(2), (X, 0.5 * X), checkpoint=folder, **OPTIONS)


def main():
    faulthandler.enable()
    begun = time.perf_counter()
    whole = run(None)
    length = time.perf_counter() - begun
    n_interrupted = 0
    for _ in range(N_MOMENTS):
        seconds = RNG.uniform(0, 2 * length / N_MOMENTS)
        thread = threading.Thread(target=interrupt_after, args=(seconds,))
        found = None
        try:
            thread.start()
            found = run(FOLDER)
            thread.join()
            time.sleep(0)
        except KeyboardInterrupt as error:
            # Outside the run alone: before it has begun, or after it has returned.
            files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
            assert not any(file.endswith(("loop.py", "checkpoints.py")) for file in files), files
        thread.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if found is not None and found.status == "interrupted":
            n_interrupted += 1
    last = run(FOLDER)
    assert last.status == "finished"
    assert last.configuration["engine"] == ENGINE
    np.testing.assert_array_equal(last.steps, whole.steps)
    np.testing.assert_array_equal(last.theta, whole.theta)
    print(n_interrupted)


if __name__ == "__main__":
    main()
