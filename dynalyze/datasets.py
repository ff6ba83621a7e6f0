"""Data to try the library on: two public sets, the paper's toy, and files."""

import csv
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynalyze import models
from dynalyze._core.arrays import FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_generator

# Products of the teacher behind the paper's Figures 2 and 6–8, coordinates 40 to 49; the others
# are 0. Read off the figures' vector paths (α = 1e-32; the last four of W_V W_O at α = 0.1).
_TEACHER_W_K_W_Q = (-0.299, -0.284, 0.0, -0.049, -0.133, 0.747, 0.524, -0.926, 0.104, -0.656)
_TEACHER_W_V_W_O = (0.856, -0.270, 0.809, 2.765, 1.974, -1.099, -0.11, 0.0, 0.055, -0.037)

__all__ = [
    "Dataset",
    "diabetes",
    "digits",
    "load_csv",
    "load_npz",
    "sparse_teacher",
    "toy_head",
]


class Dataset(NamedTuple):
    """Inputs and targets, with names of the features where there are any."""

    X: FloatArray  # (n_samples, ...)
    y: FloatArray  # (n_samples,) or the shape of X
    feature_names: tuple[str, ...] = ()


def diabetes() -> Dataset:
    """Diabetes data of Efron, Hastie, Johnstone and Tibshirani (2004), standardized.

    Returns
    -------
    Dataset
        X of shape (442, 10), y of shape (442,), each column of mean 0 and variance 1.
    """
    table = bundled("diabetes")
    names = tuple(table["feature_names"].tolist())
    return Dataset(_standardized(table["data"]), _standardized(table["target"]), names)


def digits() -> Dataset:
    """Handwritten digits as sequences: each row of pixels is a token, and predicts the next.

    Every 8 × 8 image becomes 8 tokens of 8 pixels. The target is the image moved up by one row,
    with a blank row below; both are centred and scaled by the mean and the standard deviation
    of all pixels of the images.

    Returns
    -------
    Dataset
        X and y of shape (1797, 8, 8): samples, tokens, pixels.
    """
    images = bundled("digits")["images"].astype(float)
    shifted = np.zeros_like(images)
    shifted[:, :-1] = images[:, 1:]
    mean, deviation = images.mean(), images.std()
    return Dataset((images - mean) / deviation, (shifted - mean) / deviation)


def toy_head(
    *,
    n_samples: int = 1000,
    n_tokens: int = 10,
    teacher: FloatArray | str = "sparse",
    d_model: int = 50,
    rng: np.random.Generator | int | None = None,
) -> Dataset:
    """Toy task of the paper: Gaussian sequences, labelled by an attention head.

    Parameters
    ----------
    n_samples, n_tokens : int
        Numbers of sequences, and of tokens in each.
    teacher : {"sparse", "dense"} or ndarray, shape (2 d_model,)
        Products [w_K ⊙ w_Q, w_V ⊙ w_O] of the teacher: those read off the paper's figures, of
        which ten of each kind differ from 0 (d_model = 50); independent standard normal
        ones; or given ones.
    d_model : int
        Width of a token.
    rng : numpy.random.Generator or int, optional
        Source of randomness, or its seed.

    Returns
    -------
    Dataset
        X and y of shape (n_samples, n_tokens, d_model).
    """
    generator = as_generator(rng)
    X = generator.standard_normal((n_samples, n_tokens, d_model))
    theta = _teacher(teacher, d_model, generator)
    return Dataset(X, models.AttentionHead(d_model).predict(theta, X))


def sparse_teacher() -> FloatArray:
    """Products of the teacher of the paper's toy figures, shape (100,)."""
    theta = np.zeros(100)
    theta[40:50] = _TEACHER_W_K_W_Q
    theta[90:100] = _TEACHER_W_V_W_O
    return theta


def load_npz(path: str | os.PathLike[str]) -> Dataset:
    """Read arrays ``X`` and ``y`` from a NumPy ``.npz`` file.

    Raises
    ------
    InvalidInputError
        If the file is missing, is no npz archive, or lacks one of the two arrays.
    """
    if not Path(path).is_file():
        raise InvalidInputError(
            f"{path}: {_why_no_file(path)}; give an .npz file with arrays X and y"
        )
    try:
        # np.load leaves a file open that it opened itself and cannot read.
        with Path(path).open("rb") as file:
            if not zipfile.is_zipfile(file):  # NumPy would take it for a pickle, and say so
                raise zipfile.BadZipFile("it is another kind of file, or damaged")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                names = archive.files
                arrays = {name: archive[name] for name in ("X", "y") if name in names}
    except Exception as error:  # zipfile, zlib, tokenize and NumPy raise whatever they meet
        raise InvalidInputError(
            f"{path} cannot be read as an npz archive of plain arrays ({error}): write it with "
            "numpy.savez(path, X=X, y=y)"
        ) from error
    for name in ("X", "y"):
        if name not in arrays:
            raise InvalidInputError(
                f"{path} holds {', '.join(sorted(names)) or 'no arrays'}, and no array {name}: "
                "write it with numpy.savez(path, X=X, y=y)"
            )
    return Dataset(arrays["X"], arrays["y"])


