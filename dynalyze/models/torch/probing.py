"""What the theory asks of a PyTorch module, checked by its values for a few samples."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.torch.calculus import gradient_of
from dynalyze.models.torch.device import is_out_of_memory
from dynalyze.models.torch.inspection import some
from dynalyze.models.torch.network import Network, ProductNetwork
from dynalyze.models.torch.operations import Operations

_TOLERANCE = 1e-9
_STEPS = (1e-4, 1e-6, 1e-2, 1e-8, 1e-10)  # of finite differences: one suits the units of the data
_SLOPE_TOLERANCE = 1e-4  # relative
_NO_SLOPE = 1e-12  # of the loss: what counts as 0
# What a module raises that does not fit its inputs, a loss its outputs.
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)


def probe_of(n_samples: int, most: int = 6) -> torch.Tensor:
    """Indices of a few samples, spread over all of them: neighbours may be alike."""
    spread = np.linspace(0, n_samples - 1, min(n_samples, most))
    return torch.from_numpy(np.unique(spread.astype(np.int64)))


def check_function(evaluate: Network, inputs: torch.Tensor, operations: Operations) -> torch.Tensor:
    """Run h(·; θ) on a few samples, whose outputs are returned, shape (n, ...).

    The operations of the first run are recorded in `operations`.

    Raises
    ------
    InvalidInputError
        If the function fails, is random, mixes samples, changes its input, is not float64
        throughout, or not finite.
    """
    described = f"inputs of shape {tuple(inputs.shape)}, {inputs.dtype}"
    with torch.no_grad(), operations:
        try:
            output: object = evaluate(inputs)
        except _FAILURES as error:
            if is_out_of_memory(error):
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
    lower = sorted(map(str, operations.precisions - {torch.float64, torch.complex128}))
    if lower:
        raise InvalidInputError(
            f"the module computes in {', '.join(lower)} although its weights and inputs are "
            "torch.float64: remove the cast inside forward (softmax(..., dtype=) is one)"
        )
    if inputs._version:
        raise InvalidInputError(
            "the module changes its inputs in place, which are the data: work on a copy, "
            "x = x.clone(), inside forward"
        )
    scale = 1 + float(output.abs().max())
    if not bool(torch.isfinite(output).all()):
        raise InvalidInputError(
            "the module's output is not finite at random products: check X and the module"
        )
    with torch.no_grad():
        _check_repeatable(lambda: evaluate(inputs), output, scale, operations.random)
        for i in range(len(inputs) if len(inputs) > 1 else 0):
            alone = _alone(evaluate, inputs[i : i + 1])
            fits = alone.shape == output[i : i + 1].shape
            if not fits or _largest(alone - output[i : i + 1]) > _TOLERANCE * scale:
                raise InvalidInputError(
                    "the output for a sample depends on the other samples of its batch: the loss "
                    "must be a mean over samples; replace batch statistics by running ones or by "
                    "LayerNorm"
                )
    return output


def _alone(evaluate: Network, sample: torch.Tensor) -> torch.Tensor:
    try:
        return evaluate(sample)
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise InvalidInputError(
            f"the module does not run on one sample alone, of shape {tuple(sample.shape)}: "
            f"{error}; samples are worked through in chunks of any size"
        ) from error


def _check_repeatable(
    again: Callable[[], torch.Tensor], output: torch.Tensor, scale: float, drawn: set[str]
) -> None:
    before = _random_state(output.device)
    # Sums in varying order, as a GPU's atomic additions make them, differ by rounding.
    if not _largest(again() - output) <= _TOLERANCE * scale:
        raise InvalidInputError(
            "two evaluations of the module at the same point differ: L(θ) must be a "
            "function; switch off dropout and other randomness (module.eval())"
        )
    if _random_state(output.device) != before:
        names = f" ({some(sorted(drawn))})" if drawn else ""
        raise InvalidInputError(
            f"the forward pass draws random numbers{names}: L(θ) must be a function; switch off "
            "dropout and other randomness (module.eval())"
        )


def check_products_alone(network: ProductNetwork, inputs: torch.Tensor) -> None:
    """Check that the module sees each pair (u, v) through u ⊙ v alone (Definition 3.1).

    The output at random weights is compared with that at (u ⊙ v, 1), which is how θ is put in,
    and at (−s ⊙ u, −v / s) for random s.

    Raises
    ------
    InvalidInputError
        If it is not so, with the pairs and the size of the difference; or if the output changes
        with none of the pairs.
    """
    rng = np.random.default_rng(1)

    def draw(shape: torch.Size) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(tuple(shape))).to(inputs.device)

    def output(**changed: torch.Tensor) -> torch.Tensor:
        return network.with_weights({**weights, **changed}, lambda module: module(inputs))

    pairs, shapes = network.pairs, network.shapes
    weights = {
        name: draw(shape) for pair, shape in zip(pairs, shapes, strict=True) for name in pair
    }
    wrong, worst, effect = [], 0.0, 0.0
    with torch.no_grad():
        reference = output()
        scale = 1 + float(reference.abs().max())
        for (name_u, name_v), shape in zip(pairs, shapes, strict=True):
            u, v = weights[name_u], weights[name_v]
            factor = torch.exp(draw(shape))
            error = 0.0
            for a, b in ((u * v, torch.ones_like(v)), (-factor * u, -v / factor)):
                difference = _largest(output(**{name_u: a, name_v: b}) - reference)
                error = difference if np.isnan(difference) else max(error, difference)
            if not error <= _TOLERANCE * scale:
                wrong.append(f"({name_u}, {name_v})")
                worst = max(worst, error)
            if not effect:
                effect = _largest(output(**{name_u: factor * u}) - reference)
    if wrong:
        raise InvalidInputError(
            f"the module does not depend on the products alone: with u ⊙ v held fixed its output "
            f"changes by {worst:.1e} for {some(wrong)}. Weights that also enter elsewhere (a norm, "
            "a bias, a weight decay) do not fit f(x; u, v) = h(x; u ⊙ v); choose pairs that do"
        )
    if not effect:
        listed = some([f"({u}, {v})" for u, v in pairs])
        raise InvalidInputError(
            f"the output does not change with {listed}: the module does not use them in forward, "
            "or uses what it computed from them once (a cache, a closure over another module)"
        )


def check_derivatives(
    network: ProductNetwork,
    loss: Callable[[Network], torch.Tensor],
    theta: torch.Tensor,
    *,
    second: bool,
) -> None:
    """Hold autograd's first (and second) derivatives of L(θ) against finite differences.

    They differ where a part of the module is cut off from differentiation, by `detach`, `no_grad`,
    a kept tensor, or a backward of its own. A derivative counts as right if it agrees at one of
    several steps, so that neither the units of the data nor a kink nearby decide.

    Raises
    ------
    InvalidInputError
        If they differ, are not finite, or cannot be had.
    """
    rng = np.random.default_rng(2)
    along, across = (
        torch.from_numpy(d / np.linalg.norm(d)).to(theta.device)
        for d in rng.standard_normal((2, theta.numel()))
    )

    def gradient(point: torch.Tensor) -> torch.Tensor:
        point = point.detach().requires_grad_()
        return network.at(point, lambda module: gradient_of(loss(module), point))

    def curves(point: torch.Tensor) -> torch.Tensor:
        point = point.detach().requires_grad_()

        def twice(module: Network) -> torch.Tensor:
            return gradient_of(gradient_of(loss(module), point, graph=True) @ across, point)

        return network.at(point, twice)

    def loss_at(point: torch.Tensor) -> float:
        with torch.no_grad():
            return float(network.at(point, loss))

    orders: list[tuple[str, Callable[[], torch.Tensor], Callable[[torch.Tensor], float]]] = [
        ("gradient", lambda: gradient(theta), loss_at)
    ]
    if second:
        orders.append(
            (
                "second derivative",
                lambda: curves(theta),
                lambda point: float(gradient(point) @ across),
            )
        )
    for name, derivative, below in orders:
        try:
            given = float(derivative() @ along)
        except _FAILURES as error:
            if is_out_of_memory(error):
                raise
            raise InvalidInputError(
                f"the {name} of the loss cannot be had by autograd: {error}; the theory asks for "
                "two derivatives in θ. A checkpoint needs use_reentrant=False, a function with a "
                "backward of its own a backward that differentiates again"
            ) from error
        if not np.isfinite(given):
            raise InvalidInputError(
                f"the {name} of the loss is {given} at random products: check X and the module"
            )
        wrong = _contradicting_slope(given, below, theta, along, _NO_SLOPE * abs(loss_at(theta)))
        if wrong is not None:
            raise InvalidInputError(
                f"the {name} of the loss is {given:.6g} by autograd and {wrong:.6g} by finite "
                "differences, in the same direction: a part of the module or of the loss is cut "
                "off (detach, no_grad, item, a checkpoint with use_reentrant=True), or has a "
                "backward of its own that is not the derivative of its forward. The flow follows "
                "the derivative: remove what cuts it"
            )


def _contradicting_slope(
    given: float,
    f: Callable[[torch.Tensor], float],
    theta: torch.Tensor,
    along: torch.Tensor,
    zero: float,
) -> float | None:
    """Slope of `f` by differences that can be relied on, if none of any step confirms `given`.

    They are relied on where those over a step and over twice the step agree, and rounding is small.
    """
    wrong = None
    for step in _STEPS:
        near, far = ((f(theta + h * along), f(theta - h * along)) for h in (step, 2 * step))
        over_one, over_two = (near[0] - near[1]) / (2 * step), (far[0] - far[1]) / (4 * step)
        slope = (4 * over_one - over_two) / 3
        size = max(abs(given), abs(slope))
        if abs(given - slope) <= _SLOPE_TOLERANCE * size + zero:
            return None
        rounding = 10 * np.finfo(np.float64).eps * max(map(abs, (*near, *far))) / step
        alike = abs(over_one - over_two) <= 1e-3 * abs(over_one) + rounding
        if alike and rounding <= _SLOPE_TOLERANCE * size:
            wrong = slope if wrong is None else wrong
    return wrong


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _random_state(device: torch.device) -> tuple[object, ...]:
    """State of every generator that a forward pass may draw from by default."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002  (what a module may use)
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    drawn = (numpy_state[1].tobytes(), numpy_state[2:], random.getstate())
    return *drawn, *(state.numpy().tobytes() for state in states)
