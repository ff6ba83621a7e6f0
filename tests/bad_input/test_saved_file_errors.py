from pathlib import Path

import numpy as np
import pytest

from dynalyze import _saved_files
from dynalyze._saved_files import read_saved, write_saved
from dynalyze.errors import SavedFileError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "result.npz"
    write_saved(path, "trajectory", {"a": np.random.default_rng(0).random(1000)}, {"note": "α"})
    return path


@pytest.mark.parametrize("kept", [0, 1, 100, 4000, -1])
def test_truncated(saved: Path, kept: int):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(SavedFileError, match=r"cannot be read as a saved trajectory.*truncated"):
        read_saved(saved, "trajectory")


def test_flipped_bits(saved: Path):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(SavedFileError, match="cannot be read"):
        read_saved(saved, "trajectory")


@pytest.mark.parametrize("writer", ["text", "npy", "npz"])
def test_foreign(tmp_path: Path, writer: str):
    path = tmp_path / "foreign"
    with path.open("wb") as file:
        if writer == "text":
            file.write(b"epoch,loss\n1,0.5\n")
        elif writer == "npy":
            np.save(file, np.arange(3))
        else:
            np.savez(file, a=np.arange(3))
    with pytest.raises(SavedFileError, match="not written by dynalyze") as raised:
        read_saved(path, "trajectory")
    assert "unsafe" not in str(raised.value)  # NumPy would have it loaded as a pickle


def test_another_kind(saved: Path):
    with pytest.raises(SavedFileError, match="holds a saved trajectory, not a prediction"):
        read_saved(saved, "prediction")


def test_newer_format(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_saved_files, "FORMAT", 2)
    write_saved(saved, "trajectory", {}, {})
    monkeypatch.undo()
    with pytest.raises(SavedFileError, match=r"file format 2; .* reads formats up to 1: upgrade"):
        read_saved(saved, "trajectory")


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_saved(tmp_path / "nothing", "trajectory")
