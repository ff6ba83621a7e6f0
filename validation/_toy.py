"""The paper's toy head: data, runs and the units of its figures."""

from functools import cache

import numpy as np

from dynalyze import Initialization, StagePrediction, Trajectory, datasets, predict_stages, simulate
from dynalyze.models import AttentionHead
from dynalyze.models.protocol import Objective

LOG10_ALPHAS = (-1, -2, -4, -8, -16, -32)
FIGURE_END = 1000.0  # of the paper's axis, flow time / log10(1/α)
FIGURE_PER_RESCALED = float(np.log(10))  # one unit of T on that axis
DATA_SEED, WEIGHT_SEED = 0, 1


@cache
def objective() -> Objective:
    """1000 fresh samples, labelled by the teacher read off the paper's figures; loss "mse"."""
    data = datasets.toy_head(rng=DATA_SEED)
    return AttentionHead(50).bind((data.X, data.y), loss="mse")


def init(log10_alpha: float) -> Initialization:
    """The same u0 and v0 at every α, as in the paper."""
    u0, v0 = np.random.default_rng(WEIGHT_SEED).standard_normal((2, 100))
    return Initialization(u0, v0, log10_alpha=log10_alpha)


@cache
def run(log10_alpha: float, tol: float = 1e-6) -> Trajectory:
    """The flow to the end of the paper's axis."""
    trajectory = simulate(
        objective(), init=init(log10_alpha), until=FIGURE_END * -log10_alpha, tol=tol
    )
    if not trajectory.success:
        raise RuntimeError(f"α = 1e{log10_alpha}: {trajectory.message}")
    return trajectory


@cache
def prediction(log10_alpha: float | None = None) -> StagePrediction:
    """The stages, and with an α their times from its initialization."""
    start = None if log10_alpha is None else init(log10_alpha)
    return predict_stages(objective(), init=start)


def short(name: str) -> str:
    """Name of a product that fits a table."""
    return name.replace("W_K W_Q", "KQ").replace("W_V W_O", "VO")
