"""Ctrl-C at any moment leaves what was found, and never a broken state, exit code or handler."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from objectives import Quadratic

from dynalyze import Initialization, check_assumptions, predict_stages, simulate
from dynalyze._core.interrupts import deliver, delivering, evaluate, held, take
from dynalyze.checks.perturbation import perturb
from dynalyze.flow.trajectory import Trajectory

SCRIPTS = Path(__file__).parent / "interrupted"
INIT = Initialization([1.0, 0.8], [0.5, -0.3], log10_alpha=-8)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Slow(Quadratic):
    """An objective of the user's own, during whose calls Ctrl-C comes so many times."""

    def __init__(self, times, *, at=4):
        super().__init__([1.0, -0.5])
        self.times, self.at, self.calls, self.finished = times, at, 0, 0

    def value_and_field(self, theta):
        self.calls += 1
        if self.calls == self.at:
            for _ in range(self.times):
                ctrl_c()
        self.finished += 1
        return super().value_and_field(theta)


def test_a_held_interrupt_is_raised_when_the_block_ends():
    done = []

    @held()
    def run():
        ctrl_c()
        deliver()  # of which nobody expects anything yet
        done.append(True)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_is_delivered_where_it_is_expected_and_only_once():
    with held():
        ctrl_c()
        for _ in range(2):
            try:
                with delivering():
                    raise RuntimeError("not reached the first time")
            except KeyboardInterrupt:
                first = True
            except RuntimeError:
                second = True
    assert first
    assert second


