"""Warnings that point at the caller's line, however deep in the library they arise."""

import contextlib
import importlib
import sys
import warnings
from itertools import count
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the innermost line outside this package.

    Data are bound by the user, by `predict_stages` or by `train`: there is no fixed number of
    calls between the mistake and the check that finds it.
    """
    level = 1
    for depth in count(1):
        try:
            file = sys._getframe(depth).f_code.co_filename
        except ValueError:  # all frames are the library's own, as on the command line
            break
        if "importlib" in file and "_bootstrap" in file:  # `warnings` does not count these either
            continue
        level += 1
        # Methods that dataclasses generate are in no file; modules are loaded on use by importlib,
        # and contextlib makes decorators.
        between = ("<string>", importlib.__file__, contextlib.__file__)
        if not file.startswith(_PACKAGE) and file not in between:
            break
    warnings.warn(message, category, stacklevel=level)
