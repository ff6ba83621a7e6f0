"""Predict, simulate and track the stages in which networks with product weights learn.

The main entry points are loaded on first use, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dynalyze._version import __version__

if TYPE_CHECKING:
    from dynalyze import checks, datasets, models, symbolic
    from dynalyze import ranks as ranks
    from dynalyze import spectra as spectra
    from dynalyze import training as training
    from dynalyze._core.status import Status
    from dynalyze.checks.assumptions import check_assumptions
    from dynalyze.checks.comparison import Comparison, compare
    from dynalyze.checks.report import AssumptionReport
    from dynalyze.errors import (
        AttentionLeftOutWarning,
        ConstantFeatureWarning,
        DynalyzeError,
        DynalyzeWarning,
        FlowError,
        FrozenParametersWarning,
        InvalidInputError,
        KernelCacheWarning,
        LearningRateWarning,
        MissingDependencyError,
        NonSmoothWarning,
        SavedFileError,
        StagesOverlapWarning,
        UnconfirmedLayoutWarning,
        UncountedStepsWarning,
        UnreadableCheckpointWarning,
        UpcastWarning,
    )
    from dynalyze.flow.initialization import Initialization
    from dynalyze.flow.simulate import simulate
    from dynalyze.flow.trajectory import Trajectory
    from dynalyze.stages.predict import predict_stages
    from dynalyze.stages.prediction import StagePrediction

_HOMES = {
    "AssumptionReport": "checks.report",
    "Comparison": "checks.comparison",
    "ConstantFeatureWarning": "errors",
    "DynalyzeError": "errors",
    "DynalyzeWarning": "errors",
    "FlowError": "errors",
    "FrozenParametersWarning": "errors",
    "Initialization": "flow.initialization",
    "InvalidInputError": "errors",
    "KernelCacheWarning": "errors",
    "LearningRateWarning": "errors",
    "MissingDependencyError": "errors",
    "NonSmoothWarning": "errors",
    "SavedFileError": "errors",
    "StagePrediction": "stages.prediction",
    "StagesOverlapWarning": "errors",
    "Status": "_core.status",
    "AttentionLeftOutWarning": "errors",
    "UncountedStepsWarning": "errors",
    "UnconfirmedLayoutWarning": "errors",
    "UnreadableCheckpointWarning": "errors",
    "UpcastWarning": "errors",
    "Trajectory": "flow.trajectory",
    "check_assumptions": "checks.assumptions",
    "compare": "checks.comparison",
    "predict_stages": "stages.predict",
    "simulate": "flow.simulate",
}
_SUBPACKAGES = ("checks", "datasets", "models", "symbolic")
# Not in __all__: `import *` works without torch, quickly.
_NEED_TORCH = ("ranks", "spectra", "training")

__all__ = [
    "AssumptionReport",
    "AttentionLeftOutWarning",
    "Comparison",
    "ConstantFeatureWarning",
    "DynalyzeError",
    "DynalyzeWarning",
    "FlowError",
    "FrozenParametersWarning",
    "Initialization",
    "InvalidInputError",
    "KernelCacheWarning",
    "LearningRateWarning",
    "MissingDependencyError",
    "NonSmoothWarning",
    "SavedFileError",
    "StagePrediction",
    "StagesOverlapWarning",
    "Status",
    "Trajectory",
    "UnconfirmedLayoutWarning",
    "UncountedStepsWarning",
    "UnreadableCheckpointWarning",
    "UpcastWarning",
    "__version__",
    "check_assumptions",
    "checks",
    "compare",
    "datasets",
    "models",
    "predict_stages",
    "simulate",
    "symbolic",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _NEED_TORCH:
        try:
            return import_module(f"{__name__}.{name}")
        except import_module(f"{__name__}.errors").MissingDependencyError as error:
            raise AttributeError(str(error)) from error  # so that hasattr answers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NEED_TORCH])
