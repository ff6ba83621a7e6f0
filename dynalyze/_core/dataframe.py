"""The one place that imports pandas, which is optional."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynalyze.errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas as pd


def dataframe(columns: Mapping[str, Any], *, number_rows: str | None = None) -> "pd.DataFrame":
    """Return named columns as a pandas DataFrame.

    Parameters
    ----------
    columns : mapping of str to array_like, shape (n,)
        Values of each column.
    number_rows : str, optional
        Name of an index that counts the rows from 1; without it they count from 0.

    Raises
    ------
    MissingDependencyError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError(
            'to_dataframe needs pandas: pip install "dynalyze[dataframe]"'
        ) from error
    table = pd.DataFrame(dict(columns))
    if number_rows is not None:
        table.index = pd.RangeIndex(1, len(table) + 1, name=number_rows)
    return table