def test_nested_runs_leave_the_interrupt_to_the_outer_one():
    after = []

    @held()
    def run():
        held()(ctrl_c)()
        after.append("inner")
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler

    with pytest.raises(KeyboardInterrupt):
        run()
    assert after == ["inner"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_was_taken_is_not_raised():
    with held():
        ctrl_c()
        assert take()
        assert not take()


def test_a_handler_of_the_users_own_is_called_and_comes_back():
    calls = []

    def handler(signum, frame):
        calls.append(signum)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with held(), delivering():
            ctrl_c()
            assert calls == []
            deliver()
            assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is handler
        assert simulate(Slow(1), init=INIT).status == "stationary"  # it raises nothing
        assert calls == 2 * [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_is_set_inside_stays():
    def handler(signum, frame):
        raise AssertionError

    with held():
        signal.signal(signal.SIGINT, handler)
        with held():
            assert signal.getsignal(signal.SIGINT) is not handler
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ignored_interrupts_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held(), delivering():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            ctrl_c()
            deliver()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_neither_hold_nor_receive():
    statuses = []

    def work():
        with held():
            assert not take()
        statuses.append(simulate(Quadratic([1.0, -0.5]), init=INIT).status)

    with held(), delivering():
        ctrl_c()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert take()
    assert statuses == ["stationary"]


def test_the_first_waits_for_an_objective_in_python_and_the_second_does_not():
    once, twice = Slow(1), Slow(2)
    for objective in (once, twice):
        trajectory = simulate(objective, init=INIT)
        assert trajectory.status == "interrupted"
        assert "interrupted at flow time" in trajectory.message
    assert once.finished == once.at
    assert twice.finished == twice.at - 1


def test_a_second_one_never_enters_a_kernel():
    objective = Slow(2)
    objective.compiled = True
    assert simulate(objective, init=INIT).status == "interrupted"
    assert objective.finished == objective.at


def test_a_second_one_in_a_compiled_objective_of_the_users_own_is_still_an_interrupt():
    def torn():
        try:
            ctrl_c()
            ctrl_c()
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    with pytest.raises(KeyboardInterrupt), held():
        evaluate(torn)


def test_a_callback_is_interrupted_as_an_objective_is():
    reached = []

    def callback(state):
        if state.n_steps == 3:
            ctrl_c()
            reached.append(1)
            ctrl_c()
            reached.append(2)

    trajectory = simulate(Quadratic([1.0, -0.5]), init=INIT, callback=callback)
    assert trajectory.status == "interrupted"
    assert trajectory.n_steps == 3
    assert reached == [1]
    prediction = predict_stages(Quadratic([1.0, -0.5]), callback=lambda stage: ctrl_c())
    assert prediction.status == "interrupted"
    assert prediction.n_stages == 1


@pytest.mark.parametrize("at", [1, 2, 3])
def test_one_before_the_first_step_leaves_a_result_of_no_steps(at):
    trajectory = simulate(Slow(1, at=at), init=INIT)
    assert trajectory.status == "interrupted"
    assert trajectory.n_steps == 0
    prediction = predict_stages(Slow(1, at=at))
    assert prediction.status == "interrupted"
    assert prediction.n_stages == 0
    assert prediction.theta.shape == (1, 2)


def test_one_after_the_last_step_keeps_the_whole_result(monkeypatch):
    from dynalyze.flow.dense import DenseOutputBuilder

    build = DenseOutputBuilder.build
    whole = simulate(Quadratic([1.0, -0.5]), init=INIT)
    monkeypatch.setattr(DenseOutputBuilder, "build", lambda self: ctrl_c() or build(self))
    trajectory = simulate(Quadratic([1.0, -0.5]), init=INIT)
    assert trajectory.status == "interrupted"
    assert "interrupted at its end: " in trajectory.message
    np.testing.assert_array_equal(trajectory.z, whole.z)


def test_saving_is_finished_with_the_losses_found_so_far(tmp_path):
    objective = Slow(0)
    trajectory = simulate(objective, init=INIT)
    whole = simulate(Quadratic([1.0, -0.5]), init=INIT)
    objective.times, objective.at = 1, objective.calls + 5
    with pytest.raises(KeyboardInterrupt):
        trajectory.save(tmp_path / "run.npz")
    loaded = Trajectory.load(tmp_path / "run.npz")
    np.testing.assert_array_equal(loaded.z, whole.z)
    known = ~np.isnan(loaded.losses)
    assert known[0]
    assert known[-1]
    assert np.count_nonzero(known) == 5
    np.testing.assert_allclose(loaded.losses[known], whole.losses[known], rtol=1e-12)
    again = Trajectory.load(tmp_path / "run.npz", objective=Quadratic([1.0, -0.5]))
    np.testing.assert_allclose(again.losses, whole.losses, rtol=1e-12)
    loaded.plot()


def test_checks_are_interrupted_between_evaluations_and_give_no_verdict():
    objective = Slow(0)
    prediction = predict_stages(objective)
    objective.times, objective.at = 1, objective.calls + 60
    with pytest.raises(KeyboardInterrupt):
        check_assumptions(prediction)
    assert objective.at <= objective.calls <= objective.at + 1
    run = simulate(Quadratic([1.0, -0.5]), init=INIT)
    objective.at = objective.calls + 10
    with pytest.raises(KeyboardInterrupt):
        perturb(run, objective=objective, window=10.0, rng=0)
    assert objective.at <= objective.calls <= objective.at + 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_losses_are_interrupted_between_evaluations():
    objective = Slow(0)
    trajectory = simulate(objective, init=INIT)
    objective.times, objective.at = 1, objective.calls + 2
    with pytest.raises(KeyboardInterrupt):
        trajectory.losses  # noqa: B018 — a property that works
    assert objective.calls == objective.at


def run_script(name, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, SCRIPTS / name, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_interrupts_of_simulate_and_predict_at_random():
    ended = run_script("library.py", 36)
    assert ended.returncode == 0, ended.stderr
    interrupted, whole = map(int, ended.stdout.split())
    assert interrupted >= 10
    assert interrupted + whole == 36


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_interrupts_of_training_at_random(engine, tmp_path):
    pytest.importorskip("torch")
    ended = run_script("training.py", 12, tmp_path, engine)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 3
