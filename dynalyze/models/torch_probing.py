"""What the theory asks of a PyTorch module, checked by its outputs for a few samples."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch.overrides import TorchFunctionMode

from dynalyze._torch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.torch_inspection import some

_NON_SMOOTH_OPERATIONS = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "threshold"),
        *("hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "hardshrink", "softshrink"),
        *("abs", "abs_", "absolute", "__abs__", "sign", "clamp", "clamp_", "clip", "maximum"),
        *("minimum", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"),
    }
)
_TOLERANCE = 1e-9


class _Operations(TorchFunctionMode):
    """Record the names of the torch functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def check_function(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    n_products: int,
) -> torch.Tensor:
    """Run h(x; θ) on a few samples; return the outputs at a random θ.

    Returns
    -------
    Tensor, shape (n, ...)
        Outputs of the first samples.

    Raises
    ------
    InvalidInputError
        If the function fails, is random, mixes samples, is not float64, or not finite.
    """
    rng = np.random.default_rng(0)  # a probe: any generic point serves
    theta = torch.from_numpy(rng.standard_normal(n_products)).to(inputs.device)
    described = f"inputs of shape {tuple(inputs.shape)}, {inputs.dtype}"
    with torch.no_grad():
        try:
            output: object = function(inputs, theta)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InvalidInputError(
                f"the module does not run on {described}: {error}; X must be one tensor whose "
                "first axis counts the samples"
            ) from error
        if not isinstance(output, torch.Tensor) or output.ndim == 0 or len(output) != len(inputs):
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output)
            raise InvalidInputError(
                f"the module returns {shape} for {described}: one tensor whose first axis counts "
                "the samples is needed; wrap the module to return it"
            )
        if output.dtype != torch.float64:
            raise InvalidInputError(
                f"the module returns {output.dtype} although its weights and inputs are "
                "torch.float64: remove the cast inside forward"
            )
        if not torch.equal(function(inputs, theta), output):
            raise InvalidInputError(
                "two evaluations of the module at the same point differ: L(θ) must be a "
                "function; switch off dropout and other randomness (module.eval())"
            )
        alone = function(inputs[:1], theta)
    scale = 1 + float(output.abs().max())
    if not bool(torch.isfinite(output).all()):
        raise InvalidInputError(
            "the module's output is not finite at random products: check X and the module"
        )
    if float((alone - output[:1]).abs().max()) > _TOLERANCE * scale:
        raise InvalidInputError(
            "the output for a sample depends on the other samples of its batch: the loss must be "
            "a mean over samples; replace batch statistics by running ones or by LayerNorm"
        )
    return output


def non_smooth_operations(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    n_products: int,
) -> tuple[str, ...]:
    """Names of the operations of one forward pass that are not twice differentiable."""
    theta = torch.full((n_products,), 0.5, dtype=torch.float64, device=inputs.device)
    recorder = _Operations()
    with torch.no_grad(), recorder:
        function(inputs, theta)
    return tuple(sorted(recorder.names & _NON_SMOOTH_OPERATIONS))


def check_products_alone(
    call: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor],
    pairs: Sequence[tuple[str, str]],
    shapes: Sequence[torch.Size],
    inputs: torch.Tensor,
) -> None:
    """Check that the module sees each pair (u, v) through u ⊙ v alone (Definition 3.1).

    The output at random weights is compared with that at (u ⊙ v, 1), which is how θ is put in,
    and at (−s ⊙ u, −v / s) for random s.

    Raises
    ------
    InvalidInputError
        If it is not so; the message names the pairs and the size of the difference.
    """
    rng = np.random.default_rng(1)
    device = inputs.device

    def draw(shape: torch.Size) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(tuple(shape))).to(device)

    weights = {
        name: draw(shape) for pair, shape in zip(pairs, shapes, strict=True) for name in pair
    }
    with torch.no_grad():
        reference = call(weights, inputs)
        scale = 1 + float(reference.abs().max())
        wrong, worst = [], 0.0
        for (name_u, name_v), shape in zip(pairs, shapes, strict=True):
            u, v = weights[name_u], weights[name_v]
            factor = torch.exp(draw(shape))
            error = max(
                float((call({**weights, name_u: a, name_v: b}, inputs) - reference).abs().max())
                for a, b in ((u * v, torch.ones_like(v)), (-factor * u, -v / factor))
            )
            if not error <= _TOLERANCE * scale:
                wrong.append(f"({name_u}, {name_v})")
                worst = max(worst, error)
    if wrong:
        raise InvalidInputError(
            f"the module does not depend on the products alone: with u ⊙ v held fixed its output "
            f"changes by {worst:.1e} for {some(wrong)}. Weights that also enter elsewhere (a norm, "
            "a bias, a weight decay) do not fit f(x; u, v) = h(x; u ⊙ v); choose pairs that do"
        )
