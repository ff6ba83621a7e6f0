"""``dynalyze simulate`` and ``dynalyze compare`` as a user types them."""

import json
import re

import numpy as np
import pytest

from dynalyze import Initialization, StagePrediction, Trajectory, compare, predict_stages, simulate
from dynalyze.cli import main
from dynalyze.flow.steppers.surrogate import SurrogateStepper
from dynalyze.models import AttentionHead, DiagonalLinear

ALPHA = ["--log10-alpha", "-60", "--seed", "4"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    y = X @ np.array([2.0, -1.0, 0.4])
    np.savez("data.npz", X=X, y=y)
    return X, y


def exit_code(arguments):
    """The command's exit code, whether it returns or raises it."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


def expected(data):
    init = Initialization.gaussian(3, log10_alpha=-60, rng=4)
    prediction = predict_stages(DiagonalLinear(3), data, init=init)
    until = 1.05 * prediction.times[-1]
    trajectory = simulate(DiagonalLinear(3), data, init, until_rescaled=until)
    return prediction, trajectory


def test_simulate_lists_what_is_learned_and_saves_it(data, capsys):
    options = ["--data", "data.npz", *ALPHA, "--until-rescaled", "3"]
    files = ["--out", "run.npz", "--plot", "run.png"]
    assert main(["simulate", *options, *files]) == 0
    text = capsys.readouterr().out
    init = Initialization.gaussian(3, log10_alpha=-60, rng=4)
    run = simulate(DiagonalLinear(3), data, init, until_rescaled=3)
    times, coordinates, _ = run.crossings(0.05 * np.abs(run.theta).max(axis=0))
    assert coordinates.tolist() == [0, 1, 2]
    for t in times:
        assert re.search(rf"{t:.6g} +{t / init.log_inverse_alpha:.6g} ", text)
    assert "− theta[1]  grows" in text
    assert "status: finished" in text
    np.testing.assert_array_equal(Trajectory.load("run.npz").z, run.z)
    with open("run.png", "rb") as figure:
        assert figure.read(4) == b"\x89PNG"


def test_simulate_takes_flow_time_method_and_tolerance(data, capsys):
    options = ["--data", "data.npz", *ALPHA, "--until", "20", "--method", "BDF", "--tol", "1e-4"]
    assert main(["simulate", *options, "--out", "run.npz"]) == 0
    run = Trajectory.load("run.npz")
    assert run.t[-1] == 20
    assert (run.configuration["method"], run.configuration["tol"]) == ("BDF", 1e-4)


def test_simulate_out_of_budget_exits_with_3(data, capsys):
    assert main(["simulate", "--data", "data.npz", *ALPHA, "--max-steps", "4"]) == 3
    assert "status: max_steps" in capsys.readouterr().out


def test_compare_saved_files_and_compare_from_data_agree(data, capsys):
    prediction, trajectory = expected(data)
    prediction.save("prediction.npz")
    trajectory.save("run.npz")
    assert main(["compare", "prediction.npz", "run.npz", "--plot", "comparison.png"]) == 0
    from_files = capsys.readouterr().out
    assert from_files == compare(prediction, trajectory).summary() + "\n"
    assert "all stages: 3 of 3 matched" in from_files
    with open("comparison.png", "rb") as figure:
        assert figure.read(4) == b"\x89PNG"
    assert main(["compare", "--data", "data.npz", *ALPHA]) == 0
    # Numbers of the size of rounding depend on where arrays lie in memory.
    rounding = re.compile(r" *\d\.\de-1[2-9]")
    assert rounding.sub("", capsys.readouterr().out) == rounding.sub("", from_files)


def test_compare_with_a_saved_training_run(data, capsys):
    from dynalyze.training import Recording, train

    X = np.random.default_rng(1).standard_normal((12, 3, 2))
    y = AttentionHead(2).predict(np.array([0.5, -0.4, 1.5, -1.0]), X)
    init = Initialization.gaussian(4, log10_alpha=-3, rng=0)
    run = train(
        AttentionHead(2), (X, y), init=init, lr=0.02, steps=600, recording=Recording(every=5)
    )
    run.save("training.npz")
    predict_stages(AttentionHead(2), (X, y)).save("prediction.npz")
    assert main(["compare", "prediction.npz", "training.npz"]) == 0
    assert "W_V W_O[0]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--data", "data.npz", *ALPHA, "--method", "Euler"], "method='Euler' is not"),
        (["simulate", "--data", "data.npz", *ALPHA, "--tol", "3"], "tol=3.0 must be between"),
        (["simulate", "--data", "data.npz", *ALPHA, "--until", "-1"], "until=-1.0 must be"),
        (["simulate", "--data", "data.npz", *ALPHA, "--threshold", "0"], "'0' must be positive"),
        (["compare"], "give either two files"),
        (["compare", "a.npz", "--data", "data.npz"], "give either two files"),
        (["compare", "a.npz"], "1 files were given: give two"),
        (["compare", "a.npz", "b.npz"], "error: a.npz: no such file"),
        (["compare", "data.npz", "data.npz"], "cannot be read as a saved stage prediction"),
        (["compare", "--data", "data.npz"], "--log10-alpha is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(data, capsys, arguments, message):
    code = exit_code([*arguments, "--quiet"])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"dynalyze {arguments[0]}: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_compare_refuses_files_in_the_wrong_order(data, capsys):
    prediction, trajectory = expected(data)
    prediction.save("prediction.npz")
    trajectory.save("run.npz")
    assert main(["compare", "run.npz", "prediction.npz"]) == 2
    assert "run.npz holds a saved trajectory" in capsys.readouterr().err
    assert isinstance(StagePrediction.load("prediction.npz"), StagePrediction)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("simulate", ("--log10-alpha", "--seed", "--until", "--until-rescaled", "--method")),
        ("simulate", ("--tol", "--out", "--plot", "--max-steps", "--max-seconds", "--threshold")),
        ("compare", ("--data", "--log10-alpha", "--threshold", "--plot", "PREDICTION.npz")),
    ],
)
def test_help_names_every_option(capsys, command, options):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in options:
        assert option in text


def test_an_interrupted_simulation_is_printed_and_exits_with_130(data, monkeypatch, capsys):
    step, n_steps = SurrogateStepper.step, []

    def until_the_tenth(stepper):
        n_steps.append(1)
        if len(n_steps) == 10:
            raise KeyboardInterrupt
        return step(stepper)

    monkeypatch.setattr(SurrogateStepper, "step", until_the_tenth)
    assert main(["simulate", "--data", "data.npz", *ALPHA, "--method", "surrogate"]) == 130
    captured = capsys.readouterr()
    assert "status: interrupted" in captured.out
    assert captured.err == "dynalyze simulate: interrupted\n"


def test_simulate_prints_json(data, capsys):
    options = ["--data", "data.npz", *ALPHA, "--until-rescaled", "3"]
    assert main(["simulate", *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    init = Initialization.gaussian(3, log10_alpha=-60, rng=4)
    run = simulate(DiagonalLinear(3), data, init, until_rescaled=3)
    times, coordinates, directions = run.crossings(0.05 * np.abs(run.theta).max(axis=0))
    np.testing.assert_allclose([c["t"] for c in result["crossings"]], times, rtol=1e-12)
    assert [c["coordinate"] for c in result["crossings"]] == coordinates.tolist()
    assert [c["direction"] for c in result["crossings"]] == directions.tolist()
    assert [c["sign"] for c in result["crossings"]] == [1, -1, 1]
    assert result["crossings"][1]["product"] == "theta[1]"
    np.testing.assert_allclose(result["theta_end"], run.theta[-1], rtol=1e-9)
    assert result["final_loss"] == pytest.approx(run.losses[-1], rel=1e-6)
    assert (result["status"], result["log10_alpha"]) == ("finished", -60)


def test_compare_prints_json(data, capsys):
    prediction, trajectory = expected(data)
    assert main(["compare", "--data", "data.npz", *ALPHA, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    comparison = compare(prediction, trajectory)
    for name in ("measured", "predicted", "leading"):
        values = [stage[name] for stage in result["stages"]]
        np.testing.assert_allclose(values, getattr(comparison, name), rtol=1e-12)
    assert [stage["coordinate"] for stage in result["stages"]] == [0, 1, 2]
    assert [stage["outcome"] for stage in result["stages"]] == ["matched"] * 3
    assert (result["inversions"], result["extra"]) == ([], [])


def test_files_are_written_even_if_the_table_cannot_be_made(data, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trajectory, "crossings", interrupted)
    options = ["--data", "data.npz", *ALPHA, "--until-rescaled", "3"]
    assert main(["simulate", *options, "--out", "run.npz", "--plot", "run.png"]) == 130
    assert Trajectory.load("run.npz").status == "finished"
