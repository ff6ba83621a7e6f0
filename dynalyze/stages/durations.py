"""How long transitions take whose limit points were found without following the flow."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze.errors import FlowError
from dynalyze.flow.rest import StationaryPoint
from dynalyze.models.protocol import Objective
from dynalyze.stages.orbit import follow_to

# LSODA needs no compiled kernels, so that a first prediction does not wait for them, and up to so
# many products it takes no longer than the surrogate, which follows what LSODA cannot.
_FEW = 100
_MOST_EVALUATIONS = {"LSODA": 3_000, "surrogate": 300}  # of one transition, ten times the usual


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
    methods = ["LSODA", "surrogate"] if objective.n_products <= _FEW else ["surrogate"]
    durations = np.full(len(coordinates), np.nan)
    for k, (start, end) in enumerate(pairwise(points)):
        for method in methods:
            try:
                orbit = follow_to(
                    objective,
                    start,
                    int(coordinates[k]),
                    int(signs[k]),
                    end,
                    method=method,
                    max_evaluations=_MOST_EVALUATIONS[method],
                )
            except FlowError:
                continue
            durations[k] = orbit.duration
            break
    return durations
