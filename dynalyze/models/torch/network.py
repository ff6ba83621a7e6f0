"""h(x; θ) of a PyTorch module or function, with θ put in for as long as it is needed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeAlias, TypeVar

from dynalyze._core.pytorch import torch
from dynalyze.models.torch.device import private_copy

Function: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""h(x; θ) as ``function(x, theta)``: inputs (n, ...) and θ (p,) to outputs (n, ...)."""
Network: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""h(·; θ) for one θ: inputs (n, ...) to outputs (n, ...)."""
_Result = TypeVar("_Result")


class _Slots:
    """Where a module keeps the parameters of some names, looked up once.

    `torch.func.functional_call` looks up all names of a module in every call, which takes as long
    as evaluating a small one.
    """

    def __init__(self, module: torch.nn.Module, names: Iterable[str]) -> None:
        self._module = module
        everything = list(module.named_parameters(remove_duplicate=False))
        own = dict(everything)
        self._places = []  # name, the part of the module that has it, its name there
        for name in names:
            for path, parameter in everything:
                if parameter is own[name]:  # tied ones have several paths
                    part, _, attribute = path.rpartition(".")
                    self._places.append((name, module.get_submodule(part), attribute))

    def filled(
        self, weights: Mapping[str, torch.Tensor], action: Callable[[Network], _Result]
    ) -> _Result:
        """Return ``action(module)`` with `weights` in the slots until it returns or raises."""
        before = [part._parameters[attribute] for _, part, attribute in self._places]
        try:
            for name, part, attribute in self._places:
                part._parameters[attribute] = weights[name]  # type: ignore[assignment]
            return action(self._module)
        finally:
            for (_, part, attribute), parameter in zip(self._places, before, strict=True):
                part._parameters[attribute] = parameter


@dataclass(frozen=True)
class ProductNetwork:
    """h(x; θ): a module evaluated at u = θ and v = 1, or a function of x and θ."""

    module: torch.nn.Module  # private, frozen; empty for a function
    n_products: int
    device: torch.device
    pairs: tuple[tuple[str, str], ...] = ()
    shapes: tuple[torch.Size, ...] = ()  # of one parameter of each pair
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)  # the caller's own, by name
    function: Function | None = None
    dtype: torch.dtype = torch.float64  # of the module, of θ and of the inputs

    def at(self, theta: torch.Tensor, action: Callable[[Network], _Result]) -> _Result:
        """Return ``action(network)`` for the network h(·; θ).

        Derivatives are taken within `action`: a checkpoint computes again what it left out, and
        must find θ in place when it does.
        """
        theta = theta.to(self.dtype)
        if self.function is not None:
            function = self.function
            return action(lambda inputs: function(inputs, theta))
        weights = {}
        for (name_u, name_v), value in zip(self.pairs, self.split(theta), strict=True):
            weights[name_u] = value
            weights[name_v] = torch.ones_like(value)
        return self.with_weights(weights, action)

    def with_weights(
        self, weights: dict[str, torch.Tensor], action: Callable[[Network], _Result]
    ) -> _Result:
        """Return ``action(module)`` with `weights` in place of all that belong to `pairs`."""
        return self._slots.filled(weights, action)

    @cached_property
    def _slots(self) -> _Slots:
        return _Slots(self.module, [name for pair in self.pairs for name in pair])

    def split(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """Cut θ, shape (p,), into the tensors of the pairs, each in its shape."""
        ends = accumulate((shape.numel() for shape in self.shapes), initial=0)
        return [
            theta[start:stop].view(shape)
            for (start, stop), shape in zip(pairwise(ends), self.shapes, strict=True)
        ]

    def anew(self) -> "ProductNetwork":
        """The same with a copy of the module, whose state nothing else shares."""
        return self.in_type(self.dtype)

    def in_type(self, dtype: torch.dtype) -> "ProductNetwork":
        """The same with module, θ and inputs of another type of numbers."""
        return replace(self, module=private_copy(self.module, self.device, dtype), dtype=dtype)


def with_weights(
    module: torch.nn.Module,
    weights: dict[str, torch.Tensor],
    action: Callable[[Network], _Result],
) -> _Result:
    """Return ``action(module)`` with `weights` in place of the module's own until it returns."""
    return _Slots(module, weights).filled(weights, action)


def loss_in(
    loss: Callable[..., torch.Tensor], dtype: torch.dtype, device: torch.device
) -> Callable[..., torch.Tensor]:
    """A loss whose own tensors, if it is a module, are on `device` in `dtype`."""
    return private_copy(loss, device, dtype) if isinstance(loss, torch.nn.Module) else loss
