"""Algorithm 1 in SymPy, exact: stages as expressions, and models that are worked out."""

from dynalyze.symbolic.algorithm import stages
from dynalyze.symbolic.problem import ExpectedLoss, expectation, mean_loss
from dynalyze.symbolic.result import SymbolicStages
from dynalyze.symbolic.worked import (
    ScalarProduct,
    attention_head,
    diagonal_linear,
    orthogonal_stages,
)

__all__ = [
    "ExpectedLoss",
    "ScalarProduct",
    "SymbolicStages",
    "attention_head",
    "diagonal_linear",
    "expectation",
    "mean_loss",
    "orthogonal_stages",
    "stages",
]
