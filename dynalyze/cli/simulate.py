"""``dynalyze simulate``: the gradient flow itself, at any scale of the initialization."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dynalyze._core.interrupts import held, interruptible
from dynalyze.cli import output, shared_arguments

if TYPE_CHECKING:
    from dynalyze._core.arrays import FloatArray
    from dynalyze.flow.trajectory import Trajectory

_JUMP = 0.05  # of a product's largest value: the size at which its jump is called
_SEEN = 1e-3  # products below this fraction of the largest do not count as learned


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "simulate",
        help="follow the gradient flow from small initial weights",
        description="Follow the gradient flow in log coordinates, where any scale of the "
        "initialization is representable, and list what is learned when.",
    )
    shared_arguments.add_problem(parser)
    shared_arguments.add_initialization(parser, required=True)
    shared_arguments.add_flow(parser)
    budget = parser.add_argument_group("budget")
    budget.add_argument(
        "--max-steps", type=int, default=100_000, metavar="N", help="stop after N steps"
    )
    budget.add_argument("--max-seconds", type=float, metavar="S", help="stop after S seconds")
    shared_arguments.add_threshold(parser)
    output.add_output(parser, "trajectory")
    parser.set_defaults(run=run)


@held()
@interruptible()
def run(arguments: argparse.Namespace) -> int:
    """Simulate, print what is learned when, and write what was asked for."""
    from dynalyze._core.status import Status
    from dynalyze.flow.simulate import simulate

    problem = shared_arguments.load_problem(arguments)
    trajectory = simulate(
        problem.model,
        problem.data,
        shared_arguments.load_initialization(arguments, problem.model.n_products),
        loss=arguments.loss,
        until=arguments.until,
        until_rescaled=arguments.until_rescaled,
        method=arguments.method,
        tol=arguments.tol,
        max_steps=arguments.max_steps,
        max_seconds=arguments.max_seconds,
        progress=shared_arguments.show_progress(arguments),
    )
    output.deliver(
        arguments,
        lambda: _text(trajectory, arguments),
        save=trajectory.save,
        plot=trajectory.plot,
    )
    if trajectory.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return 0 if trajectory.success else 3


def _text(trajectory: Trajectory, arguments: argparse.Namespace) -> str:
    crossings = _crossings(trajectory, arguments.threshold)
    if arguments.json:
        return output.as_json(_parts(trajectory, crossings))
    return _table(trajectory, crossings, arguments.threshold)


def _crossings(trajectory: Trajectory, threshold: float | None) -> list[dict[str, Any]]:
    """Every crossing of the threshold, in the order of time."""
    sizes = _jump_sizes(trajectory) if threshold is None else threshold
    times, coordinates, directions = trajectory.crossings(sizes)
    theta = trajectory.theta_at(times)
    return [
        {
            "t": float(t),
            "t_rescaled": float(t / trajectory.init.log_inverse_alpha),
            "coordinate": int(i),
            "product": trajectory.product_names[i],
            "sign": 1 if theta[row, i] > 0 else -1,
            "direction": int(direction),
            "value_at_end": float(trajectory.theta[-1, i]),
        }
        for row, (t, i, direction) in enumerate(zip(times, coordinates, directions, strict=True))
    ]


def _parts(trajectory: Trajectory, crossings: list[dict[str, Any]]) -> dict[str, Any]:
    first, last = trajectory.loss_at(trajectory.t[[0, -1]])
    return {
        "status": trajectory.status,
        "message": trajectory.message,
        "product_names": trajectory.product_names,
        "log10_alpha": trajectory.init.log10_alpha,
        "crossings": crossings,
        "t_end": float(trajectory.t[-1]),
        "theta_end": trajectory.theta[-1],
        "initial_loss": float(first),
        "final_loss": float(last),
        "n_steps": trajectory.n_steps,
        "stats": vars(trajectory.stats),
        "configuration": trajectory.configuration,
    }


def _table(trajectory: Trajectory, crossings: list[dict[str, Any]], threshold: float | None) -> str:
    """Every crossing of the threshold, one line each, with the status below."""
    from dynalyze._core.text import aligned

    rows = [
        [
            f"{crossing['t']:.6g}",
            f"{crossing['t_rescaled']:.6g}",
            f"{'+' if crossing['sign'] > 0 else '−'} {crossing['product']}",
            "grows" if crossing["direction"] > 0 else "shrinks",
            f"{crossing['value_at_end']:.5g}",
        ]
        for crossing in crossings
    ]
    # Not `losses`, which has one for every step: that can take longer than the run.
    first, last = trajectory.loss_at(trajectory.t[[0, -1]])
    through = "through 5% of its largest" if threshold is None else f"through {threshold:g}"
    header = ["t", "t / log(1/α)", "product", through, "value at the end"]
    return "\n".join(
        [
            *aligned(header, rows, left={2, 3}),
            "",
            f"loss: {first:.6g} at the start, {last:.6g} at t = {trajectory.t[-1]:.6g}",
            f"status: {trajectory.status} ({trajectory.message})",
            f"work: {trajectory.n_steps} steps, {trajectory.stats}",
        ]
    )


def _jump_sizes(trajectory: Trajectory) -> FloatArray:
    """5% of the largest |θ_i| of the run; out of reach for products that stay negligible; (p,)."""
    import numpy as np

    from dynalyze.models.protocol import relative_field_units

    largest = np.abs(trajectory.theta).max(axis=0)
    sizes = largest
    if trajectory.objective is not None:
        sizes = largest * relative_field_units(trajectory.objective)
    seen = sizes > _SEEN * sizes.max()
    return np.where(seen, _JUMP * largest, np.maximum(2 * largest, np.finfo(float).tiny))
