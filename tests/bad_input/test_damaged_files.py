"""Whatever happens to a saved file, loading it gives what was saved, or a SavedFileError."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from dynalyze import Initialization, StagePrediction, Trajectory, predict_stages, simulate
from dynalyze.datasets import load_npz
from dynalyze.errors import InvalidInputError, SavedFileError
from dynalyze.models import DiagonalLinear
from dynalyze.ranks.flow import FullTrajectory
from dynalyze.ranks.flow import simulate as simulate_full
from dynalyze.spectra.history import SpectraHistory
from dynalyze.training import FullHead, TrainingRun, train
from dynalyze.training.vit import ViTOptions, ViTRun, ViTShape, train_vit

# Arrays in which nothing but finite numbers can stand
FINITE = {
    Trajectory: ("t", "breaks", "u0", "v0"),
    StagePrediction: ("times", "theta", "b", "losses", "at_alpha.onsets", "at_alpha.u0"),
    TrainingRun: ("u0", "v0"),
    FullTrajectory: ("t", "u0"),
    SpectraHistory: (),
    ViTRun: (),
}
INDICES = {
    Trajectory: ("degrees",),
    StagePrediction: ("coordinates", "runner_ups", "signs", "at_alpha.coordinates"),
    TrainingRun: ("steps",),
    FullTrajectory: (),
    SpectraHistory: ("layer", "head", "largest_rank"),
    ViTRun: ("history.layer",),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of every kind, as bytes, by the class that reads it."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 3))
    data = X, X @ [2.0, -1.0, 0.4]
    init = Initialization.gaussian(3, log10_alpha=-20, rng=4)
    head = FullHead(2)
    tokens = rng.standard_normal((6, 3, 2))
    start = Initialization.gaussian(head.n_weights, log10_alpha=-1, rng=1)
    shape = ViTShape(
        image_size=8, n_channels=1, patch_size=4, n_layers=1, n_heads=2, width=4, mlp_width=4,
        head_width=2,
    )  # fmt: skip
    vit = train_vit(
        shape=shape, options=ViTOptions(batch_size=1797, n_epochs=1, warmup_epochs=0), track_every=1
    )
    results = [
        predict_stages(DiagonalLinear(3), data, init=init),
        simulate(DiagonalLinear(3), data, init, until_rescaled=3),
        train(head, (tokens, tokens), init=start, lr=0.1, steps=5),
        simulate_full(head, (tokens, tokens), start, until=0.5),
        vit.history,
        vit,
    ]
    files = {}
    for result in results:
        path = tmp_path_factory.mktemp("saved") / "file.npz"
        result.save(path)
        files[type(result)] = path.read_bytes()
    return files


KINDS = tuple(FINITE)


def parts(content):
    """Arrays and stamp of a file, read with NumPy alone."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("stamp.json")[()]))


def packed(arrays, stamp):
    file = io.BytesIO()
    np.savez(file, **arrays, **{"stamp.json": np.array(json.dumps(stamp))})
    return file.getvalue()


def flip(content, rng, _kind):
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
    return bytes(damaged)


def overwrite(content, rng, _kind):
    start, size = rng.integers(len(content)), rng.integers(1, 200)
    return content[:start] + rng.bytes(size) + content[start + size :]


def truncate(content, rng, _kind):
    return content[: rng.integers(len(content))]


def insert(content, rng, _kind):
    place = rng.choice([0, len(content), rng.integers(len(content))])
    return content[:place] + rng.bytes(rng.integers(1, 50)) + content[place:]


def other_arrays(content, rng, _kind):
    arrays, stamp = parts(content)
    name = str(rng.choice(list(arrays)))
    array = arrays[name]
    change = rng.integers(9)
    if change == 0:
        del arrays[name]
    elif change == 1:
        arrays[name + "x"] = arrays.pop(name)
    elif change == 2:
        arrays["more"] = np.zeros(3)
    elif change == 3:
        with np.errstate(invalid="ignore"):  # NaN as an integer
            arrays[name] = array.astype(str(rng.choice(["f4", "i2", "c16", "U8", "S3"])))
    elif change == 4:
        arrays[name] = array[..., None]
    elif change == 5:
        arrays[name] = np.concatenate([array.ravel(), [1]]).astype(array.dtype)
    elif change == 6:
        arrays[name] = array[1:] if array.ndim and len(array) else array[None]
    elif change == 7:
        arrays[name] = array.astype(object)
    else:
        arrays[name] = array.astype(array.dtype.newbyteorder(">"))
    if rng.integers(2):  # with a stamp that agrees; weights may then have any shape
        if name.startswith("weights."):
            return content
        stamp["dtypes"] = {n: a.dtype.str for n, a in arrays.items()}
        stamp["shapes"] = {n: a.shape for n, a in arrays.items()}
    return packed(arrays, stamp)


