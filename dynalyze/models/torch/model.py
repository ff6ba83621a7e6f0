"""Any PyTorch module in which pairs of parameters enter as elementwise products."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray
from dynalyze._core.collectives import every_rank, world
from dynalyze._core.pytorch import torch
from dynalyze._core.warn import warn
from dynalyze.errors import InvalidInputError, NonSmoothWarning, UpcastWarning
from dynalyze.models.data import as_positive_int, normalized_sample_weight
from dynalyze.models.torch.data import fingerprint, fingerprint_besides, refuse_other_order
from dynalyze.models.torch.device import converted, private_copy, type_named, usable_device
from dynalyze.models.torch.inspection import (
    check_modules,
    check_outside,
    check_pairs,
    names_of_entries,
    some,
)
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.network import Function, ProductNetwork, loss_in
from dynalyze.models.torch.objective import TorchObjective, relative_difference
from dynalyze.models.torch.preparation import prepared

_COMPARED = 64  # samples on which float32 is held against float64


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
        that fit. By default 64 MiB on a CPU, near its caches; on a GPU the data may take half of
        the free memory, and a pass half of what then remains.
    precision : {"float64", "float32"}
        Type in which a pass computes; sums over samples are in float64 in any case. In float32
        the relative error of the field is measured when data are bound, and stated as
        `TorchObjective.rounding`.
    parameters : "frozen", optional
        Says that trainable parameters outside `products` are meant to stay at their values.

    Raises
    ------
    InvalidInputError
        For names that the module has not (close matches are listed), unequal shapes, active
        dropout, batch normalization in training mode, or a module that cannot be copied.

    Warns
    -----
    FrozenParametersWarning
        If parameters outside `products` have ``requires_grad``, unless ``parameters="frozen"``:
        where they train too, stages and times are others.
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
        precision: Literal["float64", "float32"] = "float64",
        parameters: Literal["frozen"] | None = None,
    ) -> None:
        given: object = module
        if not isinstance(given, torch.nn.Module):
            raise InvalidInputError(
                f"module is of type {type(module).__name__}, not a torch.nn.Module: "
                "for a function h(x; θ) use TorchModel.from_function"
            )
        pairs = check_pairs(module, products)
        non_smooth, low_precision = check_modules(module)
        check_outside(module, pairs, parameters)
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
        where = usable_device(device if device is not None else first.device)
        with torch.inference_mode(False):
            private = private_copy(module, where)
        given = {name: module.get_parameter(name) for pair in pairs for name in pair}
        shapes = tuple(given[u].shape for u, _ in pairs)
        self._names = names_of_entries(product_names, [f"{u}*{v}" for u, v in pairs], shapes)
        self._network = ProductNetwork(private, len(self._names), where, pairs, shapes, given)
        self._budget = memory_budget
        self._dtype = type_named(precision)
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
        precision: Literal["float64", "float32"] = "float64",
    ) -> Self:
        """Take h(x; θ) itself, as ``function(x, theta)`` of torch tensors.

        Parameters
        ----------
        function : callable
            Maps inputs of shape (n, ...) and `theta` of shape (p,), both float64, to outputs
            of shape (n, ...); likewise in float32 if `precision` says so.
        n_products : int
            Number p of products.
        product_names : sequence of str, optional
            p names, or one to which the index is added; by default ``theta[3]``.
        device, memory_budget, precision
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
        where = usable_device(device if device is not None else "cpu")
        self._network = ProductNetwork(torch.nn.Module(), n_products, where, function=function)
        self._names = names_of_entries(product_names, ["theta"], [torch.Size([n_products])])
        self._budget = memory_budget
        self._dtype = type_named(precision)
        self._non_smooth = ()
        return self

    def __repr__(self) -> str:
        what = type(self.module).__name__ if self.products else "function"
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
        return self._network.device

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        """Names of the parameters (u, v) of each product; empty for a function h(x; θ)."""
        return self._network.pairs

    @property
    def module(self) -> torch.nn.Module:
        """The float64 copy of the module that is evaluated; its parameters do not change."""
        return self._network.module

    def weights(self) -> tuple[FloatArray, FloatArray]:
        """The module's own values of u and v, each of shape (p,), flattened as θ is.

        Raises
        ------
        InvalidInputError
            If the model is a function h(x; θ), which has no weights.
        """
        if not self.products:
            raise InvalidInputError(
                "the model is a function h(x; θ) and has no weights u and v: draw them by "
                "Initialization.gaussian"
            )
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        u, v = (
            np.concatenate(
                [parameters[pair[side]].detach().cpu().numpy().ravel() for pair in self.products]
            )
            for side in (0, 1)
        )
        return u, v

    def bind(
        self,
        data: Data,
        *,
        loss: str | SampleLoss = "squared",
        sample_weight: ArrayLike | None = None,
    ) -> TorchObjective:
        """Return the loss on `data` as a function of the products.

        In a torchrun job every rank passes the same arguments and keeps its share of the samples.

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
            Non-negative weights in the order of the data; the mean becomes a weighted mean.

        Raises
        ------
        InvalidInputError
            If the module does not run on the data, is random, mixes the samples of a batch, does
            not depend on the products alone, or has derivatives by autograd that are not its own.

        Warns
        -----
        NonSmoothWarning
            If an operation of the forward pass or of the loss is not twice differentiable.
        """
        with every_rank() as stated:
            refuse_other_order(data, sample_weight)
            inputs, targets, sample_loss, kinks = prepared(
                self._network, data, loss, products_alone=True, second=True, known=self._non_smooth
            )
            weights = normalized_sample_weight(sample_weight, len(inputs))
            if world()[1] > 1:
                stated["fixed weights"] = fingerprint_besides(self.products, self.module)
                stated["sample_weight"] = fingerprint([torch.from_numpy(weights)])

        def bound(dtype: torch.dtype, part: slice) -> TorchObjective:
            exact = dtype == torch.float64
            return TorchObjective(
                self._network if exact else self._network.in_type(dtype),
                *(converted(t[part], torch.device("cpu"), dtype) for t in (inputs, targets)),
                sample_weight=torch.from_numpy(weights[part]),
                loss=sample_loss if exact else loss_in(sample_loss, dtype, self.device),
                product_names=self._names,
                device=self.device,
                memory_budget=self._budget,
                non_smooth=kinks,
            )

        with torch.inference_mode(False):
            objective = bound(self._dtype, slice(None))
            if self._dtype != torch.float64:
                few = slice(_COMPARED)
                single, double = bound(self._dtype, few), bound(torch.float64, few)
                objective.rounding = relative_difference(single, double)
        return objective

    def prepare(
        self, data: Data, *, loss: str | SampleLoss = "squared", products_alone: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, SampleLoss]:
        """Check the module on the data; return inputs and targets on the CPU, and the loss.

        This is the first half of `bind`, which explains the parameters and what is raised.
        `products_alone` is False for weights that enter otherwise than as elementwise products.
        """
        known = self._non_smooth
        return prepared(
            self._network, data, loss, products_alone=products_alone, second=False, known=known
        )[:3]
