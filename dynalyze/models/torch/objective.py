"""The loss of a PyTorch model as a function of its products, within a memory budget."""

from collections.abc import Callable

import numpy as np

from dynalyze._core.arrays import FloatArray, IntArray
from dynalyze._core.collectives import all_reduce, share
from dynalyze._core.pytorch import torch
from dynalyze.errors import DynalyzeError
from dynalyze.models.data import as_product_indices, as_products
from dynalyze.models.protocol import CheckedObjective
from dynalyze.models.torch.calculus import computing, gradient_of
from dynalyze.models.torch.device import budgets, is_device_error, is_out_of_memory
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.network import Network, ProductNetwork
from dynalyze.models.torch.operations import ProducedBytes

# What a pass holds beside the tensors that autograd saves: outputs, cotangents, temporaries.
_OVERHEAD = 2
# Hessian columns in one pass: on a CPU, a head of 31 kB takes 1.2 times as long for one of them as
# in a loop, 0.85 for 3, 0.56 for 8; heads from 200 kB gain nothing, and from 1 MB on they lose.
_FEWEST_BATCHED, _SMALL_PASS = 3, 2**17  # columns, bytes
_COMPARED_SIZES = (0.1, 1.0, 3.0)  # of the products at which float32 is held against float64


class TorchObjective(CheckedObjective):
    """L(θ) = Σ_s weight_s ℓ(h(x_s; θ), y_s), by automatic differentiation.

    Built by `TorchModel.bind`. The samples are worked through in chunks, and Hessian columns in
    chunks of columns too, so that a pass stays within `memory_budget`; where the device runs out
    of memory all the same, the budget is halved and the work goes on. In a torchrun job each
    rank holds its share of the samples, and every result is summed over the ranks. Sums over
    samples are in float64, whatever type the passes compute in.

    Parameters
    ----------
    network : ProductNetwork
        h(x; θ).
    inputs, targets : Tensor, shape (n_samples, ...)
        All samples, on the CPU; floating-point ones in the type to compute in.
    sample_weight : Tensor, shape (n_samples,)
        Weights that sum to 1, in float64.
    loss : callable
        ``loss(output, target)``, one value per sample.
    product_names : tuple of str
        Names of the p products.
    device : torch.device
        Where the work is done.
    memory_budget : int, optional
        Bytes that one pass may take; by default as `dynalyze.models.torch.device.budgets` says.
    non_smooth : tuple of str
        Parts of h that are known not to be twice differentiable.

    Attributes
    ----------
    rounding : float
        Relative error of the field by the type that passes compute in: in float64 its unit
        roundoff; in float32 the largest of those measured at 0 and at 12 random products, of
        sizes 0.1 to 3. It is no bound: the field may vanish, and its error does not.
    """

    def __init__(
        self,
        network: ProductNetwork,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        *,
        sample_weight: torch.Tensor,
        loss: SampleLoss,
        product_names: tuple[str, ...],
        device: torch.device,
        memory_budget: int | None = None,
        non_smooth: tuple[str, ...] = (),
    ) -> None:
        mine = share(inputs.shape[0])
        tensors = [t[mine] for t in (inputs, targets, sample_weight)]
        data_bytes = sum(t.numel() * t.element_size() for t in tensors)
        keep, self._budget = budgets(device, memory_budget, data_bytes)
        if keep:  # other data stay in main memory and travel chunk by chunk
            tensors = [t.to(device) for t in tensors]
        self._inputs, self._targets, self._weights = tensors
        self._network = network
        self._loss = loss
        self._device = device
        self._bytes_per_sample: int | None = None
        self._batched = device.type == "cuda"
        self.product_names = product_names
        self.non_smooth = non_smooth
        self.rounding = float(np.finfo(np.float64).eps)

    @property
    def memory_budget(self) -> int:
        """Bytes that one pass may take: what was asked for, halved at every lack of memory."""
        return self._budget

    def value(self, theta: FloatArray) -> float:
        """Loss L(θ); θ has shape (p,)."""
        with computing(derivatives=False):
            point = self._tensor(theta)

            def kernel(chunk: slice, _: slice) -> torch.Tensor:
                return self._network.at(point, lambda network: self._chunk_loss(network, chunk))

            return float(self._sum(kernel, ()))

    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """L(θ) and g(θ) from one backward pass."""
        with computing(derivatives=True):
            point = self._tensor(theta).requires_grad_()

            def kernel(chunk: slice, _: slice) -> torch.Tensor:
                def slopes(network: Network) -> torch.Tensor:
                    value = self._chunk_loss(network, chunk)
                    gradient = gradient_of(value, point)
                    return torch.cat([value.detach()[None], gradient])

                return self._network.at(point, slopes)

            total = self._sum(kernel, (self.n_products + 1,)).numpy()
        return float(total[0]), 0.0 - total[1:]

    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns ∂²L/∂θ∂θ_i for i in `indices`; shape (p, len(indices)).

        Reverse over reverse: one graph of the gradient, one backward pass per column. On a GPU,
        where small passes leave the device idle, and on a CPU where passes are so small that they
        are mostly dispatch, the columns of a chunk are batched by vmap, unless the module has an
        operation without a batching rule. (Forward over reverse takes up to four times as long.)
        """
        indices = as_product_indices(indices, self.n_products)
        if indices.size == 0:
            return np.zeros((self.n_products, 0))
        with computing(derivatives=True):
            point = self._tensor(theta).requires_grad_()
            basis = torch.zeros(indices.size, self.n_products, dtype=torch.float64, device="cpu")
            basis[np.arange(indices.size), indices] = 1.0
            basis = basis.to(self._device)

            def kernel(chunk: slice, columns: slice) -> torch.Tensor:
                def curves(network: Network) -> torch.Tensor:
                    gradient = gradient_of(self._chunk_loss(network, chunk), point, graph=True)
                    return self._products_with(gradient, point, basis[columns])

                return self._network.at(point, curves)

            rows = self._sum(kernel, (indices.size, self.n_products))
        return rows.numpy().T.copy()

    def _products_with(
        self, gradient: torch.Tensor, point: torch.Tensor, directions: torch.Tensor
    ) -> torch.Tensor:
        if not gradient.requires_grad:  # L is linear in θ
            return torch.zeros_like(directions)
        if self._batched and len(directions) >= _FEWEST_BATCHED:
            try:
                return torch.autograd.grad(
                    gradient, point, directions, retain_graph=True, is_grads_batched=True
                )[0]
            except Exception as error:
                if is_out_of_memory(error) or is_device_error(error):
                    raise
                # If the module itself is at fault, the loop raises its error.
                self._batched = False
        return torch.stack(
            [torch.autograd.grad(gradient, point, row, retain_graph=True)[0] for row in directions]
        )

    def _chunk_loss(self, network: Network, chunk: slice) -> torch.Tensor:
        samples = self._inputs, self._targets, self._weights
        if chunk != slice(0, len(self._weights)):
            samples = self._inputs[chunk], self._targets[chunk], self._weights[chunk]
        inputs, targets, weights = (tensor.to(self._device) for tensor in samples)
        return weights @ self._loss(network(inputs), targets).to(weights.dtype)

    def _tensor(self, theta: FloatArray) -> torch.Tensor:
        array = as_products(theta, self.n_products).copy()
        return torch.from_numpy(array).to(self._device)

    def _sum(
        self, kernel: Callable[[slice, slice], torch.Tensor], shape: tuple[int, ...]
    ) -> torch.Tensor:
        """Sum kernel(samples, columns) over chunks of samples, for every chunk of columns.

        A two-dimensional result has one row per column.
        """
        n_columns = shape[0] if len(shape) == 2 else 0
        parts: list[torch.Tensor] = []
        start = 0
        while not parts or start < n_columns:
            width, part = self._sum_samples(kernel, slice(start, n_columns))
            if part is None:  # this rank has no samples
                part = torch.zeros(shape, dtype=torch.float64, device=self._device)
            parts.append(part)
            start += width
        total = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        return all_reduce(total).cpu()

    def _sum_samples(
        self, kernel: Callable[[slice, slice], torch.Tensor], wanted: slice
    ) -> tuple[int, torch.Tensor | None]:
        """Sum over all samples for as many of the `wanted` columns as fit, and their number."""
        n_samples = self._inputs.shape[0]
        n_columns = wanted.stop - wanted.start
        total: torch.Tensor | None = None
        sample = 0
        while sample < n_samples:
            size, n_columns = self._chunk_sizes(n_columns)
            columns = slice(wanted.start, wanted.start + n_columns)
            chunk = slice(sample, min(sample + size, n_samples))
            try:
                part = kernel(chunk, columns)
                total = part if total is None else total + part
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_budget(chunk, columns)
                if self._chunk_sizes(n_columns)[1] < n_columns:
                    total, sample = None, 0  # fewer columns from here on: begin them anew
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
            point = self._tensor(np.zeros(self.n_products)).requires_grad_()
            one, two = (self._saved_bytes(point, slice(0, n)) for n in (1, 2))
            enough = self._inputs.shape[0] >= 2 and two > one
            self._bytes_per_sample = max(1, two - one if enough else one)
            whole = self._bytes_per_sample * self._inputs.shape[0]
            self._batched |= whole <= min(_SMALL_PASS, self._budget)
        return self._bytes_per_sample

    def _saved_bytes(self, point: torch.Tensor, chunk: slice) -> int:
        """Bytes that autograd saves in a forward pass over `chunk`, each storage once."""
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        def unpack(tensor: torch.Tensor) -> torch.Tensor:
            return tensor

        def forward() -> None:
            # The graph keeps every saved storage alive until it is let go.
            self._network.at(point, lambda network: self._chunk_loss(network, chunk).detach())

        with torch.enable_grad():
            try:
                with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                    forward()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                # torch.func and sparse tensors refuse the hooks: all that is made, then.
                with ProducedBytes() as produced:
                    forward()
                return produced.total
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


def relative_difference(objective: TorchObjective, exact: TorchObjective) -> float:
    """Largest |g − g_exact| over the largest |g_exact|, at 0 and at random products of three sizes.

    Where terms of the module cancel, the error moves by orders of magnitude with θ, so that no
    single point tells it.
    """
    rng = np.random.default_rng(0)  # any generic points serve
    n = exact.n_products
    points = [size * rng.standard_normal(n) for size in _COMPARED_SIZES for _ in range(4)]
    worst = 0.0
    for theta in (np.zeros(n), *points):
        field = exact.field(theta)
        size = float(np.abs(field).max())
        if size > 0:
            worst = max(worst, float(np.abs(objective.field(theta) - field).max()) / size)
    return worst
