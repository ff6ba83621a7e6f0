"""Checks of data sets and arguments that the models share: one clear error for each mistake."""

import operator
from collections.abc import Sequence

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray, IntArray
from dynalyze._core.warn import warn
from dynalyze.errors import ConstantFeatureWarning, InvalidInputError
from dynalyze.models.tables import as_plain, check_same_rows


def as_pair(data: Data) -> tuple[ArrayLike, ArrayLike]:
    """Return X and y from a pair of arrays.

    Parameters
    ----------
    data : pair of array_like
        ``(X, y)``, as a tuple or list of length 2; also a pandas DataFrame and a Series.

    Raises
    ------
    InvalidInputError
        If `data` is not a pair, or a table has columns that are not numbers.
    """
    if isinstance(data, tuple | list) and len(data) == 2:
        check_same_rows(*data)
        return as_plain(data[0], "X"), as_plain(data[1], "y")
    received = type(data).__name__
    if isinstance(data, tuple | list):
        received += f" of length {len(data)}"
    remedy = ": give (data.X, data.y)" if hasattr(data, "X") and hasattr(data, "y") else ""
    raise InvalidInputError(f"data must be a pair of arrays (X, y), received {received}{remedy}")


def as_generator(rng: np.random.Generator | int | None) -> np.random.Generator:
    """The generator that `rng` is, or that it seeds.

    Raises
    ------
    InvalidInputError
        If it is neither a generator nor a seed.
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"rng={rng!r} must be a numpy.random.Generator or a non-negative integer: {error}"
        ) from error


def as_finite_array(values: ArrayLike, name: str, axes: Sequence[str]) -> FloatArray:
    """Return `values` as a contiguous float64 array, checked.

    Parameters
    ----------
    values : array_like
        Real numbers; integers and booleans are converted.
    name : str
        Name of the argument, for the error's text.
    axes : sequence of str
        Names of the axes that the array must have, none of them empty.

    Returns
    -------
    ndarray of float64, C-contiguous
        A copy only where a conversion needs one.

    Raises
    ------
    InvalidInputError
        If the values are not real numbers, the number of axes is wrong, an axis is empty,
        or an entry is NaN or infinite (the first such entry is named).
    """
    if np.ma.is_masked(values):
        raise InvalidInputError(
            f"{name} has masked entries, which count as missing: fill or drop them"
        )
    if hasattr(values, "toarray"):
        raise InvalidInputError(f"{name} is sparse: give {name}.toarray()")
    expected = f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"
    try:
        array = np.asarray(values)
    except ValueError as error:  # ragged nested sequences
        raise InvalidInputError(
            f"{name} is not a rectangular array: expected shape {expected}"
        ) from error
    except (TypeError, RuntimeError) as error:  # tensors: on a GPU, bfloat16, with a gradient
        raise InvalidInputError(
            f"{name}, a {type(values).__name__}, is not convertible to a NumPy array: {error}"
        ) from error
    if array.dtype.kind not in "fiub":
        raise InvalidInputError(
            f"{name} has dtype {array.dtype}: convert it to real numbers (float64)"
        )
    if array.ndim != len(axes):
        column = array.ndim == len(axes) + 1 and array.shape[-1] == 1
        raise InvalidInputError(
            f"{name} has shape {array.shape}: expected {len(axes)} "
            f"{'axis' if len(axes) == 1 else 'axes'}, {expected}"
            f"{f'; {name}[..., 0] has that shape' if column else ''}"
        )
    for axis, length in zip(axes, array.shape, strict=True):
        if length == 0:
            raise InvalidInputError(
                f"{name} is empty, with shape {array.shape}: {axis} must be at least 1"
            )
    with np.errstate(over="ignore"):  # numbers beyond float64 become infinite, and are reported
        result = np.ascontiguousarray(array, dtype=np.float64)
    finite = np.isfinite(result)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), result.shape)
        index = ", ".join(str(int(i)) for i in first)
        raise InvalidInputError(
            f"{name}[{index}] is {result[first]}, the first of {int((~finite).sum())} entries "
            f"of {name} that are not finite: remove or impute them"
        )
    return result


def warn_of_constant_features(X: FloatArray, consequence: str) -> None:
    """Warn of features, on the last axis of `X`, that have one value throughout.

    Parameters
    ----------
    X : ndarray, shape (..., n_features)
        Inputs.
    consequence : str
        What this means for the model, as the end of a sentence.
    """
    rows = X.reshape(-1, X.shape[-1])
    constant = np.flatnonzero(np.all(rows == rows[0], axis=0))
    if len(rows) > 1 and constant.size:
        warn(
            f"feature {constant[0]} of X is {rows[0, constant[0]]:g} throughout, one of "
            f"{constant.size} constant features: {consequence}. Drop them if that is not meant",
            ConstantFeatureWarning,
        )


def normalized_sample_weight(sample_weight: ArrayLike | None, n_samples: int) -> FloatArray:
    """Return weights that sum to 1, so that a weighted sum is a weighted mean.

    Parameters
    ----------
    sample_weight : array_like, shape (n_samples,), or None
        Non-negative weights; None weighs every sample alike.
    n_samples : int
        Number of samples.

    Returns
    -------
    ndarray, shape (n_samples,)

    Raises
    ------
    InvalidInputError
        If a weight is negative or not finite, all are zero, or their number is wrong.
    """
    if sample_weight is None:
        return np.full(n_samples, 1.0 / n_samples)
    weight = as_finite_array(sample_weight, "sample_weight", ["n_samples"])
    if len(weight) != n_samples:
        raise InvalidInputError(
            f"sample_weight has {len(weight)} entries for {n_samples} samples: give one weight "
            "per sample"
        )
    if (weight < 0.0).any():
        first = int(np.argmax(weight < 0.0))
        raise InvalidInputError(
            f"sample_weight[{first}] is {weight[first]}: weights must not be negative"
        )
    largest = weight.max()
    if largest == 0.0:
        raise InvalidInputError(
            "sample_weight is 0 for every sample: at least one weight must be positive"
        )
    # Dividing by the largest first keeps the sum of huge or tiny weights within range.
    scaled = weight / largest
    return scaled / scaled.sum()


def as_products(theta: ArrayLike, n_products: int) -> FloatArray:
    """Return the products θ as a contiguous float64 array of shape (n_products,).

    Raises
    ------
    InvalidInputError
        If the shape is another. Values are not checked: an integrator may try a θ that
        overflows, and must see what comes of it.
    """
    array = np.ascontiguousarray(theta, dtype=np.float64)
    if array.shape != (n_products,):
        raise InvalidInputError(
            f"theta has shape {array.shape}: the model has {n_products} products, so give "
            f"shape ({n_products},)"
        )
    return array


def as_product_indices(indices: ArrayLike, n_products: int) -> IntArray:
    """Return indices of products as an int64 array; negative ones count from the end.

    Raises
    ------
    InvalidInputError
        If an index is not an integer or lies out of range, or `indices` is not one-dimensional.
    """
    array = np.asarray(indices)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"indices has shape {array.shape} and dtype {array.dtype}: give a one-dimensional "
            "array of integers"
        )
    outside = (array < -n_products) | (array >= n_products)
    if outside.any():
        raise InvalidInputError(
            f"indices contains {array[outside][0]}: the model has {n_products} products, so "
            f"indices lie between 0 and {n_products - 1}"
        )
    return np.where(array < 0, array + n_products, array).astype(np.int64)


def as_positive_int(value: int, name: str) -> int:
    """Return `value` as an int.

    Raises
    ------
    InvalidInputError
        If it is not a positive integer.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise InvalidInputError(f"{name}={value!r}: must be a positive integer")
    return number
