"""What a training run needs of a model: the weights that train, and what is recorded of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from dynalyze._core.arrays import Data
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization, check_initialization
from dynalyze.models.attention_head import AttentionHead
from dynalyze.models.data import as_positive_int
from dynalyze.models.torch.device import private_copy, usable_device
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.model import TorchModel
from dynalyze.training.heads import DiagonalHead, FullHead

# α² is the size of the first products: below this scale it leaves the range of the numbers.
_SMALLEST_LOG10_ALPHA = {torch.float64: -150.0, torch.float32: -18.0}
# Small singular directions lie in the entries of active ones, and above the rounding of these.
_SMALLEST_LOG10_ALPHA_UNGRADED = {torch.float64: -12.0, torch.float32: -3.0}

Weights = dict[str, torch.Tensor]
"""Trained parameters by name, each (*shape) or, for many runs at once, (n_runs, *shape)."""


@dataclass(frozen=True)
class Trainable:
    """A module, the pairs of parameters that train, and the quantities that are recorded."""

    model: TorchModel  # holds the module, frozen, in float64
    pairs: tuple[tuple[str, str], ...]
    shapes: tuple[torch.Size, ...]  # of one parameter of each pair
    matrices: bool  # products A Bᵀ, recorded by singular values, instead of u ⊙ v
    product_names: tuple[str, ...]  # of what is recorded
    module: torch.nn.Module  # what is evaluated: that of `model`, or a copy in lower precision
    dtype: torch.dtype = torch.float64  # of the weights that train

    def __call__(self, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
        """Output of the module with `weights` in place of its own."""
        output: torch.Tensor = torch.func.functional_call(self.module, weights, (inputs,))
        return output

    def in_precision(self, dtype: torch.dtype) -> "Trainable":
        """The same with weights, module and inputs of `dtype`."""
        module = private_copy(self.model.module, self.model.device, dtype)
        return replace(self, module=module, dtype=dtype)

    def observe(self, weights: Weights) -> torch.Tensor:
        """Products, or singular values of the matrix products; float64, (..., n_recorded)."""
        parts = []
        for (u, v), shape in zip(self.pairs, self.shapes, strict=True):
            a, b = weights[u].double(), weights[v].double()
            if self.matrices:
                parts.append(_singular_values(a @ b.mT)[..., : min(shape)])
            else:
                product = a * b
                parts.append(product.reshape(*product.shape[: product.ndim - len(shape)], -1))
        return torch.cat(parts, -1)

    def needs_grading(self, init: Initialization) -> bool:
        """Whether rounding would show, unless columns are graded (`dynalyze.training.graded`)."""
        return self.matrices and init.log10_alpha < _SMALLEST_LOG10_ALPHA_UNGRADED[self.dtype]

    def initial_weights(self, init: Initialization, *, graded: bool = False) -> Weights:
        """α u0 and α v0, cut into the parameters; `graded` says that they will be graded by size.

        Raises
        ------
        InvalidInputError
            If the number of weights does not fit, or α leaves the range of float64.
        """
        n_weights = sum(shape.numel() for shape in self.shapes)
        check_initialization(init, n_weights)
        if init.n_products != n_weights:
            raise InvalidInputError(
                f"init has {init.n_products} entries in u0 and in v0, and the model {n_weights}: "
                "give one for each"
            )
        ungraded = self.needs_grading(init) and not graded
        limits = _SMALLEST_LOG10_ALPHA_UNGRADED if ungraded else _SMALLEST_LOG10_ALPHA
        least = limits[self.dtype]
        if init.log10_alpha < least:
            reason = (
                "rounding of the active directions would seed the others above it; plain "
                "gradient descent can be followed there in float64, optimizer='gd' or 'sgd' "
                "without options"
                if ungraded
                else f"the products α² would leave the range of {str(self.dtype)[6:]}; use "
                "dynalyze.simulate, which works in log coordinates"
            )
            raise InvalidInputError(
                f"log10_alpha={init.log10_alpha:g} is below {least:g}, where {reason}"
            )
        alpha = 10.0**init.log10_alpha
        u, v = alpha * init.u0, alpha * init.v0
        ends = np.cumsum([0, *(shape.numel() for shape in self.shapes)])
        weights: Weights = {}
        for (name_u, name_v), shape, (start, stop) in zip(
            self.pairs, self.shapes, pairwise(ends), strict=True
        ):
            for name, values in ((name_u, u), (name_v, v)):
                part = torch.from_numpy(values[start:stop].copy()).view(shape)
                weights[name] = part.to(self.model.device, self.dtype)
        return weights

    def own_initialization(self) -> Initialization:
        """The module's own weights as an initialization; α is their root mean square."""
        return Initialization.from_weights(*self.model.weights())


