"""PyTorch training runs: heads and transformers, data, loop, checkpoints."""

from dynalyze.errors import LearningRateWarning
from dynalyze.training.distributed import process_group
from dynalyze.training.full_flow import FullTrajectory, RankSteps, rank_steps, simulate_full
from dynalyze.training.heads import DiagonalHead, FullHead
from dynalyze.training.rank_prediction import RankPrediction, predict_rank_steps
from dynalyze.training.recording import Recording
from dynalyze.training.runs import train, train_many
from dynalyze.training.training_run import TrainingRun

__all__ = [
    "DiagonalHead",
    "FullHead",
    "FullTrajectory",
    "LearningRateWarning",
    "RankPrediction",
    "RankSteps",
    "Recording",
    "TrainingRun",
    "predict_rank_steps",
    "process_group",
    "rank_steps",
    "simulate_full",
    "train",
    "train_many",
]
