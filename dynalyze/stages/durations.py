"""How long transitions take whose limit points were found without following the flow."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.errors import FlowError
from dynalyze.flow.rest import StationaryPoint
from dynalyze.models.protocol import Objective
from dynalyze.stages.transition import follow_to

_MOST_EVALUATIONS = 300  # of one transition, ten times what most take


def transition_durations(
    objective: Objective,
    points: Sequence[StationaryPoint],
    coordinates: IntArray,
    signs: IntArray,
) -> FloatArray:
    """Flow time of each transition, shape (K,); NaN where the flow cannot be followed.

    Parameters
    ----------
    objective : Objective
        The loss.
    points : sequence of StationaryPoint
        θ^0 … θ^K.
    coordinates, signs : ndarray of int, shape (K,)
        What activates.
    """
    durations = np.full(len(coordinates), np.nan)
    for k, (start, end) in enumerate(pairwise(points)):
        try:
            orbit = follow_to(
                objective,
                start,
                int(coordinates[k]),
                int(signs[k]),
                end,
                max_evaluations=_MOST_EVALUATIONS,
            )
        except FlowError:
            continue
        durations[k] = orbit.duration
    return durations
