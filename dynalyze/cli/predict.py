"""``dynalyze predict``: the stage table of a model on a data set, before any training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dynalyze._core.interrupts import held, interruptible
from dynalyze.cli import output, shared_arguments

if TYPE_CHECKING:
    from dynalyze.stages.prediction import StagePrediction


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "predict",
        help="predict the stages from the data alone",
        description="Predict which products gradient flow from a vanishing initialization "
        "learns, in which order, when, and at which losses it rests in between.",
    )
    shared_arguments.add_problem(parser)
    shared_arguments.add_initialization(parser, required=False)
    shared_arguments.add_threshold(parser)
    budget = parser.add_argument_group("budget")
    budget.add_argument("--max-stages", type=int, metavar="K", help="stop after K stages")
    budget.add_argument(
        "--max-seconds",
        type=float,
        metavar="S",
        help="stop after S seconds; a stage that has begun by then is given up",
    )
    output.add_output(parser, "prediction")
    parser.set_defaults(run=run)


@held()
@interruptible()
def run(arguments: argparse.Namespace) -> int:
    """Predict, print, and write what was asked for."""
    from dynalyze._core.status import Status
    from dynalyze.stages.predict import predict_stages

    problem = shared_arguments.load_problem(arguments)
    prediction = predict_stages(
        problem.model,
        problem.data,
        loss=arguments.loss,
        init=shared_arguments.load_initialization(arguments, problem.model.n_products),
        max_stages=arguments.max_stages,
        max_seconds=arguments.max_seconds,
        progress=shared_arguments.show_progress(arguments),
    )
    threshold = arguments.threshold
    output.deliver(
        arguments,
        lambda: (
            output.as_json(_parts(prediction, threshold))
            if arguments.json
            else prediction.summary(threshold)
        ),
        save=prediction.save,
        plot=prediction.plot,
    )
    if prediction.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return 0 if prediction.success else 3


def _parts(prediction: StagePrediction, threshold: float | None) -> dict[str, Any]:
    jumps, notes = [None] * prediction.n_stages, [""] * prediction.n_stages
    if prediction.at_alpha is not None:
        jumps = prediction.jump_times(threshold).tolist()
        notes = list(prediction.jump_notes(threshold))
    stages = [
        {
            "stage": k + 1,
            "time": float(prediction.times[k]),
            "coordinate": int(prediction.coordinates[k]),
            "product": prediction.product_names[prediction.coordinates[k]],
            "sign": int(prediction.signs[k]),
            "theta": prediction.theta[k + 1].tolist(),
            "b": prediction.b[k + 1].tolist(),
            "loss": float(prediction.losses[k + 1]),
            "departed": [prediction.product_names[i] for i in prediction.departed[k]],
            "jump_time": jumps[k],
            "jump_note": notes[k],
        }
        for k in range(prediction.n_stages)
    ]
    return {
        "status": str(prediction.status),
        "message": prediction.message,
        "product_names": list(prediction.product_names),
        "initial_loss": float(prediction.losses[0]),
        "stages": stages,
        "stats": vars(prediction.stats),
        "configuration": prediction.configuration,
    }
