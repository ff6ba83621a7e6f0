"""Errors and warnings of the library; those that reach a caller are importable from `dynalyze`."""

from typing import Any


class DynalyzeError(Exception):
    """Base class of every error that the library raises itself."""


class InvalidInputError(DynalyzeError, ValueError):
    """An argument or a data set that cannot be used; the message says which, and the remedy."""


class MissingDependencyError(DynalyzeError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class SavedFileError(DynalyzeError, OSError):
    """A file that cannot be written, or no whole saved result of the kind and version expected."""


class DynalyzeWarning(UserWarning):
    """Base class of the library's warnings."""


class FlowError(DynalyzeError, ArithmeticError):
    """The flow cannot be continued: not a number, or a step size that vanishes."""


class UndecidedTransitionError(DynalyzeError):
    """A budget ended in the middle of a transition, whose limit is therefore not known."""


class NoLimitPointError(DynalyzeError, ArithmeticError):
    """A symbolic flow was not seen to come to rest; the message says what it did."""


class UnsolvedBranchError(DynalyzeError, ArithmeticError):
    """A symbolic flow has a limit point, but no formula for it was found.

    Parameters
    ----------
    message : str
        What was tried.
    equations : tuple of sympy expressions
        What must vanish at the limit point, which remains to be solved.
    theta : ndarray, shape (p,)
        The limit point in numbers.
    """

    def __init__(self, message: str, equations: tuple[Any, ...], theta: Any) -> None:
        super().__init__(message)
        self.equations = equations
        self.theta = theta


class ConstantFeatureWarning(DynalyzeWarning):
    """A feature has the same value everywhere, so what is learned on it may not be meant."""


class FrozenParametersWarning(DynalyzeWarning):
    """Parameters that would train in the network are in no product, so they stay as they are."""


class KernelCacheWarning(DynalyzeWarning):
    """No cache folder can be written, so code is compiled again in every process."""


class StagesOverlapWarning(DynalyzeWarning):
    """The given initialization is not small enough to separate every stage from the next."""


class LearningRateWarning(DynalyzeWarning):
    """The learning rate is too large: the run diverged, or does not follow the gradient flow."""


class NonSmoothWarning(DynalyzeWarning):
    """The module is not twice continuously differentiable, which Definition 3.1 asks for."""


class UpcastWarning(DynalyzeWarning):
    """A module of lower precision was copied to float64."""


class UnreadableCheckpointWarning(DynalyzeWarning):
    """Some checkpoints of a run could not be read and were left out."""


class UnconfirmedLayoutWarning(DynalyzeWarning):
    """Attention layers are read as their weights' names suggest, which no forward pass confirms."""


class UncountedStepsWarning(DynalyzeWarning):
    """Weights moved after the last step that a tracker was told of."""


class AttentionLeftOutWarning(DynalyzeWarning):
    """Modules that look like attention are not recognised, and so not among the layers."""
