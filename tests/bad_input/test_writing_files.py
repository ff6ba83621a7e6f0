"""Saving writes through links, over regular files alone, completely or not at all."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynalyze import Initialization, Trajectory, simulate
from dynalyze._core.atomic_file import replacing
from dynalyze.errors import SavedFileError
from dynalyze.models import DiagonalLinear


@pytest.fixture(scope="module")
def run():
    init = Initialization.gaussian(2, log10_alpha=-20, rng=4)
    data = np.eye(2), np.array([1.0, -2.0])
    return simulate(DiagonalLinear(2), data, init, until_rescaled=1)


def test_a_symbolic_link_stays_and_its_target_is_written(run, tmp_path: Path):
    (tmp_path / "results").mkdir()
    target, link = tmp_path / "results" / "target.npz", tmp_path / "link.npz"
    target.write_bytes(b"before")
    link.symlink_to(Path("results") / "target.npz")
    run.save(link)
    assert link.is_symlink()
    assert not target.is_symlink()
    np.testing.assert_array_equal(Trajectory.load(target).z, run.z)
    assert sorted(os.listdir(tmp_path)) == ["link.npz", "results"]
    assert os.listdir(tmp_path / "results") == ["target.npz"]


def test_a_link_to_nothing_makes_its_target(run, tmp_path: Path):
    link = tmp_path / "link.npz"
    link.symlink_to("later.npz")
    run.save(link)
    assert link.is_symlink()
    assert (tmp_path / "later.npz").is_file()


def _device(path: Path) -> None:
    path.symlink_to("/dev/null")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a folder"),
        (_device, "a device"),
        (_socket, "a socket"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_stays(run, tmp_path, monkeypatch, make, what):
    monkeypatch.chdir(tmp_path)  # the names of sockets must be short
    path = Path("result")
    make(path)
    before = path.lstat().st_mode, path.lstat().st_ino
    with pytest.raises(SavedFileError, match=rf"^result cannot be written: .*{what}"):
        run.save(path)
    assert (path.lstat().st_mode, path.lstat().st_ino) == before
    assert os.listdir() == ["result"]
    if what != "a folder":  # and none of them keeps the reader waiting
        with pytest.raises(SavedFileError, match="cannot be read as a saved trajectory"):
            Trajectory.load(path)


def test_a_missing_folder_and_a_path_through_a_file_are_one_clear_error(run, tmp_path: Path):
    with pytest.raises(SavedFileError, match="there is no such folder; create it first"):
        run.save(tmp_path / "missing" / "run.npz")
    (tmp_path / "file").touch()
    with pytest.raises(SavedFileError, match="cannot be written: Not a directory"):
        run.save(tmp_path / "file" / "run.npz")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_that_is_replaced_keeps_its_permissions(run, tmp_path: Path, mode: int):
    path = tmp_path / "run.npz"
    path.touch()
    path.chmod(mode)
    run.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_write_protected_file_is_refused(run, tmp_path: Path, monkeypatch):
    path = tmp_path / "run.npz"
    path.write_bytes(b"kept")
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not bind root
    with pytest.raises(SavedFileError, match=r"run\.npz cannot be written: it is write-protected"):
        run.save(path)
    assert path.read_bytes() == b"kept"


def test_a_read_only_folder_is_one_clear_error(run, tmp_path: Path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".dynalyze-xyz"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(SavedFileError, match=r"run\.npz cannot be written: Permission denied;"):
        run.save(tmp_path / "run.npz")


# The limit on the size of files stands for a full disk: writing fails in the middle of the file.
_FULL_DISK = """
import resource, signal, sys
import numpy as np
from dynalyze._core.saved_files import write_saved
from dynalyze._core.saved_schema import Array, Schema
from dynalyze.errors import SavedFileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).random(100_000)
try:
    write_saved(sys.argv[1], Schema("noise", {"a": Array("n")}, {}), {"a": noise}, {})
except SavedFileError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "run.npz"
    path.write_bytes(b"kept")
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        f"{path} cannot be written: File too large; make room, or choose another folder\n"
    )
    assert done.stderr == ""
    assert path.read_bytes() == b"kept"
    assert os.listdir(tmp_path) == ["run.npz"]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "run.npz"
    path.write_bytes(b"kept")

    def write() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"kept"
    assert os.listdir(tmp_path) == ["run.npz"]


def test_a_long_name_can_be_saved(run, tmp_path: Path):
    path = tmp_path / ("x" * 250)
    run.save(path)
    assert path.is_file()
