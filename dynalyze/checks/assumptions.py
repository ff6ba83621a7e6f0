"""`check_assumptions`: whether the theory applies to a problem, with a margin per stage."""

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray
from dynalyze._core.interrupts import delivering, held
from dynalyze._core.status import Status
from dynalyze.checks.growth import grows
from dynalyze.checks.kinks import free_of_kinks
from dynalyze.checks.minima import strict_minimum
from dynalyze.checks.noise import Robustness, noise_robust
from dynalyze.checks.nondegeneracy import (
    InitialWeights,
    next_activation,
    nondegenerate,
    unbalanced,
)
from dynalyze.checks.orbits import Fate, FollowedOrbit, follow
from dynalyze.checks.regularity import bounded, consistent, smooth
from dynalyze.checks.report import AssumptionReport, Verdict
from dynalyze.errors import InvalidInputError
from dynalyze.flow.rest import known_point
from dynalyze.models.binding import bind
from dynalyze.models.data import as_positive_int
from dynalyze.models.losses import Loss
from dynalyze.models.protocol import Model, Objective
from dynalyze.stages.orbit import onset
from dynalyze.stages.prediction import StagePrediction

_SMALLEST_FLOAT = -300.0  # log10 of an α that floats can still hold
_SEEN = 1e-3  # products of an orbit's last point that count as its support, relative


@held()
@delivering()
def check_assumptions(
    prediction: StagePrediction,
    *,
    model: Model | Objective | None = None,
    data: Data = None,
    loss: Loss = "squared",
    sample_weight: ArrayLike | None = None,
    init: InitialWeights | None = None,
    log10_alpha: float | None = None,
    trials: int = 8,
    epsilon: float = 0.05,
    required_radius: float = 1e-3,
    largest_radius: float = 2.0,
    max_steps: int = 2000,
    rng: int = 0,
) -> AssumptionReport:
    """Check the assumptions behind a prediction, each with a margin and a sentence.

    Regularity (2.1, Definition 3.1), nondegeneracy (4.2), strict minima (4.3) and
    noise-robustness (4.4) of arXiv 2306.07042, and that transitions end at a finite distance,
    which the paper names as a limit of its theory.

    Parameters
    ----------
    prediction : StagePrediction
        What `predict_stages` returned; it brings its model and data with it.
    model, data, loss, sample_weight
        As they were given to `predict_stages`: needed for a prediction that was loaded from a
        file, which does not hold them.
    init : Initialization or pair (u0, v0), optional
        Initial weights, for |u_i(0)| ≠ |v_i(0)|.
    log10_alpha : float, optional
        Products that only a smaller α would tell apart count as tied. By default the α that
        the prediction was made for, or else -300, about the smallest float.
    trials : int
        Starts per radius in the check of noise-robustness, which takes most of the time; 0
        leaves it out.
    epsilon : float
        Distance from the next plateau that counts as arrived, relative to its largest product.
    required_radius, largest_radius : float
        Radius around u^k, relative to the larger of ‖u^k‖ and ‖u^{k+1} − u^k‖, at which all
        starts must arrive, and up to which the largest such radius is looked for.
    max_steps : int
        Steps of the integrator after which a perturbed flow counts as not arrived.
    rng : int
        Seed of the perturbed starts.

    Returns
    -------
    AssumptionReport

    Raises
    ------
    InvalidInputError
        If an argument cannot be used, or the prediction belongs to another problem.

    Examples
    --------
    >>> import numpy as np
    >>> from dynalyze import check_assumptions, predict_stages
    >>> from dynalyze.models import DiagonalLinear
    >>> X = np.random.default_rng(0).standard_normal((20, 3))
    >>> data = (X, X @ np.array([2.0, -1.0, 0.5]))
    >>> prediction = predict_stages(DiagonalLinear(3), data)
    >>> check_assumptions(prediction).passed
    True
    """
    settings = _settings(
        trials, epsilon, required_radius, largest_radius, max_steps=max_steps, seed=rng
    )
    objective = _objective(prediction, model, data, loss, sample_weight)
    if log10_alpha is None:
        at_alpha = prediction.at_alpha
        log10_alpha = _SMALLEST_FLOAT if at_alpha is None else at_alpha.log10_alpha
    names = prediction.product_names
    failed = _follow_failed_stage(objective, prediction)
    # What drove each product up to a plateau: the largest field that it has had before.
    driving = np.maximum.accumulate(np.abs(prediction.fields), axis=0)
    minima = [
        strict_minimum(
            objective, prediction.theta[k], prediction.theta[k] != 0, k, names, driving[k - 1]
        )
        for k in range(1, prediction.n_stages + 1)
    ]
    if failed is not None and failed.fate is not Fate.RUNS_AWAY:
        size = np.abs(failed.theta)
        seen = size > _SEEN * size.max()
        stage, driven_by = len(minima) + 1, driving[len(minima)]
        minima.append(strict_minimum(objective, failed.theta * seen, seen, stage, names, driven_by))
    limit = _finite_limit(prediction, failed, strict=bool(minima) and minima[-1].passed)
    scale = float(np.abs(prediction.fields[0]).max(initial=0.0))
    robust = [
        noise_robust(
            objective,
            prediction.theta[k],
            (int(prediction.coordinates[k]), int(prediction.signs[k])),
            prediction.theta[k + 1],
            k + 1,
            scale,
            settings,
        )
        for k in range(prediction.n_stages if trials else 0)
    ]
    return AssumptionReport(
        regularity=(
            bounded(prediction),
            smooth(objective),
            consistent(objective, prediction, np.random.default_rng(rng)),
            free_of_kinks(objective, prediction, np.random.default_rng(rng)),
        ),
        initialization=None if init is None else unbalanced(init, names),
        growth=grows(objective, prediction, np.random.default_rng(rng)),
        finite_limit=limit,
        nondegenerate=nondegenerate(prediction, log10_alpha),
        strict_minimum=tuple(minima),
        noise_robust=tuple(robust),
    )


