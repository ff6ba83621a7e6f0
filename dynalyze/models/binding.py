"""Turn what a user gives as the model into an `Objective`."""

import sys
from typing import cast

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_positive_int
from dynalyze.models.losses import Loss
from dynalyze.models.protocol import CheckedObjective, Model, Objective

_SCALES = 1e-60, 1e60  # sizes of g at θ = 0 whose squares and products with times floats hold


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
        If `model` is neither, data are missing or superfluous, or an objective of your own
        returns other shapes than `Objective` says.
    """
    objective = _objective(model, data, loss, sample_weight)
    _check_shapes(objective)
    return objective


def check_origin(name: str, value: float, field: FloatArray) -> None:
    """Refuse a loss that is not a number at θ = 0, or whose scale floats do not hold.

    Parameters
    ----------
    name : str
        What has that loss.
    value : float
        The loss at θ = 0.
    field : ndarray, shape (p,)
        g there.

    Raises
    ------
    InvalidInputError
        If one is not finite, or g is neither 0 nor within the range of scales.
    """
    if not (np.isfinite(value) and np.isfinite(field).all()):
        raise InvalidInputError(
            f"{name} has the loss {value:.6g} and the field {field} at θ = 0, where training "
            "starts: both must be finite there; check the loss, and rescale data beyond the range "
            "of floats"
        )
    largest = float(np.abs(field).max(initial=0.0))
    least, most = _SCALES
    if largest > most or 0 < largest < least:
        raise InvalidInputError(
            f"{name} has a field of size {largest:.3g} at θ = 0, beyond {least:g} … {most:g}: "
            f"divide the loss by {largest:.0e}, which changes the unit of flow time alone, or "
            "bring the data to other units"
        )


def _objective(
    model: Model | Objective, data: Data, loss: Loss, sample_weight: ArrayLike | None
) -> Objective:
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
    torch = sys.modules.get("torch")  # where a module exists, it is loaded
    if torch is not None and isinstance(model, torch.nn.Module):
        raise InvalidInputError(
            f"model=<{type(model).__name__}> is a PyTorch module, whose products are not known: "
            "wrap it, dynalyze.models.TorchModel(module, products=[(name_u, name_v), ...])"
        )
    raise InvalidInputError(
        f"model={_shown(model)} is neither a Model (with bind) nor an Objective (with value, field "
        "and hessian_columns): use one of dynalyze.models, or see dynalyze.models.protocol"
    )


def _shown(model: object) -> str:
    """The value in short: arrays given by mistake would fill the screen."""
    return repr(model) if isinstance(model, str | int | float) else f"<{type(model).__name__}>"


def _check_shapes(objective: Objective) -> None:
    """Refuse an objective of the user's own that would end as an error deep inside.

    The library's own have been checked where they were bound, and are not evaluated here.
    """
    if isinstance(objective, CheckedObjective):
        return
    name, p = type(objective).__name__, objective.n_products
    as_positive_int(p, f"{name}.n_products")
    if len(objective.product_names) != p:
        raise InvalidInputError(
            f"{name}.product_names has {len(objective.product_names)} entries for n_products={p}: "
            "give one name per product"
        )
    theta, first = np.zeros(p), np.array([0], dtype=np.int64)
    for call, result, shape in (
        ("field(theta)", objective.field(theta), (p,)),
        ("value_and_field(theta)[1]", objective.value_and_field(theta)[1], (p,)),
        ("hessian_columns(theta, [0])", objective.hessian_columns(theta, first), (p, 1)),
    ):
        is_array = isinstance(result, np.ndarray)
        if not is_array or result.shape != shape:
            received = f"shape {result.shape}" if is_array else f"a {type(result).__name__}"
            raise InvalidInputError(
                f"{name}.{call} returns {received} for n_products={p}: return a NumPy array of "
                f"shape {shape}"
            )
