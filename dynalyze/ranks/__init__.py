"""Full weight matrices: products A Bᵀ that grow rank by rank, predicted and followed."""

import dynalyze._core.pytorch  # noqa: F401  (says what to install where torch is missing)
from dynalyze.ranks.flow import FullTrajectory, RankSteps, rank_steps, simulate
from dynalyze.ranks.prediction import RankPrediction, predict_rank_steps

__all__ = [
    "FullTrajectory",
    "RankPrediction",
    "RankSteps",
    "predict_rank_steps",
    "rank_steps",
    "simulate",
]
