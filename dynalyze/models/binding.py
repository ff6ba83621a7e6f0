"""Turn what a user gives as the model into an `Objective`."""

from typing import cast

from dynalyze._typing import ArrayLike, Data
from dynalyze.errors import InvalidInputError
from dynalyze.models.losses import Loss
from dynalyze.models.protocol import Model, Objective


def bind(
    model: Model | Objective,
    data: Data = None,
    *,
    loss: Loss = "squared",
    sample_weight: ArrayLike | None = None,
) -> Objective:
    """Bind `model` to `data`, or pass an `Objective`, which has its data, through.

    Raises
    ------
    InvalidInputError
        If `model` is neither, or data are missing or superfluous.
    """
    if isinstance(model, type):
        raise InvalidInputError(
            f"model={model.__name__} is a class: give an instance, such as {model.__name__}(4)"
        )
    if isinstance(model, Model):
        if data is None:
            raise InvalidInputError(
                f"data=None: {type(model).__name__} needs a pair of arrays (X, y)"
            )
        # A model that takes names alone refuses a function itself.
        return model.bind(data, loss=cast(str, loss), sample_weight=sample_weight)
    if isinstance(model, Objective):
        if data is not None or sample_weight is not None:
            raise InvalidInputError(
                f"model={type(model).__name__} is an Objective, which brings its data, loss and "
                "weights: leave out data and sample_weight, or give a Model"
            )
        return model
    raise InvalidInputError(
        f"model={_shown(model)} is neither a Model (with bind) nor an Objective (with value, field "
        "and hessian_columns): use one of dynalyze.models, or see dynalyze.models.protocol"
    )


def _shown(model: object) -> str:
    """The value in short: arrays given by mistake would fill the screen."""
    return repr(model) if isinstance(model, str | int | float) else f"<{type(model).__name__}>"
