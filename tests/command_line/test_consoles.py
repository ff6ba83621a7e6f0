"""What the command prints arrives on consoles of few characters, and closed ones stop nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynalyze import StagePrediction
from dynalyze.cli import main
from dynalyze.cli.console import readable_output, show

COMMAND = [sys.executable, "-m", "dynalyze"]
PREDICT = ["predict", "--data", "data.npz", "--log10-alpha", "-9"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 3))
    np.savez("data.npz", X=X, y=X @ [2.0, -1.0, 0.4])


def environment(encoding: str) -> dict[str, str]:
    return os.environ | {"PYTHONIOENCODING": encoding, "PYTHONWARNINGS": "ignore"}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "koi8-r"])
def test_a_table_is_readable_in_any_encoding_and_files_are_written(encoding: str):
    done = subprocess.run(
        [*COMMAND, *PREDICT, "--out", "p.npz", "--plot", "p.png"],
        capture_output=True,
        env=environment(encoding),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "log(1/alpha)" in text or "log(1/α)" in text
    assert "- theta[1]" in text or "− theta[1]" in text
    assert "\\u" not in text
    assert "?" not in text
    assert StagePrediction.load("p.npz").n_stages == 3
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["predict", "--help"], ["simulate", "--help"], ["--help"]])
def test_help_is_readable_in_ascii(arguments: list[str]):
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, env=environment("ascii"), check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"exit codes" in done.stdout or b"1/2||y - f||^2" in done.stdout


def test_files_are_written_and_the_exit_code_kept_where_the_reader_has_gone():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *PREDICT, "--out", "p.npz", "--plot", "p.png", "--max-stages", "1"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment("utf-8"),
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, b"")
    assert StagePrediction.load("p.npz").n_stages == 1
    assert Path("p.png").is_file()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "2>/dev/full"])
def test_closed_standard_streams_stop_nothing(closed: str):
    options = "--out p.npz --log10-alpha -0.5"  # with a warning
    shell = f"exec {sys.executable} -m dynalyze predict --data data.npz {options} {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", shell], capture_output=True, env=environment("utf-8"), check=False
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert (b"converged" in done.stdout) == (">&-" not in closed.split())
    assert StagePrediction.load("p.npz").n_stages == 3


def test_an_error_keeps_its_exit_code_where_standard_error_is_closed():
    for closed in ("2>&-", "2>/dev/full"):
        shell = f"exec {sys.executable} -m dynalyze predict --data none.npz {closed}"
        done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_a_format_that_cannot_be_drawn_is_one_line_below_the_table(monkeypatch, capsys):
    from matplotlib.figure import Figure

    def no_latex(*_, **__):
        raise RuntimeError("'xelatex' not found")

    monkeypatch.setattr(Figure, "savefig", no_latex)
    assert main([*PREDICT, "--plot", "p.pgf"]) == 2
    captured = capsys.readouterr()
    assert "status: converged" in captured.out
    assert "--plot p.pgf: this format cannot be drawn here ('xelatex' not found)" in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("p.pgf").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *PREDICT, "--out", "p.npz"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment("utf-8"),
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"dynalyze predict: error: ")
    assert b"No space left" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert StagePrediction.load("p.npz").n_stages == 3


def test_the_table_is_printed_even_if_a_file_cannot_be_written(monkeypatch, capsys):
    def full(_self, _path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StagePrediction, "save", full)
    assert main([*PREDICT, "--out", "p.npz"]) == 2
    captured = capsys.readouterr()
    assert "status: converged" in captured.out
    assert "No space left on device" in captured.err


# The names of the characters are Unicode's, not the library's.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("α θ Δ σ", "alpha theta Delta sigma"),
        ("−1 · 2 × 3 ⊙ 4", "-1 * 2 x 3 * 4"),
        ("½‖y‖² Wᵀ x₀", "1/2||y||^2 W^T x_0"),
        ("a … b – c", "a ... b - c"),
        ("≤ ≥ ≈ → ±", "<= >= ~ -> +-"),
        ("Größe é", "Grosse e"),
        ("中", "\\u4e2d"),
    ],
)
def test_replacements_for_ascii(tmp_path: Path, monkeypatch, text: str, expected: str):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with readable_output():
            show(text)
        assert stream.errors == "strict"
    assert (tmp_path / "out").read_text(encoding="ascii") == expected + "\n"


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_json_is_valid_and_ascii(command: str, capsys):
    assert main([command, "--data", "data.npz", "--log10-alpha", "-60", "--json"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
