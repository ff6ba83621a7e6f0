"""How long transitions take whose limit points were found without following the flow."""

from itertools import pairwise

import numpy as np

from dynalyze._typing import FloatArray
from dynalyze.errors import FlowError
from dynalyze.models.protocol import Objective
from dynalyze.stages.prediction import StagePrediction
from dynalyze.stages.stationary import StationaryPoint
from dynalyze.stages.transition import follow_to, orbit_stepper

_MOST_EVALUATIONS = 300  # of one transition, ten times what most take


def transition_durations(prediction: StagePrediction, objective: Objective) -> FloatArray:
    """Flow time of each transition, shape (K,); NaN where the flow cannot be followed."""
    points = [plateau(prediction, objective, k) for k in range(prediction.n_stages + 1)]
    durations = np.full(prediction.n_stages, np.nan)
    for k, (start, end) in enumerate(pairwise(points)):
        activated = int(prediction.coordinates[k]), int(prediction.signs[k])
        try:
            orbit = follow_to(
                objective,
                start,
                *activated,
                end,
                stepper=orbit_stepper,
                max_evaluations=_MOST_EVALUATIONS,
            )
        except FlowError:
            continue
        durations[k] = orbit.duration
    return durations


def plateau(prediction: StagePrediction, objective: Objective, k: int) -> StationaryPoint:
    """θ^k of a prediction as the stationary point that it is."""
    theta, field = prediction.theta[k], prediction.fields[k]
    support = np.flatnonzero(theta)
    residual = float(np.abs(field[support]).max(initial=0.0))
    return StationaryPoint(theta, float(prediction.losses[k]), field, support, residual, objective)
