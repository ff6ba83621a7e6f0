"""Wrong command lines end in one line on standard error and exit code 2, before any work."""

import shlex

import numpy as np
import pytest

from dynalyze.cli import main

PREDICT = "predict --data data.npz "
SIMULATE = "simulate --data data.npz --log10-alpha -8 "
WRONG = {
    "": "arguments are required: COMMAND",
    "foo": "invalid choice: 'foo'",
    "predict": "arguments are required: --data",
    "predict --data": "expected one argument",
    PREDICT + "--log10-alpha -8 --seed -1": "'-1' must be an integer, 0 or larger",
    PREDICT + "--log10-alpha -8 --seed 1.5": "'1.5' must be an integer, 0 or larger",
    PREDICT + "--log10-alpha -1e308": "log10_alpha=-1e+308 must be at least -1e+290",
    PREDICT + "--log10-alpha -inf": "log10_alpha=-inf must be negative and finite",
    PREDICT + "--log10-alpha nan": "log10_alpha=nan must be negative and finite",
    PREDICT + "--log10-alpha 0": "log10_alpha=0.0 must be negative and finite",
    PREDICT + "--log10-alpha x": "invalid float value: 'x'",
    PREDICT + "--max-stages -1": "max_stages=-1: must be a positive integer",
    PREDICT + "--max-stages 1.5": "invalid int value: '1.5'",
    PREDICT + "--max-seconds nan": "max_seconds=nan must be positive",
    PREDICT + "--loss l1": "invalid choice: 'l1'",
    PREDICT + "--model vit": "invalid choice: 'vit'",
    PREDICT + "--model head": "--model head needs X with 3 axes",
    PREDICT + "--out folder": "--out folder cannot be written: it is a folder",
    PREDICT + "--out data.npz/p.npz": "--out data.npz/p.npz cannot be written: Not a directory",
    PREDICT + "--out /dev/null": "--out /dev/null cannot be written: it is a device",
    PREDICT + "--plot folder.png": "--plot folder.png cannot be written: it is a folder",
    PREDICT + "--out a.png --plot a.png": "--out a.png and --plot a.png are one file",
    PREDICT + "--out fig.png --plot fig": "--out fig.png and --plot fig are one file",
    PREDICT + "--target y": "--target y names a column of a .csv file",
    "predict --data folder": "folder: it is not a regular file",
    "predict --data /dev/null": "/dev/null: it is not a regular file",
    "predict --data ''": "no such file",
    "predict --data table.csv": "(--target NAME): one of a, b, y",
    "predict --data table.csv --target z": "no column 'z' for the target: it has a, b, y",
    "predict --data none.csv --target y": "none.csv: no such file",
    "simulate --data data.npz": "arguments are required: --log10-alpha",
    "simulate --data data.npz --log10-alpha -1e308": "must be at least -1e+290",
    SIMULATE + "--tol nan": "tol=nan must be",
    SIMULATE + "--tol -1": "tol=-1.0 must be",
    SIMULATE + "--until nan": "until=nan must be",
    SIMULATE + "--until -1e3": "until=-1000.0 must be",
    SIMULATE + "--until 1 --until-rescaled 1": "not allowed with argument --until",
    SIMULATE + "--method foo": "method='foo' is not known",
    SIMULATE + "--max-steps 0": "max_steps=0 must be at least 1",
    SIMULATE + "--max-seconds -1": "max_seconds=-1.0 must be positive",
    SIMULATE + "--threshold nan": "'nan' must be positive and finite",
    SIMULATE + "--threshold -1e-3": "'-1e-3' must be positive and finite",
    "compare": "give either two files",
    "compare a b c": "3 files were given: give two",
    "compare a b --data data.npz": "give either two files",
    "compare data.npz data.npz": "cannot be read as a saved stage prediction",
    "compare --data data.npz --log10-alpha -8 --seed -3": "'-3' must be an integer",
    "track": "arguments are required: CHECKPOINT",
    "track none.pt": "there is no checkpoint at none.pt",
    "track junk.pt": "junk.pt cannot be read as PyTorch weights",
    "track folder": "folder holds no files of weights",
    "track junk.pt --steps 1 2 3": "steps has 3 entries for 1 checkpoints",
    "train": "arguments are required: KIND",
    "train foo": "invalid choice: 'foo'",
    "train vit --data none": "there is no file or folder none",
    "train vit --seed -1": "'-1' must be an integer, 0 or larger",
    "train vit --epochs 0": "n_epochs=0: must be a positive integer",
    "train vit --lr nan": "lr must be positive and finite, got nan",
    "train vit --workers 0": "'0' must be a positive integer",
    "train vit --image-size -1": "'-1' must be a positive integer",
    "train vit --max-seconds nan": "'nan' must be a number of seconds",
    "train vit --checkpoint junk.pt --epochs 1": "checkpoint=junk.pt cannot be used as a folder",
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    X = np.random.default_rng(0).standard_normal((9, 3))
    np.savez("data.npz", X=X, y=X[:, 0])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "table.csv").write_text("a,b,y\n1,2,3\n2,1,0\n")


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(line, capsys):
    try:
        code = main(shlex.split(line))
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("dynalyze")
    assert WRONG[line] in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("alpha", ["-1e3", "-1.5e+2", "-.5e3", "-150"])
def test_negative_numbers_may_be_written_with_an_exponent(alpha, capsys):
    assert main(["predict", "--data", "data.npz", "--log10-alpha", alpha]) == 0
    assert "converged" in capsys.readouterr().out
