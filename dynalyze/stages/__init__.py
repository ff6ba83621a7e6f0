"""What the theory predicts: eqs. (8)–(11), Algorithm 1, finite-α timing."""

from dynalyze.stages.algorithm import Stage, Status
from dynalyze.stages.equations import Activation, activation, log_scale, time_until_active
from dynalyze.stages.predict import predict_stages
from dynalyze.stages.prediction import StagePrediction
from dynalyze.stages.transition import limit_point

__all__ = [
    "Activation",
    "Stage",
    "StagePrediction",
    "Status",
    "activation",
    "limit_point",
    "log_scale",
    "predict_stages",
    "time_until_active",
]
