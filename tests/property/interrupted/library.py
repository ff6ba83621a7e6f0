"""Interrupt `simulate` and `predict_stages` at random moments; run by test_interrupts.py.

Prints how many results were interrupted and how many whole, and fails where one is torn.
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
from dynalyze.models import AttentionHead, DiagonalLinear

N_MOMENTS = int(sys.argv[1])
RNG = np.random.default_rng(0)


def interrupt_after(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGINT)


def problems():
    x = RNG.standard_normal((20, 3)) @ (np.eye(3) + 0.4 * RNG.standard_normal((3, 3)))
    linear, data = DiagonalLinear(3), (x, x @ RNG.standard_normal(3))
    init = dynalyze.Initialization.gaussian(3, log10_alpha=-20, rng=0)
    head, tokens = AttentionHead(2, threads=1), RNG.standard_normal((40, 3, 2))
    pair = (tokens, head.predict(RNG.standard_normal(4), tokens))
    small = dynalyze.Initialization.gaussian(4, log10_alpha=-20, rng=0)
    return [
        lambda: dynalyze.simulate(linear, data, init),
        lambda: dynalyze.simulate(head, pair, small, max_steps=150),
        lambda: dynalyze.predict_stages(linear, data, init=init),
        lambda: dynalyze.predict_stages(head, pair),
    ]


def check_trajectory(found, whole):
    n = len(found.t)
    np.testing.assert_allclose(found.t, whole.t[:n], rtol=1e-9)
    np.testing.assert_allclose(found.z, whole.z[:n], rtol=1e-9)
    assert found.dense.breaks[-1] == found.t[-1]
    np.testing.assert_allclose(found.z_at(found.t[-1]), found.z[-1], rtol=1e-12)


def check_prediction(found, whole):
    n = found.n_stages
    for name in ("times", "coordinates", "signs", "durations"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name)[:n], rtol=1e-9)
    for name in ("theta", "b", "fields", "losses"):
        expected = getattr(whole, name)[: n + 1]
        scale = np.abs(expected).max(initial=0.0, where=np.isfinite(expected))
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-9 * scale)
    if found.at_alpha is not None:
        m = len(found.at_alpha.coordinates)
        assert len(found.at_alpha.overlaps) == m


def main():
    faulthandler.enable()
    jobs = problems()
    wholes, lengths = [], []
    for job in jobs:
        job()  # compiles what it needs
        begun = time.perf_counter()
        wholes.append(job())
        lengths.append(time.perf_counter() - begun)
    n_interrupted = n_whole = 0
    for k in range(N_MOMENTS):
        job, whole, length = jobs[k % 4], wholes[k % 4], lengths[k % 4]
        thread = threading.Thread(target=interrupt_after, args=(length * RNG.uniform(0, 1),))
        found = None
        try:
            thread.start()
            found = job()
            thread.join()
            time.sleep(0)
        except KeyboardInterrupt as error:
            # Outside the run alone: before it has begun, or after it has returned.
            files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
            package = os.path.dirname(dynalyze.__file__)
            inside = [f for f in files if f.startswith(package) and "_interrupts" not in f]
            assert not inside, inside
        thread.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if found is None:
            n_whole += 1
            continue
        check = check_trajectory if hasattr(found, "t") else check_prediction
        check(found, whole)
        n_interrupted += found.status == "interrupted"
        n_whole += found.status != "interrupted"
    print(n_interrupted, n_whole)


if __name__ == "__main__":
    main()
