"""From the stages that the recursion found to a `StagePrediction`."""

from typing import Any

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.flow.rest import StationaryPoint
from dynalyze.models.counted import Stats
from dynalyze.models.protocol import Objective
from dynalyze.stages.algorithm import Ending, Options, Stage
from dynalyze.stages.equations import initial_log_scale
from dynalyze.stages.finite import FiniteScaleStages
from dynalyze.stages.prediction import StagePrediction
from dynalyze.stages.transition import Transition


def assemble(
    origin: StationaryPoint,
    stages: list[Stage],
    names: tuple[str, ...],
    ending: Ending,
    stats: Stats,
    options: Options,
    at_alpha: FiniteScaleStages | None,
    configuration: dict[str, Any],
    objective: Objective,
) -> StagePrediction:
    """Collect what the recursion found; `stages` is emptied on the way."""
    plateaus = [origin] + [stage.transition.end for stage in stages]
    activations = [stage.activation for stage in stages]
    onsets = [stage.onset_time for stage in stages]
    losses = [point.value for point in plateaus]
    support_sizes = [point.support.size for point in plateaus]
    departed = tuple(stage.transition.departed for stage in stages)
    caveats = tuple(_caveat(stage.transition, names) for stage in stages)
    durations = _durations(stages)
    zero_fields = options.negligible(plateaus[-1].theta)
    log_scales = [initial_log_scale(len(names))] + [stage.b for stage in stages]
    thetas, fields = [point.theta for point in plateaus], [point.field for point in plateaus]
    plateaus.clear()
    stages.clear()
    return StagePrediction(
        times=np.array(onsets, dtype=float),
        coordinates=np.array([a.coordinate for a in activations], dtype=np.int64),
        signs=np.array([a.sign for a in activations], dtype=np.int64),
        theta=_stacked(thetas),
        b=_stacked(log_scales),
        fields=_stacked(fields),
        losses=np.array(losses),
        support_sizes=np.array(support_sizes, dtype=np.int64),
        departed=departed,
        runner_ups=np.array([a.runner_up for a in activations], dtype=np.int64),
        gaps=np.array([a.runner_up_wait - a.wait for a in activations], dtype=float),
        caveats=caveats,
        known_durations=durations,
        zero_fields=zero_fields,
        tie_rtol=options.tie_rtol,
        product_names=names,
        status=ending.status,
        message=ending.message,
        stats=stats,
        at_alpha=at_alpha,
        configuration=configuration,
        objective=objective,
    )


def _stacked(rows: list[FloatArray]) -> FloatArray:
    """One array of the rows, which are released: complete paths of wide data are large."""
    array = np.array(rows)
    rows.clear()
    return array


def _caveat(transition: Transition, names: tuple[str, ...]) -> str:
    """What is degenerate at the end of a transition, in words; empty where nothing is."""
    found = [transition.end.caveat] if transition.end.caveat else []
    if transition.at_rest:
        listed = ", ".join(names[i] for i in transition.at_rest)
        found.append(
            f"the field of {listed} goes to 0 together with the product, so that when it returns "
            "is not determined (Assumption 4.2 fails in the limit)"
        )
    return "; ".join(found)


def _durations(stages: list[Stage]) -> FloatArray | None:
    """Flow time that each transition takes, (K,); None where the orbits were not followed."""
    orbits = [stage.transition.orbit for stage in stages]
    if None in orbits:
        return None
    return np.array([orbit.duration for orbit in orbits if orbit is not None], dtype=float)
