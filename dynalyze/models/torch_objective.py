"""The loss of a PyTorch model as a function of its products, within a memory budget."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import numpy as np

from dynalyze._collectives import all_reduce, share
from dynalyze._torch import torch
from dynalyze._typing import FloatArray, IntArray
from dynalyze.errors import DynalyzeError
from dynalyze.models.data import as_product_indices, as_products
from dynalyze.models.torch_loss import SampleLoss

Function: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""h(x; θ) as ``function(x, theta)``: inputs (n, ...) and θ (p,) to outputs (n, ...)."""
# What a pass holds beside the tensors that autograd saves: outputs, cotangents, temporaries.
_OVERHEAD = 2


class TorchObjective:
    """L(θ) = Σ_s weight_s ℓ(h(x_s; θ), y_s), in float64, by automatic differentiation.

    Built by `TorchModel.bind`. The samples are worked through in chunks, and Hessian columns in
    chunks of columns too, so that a pass stays within `memory_budget`; where the device runs out
    of memory all the same, the budget is halved and the work goes on. In a torchrun job each
    rank holds its share of the samples, and every result is summed over the ranks.

    Parameters
    ----------
    function : callable
        h(x; θ), called as ``function(x, theta)``.
    inputs, targets : Tensor, shape (n_samples, ...)
        All samples, on the CPU.
    sample_weight : Tensor, shape (n_samples,)
        Weights that sum to 1.
    loss : callable
        ``loss(output, target)``, one value per sample.
    product_names : tuple of str
        Names of the p products.
    device : torch.device
        Where the work is done.
    memory_budget : int
        Bytes that one pass may take.
    non_smooth : tuple of str
        Parts of h that are known not to be twice differentiable.
    """

    def __init__(
        self,
        function: Function,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        *,
        sample_weight: torch.Tensor,
        loss: SampleLoss,
        product_names: tuple[str, ...],
        device: torch.device,
        memory_budget: int,
        non_smooth: tuple[str, ...] = (),
    ) -> None:
        mine = share(inputs.shape[0])
        tensors = [t[mine] for t in (inputs, targets, sample_weight)]
        # Data that take more than the budget stay in main memory and travel chunk by chunk.
        if sum(t.numel() * t.element_size() for t in tensors) <= memory_budget:
            tensors = [t.to(device) for t in tensors]
        self._inputs, self._targets, self._weights = tensors
        self._function = function
        self._loss = loss
        self._device = device
        self._budget = memory_budget
        self._bytes_per_sample: int | None = None
        self._batched = device.type == "cuda"
        self.product_names = product_names
        self.non_smooth = non_smooth

    @property
    def n_products(self) -> int:
        """Number p of products."""
        return len(self.product_names)

    @property
    def memory_budget(self) -> int:
        """Bytes that one pass may take: what was asked for, halved at every lack of memory."""
        return self._budget

    def value(self, theta: FloatArray) -> float:
        """Loss L(θ); θ has shape (p,)."""
        point = self._tensor(theta)
        with torch.no_grad(), differentiable_attention():
            total = self._sum(lambda chunk, _: self._chunk_loss(point, chunk), torch.zeros(()))
        return float(total)

    def field(self, theta: FloatArray) -> FloatArray:
        """Field g(θ) = −∂L/∂θ of eq. (4), shape (p,)."""
        return self.value_and_field(theta)[1]

    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """L(θ) and g(θ) from one backward pass."""
        point = self._tensor(theta).requires_grad_()

        def kernel(chunk: slice, _: slice) -> torch.Tensor:
            value = self._chunk_loss(point, chunk)
            (gradient,) = torch.autograd.grad(value, point)
            return torch.cat([value.detach()[None], -gradient])

        with differentiable_attention():
            total = self._sum(kernel, torch.zeros(self.n_products + 1)).numpy()
        return float(total[0]), total[1:].copy()

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns ∂²L/∂θ∂θ_i for i in `indices`; shape (p, len(indices)).

        Reverse over reverse: one graph of the gradient, one backward pass per column. On a GPU,
        where small passes leave the device idle, the columns of a chunk are batched by vmap,
        unless the module has an operation without a batching rule. (On a CPU batching gains
        nothing, and forward over reverse takes up to four times as long.)
        """
        indices = as_product_indices(indices, self.n_products)
        if indices.size == 0:
            return np.zeros((self.n_products, 0))
        point = self._tensor(theta).requires_grad_()
        basis = torch.zeros(indices.size, self.n_products, dtype=torch.float64)
        basis[torch.arange(indices.size), torch.from_numpy(indices)] = 1.0
        basis = basis.to(self._device)

        def kernel(chunk: slice, columns: slice) -> torch.Tensor:
            value = self._chunk_loss(point, chunk)
            (gradient,) = torch.autograd.grad(value, point, create_graph=True)
            if not gradient.requires_grad:  # L is linear in θ
                return torch.zeros_like(basis[columns])
            return self._products_with(gradient, point, basis[columns])

        with differentiable_attention():
            rows = self._sum(kernel, torch.zeros(indices.size, self.n_products))
        return rows.numpy().T.copy()

    def _products_with(
        self, gradient: torch.Tensor, point: torch.Tensor, directions: torch.Tensor
    ) -> torch.Tensor:
        if self._batched:
            try:
                return torch.autograd.grad(
                    gradient, point, directions, retain_graph=True, is_grads_batched=True
                )[0]
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):
                # If the module itself is at fault, the loop raises its error.
                self._batched = False
        rows = [
            torch.autograd.grad(gradient, point, row, retain_graph=True)[0] for row in directions
        ]
        return torch.stack(rows)

    def _chunk_loss(self, theta: torch.Tensor, chunk: slice) -> torch.Tensor:
        inputs, targets, weights = (
            tensor[chunk].to(self._device)
            for tensor in (self._inputs, self._targets, self._weights)
        )
        return weights @ self._loss(self._function(inputs, theta), targets)

    def _tensor(self, theta: FloatArray) -> torch.Tensor:
        array = as_products(theta, self.n_products).copy()
        return torch.from_numpy(array).to(self._device)

    def _sum(
        self, kernel: Callable[[slice, slice], torch.Tensor], into: torch.Tensor
    ) -> torch.Tensor:
        """Sum kernel(samples, columns) over chunks of samples, for every chunk of columns.

        `into` gives the result's shape; a two-dimensional result has one row per column.
        """
        n_columns = into.shape[0] if into.ndim == 2 else 0
        total = into.to(self._device, torch.float64)
        start = 0
        while True:
            width, part = self._sum_samples(kernel, slice(start, n_columns))
            if n_columns:
                total[start : start + width] = part
            else:
                total += part
            start += width
            if start >= n_columns:
                return all_reduce(total).cpu()

    def _sum_samples(
        self, kernel: Callable[[slice, slice], torch.Tensor], wanted: slice
    ) -> tuple[int, torch.Tensor | float]:
        """Sum over all samples for as many of the `wanted` columns as fit, and their number."""
        n_samples = self._inputs.shape[0]
        n_columns = wanted.stop - wanted.start
        total: torch.Tensor | float = 0.0
        sample = 0
        while sample < n_samples:
            size, n_columns = self._chunk_sizes(n_columns)
            columns = slice(wanted.start, wanted.start + n_columns)
            chunk = slice(sample, min(sample + size, n_samples))
            try:
                total = total + kernel(chunk, columns)
            except torch.OutOfMemoryError:
                self._halve_budget(chunk, columns)
                if self._chunk_sizes(n_columns)[1] < n_columns:
                    total, sample = 0.0, 0  # fewer columns from here on: begin them anew
                continue
            sample = chunk.stop
        return n_columns, total

    def _chunk_sizes(self, n_columns: int) -> tuple[int, int]:
        """Samples and Hessian columns that fit into the budget together."""
        unit = _OVERHEAD * self._measured_bytes_per_sample()
        width = min(n_columns, max(1, self._budget // unit - 1)) if self._batched else n_columns
        return max(1, self._budget // (unit * self._passes_held(width))), width

    def _passes_held(self, n_columns: int) -> int:
        """Passes whose tensors are held at once: two of the gradient's graph, one per column."""
        return 1 + (n_columns if self._batched else min(n_columns, 1))

    def _measured_bytes_per_sample(self) -> int:
        if self._bytes_per_sample is None:
            point = torch.zeros(self.n_products, dtype=torch.float64, device=self._device)
            point.requires_grad_()
            one, two = (self._saved_bytes(point, slice(0, n)) for n in (1, 2))
            enough = self._inputs.shape[0] >= 2 and two > one
            self._bytes_per_sample = max(1, two - one if enough else one)
        return self._bytes_per_sample

    def _saved_bytes(self, point: torch.Tensor, chunk: slice) -> int:
        """Bytes that autograd saves in a forward pass over `chunk`, each storage once."""
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        def unpack(tensor: torch.Tensor) -> torch.Tensor:
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            graph = self._chunk_loss(point, chunk)  # keeps every saved storage alive
        del graph
        return sum(sizes.values())

    def _halve_budget(self, chunk: slice, columns: slice) -> None:
        n, k = chunk.stop - chunk.start, columns.stop - columns.start
        if n == 1 and (k <= 1 or not self._batched):
            raise DynalyzeError(
                f"{self._device} ran out of memory on one sample: free memory on the device, "
                "give another device=, or make the model smaller"
            )
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        used = n * self._passes_held(k) * _OVERHEAD * self._measured_bytes_per_sample()
        self._budget = max(1, min(self._budget, used) // 2)


def differentiable_attention() -> AbstractContextManager[None]:
    """Have scaled-dot-product attention computed by formulas that differentiate twice.

    The fused kernels have no second derivatives.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
