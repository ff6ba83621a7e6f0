"""Assumption 4.2 {4.3}: one product activates next, and what left has a field that keeps it out."""

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.status import Status
from dynalyze.checks.report import Verdict
from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization
from dynalyze.stages.equations import Activation, activation, time_until_active
from dynalyze.stages.prediction import StagePrediction

_BALANCED = 1e-12  # relative difference of |u| and |v| that rounding alone may make
_NO_FIELD = 1e-8  # |g| of a product that left, relative to max|g(0)|, that counts as 0

InitialWeights = Initialization | tuple[FloatArray, FloatArray]


def next_activation(prediction: StagePrediction, k: int) -> Activation | None:
    """The minimum of eq. (9) on plateau k, with its runner-up."""
    field, active = prediction.fields[k], prediction.theta[k] != 0
    waits = time_until_active(prediction.b[k], field, active, negligible=prediction.zero_fields)
    return activation(waits, field)


def nondegenerate(prediction: StagePrediction, log10_alpha: float) -> tuple[Verdict, ...]:
    """Verdict on each stage, and on the one at which the prediction ended early.

    Parameters
    ----------
    prediction : StagePrediction
        K stages.
    log10_alpha : float
        A gap fails if α must be below 10 to this power for the winner and the runner-up to be
        told apart.
    """
    verdicts = []
    for k in range(prediction.n_stages + 1):
        winner = next_activation(prediction, k)
        if winner is not None and (k < prediction.n_stages or prediction.status is Status.TIE):
            verdicts.append(_verdict(prediction, k, winner, log10_alpha))
    return tuple(verdicts)


def unbalanced(init: InitialWeights, names: tuple[str, ...]) -> Verdict:
    """Verdict on |u_i(0)| ≠ |v_i(0)|."""
    u0, v0 = (init.u0, init.v0) if isinstance(init, Initialization) else map(np.asarray, init)
    if u0.shape != v0.shape or u0.shape != (len(names),):
        raise InvalidInputError(
            f"init has weights of shapes {u0.shape} and {v0.shape} for {len(names)} products: "
            "give u0 and v0 one entry for each product"
        )
    u, v = np.abs(u0), np.abs(v0)
    margins = np.abs(u - v) / np.maximum(u + v, np.finfo(float).tiny)
    worst = int(np.argmin(margins))
    margin = float(margins[worst])
    if margin > _BALANCED:
        message = f"|u| and |v| differ by at least {margin:.1e} of their sum ({names[worst]})"
    else:
        message = (
            f"|u| = |v| at {names[worst]} (to {margin:.1e}): its product may never change sign, "
            "and its conserved u² − v² is lost in rounding. Draw the weights at random"
        )
    return Verdict(None, margin > _BALANCED, margin, message)


def _verdict(
    prediction: StagePrediction, k: int, winner: Activation, log10_alpha: float
) -> Verdict:
    gap = winner.runner_up_wait - winner.wait
    relative = gap / winner.wait if winner.wait > 0 else np.inf
    tied = relative <= prediction.tie_rtol
    known = k < prediction.n_stages
    duration = float(prediction.durations[k]) if known else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        told_apart = -np.inf if tied else float(-duration / np.float64(gap) / np.log(10))
    near = bool(told_apart < log10_alpha)
    names, values = prediction.product_names, {"gap": gap, "log10_alpha": told_apart}
    name = names[winner.coordinate]
    if winner.runner_up < 0:
        message = f"{name} is the only product that will ever activate"
    else:
        other = names[winner.runner_up]
        message = f"{name} comes next, {other} {gap:.3g} of rescaled time later ({relative:.1e})"
        if tied:
            message = (
                f"{name} and {other} tie (gap {gap:.1e}): which comes first is not determined; "
                "are two features duplicates?"
            )
        elif near:
            message += (
                f": a near-tie, told apart only below α = 1e{np.floor(told_apart):.0f}; order and "
                "times from here on depend on the initial weights"
            )
        elif np.isnan(told_apart):
            message += ": told apart below an α that is not known, the transition being too slow"
        else:
            message += f": told apart below α = {_scale(told_apart)}"
    departed = prediction.departed[k] if known else ()
    size = _largest_field(prediction)
    stays_out = True
    for i in departed:
        field = abs(float(prediction.fields[k + 1, i])) / size
        values["departed_field"] = min(field, values.get("departed_field", np.inf))
        message += f"; {names[i]} leaves with |g| = {field:.1e} of the largest at 0"
        if field <= _NO_FIELD:
            stays_out = False
            message += ", which counts as 0: when it returns is not determined"
    passed = not (tied or near) and stays_out
    return Verdict(k + 1, passed, float(relative), message, values)


def _scale(log10_alpha: float) -> str:
    if not log10_alpha > -np.inf:
        return "0"
    return f"1e{log10_alpha:.0f}" if log10_alpha < -2 else f"{10**log10_alpha:.2g}"


def _largest_field(prediction: StagePrediction) -> float:
    return float(np.abs(prediction.fields[0]).max(initial=0.0))
