"""Warnings that point at the caller's line, however deep in the library they arise."""

import sys
import warnings
from itertools import count
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the innermost line outside this package.

    Data are bound by the user, by `predict_stages` or by `train`: there is no fixed number of
    calls between the mistake and the check that finds it.
    """
    for level in count(2):
        try:
            file = sys._getframe(level - 1).f_code.co_filename
        except ValueError:  # all frames are the library's own, as on the command line
            break
        # Methods that dataclasses generate are in no file.
        if not file.startswith(_PACKAGE) and file != "<string>":
            break
    warnings.warn(message, category, stacklevel=level)