def other_values(content, rng, kind):
    arrays, stamp = parts(content)
    names = FINITE[kind] + INDICES[kind]
    if not names:
        return content
    name = str(rng.choice(names))
    array = arrays[name]
    if not array.size:
        return content
    bad = (
        [np.nan, np.inf] if name in FINITE[kind] else [-7, 10**6 if name in _BOUNDED else -(2**62)]
    )
    array.flat[rng.integers(array.size)] = bad[rng.integers(2)]
    return packed(arrays, stamp)


_BOUNDED = ("coordinates", "runner_ups", "signs", "at_alpha.coordinates", "layer", "history.layer")


def other_stamp(content, rng, _kind):
    arrays, stamp = parts(content)
    place = stamp if rng.integers(3) == 0 else stamp["metadata"]
    name = str(rng.choice([n for n in place if n not in ("created", "dynalyze_version")]))
    if rng.integers(3) == 0:
        del place[name]
    else:
        values = [None, "text", 3.5, -1e400, [], [1], {}, {"a": 1}, float("nan"), "x" * 10**4, True]
        new = values[rng.integers(len(values))]
        if type(new) is type(place[name]) or (place, name) == (stamp, "shapes"):
            return content  # what is of the right type may be right
        place[name] = new
        if name == "log10_alpha" and new is True:
            return content
    return packed(arrays, stamp)


def foreign(_content, rng, _kind):
    file = io.BytesIO()
    which = rng.integers(8)
    if which == 0:
        np.savez(file, a=np.arange(3), stamp=np.array("{}"))
    elif which == 1:
        np.savez(file, **{"stamp.json": np.array("[" * 10**5)})
    elif which == 2:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("stamp.json.npy", rng.bytes(rng.integers(200)))
    elif which == 3:
        torch.save({"a": torch.ones(3)}, file)
    elif which == 4:
        pickle.dump({"a": np.ones(3)}, file)
    elif which == 5:
        file.write(json.dumps({"format": 1, "kind": "trajectory"}).encode())
    elif which == 6:
        np.savez(file, **{"stamp.json": np.array({"format": 1}, dtype=object)})
    else:
        file.write(rng.bytes(rng.integers(300)))
    return file.getvalue()


def headers(content, rng, _kind):
    """Pack the archive anew with random bytes in the header of an entry, and a right checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        chosen = rng.integers(len(names))
        for number, name in enumerate(names):
            entry = bytearray(old.read(name))
            if number == chosen:
                entry[rng.integers(80)] = rng.integers(256)
            new.writestr(name, bytes(entry))
    return file.getvalue()


DAMAGES = (
    *(flip, overwrite, truncate, insert),
    *(headers, other_arrays, other_values, other_stamp, foreign),
)


def damage_and_load(content, kind, path, rng):
    """Whether the damaged file was refused; if it was not, it must give what was saved."""
    damage = DAMAGES[rng.integers(len(DAMAGES))]
    path.write_bytes(damage(content, rng, kind))
    try:
        loaded = kind.load(path)
    except SavedFileError:
        return True
    loaded.save(path)
    before, after = parts(content), parts(path.read_bytes())
    assert before[0].keys() == after[0].keys(), damage.__name__
    for name, array in before[0].items():
        np.testing.assert_array_equal(after[0][name], array, err_msg=f"{damage.__name__} {name}")
    assert after[1]["metadata"] == before[1]["metadata"], damage.__name__
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_load_as_they_were(saved, tmp_path, kind):
    rng = np.random.default_rng(11)
    n = int(os.environ.get("DYNALYZE_DAMAGES", "90"))
    refused = sum(damage_and_load(saved[kind], kind, tmp_path / "file", rng) for _ in range(n))
    assert refused > n / 2


def test_damaged_data_are_refused_or_load_as_they_were(tmp_path):
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    path, file = tmp_path / "data.npz", io.BytesIO()
    np.savez_compressed(file, X=X, y=y)
    refused = 0
    for _ in range(int(os.environ.get("DYNALYZE_DAMAGES", "150"))):
        damage = (flip, overwrite, truncate, insert, headers)[rng.integers(5)]
        path.write_bytes(damage(file.getvalue(), rng, None))
        try:
            loaded = load_npz(path)
        except InvalidInputError:
            refused += 1
            continue
        if damage is not headers:  # which may turn one array into another, with a right checksum
            np.testing.assert_array_equal(loaded.X, X)
            np.testing.assert_array_equal(loaded.y, y)
    assert refused > 75
