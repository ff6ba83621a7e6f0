import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynalyze import __version__
from dynalyze._core.saved_files import read_saved, write_saved
from dynalyze._core.saved_schema import AnyNumbers, Array, Schema

SCHEMA = Schema("thing", {"a": Array("n", dtype="int", optional=True)}, {})

_arrays = st.dictionaries(
    st.text("abcxyz_", min_size=1, max_size=8).map("weights.{}".format),
    st.one_of(
        hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)),
        hnp.arrays(np.int64, hnp.array_shapes(max_dims=2)),
        hnp.arrays(np.bool_, 4),
    ),
    max_size=4,
)
_json = st.dictionaries(
    st.text(max_size=5), st.one_of(st.none(), st.text(), st.floats(allow_nan=False), st.integers())
)


@settings(max_examples=40, deadline=None)
@given(arrays=_arrays, metadata=_json)
def test_round_trip_is_exact(tmp_path_factory, arrays, metadata):
    path = tmp_path_factory.mktemp("saved") / "result"
    schema = Schema("thing", {"weights.*": AnyNumbers()}, {"any": dict})
    write_saved(path, schema, arrays, {"any": metadata})
    read, stamp = read_saved(path, schema)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
        assert stamp["dtypes"][name] == array.dtype.str
    assert stamp["metadata"] == {"any": metadata}
    assert stamp["dynalyze_version"] == __version__
    assert stamp["created"].endswith("+00:00")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch):
    path = tmp_path / "result.npz"
    write_saved(path, SCHEMA, {"a": np.arange(3)}, {})
    before = path.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"PK")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_saved(path, SCHEMA, {"a": np.arange(4)}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["result.npz"]


def test_python_objects_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="'a' holds Python objects"):
        write_saved(tmp_path / "result", SCHEMA, {"a": np.array([{}], dtype=object)}, {})
    assert os.listdir(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path: Path):
    (tmp_path / "plain").touch()
    write_saved(tmp_path / "result", SCHEMA, {}, {})
    assert (tmp_path / "result").stat().st_mode == (tmp_path / "plain").stat().st_mode
