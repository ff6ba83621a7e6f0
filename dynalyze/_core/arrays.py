"""Array types used in signatures throughout the library."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
ArrayLike: TypeAlias = npt.ArrayLike
Data: TypeAlias = Any
"""A pair (X, y) of arrays; for PyTorch models anything that a DataLoader takes."""
