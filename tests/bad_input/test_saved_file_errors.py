import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dynalyze._core import saved_files as _saved_files
from dynalyze._core.saved_files import read_saved, write_saved
from dynalyze._core.saved_schema import AnyNumbers, Array, Schema
from dynalyze.errors import SavedFileError

TRAJECTORY = Schema("trajectory", {"a": Array("n")}, {"note": str})
PREDICTION = Schema("prediction", {"a": Array("n")}, {"note": str})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "result.npz"
    write_saved(path, TRAJECTORY, {"a": np.random.default_rng(0).random(1000)}, {"note": "α"})
    return path


@pytest.mark.parametrize("kept", [0, 1, 100, 4000, -1])
def test_truncated(saved: Path, kept: int):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(SavedFileError, match=r"cannot be read as a saved trajectory.*truncated"):
        read_saved(saved, TRAJECTORY)


def test_flipped_bits(saved: Path):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(SavedFileError, match="cannot be read"):
        read_saved(saved, TRAJECTORY)


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
        read_saved(path, TRAJECTORY)
    assert "unsafe" not in str(raised.value)  # NumPy would have it loaded as a pickle


def test_another_kind(saved: Path):
    with pytest.raises(SavedFileError, match="holds a saved trajectory, not a prediction"):
        read_saved(saved, PREDICTION)


def test_newer_format(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_saved_files, "FORMAT", 2)
    write_saved(saved, TRAJECTORY, {}, {})
    monkeypatch.undo()
    with pytest.raises(SavedFileError, match=r"file format 2; .* reads formats up to 1: upgrade"):
        read_saved(saved, TRAJECTORY)


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_saved(tmp_path / "nothing", TRAJECTORY)


def _npy_of_zeros(n: int) -> list[bytes]:
    header = io.BytesIO()
    layout = {"descr": "<f8", "fortran_order": False, "shape": (n,)}
    np.lib.format.write_array_header_1_0(header, layout)
    return [header.getvalue(), *[bytes(2**20)] * (n // 2**17)]


@pytest.mark.parametrize("name", ["more.npy", "b.npy", "stamp.json.npy"])
def test_a_small_file_of_huge_arrays_is_refused_before_they_are_unpacked(tmp_path: Path, name: str):
    schema = Schema("pair", {"a": Array("n"), "b": Array("n", optional=True)}, {})
    path, bomb = tmp_path / "file", tmp_path / "bomb"
    write_saved(path, schema, {"a": np.zeros(3)}, {})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            if entry != name:
                new.writestr(entry, old.read(entry))
        with new.open(name, "w") as stream:
            for part in _npy_of_zeros(2**24):  # 128 MiB
                stream.write(part)
    assert bomb.stat().st_size < 2**18
    tracemalloc.start()
    try:
        with pytest.raises(SavedFileError, match="cannot be read as a saved pair"):
            read_saved(bomb, schema)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**21


def test_an_impossible_declared_size_is_refused(saved: Path):
    content = saved.read_bytes()
    entry = zipfile.ZipFile(saved).getinfo("a.npy")
    declared = entry.file_size.to_bytes(4, "little")
    place = content.index(declared, content.index(b"PK\x01\x02"))
    huge = (2**31).to_bytes(4, "little")
    saved.write_bytes(content[:place] + huge + content[place + 4 :])
    with pytest.raises(SavedFileError, match="the size that entry 'a' declares is impossible"):
        read_saved(saved, TRAJECTORY)


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({}, {"note": ""}, "array 'a' is missing"),
        ({"a": np.zeros(3, "f4")}, {"note": ""}, "array 'a' has dtype f4, not f8"),
        ({"a": np.zeros((3, 1))}, {"note": ""}, r"array 'a' has shape \(3, 1\), not \(n\)"),
        ({"a": np.zeros(3)}, {}, r"metadata holds \[\], not \['note'\]"),
        ({"a": np.zeros(3)}, {"note": 3}, "note is 3, not of type str"),
        ({"a": np.zeros(3)}, {"note": "", "more": 1}, r"metadata holds \['more', 'note'\]"),
    ],
)
def test_what_the_kind_does_not_declare_is_refused(tmp_path: Path, arrays, metadata, message):
    loose = Schema("trajectory", {"a": AnyNumbers()}, {})
    write_saved(tmp_path / "file", loose, arrays, metadata)
    with pytest.raises(SavedFileError, match=message):
        read_saved(tmp_path / "file", TRAJECTORY)
