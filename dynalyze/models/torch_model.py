"""Any PyTorch module in which pairs of parameters enter as elementwise products."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np

from dynalyze._torch import torch
from dynalyze._typing import ArrayLike, Data, FloatArray
from dynalyze._warn import warn
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_positive_int, normalized_sample_weight
from dynalyze.models.losses import squared_loss_factor
from dynalyze.models.torch_data import gather
from dynalyze.models.torch_device import default_budget, private_copy, usable_device
from dynalyze.models.torch_inspection import (
    NonSmoothWarning,
    UpcastWarning,
    check_modules,
    check_pairs,
    names_of_entries,
    some,
)
from dynalyze.models.torch_loss import SampleLoss, checked_loss, float_targets, squared_loss
from dynalyze.models.torch_objective import Function, TorchObjective, differentiable_attention
from dynalyze.models.torch_probing import (
    check_function,
    check_products_alone,
    non_smooth_operations,
)

_PROBE_SAMPLES = 4


class TorchModel:
    """A module f(x; u, v) = h(x; u ⊙ v) (Definition 3.1 of arXiv 2306.07042).

    The products alone are what trains: the module's other parameters stay at their values.
    The module is copied, in float64; the caller's own is not changed, and later changes to it
    are not seen.

    Parameters
    ----------
    module : torch.nn.Module
        Takes a batch of inputs, returns a batch of outputs.
    products : sequence of pairs of str
        Names of the parameters (u, v) of each product, as in ``module.named_parameters()``:
        ``[("head.w_k", "head.w_q"), ("head.w_v", "head.w_o")]``. The two are of one shape. θ is
        the concatenation of the flattened products, in this order.
    product_names : sequence of str, optional
        One name per product entry (p of them), or one per pair, to which the index is added.
        By default ``head.w_k*head.w_q[3]``.
    device : str or torch.device, optional
        Where to compute; by default where the module is.
    memory_budget : int, optional
        Bytes that one pass may take: samples and Hessian columns are worked through in chunks
        that fit. By default 64 MiB on a CPU, near its caches, half of the free memory on a GPU.

    Raises
    ------
    InvalidInputError
        For names that the module has not (close matches are listed), unequal shapes, active
        dropout, or batch normalization in training mode.

    Warns
    -----
    UpcastWarning
        If the module is of lower precision than float64.
    NonSmoothWarning
        If it contains ReLU or another module that is not twice differentiable.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        products: Sequence[tuple[str, str]],
        *,
        product_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        memory_budget: int | None = None,
    ) -> None:
        given: object = module
        if not isinstance(given, torch.nn.Module):
            raise InvalidInputError(
                f"module is of type {type(module).__name__}, not a torch.nn.Module: "
                "for a function h(x; θ) use TorchModel.from_function"
            )
        pairs = check_pairs(module, products)
        non_smooth, low_precision = check_modules(module)
        if non_smooth:
            warn(
                f"{some(non_smooth)}: not twice differentiable, which Definition 3.1 asks for; "
                "stages predicted may be wrong where an activation changes sign. Use GELU, SiLU "
                "or Softplus",
                NonSmoothWarning,
            )
        if low_precision:
            warn(
                f"{some(low_precision)}: copied to float64, in which all stages are computed",
                UpcastWarning,
            )
        first = next(module.parameters())
        self._device = usable_device(device if device is not None else first.device)
        self._module = private_copy(module, self._device)
        self._pairs = pairs
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        self._shapes = tuple(parameters[u].shape for u, _ in pairs)
        ends = np.cumsum([0, *(shape.numel() for shape in self._shapes)])
        self._slices = tuple(slice(int(a), int(b)) for a, b in pairwise(ends))
        labels = [f"{u}*{v}" for u, v in pairs]
        self._names = names_of_entries(product_names, labels, self._shapes)
        self._function: Function = self._evaluate
        self._budget = memory_budget
        self._non_smooth = non_smooth

    @classmethod
    def from_function(
        cls,
        function: Function,
        n_products: int,
        *,
        product_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        memory_budget: int | None = None,
    ) -> Self:
        """Take h(x; θ) itself, as ``function(x, theta)`` of torch tensors.

        Parameters
        ----------
        function : callable
            Maps inputs of shape (n, ...) and `theta` of shape (p,), both float64, to outputs
            of shape (n, ...).
        n_products : int
            Number p of products.
        product_names : sequence of str, optional
            p names, or one to which the index is added; by default ``theta[3]``.
        device, memory_budget
            As for `TorchModel`.

        Raises
        ------
        InvalidInputError
            If `function` cannot be called, or `n_products` or the names do not fit.
        """
        if not callable(function):
            raise InvalidInputError(
                f"function is of type {type(function).__name__}: a callable (x, theta) -> output "
                "is needed"
            )
        n_products = as_positive_int(n_products, "n_products")
        self = cls.__new__(cls)
        self._device = usable_device(device if device is not None else "cpu")
        self._module = torch.nn.Module()
        self._pairs = ()
        self._shapes = ()
        self._slices = ()
        self._names = names_of_entries(product_names, ["theta"], [torch.Size([n_products])])
        self._function = function
        self._budget = memory_budget
        self._non_smooth = ()
        return self

    def __repr__(self) -> str:
        what = type(self._module).__name__ if self._pairs else "function"
        return f"TorchModel({what}, n_products={self.n_products})"

    @property
    def n_products(self) -> int:
        """Number p of products."""
        return len(self._names)

    @property
    def product_names(self) -> tuple[str, ...]:
        """Readable name of each product; length p."""
        return self._names

    @property
    def non_smooth(self) -> tuple[str, ...]:
        """Parts of the module that are not twice differentiable, such as ReLU."""
        return self._non_smooth

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._device

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        """Names of the parameters (u, v) of each product; empty for a function h(x; θ)."""
        return self._pairs

    @property
    def module(self) -> torch.nn.Module:
        """The float64 copy of the module that is evaluated; its parameters do not change."""
        return self._module

    def weights(self) -> tuple[FloatArray, FloatArray]:
        """The module's own values of u and v, each of shape (p,), flattened as θ is.

        Raises
        ------
        InvalidInputError
            If the model is a function h(x; θ), which has no weights.
        """
        if not self._pairs:
            raise InvalidInputError(
                "the model is a function h(x; θ) and has no weights u and v: draw them by "
                "Initialization.gaussian"
            )
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        u, v = (
            np.concatenate(
                [parameters[pair[side]].detach().cpu().numpy().ravel() for pair in self._pairs]
            )
            for side in (0, 1)
        )
        return u, v

    def split(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """Cut θ, shape (p,), into the tensors of the pairs, each in its shape."""
        return [
            theta[part].view(shape) for part, shape in zip(self._slices, self._shapes, strict=True)
        ]

    def bind(
        self,
        data: Data,
        *,
        loss: str | SampleLoss = "squared",
        sample_weight: ArrayLike | None = None,
    ) -> TorchObjective:
        """Return the loss on `data` as a function of the products.

        In a torchrun job every rank passes the same data and keeps its share of the samples.

        Parameters
        ----------
        data : pair (X, y) of arrays or tensors, torch Dataset or DataLoader
            A loader is read once, to the end; floating-point data become float64, integers
            (token numbers, class labels) stay integers.
        loss : {"squared", "mse"} or callable
            ``"squared"`` is the mean over samples of ½‖y − f(x)‖², summed over output entries;
            ``"mse"`` is torch.nn.MSELoss. A callable ``loss(output, target)`` returns one
            twice differentiable loss per sample, shape (n,); L is their mean.
        sample_weight : array_like, shape (n_samples,), optional
            Non-negative weights; the mean over samples becomes a weighted mean.

        Raises
        ------
        InvalidInputError
            If the module does not run on the data, is random, mixes the samples of a batch, or
            does not depend on the products alone.

        Warns
        -----
        NonSmoothWarning
            If an operation of the forward pass is not twice differentiable.
        """
        inputs, targets, sample_loss = self.prepare(data, loss=loss)
        weights = normalized_sample_weight(sample_weight, len(inputs))
        budget = self._budget if self._budget is not None else default_budget(self._device)
        return TorchObjective(
            self._function,
            inputs,
            targets,
            sample_weight=torch.from_numpy(weights),
            loss=sample_loss,
            product_names=self._names,
            device=self._device,
            memory_budget=budget,
            non_smooth=self._kinks(inputs),
        )

    def prepare(
        self, data: Data, *, loss: str | SampleLoss = "squared", products_alone: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, SampleLoss]:
        """Check the module on the data; return inputs and targets on the CPU, and the loss.

        This is the first half of `bind`, which explains the parameters and what is raised.
        `products_alone` is False for weights that enter otherwise than as elementwise products.
        """
        inputs, targets = gather(data)
        probe = inputs[:_PROBE_SAMPLES].to(self._device)
        with differentiable_attention():
            output = check_function(self._function, probe, self.n_products)
            if self._pairs and products_alone:
                check_products_alone(self._call, self._pairs, self._shapes, probe)
        # Modules with kinks were named when the model was made.
        if found := () if self._non_smooth else self._kinks(inputs):
            warn(
                f"the forward pass uses {some(found)}: not twice differentiable, which "
                "Definition 3.1 asks for; stages predicted may be wrong where its argument "
                "changes sign. Use GELU, SiLU or Softplus",
                NonSmoothWarning,
            )
        if callable(loss):
            sample_loss = checked_loss(loss, output, targets[:_PROBE_SAMPLES].to(self._device))
        else:
            targets = float_targets(targets, output, len(inputs))
            sample_loss = squared_loss(squared_loss_factor(loss, output[0].numel()))
        return inputs, targets, sample_loss

    def _kinks(self, inputs: torch.Tensor) -> tuple[str, ...]:
        """Modules, or else operations of a forward pass, that are not twice differentiable."""
        probe = inputs[:_PROBE_SAMPLES].to(self._device)
        with differentiable_attention():
            return self._non_smooth or non_smooth_operations(self._function, probe, self.n_products)

    def _evaluate(self, inputs: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """h(x; θ) with u = θ and v = 1, exact where the module sees the products alone."""
        weights = {}
        for (name_u, name_v), value in zip(self._pairs, self.split(theta), strict=True):
            weights[name_u] = value
            weights[name_v] = torch.ones_like(value)
        return self._call(weights, inputs)

    def _call(self, weights: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.func.functional_call(self._module, weights, (inputs,))
        return output
