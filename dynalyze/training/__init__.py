"""PyTorch training runs: heads and transformers, data, loop, checkpoints."""

from dynalyze.training.distributed import process_group
from dynalyze.training.heads import DiagonalHead, FullHead
from dynalyze.training.one_or_many import train, train_many
from dynalyze.training.recording import Recording
from dynalyze.training.result import TrainingRun

__all__ = [
    "DiagonalHead",
    "FullHead",
    "Recording",
    "TrainingRun",
    "process_group",
    "train",
    "train_many",
]