def load_csv(path: str | os.PathLike[str], *, target: str | None) -> Dataset:
    """Read a table of numbers, separated by commas, with the columns' names in its first line.

    Parameters
    ----------
    path : str or path-like
        Text file in UTF-8.
    target : str
        Name of the column to be learned; all others are features, in the order of the file.

    Returns
    -------
    Dataset
        X of shape (n_samples, n_features), y of shape (n_samples,), and the features' names.

    Raises
    ------
    InvalidInputError
        If the file is missing or no such table, `target` is none of its columns, a row is of
        another length, or a value is missing or not a finite number; the line is named.
    """
    if not Path(path).is_file():
        raise InvalidInputError(f"{path}: {_why_no_file(path)}; give a .csv file with a header")
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            _check_header(path, names, target)
            rows = [_numbers(path, reader.line_num, names, row) for row in reader if row]
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as a table in UTF-8, separated by commas ({error})"
        ) from error
    if not rows:
        raise InvalidInputError(f"{path} has a header and no rows: give at least one sample")
    table, column = np.array(rows), names.index(str(target))
    features = tuple(name for name in names if name != target)
    return Dataset(np.delete(table, column, axis=1), table[:, column], features)


def _why_no_file(path: str | os.PathLike[str]) -> str:
    exists = os.fspath(path) and Path(path).exists()  # Path("") is the current folder
    return "it is not a regular file" if exists else "no such file"


def _check_header(path: str | os.PathLike[str], names: list[str], target: str | None) -> None:
    if not any(names):
        raise InvalidInputError(f"{path} has no header: its first line must name the columns")
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    if all(_is_number(name) for name in names):
        raise InvalidInputError(
            f"{path} has no header: its first line, {listed}, must name the columns"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise InvalidInputError(
            f"{path} names {f'column {twice[0]!r} twice' if any(twice) else 'a column nothing'}: "
            "give each column a name of its own"
        )
    if target is None:
        raise InvalidInputError(
            f"name the column of {path} that is to be learned (--target NAME): one of {listed}"
        )
    if target not in names:
        hint = "; are its columns separated by commas?" if len(names) == 1 else ""
        raise InvalidInputError(
            f"{path} has no column {target!r} for the target: it has {listed}{hint}"
        )
    if len(names) == 1:
        raise InvalidInputError(f"{path} has no column beside the target {target!r}")


def _numbers(
    path: str | os.PathLike[str], line: int, names: list[str], row: list[str]
) -> list[float]:
    if len(row) != len(names):
        raise InvalidInputError(
            f"{path}, line {line} has {len(row)} values for {len(names)} columns: give one each"
        )
    try:
        numbers = [float(value) for value in row]
    except ValueError:
        numbers = []
    if numbers and np.isfinite(numbers).all():
        return numbers
    name, value = next(
        (name, value)
        for name, value in zip(names, row, strict=True)
        if not _is_number(value) or not np.isfinite(float(value))
    )
    wrong = "is missing" if not value.strip() else f"is {value.strip()!r}, not a finite number"
    raise InvalidInputError(
        f"{path}, line {line}: {name} {wrong}; fill it in, or drop the row or the column"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _teacher(teacher: FloatArray | str, d_model: int, rng: np.random.Generator) -> FloatArray:
    if isinstance(teacher, str):
        if teacher == "dense":
            return rng.standard_normal(2 * d_model)
        if teacher != "sparse":
            raise InvalidInputError(
                f"teacher={teacher!r} is not known: give 'sparse', 'dense' or an array of products"
            )
        theta = sparse_teacher()
    else:
        theta = np.asarray(teacher, dtype=float)
    if theta.shape != (2 * d_model,):
        raise InvalidInputError(
            f"teacher has shape {theta.shape} for d_model={d_model}: it needs {2 * d_model} "
            "products"
        )
    return theta


def bundled(name: str) -> dict[str, NDArray[Any]]:
    """Arrays of a data set that comes with the package; its README tells their sources."""
    with np.load(Path(__file__).with_name("bundled") / f"{name}.npz") as archive:
        return dict(archive)


def _standardized(columns: FloatArray) -> FloatArray:
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)