def as_trainable(model: object, *, device: str | torch.device | None = None) -> Trainable:
    """What `train` makes of a model.

    Raises
    ------
    InvalidInputError
        If the model is neither a `TorchModel`, an `AttentionHead`, nor a module that declares
        its products.
    """
    if isinstance(model, AttentionHead):
        model = DiagonalHead(model.d_model, rng=0)
    if isinstance(model, TorchModel):
        if not model.products:
            raise InvalidInputError(
                "model is a function h(x; θ), which has no weights to train: give a module and "
                "the names of its products"
            )
        placed = model
        if device is not None and usable_device(device) != model.device:
            placed = TorchModel(model.module, model.products, device=device, parameters="frozen")
        return _trainable(placed, model.products, False, model.product_names)
    if isinstance(model, torch.nn.Module):
        names: Sequence[str] = getattr(model, "product_names", ())
        if isinstance(model, FullHead):
            # The products of matrices are no elementwise ones: the pairs are checked alike.
            inner = TorchModel(model, model.matrix_products, device=device)
            return _trainable(inner, model.matrix_products, True, tuple(names))
        declared: Sequence[tuple[str, str]] = getattr(model, "products", ())
        if declared:
            inner = TorchModel(model, declared, product_names=names or None, device=device)
            return _trainable(inner, inner.products, False, inner.product_names)
    raise InvalidInputError(
        f"model is of type {type(model).__name__}, whose products are not known: wrap it in "
        "TorchModel(module, products=[(name_u, name_v), ...])"
    )


def checked_samples(
    trainable: Trainable, data: Data, loss: str | SampleLoss
) -> tuple[torch.Tensor, torch.Tensor, SampleLoss]:
    """Inputs and targets on the CPU, and the loss per sample; checked as `TorchModel.bind` does."""
    return trainable.model.prepare(data, loss=loss, products_alone=not trainable.matrices)


def flow_time_per_step(lr: float, optimizer_options: Mapping[str, Any] | None) -> float:
    """Flow time of one step of gradient descent: lr, or lr/(1 − β) with heavy-ball momentum β.

    With dampening d the velocity takes up (1 − d) of each gradient, and so of the time.
    """
    given = optimizer_options or {}
    momentum, dampening = given.get("momentum", 0.0), given.get("dampening", 0.0)
    if not (isinstance(momentum, float) and isinstance(dampening, float | int)):
        return lr  # no momentum, or what the optimizer refuses itself
    return lr * (1 - dampening) / (1 - momentum) if 0 < momentum < 1 else lr


def flow_steps(steps: int | None, until: float | None, lr: float) -> int:
    """Number of steps from `steps`, or from the flow time `until` at t = lr × step."""
    if (steps is None) == (until is None):
        raise InvalidInputError(
            f"steps={steps!r} and until={until!r}: give exactly one of the two, a number of "
            "optimizer steps or a flow time t = lr × steps"
        )
    if not (0 < lr < math.inf):
        raise InvalidInputError(f"lr={lr!r} must be a positive number")
    if steps is not None:
        return as_positive_int(steps, "steps")
    if until is None or not (0 < until < math.inf):
        raise InvalidInputError(f"until={until!r}: must be a positive flow time")
    return max(1, math.ceil(until / lr - 1e-9))


def _trainable(
    model: TorchModel, pairs: tuple[tuple[str, str], ...], matrices: bool, names: tuple[str, ...]
) -> Trainable:
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    shapes = tuple(parameters[u].shape for u, _ in pairs)
    return Trainable(model, pairs, shapes, matrices, names, model.module)


def _singular_values(products: torch.Tensor) -> torch.Tensor:
    """Singular values; NaN for matrices that are not finite, which LAPACK refuses for all."""
    finite = products.isfinite().all(-1).all(-1)[..., None]
    values: torch.Tensor = torch.linalg.svdvals(torch.where(finite[..., None], products, 0.0))
    return torch.where(finite, values, torch.nan)
