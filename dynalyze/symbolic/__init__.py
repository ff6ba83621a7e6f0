"""Algorithm 1 in SymPy, exact: stages as expressions, and models that are worked out."""

from dynalyze.symbolic.algorithm import stages
from dynalyze.symbolic.decisions import Decisions
from dynalyze.symbolic.equations import activation, log_scale, time_until_active
from dynalyze.symbolic.least_squares import sign_constrained_least_squares
from dynalyze.symbolic.problem import ExpectedLoss, expectation, mean_loss
from dynalyze.symbolic.result import NumericStages, SymbolicStages
from dynalyze.symbolic.stationary import LimitPoint, limit_point
from dynalyze.symbolic.worked import (
    ScalarProduct,
    attention_head,
    attention_head_formula,
    diagonal_linear,
    orthogonal_stages,
)

__all__ = [
    "Decisions",
    "ExpectedLoss",
    "LimitPoint",
    "NumericStages",
    "ScalarProduct",
    "SymbolicStages",
    "activation",
    "attention_head",
    "attention_head_formula",
    "diagonal_linear",
    "expectation",
    "limit_point",
    "log_scale",
    "mean_loss",
    "orthogonal_stages",
    "sign_constrained_least_squares",
    "stages",
    "time_until_active",
]
