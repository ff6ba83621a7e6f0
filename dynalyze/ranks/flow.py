"""Gradient flow of full weight matrices, and the rank-one steps in which their products grow.

The theory of diagonal weights says nothing of matrices: their singular vectors turn from stage
to stage, so that there is no fixed coordinate to which eqs. (8)–(10) could be applied. What the
paper observes, and what is detected here, are steps of rank one in W_K W_Qᵀ or W_V W_Oᵀ.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import integrate

from dynalyze._core.arrays import Data, FloatArray, IntArray
from dynalyze._core.plain import plain
from dynalyze._core.pytorch import torch
from dynalyze._core.saved_schema import Array
from dynalyze.errors import FlowError, InvalidInputError
from dynalyze.flow.initialization import Initialization
from dynalyze.models.torch.calculus import differentiable_attention
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.training.batches import Batch
from dynalyze.training.engine import Engine, chunk_near_caches
from dynalyze.training.graded import Grading
from dynalyze.training.heads import FullHead, check_full_head
from dynalyze.training.recorded import RecordedRun, run_schema
from dynalyze.training.trainable import Weights, as_trainable, checked_samples

METHODS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
# Beyond it the dense Jacobian of an implicit method costs more than small explicit steps.
_MOST_IMPLICIT = 400
# Of a column, after which the columns are graded anew: they may lose as many digits until then.
_MOST_GROWTH = 1e4


@dataclass(frozen=True, eq=False)
class FullTrajectory(RecordedRun):
    """Gradient flow of a head with full weights, at the steps of the integrator.

    It reads as a `TrainingRun` of a full head does.
    """

    t: FloatArray  # (n_steps + 1,), flow time
    values: FloatArray  # (n_steps + 1, p), singular values of the products, descending in each
    losses: FloatArray  # (n_steps + 1,)
    init: Initialization = field(repr=False)
    product_names: tuple[str, ...] = field(repr=False)  # length p
    weights: dict[str, FloatArray] = field(repr=False)  # W_K, W_Q, W_V, W_O at the end
    nfev: int  # gradients evaluated
    configuration: dict[str, Any] = field(repr=False)  # method, tolerances

    singular_values = True
    _clock = "t"
    _schema = run_schema(
        "flow of full weights",
        {"t": Array("n", finite=True)},
        {"nfev": int, "configuration": dict},
    )

    def __repr__(self) -> str:
        return (
            f"<FullTrajectory: {len(self.t) - 1} steps to flow time {self.t[-1]:.6g} and loss "
            f"{self.losses[-1]:.6g}>"
        )


def simulate(
    head: FullHead,
    data: Data,
    init: Initialization,
    *,
    until: float,
    loss: str | SampleLoss = "squared",
    method: str = "auto",
    rtol: float = 1e-8,
) -> FullTrajectory:
    """Follow the gradient flow of a head with full weights, eqs. (1) and (3).

    Parameters
    ----------
    head : FullHead
        Sizes of the head; its own weights are not used.
    data : pair (X, y), torch Dataset or DataLoader
        Inputs and targets.
    init : Initialization
        α u0 holds W_K and W_V, α v0 holds W_Q and W_O, flattened: `head.n_weights` entries each.
        α must be at least 1e-150, the root of the smallest number.
    until : float
        Flow time at which to end.
    loss : {"squared", "mse"} or callable
        As for `TorchModel.bind`.
    method : {"auto", "RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA"}
        Method of `scipy.integrate.solve_ivp`; ``"auto"`` is LSODA for up to 400 weights and
        DOP853 beyond.
    rtol : float
        Tolerance relative to each column of the weights, graded as `dynalyze.training.graded`
        says; errors seed no direction.

    Returns
    -------
    FullTrajectory

    Raises
    ------
    FlowError
        If the integrator fails.
    """
    check_full_head(head, "dynalyze.simulate, which works in log coordinates")
    if method not in ("auto", *METHODS):
        raise InvalidInputError(
            f"method={method!r} is not known: choose 'auto' or one of "
            f"{', '.join(map(repr, METHODS))}"
        )
    if not 0 < until < np.inf:
        raise InvalidInputError(f"until={until} must be a positive flow time")
    trainable = as_trainable(head)
    samples = checked_samples(trainable, data, loss)
    place, sample_loss = trainable.model.device, samples[2]
    batch = Batch(samples[0].to(place), samples[1].to(place), len(samples[0]))
    engine = Engine(
        trainable,
        sample_loss,
        stacked=False,
        chunk=chunk_near_caches(batch.inputs, 1) if place.type == "cpu" else None,
    )
    weights = trainable.initial_weights(init, graded=True)
    grading = Grading(weights, head.matrix_products)
    shapes = {name: value.shape for name, value in weights.items()}

    def pack(parts: Iterable[torch.Tensor]) -> FloatArray:
        return torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()

    def unpack(y: FloatArray) -> Weights:
        whole = torch.from_numpy(y.copy()).to(place)
        parts = torch.split(whole, [s.numel() for s in shapes.values()])
        named = zip(shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}

    def field_of(t: float, y: FloatArray) -> FloatArray:
        at = {name: part.requires_grad_() for name, part in unpack(y).items()}
        engine.losses_and_gradients(at, batch)
        return -pack(w.grad for w in at.values() if w.grad is not None)

    if method == "auto":
        method = "LSODA" if 2 * head.n_weights <= _MOST_IMPLICIT else "DOP853"
    nfev, times = 0, [0.0]
    observed: list[torch.Tensor] = []
    losses: list[float] = []

    def record(weights: Weights) -> None:
        with torch.no_grad():
            observed.append(trainable.observe(weights).cpu())
        losses.append(engine.losses(weights, batch).item())

    with differentiable_attention():
        record(weights)
        while times[-1] < until:
            grading.grade(weights)
            scales = pack(w.square().mean(0).sqrt().expand_as(w) for w in weights.values())
            scales = np.maximum(scales, np.finfo(float).tiny)
            solver = getattr(integrate, method)(
                field_of, times[-1], pack(weights.values()), until, rtol=rtol, atol=rtol * scales
            )
            while solver.status == "running" and np.all(np.abs(solver.y) < _MOST_GROWTH * scales):
                message = solver.step()
                if solver.status == "failed":
                    raise FlowError(
                        f"{method} stopped at t = {solver.t:g}: {message}; try another method, "
                        "such as 'DOP853', or a larger rtol"
                    )
                times.append(float(solver.t))
                weights = unpack(solver.y)
                record(weights)
            nfev += solver.nfev
    return FullTrajectory(
        t=np.array(times),
        values=torch.stack(observed).numpy(),
        losses=np.array(losses),
        init=init,
        product_names=trainable.product_names,
        weights={name: w.cpu().numpy() for name, w in grading.undo(weights).items()},
        nfev=nfev,
        configuration={"method": method, "rtol": rtol},
    )


@dataclass(frozen=True, eq=False)
class RankSteps:
    """Steps in which the rank of a product grows or falls by one."""

    t: FloatArray  # (n,), flow time
    products: tuple[str, ...]  # (n,), "W_K W_Q" or "W_V W_O"
    ranks: IntArray  # (n,), rank of that product after the step
    changes: IntArray  # (n,), +1 or −1

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python, ready for JSON; None for what is not finite."""
        return dict(plain(self))


def rank_steps(run: Any, *, threshold: float = 0.05) -> RankSteps:
    """Rank-one steps of a run with full weights: its singular values crossing a threshold.

    Parameters
    ----------
    run : FullTrajectory or TrainingRun
        A flow or a training run of a `FullHead`.
    threshold : float
        Singular value above which a direction counts as learned.

    Returns
    -------
    RankSteps

    Raises
    ------
    InvalidInputError
        If `run` records products of diagonal weights.
    """
    if not getattr(run, "singular_values", False):
        raise InvalidInputError(
            f"run={type(run).__name__} records no singular values: rank steps are those of a "
            "FullHead; for diagonal weights use crossings(threshold)"
        )
    t, index, direction = run.crossings(threshold)
    names = [name.rsplit(" σ[", 1) for name in run.product_names]
    position = np.array([int(tail.rstrip("]")) for _, tail in names])
    return RankSteps(
        t=t,
        products=tuple(names[i][0] for i in index),
        # Singular values descend: the rank is the position, counted from 1, while it is above.
        ranks=position[index] + (direction > 0),
        changes=direction,
    )