def _follow_failed_stage(objective: Objective, prediction: StagePrediction) -> FollowedOrbit | None:
    """Where the transition without a limit goes; None if there is no such."""
    if prediction.status is not Status.NO_LIMIT:
        return None
    k = prediction.n_stages
    winner = next_activation(prediction, k)
    if winner is None:
        return None
    point = known_point(objective, prediction.theta[k], prediction.losses[k], prediction.fields[k])
    start = onset(point, winner.coordinate, winner.sign)
    scale = float(np.abs(prediction.fields[0]).max())
    return follow(objective, start, field_scale=scale)


def _finite_limit(
    prediction: StagePrediction, failed: FollowedOrbit | None, *, strict: bool
) -> Verdict:
    if failed is None and prediction.n_stages == 0:
        return Verdict(None, True, 1.0, "no transition was found, nor one without an end")
    if failed is None:
        return Verdict(None, True, 1.0, "every transition ends at a finite stationary point")
    stage = prediction.n_stages + 1
    reached = f"products up to {np.abs(failed.theta).max():.3g} at flow time {failed.time:.3g}"
    if failed.fate is Fate.RUNS_AWAY:
        return Verdict(
            None,
            False,
            0.0,
            f"the transition of stage {stage} runs away ({reached}): the loss has no finite "
            "minimum there, as cross-entropy on separable data. Add weight decay or another "
            "regularization, or bound the loss from below",
        )
    if failed.fate is Fate.UNDECIDED:
        return Verdict(
            None,
            False,
            0.0,
            f"the transition of stage {stage} has no end within reach ({reached}): it creeps "
            "along a nearly flat direction. Rescale the features, or leave out dependent ones",
        )
    return Verdict(
        None,
        True,
        1.0,
        f"the transition of stage {stage} ends at a finite point, "
        + (
            "a strict minimum, which the prediction came near and did not certify"
            if strict
            else "which is no strict minimum"
        ),
    )


def _objective(
    prediction: StagePrediction,
    model: Model | Objective | None,
    data: Data,
    loss: Loss,
    sample_weight: ArrayLike | None,
) -> Objective:
    """The loss that the prediction was made for: its own, or the one given, once it agrees."""
    given: object = prediction
    if not isinstance(given, StagePrediction):
        raise InvalidInputError(
            f"prediction is a {type(given).__name__}: give what predict_stages(model, data) "
            "returned"
        )
    if model is None:
        if data is not None or sample_weight is not None:
            raise InvalidInputError(
                "data or sample_weight was given without model=: give the model too, or leave them "
                "out where the prediction has its own"
            )
        if prediction.objective is None:
            raise InvalidInputError(
                "the prediction was loaded from a file, which holds neither model nor data: give "
                "them, check_assumptions(prediction, model=..., data=...)"
            )
        return prediction.objective
    objective = bind(model, data, loss=loss, sample_weight=sample_weight)
    _check_same_problem(objective, prediction)
    return objective


def _check_same_problem(objective: Objective, prediction: StagePrediction) -> None:
    p = prediction.theta.shape[1]
    if p != objective.n_products:
        raise InvalidInputError(
            f"the prediction has {p} products and the model {objective.n_products}: give the "
            "prediction of this model"
        )
    field, expected = objective.field(np.zeros(p)), prediction.fields[0]
    if not np.allclose(field, expected, rtol=1e-6, atol=1e-9 * _largest(expected), equal_nan=True):
        raise InvalidInputError(
            "the field at θ = 0 is not the prediction's: give the data, the loss and the weights "
            "of the samples that the prediction was made with"
        )


def _largest(values: FloatArray) -> float:
    return float(np.abs(values).max(initial=0.0))


def _settings(
    trials: int,
    epsilon: float,
    required: float,
    largest: float,
    *,
    max_steps: int,
    seed: int,
) -> Robustness:
    if trials != 0:
        as_positive_int(trials, "trials")
    as_positive_int(max_steps, "max_steps")
    if not 0 < epsilon < 1:
        raise InvalidInputError(
            f"epsilon={epsilon!r} must lie between 0 and 1: it is a fraction of the largest product"
        )
    if not 0 < required < largest < np.inf:
        raise InvalidInputError(
            f"required_radius={required!r} and largest_radius={largest!r}: both must be positive, "
            "and the first the smaller one"
        )
    return Robustness(trials, seed, epsilon, required, largest, max_steps)
