"""``dynalyze predict`` as a user types it: output, files, exit codes and one-line errors."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from dynalyze import StagePrediction, predict_stages
from dynalyze.cli import main
from dynalyze.models import DiagonalLinear
from dynalyze.stages import algorithm


@pytest.fixture
def data_file(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3)), rng.standard_normal(20)
    path = tmp_path / "data.npz"
    np.savez(path, X=X, y=y)
    return path, X, y


def test_table_file_and_figure(data_file, tmp_path, capsys):
    path, X, y = data_file
    out, plot = tmp_path / "prediction.npz", tmp_path / "stages.png"
    files = ["--data", str(path), "--out", str(out), "--plot", str(plot)]
    code = main(["predict", "--model", "linear", *files])
    table = capsys.readouterr().out
    expected = predict_stages(DiagonalLinear(3), (X, y))
    assert code == 0
    assert "status: converged" in table
    for k in range(3):
        assert f"{expected.times[k]:.6g}" in table
    np.testing.assert_array_equal(StagePrediction.load(out).theta, expected.theta)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json(data_file, capsys):
    path, X, y = data_file
    assert main(["predict", "--data", str(path), "--json", "--log10-alpha", "-900"]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = predict_stages(DiagonalLinear(3), (X, y))
    assert result["status"] == "converged"
    assert [stage["coordinate"] for stage in result["stages"]] == expected.coordinates.tolist()
    assert [stage["time"] for stage in result["stages"]] == expected.times.tolist()
    jumps = np.array([np.nan if (t := s["jump_time"]) is None else t for s in result["stages"]])
    rescaled = jumps / (900 * np.log(10))
    np.testing.assert_allclose(rescaled, expected.times, rtol=0.02)


def test_head_is_chosen_by_the_shape_of_the_data(tmp_path, capsys):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((8, 3, 2))
    np.savez(tmp_path / "tokens.npz", X=X, y=X[:, ::-1])
    assert main(["predict", "--data", str(tmp_path / "tokens.npz"), "--loss", "mse"]) in (0, 3)
    assert "W_V W_O[" in capsys.readouterr().out


def test_budget_exits_with_3_and_prints_what_was_found(data_file, capsys):
    path, *_ = data_file
    assert main(["predict", "--data", str(path), "--max-stages", "1"]) == 3
    assert "status: max_stages" in capsys.readouterr().out


def _npz(**arrays):
    return lambda path: np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (None, [], "no such file"),
        (lambda path: path.write_text("X,y"), [], "(it is another kind of file, or damaged)"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), [], "cannot be read as an npz archive"),
        (_npz(X=np.ones((3, 2))), [], "no array y: write it with numpy.savez"),
        (_npz(X=np.ones(3), y=np.ones(3)), [], "X of shape (3,): give (n_samples, n_features)"),
        (_npz(X=np.ones((3, 2)), y=np.ones(3)), ["--model", "head"], "needs X with 3 axes"),
        (_npz(X=np.full((3, 2), np.nan), y=np.ones(3)), [], "X[0, 0] is nan"),
        (_npz(X=np.array([["a"]], dtype=object), y=np.ones(1)), [], "cannot be read"),
        (_npz(X=np.eye(3)[:, :2], y=np.ones(3)), ["--log10-alpha", "4"], "log10_alpha=4.0"),
        (_npz(X=np.eye(3)[:, :2], y=np.arange(3.0)), ["--plot", "stages.docx"], "--plot"),
        (_npz(X=np.eye(3)[:, :2], y=np.arange(3.0)), ["--out", "missing/p.npz"], "missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, write, options, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data.npz"
    if write is not None:
        write(path)
    code = main(["predict", "--data", str(path), *options])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("dynalyze predict: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_warnings_are_one_line(data_file, capsys):
    path, *_ = data_file
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["predict", "--data", str(path), "--log10-alpha", "-0.5"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("dynalyze predict: warning: α = 1e-0.5 does not separate")
    assert error.count("\n") == 1


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--model", "--data", "--loss", "--log10-alpha", "--out", "--plot", "--json"):
        assert option in text


def test_module_runs_and_is_quiet_without_a_terminal(data_file):
    path, *_ = data_file
    done = subprocess.run(
        [sys.executable, "-m", "dynalyze", "predict", "--data", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "status: converged" in done.stdout
    assert done.stderr == ""


def test_importing_the_package_loads_nothing_heavy():
    heavy = "numba", "torch", "sympy", "matplotlib", "scipy", "sklearn", "pandas"
    code = f"import sys, dynalyze; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_linear_prediction_needs_neither_numba_nor_scikit_learn():
    code = (
        "import sys; from dynalyze.cli import main; main(['predict', '--data', 'diabetes']); "
        "print([m for m in ('numba', 'sklearn', 'sympy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "status: converged" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_interrupted_exits_with_130_and_prints_and_saves_what_was_found(
    data_file, tmp_path, monkeypatch, capsys
):
    path, *_ = data_file
    saved = tmp_path / "kept.npz"
    limit_point, calls = algorithm.SignConstrainedLimits.limit_point, []

    def until_the_second(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return limit_point(*arguments, **options)

    monkeypatch.setattr(algorithm.SignConstrainedLimits, "limit_point", until_the_second)
    assert main(["predict", "--data", str(path), "--out", str(saved)]) == 130
    captured = capsys.readouterr()
    assert "status: interrupted (interrupted; the stages before" in captured.out
    assert captured.err == "dynalyze predict: interrupted\n"
    assert StagePrediction.load(saved).n_stages == 1


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_missing_folders_are_refused_before_the_work(data_file, monkeypatch, capsys, option):
    path, *_ = data_file
    monkeypatch.setattr(algorithm.SignConstrainedLimits, "limit_point", None)
    assert main(["predict", "--data", str(path), option, "missing/file.npz"]) == 2
    assert (
        f"{option} missing/file.npz cannot be written: there is no such folder"
        in capsys.readouterr().err
    )


def test_unknown_figure_formats_are_refused_before_the_work(data_file, monkeypatch, capsys):
    path, *_ = data_file
    monkeypatch.setattr(algorithm.SignConstrainedLimits, "limit_point", None)
    assert main(["predict", "--data", str(path), "--plot", "figure.xyz"]) == 2
    error = capsys.readouterr().err
    assert "--plot figure.xyz: figures cannot be written as .xyz; use one of" in error
    assert ".png" in error
