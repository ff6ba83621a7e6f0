"""Checkpoints: what goes in comes out, and nothing that was damaged does."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynalyze.errors import InvalidInputError, MissingDependencyError, SavedFileError
from dynalyze.training import checkpoints
from dynalyze.training.batches import Samples
from dynalyze.training.checkpoints import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_weights,
)

TENSORS = {
    "weights": torch.tensor([[1.5, float("nan")], [-0.0, 1e-320]], dtype=torch.float64),
    "half": torch.tensor([1.0, 3.0], dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.zeros(0, 3),
}
STATE = {"loss": 0.1 + 0.2, "big": 2**127 - 1, "name": "Z̃", "nested": {"list": [1, None]}}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).tolist() if tensor.numel() else []


def test_round_trip_is_exact(tmp_path):
    path = save_checkpoint(tmp_path / "run", 12, TENSORS, STATE)
    loaded = load_checkpoint(path)
    assert loaded.step == 12
    assert loaded.state == STATE
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert bits(loaded.tensors[name]) == bits(tensor)


def test_views_of_one_storage_are_saved(tmp_path):
    base = torch.arange(6.0)
    save_checkpoint(tmp_path, 0, {"all": base, "even": base[::2]}, {})
    assert load_checkpoint(tmp_path).tensors["even"].tolist() == [0.0, 2.0, 4.0]


def test_the_latest_is_found_and_old_ones_are_removed(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for step in (5, 20, 100):
        save_checkpoint(tmp_path, step, TENSORS, {"step": step}, keep=2)
    assert load_checkpoint(tmp_path).step == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000020", "step-000000100"]
    save_checkpoint(tmp_path, 100, TENSORS, {"again": True})
    assert load_checkpoint(tmp_path).state == {"again": True}


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, TENSORS, {})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 2, TENSORS, {"object": object()})
    monkeypatch.setattr(checkpoints.Path, "rename", lambda *_: (_ for _ in ()).throw(OSError()))
    with pytest.raises(OSError):  # noqa: PT011
        save_checkpoint(tmp_path, 3, TENSORS, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    assert load_checkpoint(tmp_path).step == 1


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0, 0.999), which=st.sampled_from(["tensors.safetensors", "state.json"]))
def test_truncation_is_noticed(tmp_path_factory, fraction, which):
    path = save_checkpoint(tmp_path_factory.mktemp("run"), 7, TENSORS, STATE)
    content = (path / which).read_bytes()
    (path / which).write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(SavedFileError, match=r"missing, truncated or damaged .* Remove the folder"):
        load_checkpoint(path)


@settings(max_examples=25, deadline=None)
@given(position=st.floats(0, 0.999), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed(tmp_path_factory, position, flip):
    path = save_checkpoint(tmp_path_factory.mktemp("run"), 7, TENSORS, STATE)
    content = bytearray((path / "tensors.safetensors").read_bytes())
    content[int(position * len(content))] ^= flip
    (path / "tensors.safetensors").write_bytes(bytes(content))
    with pytest.raises(SavedFileError, match=r"tensors\.safetensors cannot be read"):
        load_checkpoint(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
    path = save_checkpoint(tmp_path, 7, TENSORS, STATE)
    (path / "tensors.safetensors").unlink()
    with pytest.raises(SavedFileError, match="step-000000007 to go on"):
        load_checkpoint(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    path = save_checkpoint(tmp_path, 7, TENSORS, STATE)
    header = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(SavedFileError, match=r"format 99; .* upgrade dynalyze"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_generators_go_on_where_they_were(kind):
    def sampled():
        generator = np.random.Generator(getattr(np.random, kind)(3))
        return Samples(torch.arange(50), torch.zeros(50), torch.device("cpu"), [generator], 20)

    one, other = sampled(), sampled()
    for _ in range(4):
        one.next_batch(False)
    other.restore({**one.state(), "generators": json.loads(json.dumps(one.state()["generators"]))})
    for _ in range(9):
        assert one.next_batch(False)[0].tolist() == other.next_batch(False)[0].tolist()


def test_wrong_arguments(tmp_path, monkeypatch):
    with pytest.raises(InvalidInputError, match="keep=0 must be at least 1"):
        save_checkpoint(tmp_path, 1, TENSORS, {}, keep=0)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "dynalyze\[torch\]"'):
        save_checkpoint(tmp_path, 1, TENSORS, {})
    with pytest.raises(MissingDependencyError, match="checkpoints need safetensors"):
        write_weights(tmp_path / "initial.safetensors", torch.nn.Linear(1, 1).state_dict())
