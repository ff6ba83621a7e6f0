"""``dynalyze compare``: predicted stages against a simulation or a training run."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dynalyze._core.interrupts import held, interruptible
from dynalyze.cli import output, shared_arguments
from dynalyze.errors import InvalidInputError, StagesOverlapWarning

if TYPE_CHECKING:
    from dynalyze.checks.comparison import Comparison
    from dynalyze.checks.matching import MeasuredRun
    from dynalyze.stages.prediction import StagePrediction

_BEYOND_LAST = 1.05  # the simulation goes on past the last predicted jump by this factor


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="hold predicted stages against a simulation or a training run",
        description="Compare saved results (PREDICTION.npz RUN.npz, as written by "
        "`predict --out` and `simulate --out`), or predict and simulate here "
        "(--data … --log10-alpha …).",
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="PREDICTION.npz RUN.npz",
        help="a saved prediction, and a saved trajectory or training run",
    )
    shared_arguments.add_problem(parser, required=False)
    shared_arguments.add_initialization(parser, required=False)
    shared_arguments.add_flow(parser)
    shared_arguments.add_threshold(parser)
    output.add_output(parser)
    parser.set_defaults(run=run)


@held()
@interruptible()
def run(arguments: argparse.Namespace) -> int:
    """Compare, print, and write what was asked for."""
    from dynalyze.checks.comparison import compare

    if arguments.files and arguments.data is None:
        prediction, trajectory, code = *_load(arguments.files), 0
    elif arguments.data is not None and not arguments.files:
        prediction, trajectory, code = _compute(arguments)
    else:
        raise InvalidInputError(
            "give either two files, PREDICTION.npz RUN.npz, or --data with --log10-alpha"
        )
    comparison = compare(prediction, trajectory, threshold=arguments.threshold)
    output.deliver(
        arguments,
        lambda: output.as_json(_parts(comparison)) if arguments.json else comparison.summary(),
        plot=comparison.plot,
    )
    return code


def _parts(comparison: Comparison) -> dict[str, Any]:
    prediction = comparison.prediction
    columns: dict[str, Any] = {
        "coordinate": prediction.coordinates,
        "product": [prediction.product_names[i] for i in prediction.coordinates],
        "sign": prediction.signs,
        "outcome": [str(outcome) for outcome in comparison.outcomes],
        "measured": comparison.measured,
        "predicted": comparison.predicted,
        "leading": comparison.leading,
        "relative_error": comparison.relative_errors,
        "separated": comparison.separated,
        "relative_plateau_distance": comparison.relative_plateau_distances[1:],
    }
    return {
        "log10_alpha": comparison.log10_alpha,
        "threshold": comparison.threshold,
        "stages": [
            {"stage": k + 1, **{name: values[k] for name, values in columns.items()}}
            for k in range(comparison.n_stages)
        ],
        "inversions": [asdict(inversion) for inversion in comparison.inversions],
        "extra": [
            {"t": t, "coordinate": i, "product": prediction.product_names[i], "sign": sign}
            for t, i, sign in zip(
                comparison.extra_times,
                comparison.extra_coordinates,
                comparison.extra_signs,
                strict=True,
            )
        ],
    }


def _load(files: list[str]) -> tuple[StagePrediction, MeasuredRun]:
    from dynalyze._core.saved_files import saved_kind
    from dynalyze.flow.trajectory import Trajectory
    from dynalyze.stages.prediction import StagePrediction

    if len(files) != 2:
        raise InvalidInputError(
            f"{len(files)} files were given: give two, PREDICTION.npz RUN.npz, in this order"
        )
    prediction = StagePrediction.load(files[0])
    if saved_kind(files[1]) == "training run":
        from dynalyze.training.result import TrainingRun

        return prediction, TrainingRun.load(files[1])
    return prediction, Trajectory.load(files[1])


def _compute(arguments: argparse.Namespace) -> tuple[StagePrediction, MeasuredRun, int]:
    """Prediction, simulation, and the exit code, which says whether both came to their end."""
    from dynalyze._core.status import Status
    from dynalyze.flow.simulate import simulate
    from dynalyze.stages.predict import predict_stages

    problem = shared_arguments.load_problem(arguments)
    init = shared_arguments.load_initialization(arguments, problem.model.n_products)
    if init is None:
        raise InvalidInputError(
            "--log10-alpha is missing: the simulation needs the scale of its initial weights, "
            "such as --log10-alpha -8"
        )
    objective = problem.model.bind(problem.data, loss=arguments.loss)
    with warnings.catch_warnings():
        # The table says of every stage whether it is separated.
        warnings.simplefilter("ignore", StagesOverlapWarning)
        prediction = predict_stages(
            objective, init=init, progress=shared_arguments.show_progress(arguments)
        )
    if prediction.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    until, until_rescaled = arguments.until, arguments.until_rescaled
    if until is None and until_rescaled is None and prediction.n_stages:
        until_rescaled = _BEYOND_LAST * float(prediction.times[-1])
    trajectory = simulate(
        objective,
        init=init,
        until=until,
        until_rescaled=until_rescaled,
        method=arguments.method,
        tol=arguments.tol,
        progress=shared_arguments.show_progress(arguments),
    )
    if trajectory.status is Status.INTERRUPTED:
        return prediction, trajectory, 130
    complete = prediction.success and trajectory.success
    return prediction, trajectory, 0 if complete else 3
