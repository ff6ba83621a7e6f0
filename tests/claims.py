"""Claims about all members of a collection, which must have some: all is true of nothing."""

import numpy as np


def every(claims):
    """Whether every claim holds, of at least one."""
    return all(_some(claims))


def none(claims):
    """Whether no claim holds, of at least one."""
    return not any(_some(claims))


def _some(claims):
    listed = np.ravel(claims).tolist() if isinstance(claims, np.ndarray) else list(claims)
    assert listed, "there is nothing of which anything is claimed"
    return listed
