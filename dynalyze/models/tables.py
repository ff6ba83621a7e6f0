"""pandas tables as data: numbers of their columns, and the columns' names for the products."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from dynalyze._core.arrays import ArrayLike, Data
from dynalyze.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd


def column_names(data: Data) -> tuple[str, ...]:
    """Names of the columns of X, if ``data = (X, y)`` has a DataFrame there that names them."""
    X = data[0] if isinstance(data, tuple | list) and data else None
    if not _is_table(X) or X.ndim != 2 or all(isinstance(name, int) for name in X.columns):
        return ()
    return tuple(map(str, X.columns))


def as_plain(values: Any, name: str) -> ArrayLike:
    """Return the float64 array of a DataFrame or Series, and anything else as it is.

    Raises
    ------
    InvalidInputError
        If a column is not numeric, or has missing values; it is named.
    """
    if not _is_table(values):
        return values
    table: Any = values  # pandas' own types know one of two classes, not either
    columns = [table] if table.ndim == 1 else [table.iloc[:, i] for i in range(table.shape[1])]
    for column in columns:
        what = f"{name}, a Series," if table.ndim == 1 else f"column {column.name!r} of {name}"
        if column.dtype.kind not in "fiub":
            raise InvalidInputError(
                f"{what} has dtype {column.dtype}: convert it to numbers, or leave it out"
            )
        missing = column.isna()
        if missing.any():
            raise InvalidInputError(
                f"{what} has {int(missing.sum())} missing values, the first in row "
                f"{column.index[int(missing.to_numpy().argmax())]!r}: fill or drop them"
            )
    array: ArrayLike = table.to_numpy(dtype=float)
    return array


def check_same_rows(X: Any, y: Any) -> None:
    """Refuse tables whose rows have other labels, which a conversion to arrays would forget.

    Raises
    ------
    InvalidInputError
        If X and y are both tables, as long as one another, and their indexes differ.
    """
    if _is_table(X) and _is_table(y) and len(X) == len(y) and not X.index.equals(y.index):
        raise InvalidInputError(
            "the rows of X and y have different labels (index): bring them into one order, as "
            "y.loc[X.index] does, or give X.to_numpy() and y.to_numpy() if they are in one"
        )


def _is_table(values: Any) -> "TypeGuard[pd.DataFrame | pd.Series[Any]]":
    pandas = sys.modules.get("pandas")  # what nobody has imported cannot be among the data
    return pandas is not None and isinstance(values, pandas.DataFrame | pandas.Series)
