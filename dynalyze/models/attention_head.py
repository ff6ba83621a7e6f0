"""One attention head with diagonal weights, the model of eq. (1) of arXiv 2306.07042."""

from dataclasses import dataclass, field

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray, IntArray
from dynalyze.errors import InvalidInputError
from dynalyze.models import kernels
from dynalyze.models.data import (
    as_finite_array,
    as_pair,
    as_positive_int,
    as_product_indices,
    as_products,
    normalized_sample_weight,
    warn_of_constant_features,
)
from dynalyze.models.losses import squared_loss_factor
from dynalyze.models.protocol import CheckedObjective

# Samples are summed in so many chunks at most, of so many blocks at least, whatever the number
# of threads.
_LARGEST_CHUNKS = 16
_SMALLEST_CHUNK = 4
# Below about this many floating-point operations a second thread costs more than it saves.
_WORK_PER_THREAD = 4e7


@dataclass(frozen=True)
class AttentionHead:
    """Attention head with diagonal weights, smax(X W_K W_Qᵀ Xᵀ) X W_V W_Oᵀ, eq. (1).

    The softmax runs over rows and the logits are not divided by √d. The products are
    θ = [w_K ⊙ w_Q, w_V ⊙ w_O], shape (2 d_model,).

    Parameters
    ----------
    d_model : int
        Dimension of a token.
    threads : int, optional
        Threads that one evaluation may use; by default one for a small data set and as many
        as there are cores for a large one. Results do not depend on it.

    Raises
    ------
    InvalidInputError
        If `d_model` or `threads` is not a positive integer.

    Notes
    -----
    The first evaluation on a machine compiles kernels for it, which takes ten to twenty seconds;
    later processes load them from Numba's cache. They do not depend on `d_model` or the data.
    """

    d_model: int
    threads: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        as_positive_int(self.d_model, "d_model")
        if self.threads is not None:
            as_positive_int(self.threads, "threads")

    @property
    def n_products(self) -> int:
        """Number of products, 2 d_model."""
        return 2 * self.d_model

    @property
    def product_names(self) -> tuple[str, ...]:
        """``W_K W_Q[i]`` for every i, then ``W_V W_O[i]``."""
        return tuple(
            f"{product}[{i}]" for product in ("W_K W_Q", "W_V W_O") for i in range(self.d_model)
        )

    def predict(self, theta: ArrayLike, X: ArrayLike) -> FloatArray:
        """Output of the head.

        Parameters
        ----------
        theta : array_like, shape (2 d_model,)
            Products [w_K ⊙ w_Q, w_V ⊙ w_O].
        X : array_like, shape (n_samples, n_tokens, d_model)
            Inputs.

        Returns
        -------
        ndarray, shape (n_samples, n_tokens, d_model)

        Raises
        ------
        InvalidInputError
            If a shape does not fit or an entry of `X` is not finite.
        """
        products = as_products(theta, self.n_products)
        inputs = self._inputs(X)
        logits = (inputs * products[: self.d_model]) @ inputs.transpose(0, 2, 1)
        weights = np.exp(logits - logits.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        return (weights @ inputs) * products[self.d_model :]

    def bind(
        self, data: Data, *, loss: str = "squared", sample_weight: ArrayLike | None = None
    ) -> "AttentionHeadObjective":
        """Return the loss of the head on `data` as a function of its products.

        Parameters
        ----------
        data : pair of array_like (X, y)
            Inputs and targets, both of shape (n_samples, n_tokens, d_model).
        loss : {"squared", "mse"}
            ``"squared"`` is the mean over samples of ½‖y − f(x)‖²; ``"mse"`` is the mean over
            all entries without the ½ (torch.nn.MSELoss). Flow time scales accordingly.
        sample_weight : array_like, shape (n_samples,), optional
            Non-negative weights; the mean over samples becomes a weighted mean.

        Returns
        -------
        AttentionHeadObjective

        Raises
        ------
        InvalidInputError
            If shapes do not fit, data are empty or not finite, a weight is negative or all
            are zero, or `loss` is unknown.
        """
        given_X, given_y = as_pair(data)
        X = self._inputs(given_X)
        y = as_finite_array(given_y, "y", ("n_samples", "n_tokens", "d_model"))
        if y.shape != X.shape:
            raise InvalidInputError(
                f"y has shape {y.shape} but X has shape {X.shape}: the head's output has the "
                "shape of its input, so give both alike"
            )
        warn_of_constant_features(
            X, "it shifts the logits of a row alike, so its product in W_K W_Q is never learned"
        )
        factor = squared_loss_factor(loss, X.shape[1] * X.shape[2])
        weight = factor * normalized_sample_weight(sample_weight, len(X))
        return AttentionHeadObjective(self, X, y, weight)

    def _inputs(self, X: ArrayLike) -> FloatArray:
        inputs = as_finite_array(X, "X", ("n_samples", "n_tokens", "d_model"))
        if inputs.shape[2] != self.d_model:
            raise InvalidInputError(
                f"X has shape {inputs.shape}, so {inputs.shape[2]} features, but the model was "
                f"made with d_model={self.d_model}: make AttentionHead({inputs.shape[2]}) or "
                "give other data"
            )
        return inputs


class AttentionHeadObjective(CheckedObjective):
    """Loss of an `AttentionHead` on a data set; made by `AttentionHead.bind`.

    Satisfies `dynalyze.models.Objective`. The samples are summed in fixed chunks whose sums are
    added in order, so that every result is the same for any number of threads.
    """

    compiled = True

    def __init__(
        self, model: AttentionHead, X: FloatArray, y: FloatArray, weight: FloatArray
    ) -> None:
        self._model = model
        self.product_names = model.product_names
        kept = np.flatnonzero(weight > 0.0)
        self._X, self._y = kernels.sample_lanes(X, kept), kernels.sample_lanes(y, kept)
        n_blocks, n_tokens = self._X.shape[:2]
        self._weight = kernels.zeros(n_blocks)
        self._weight.flat[: len(kept)] = weight[kept]
        self._gradient_work = 8.0 * self._X.size * n_tokens
        n_chunks = min(_LARGEST_CHUNKS, -(-n_blocks // _SMALLEST_CHUNK))
        self._bounds = np.linspace(0, n_blocks, n_chunks + 1).astype(np.int64)

    @np.errstate(over="ignore", invalid="ignore")
    def value_and_field(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return L(θ) and g(θ), from one pass over the samples.

        Infinite or not a number, without a warning, where θ is too large for float64.
        """
        products = as_products(theta, self.n_products)
        parts = kernels.zeros(len(self._bounds) - 1, 3, self._model.d_model)

        def compute(first: int, last: int) -> None:
            kernels.loss_and_gradient(
                self._X,
                self._y,
                self._weight,
                products,
                self._bounds[first : last + 1],
                parts[first:last],
            )

        kernels.run_chunks(compute, len(parts), self._threads(self._gradient_work))
        total = np.add.reduce(np.add.reduce(parts), axis=-1)
        # Subtracting from 0 makes the field of a zero slope 0, not −0.
        return 0.5 * float(np.add.reduce(total[2])), 0.0 - total[:2].ravel()

    @np.errstate(over="ignore", invalid="ignore")
    def hessian_columns(self, theta: FloatArray, indices: IntArray) -> FloatArray:
        """Columns ∂²L/∂θ∂θ_i for i in `indices`, exact; shape (2 d_model, len(indices))."""
        products = as_products(theta, self.n_products)
        columns = as_product_indices(indices, self.n_products)
        d = self._model.d_model
        # p = w_K ⊙ w_Q and q = w_V ⊙ w_O are the two halves of θ, as in `kernels`.
        in_p = columns < d
        # By symmetry all columns in p hold those in q too, and half of H_pp is enough; of long
        # sequences they cost less than half of them one by one.
        most = 2 * in_p.sum() >= d if self._X.shape[1] >= d else in_p.sum() == d
        everything = len(columns) > d or most
        p_columns = np.arange(d) if everything else columns[in_p]
        q_columns = columns[:0] if everything else columns[~in_p] - d
        n_p, n_q = len(p_columns), len(q_columns)
        parts = kernels.zeros(len(self._bounds) - 1, 2 * n_p + n_q + 1, d)

        def compute(first: int, last: int) -> None:
            kernels.hessian_columns(
                self._X,
                self._y,
                self._weight,
                products,
                p_columns,
                q_columns,
                self._bounds[first : last + 1],
                parts[first:last],
            )

        work = self._gradient_work * (1.0 + 0.75 * n_p + 0.2 * n_q)
        kernels.run_chunks(compute, len(parts), self._threads(work))
        total = np.add.reduce(np.add.reduce(parts), axis=-1).T
        in_both, mixed, diagonal = total[:, : 2 * n_p], total[:, 2 * n_p : -1], total[:, -1]
        if everything:
            lower, mixed = np.tril(in_both[:, 0::2]), in_both[:, 1::2].T
            p_block = lower + np.tril(lower, -1).T
            hessian = np.block([[p_block, mixed], [mixed.T, np.diag(diagonal)]])
            return hessian[:, columns]
        result = np.zeros((2 * d, len(columns)))
        result[:d, in_p] = in_both[:, 0::2]
        result[d:, in_p] = in_both[:, 1::2]
        result[:d, ~in_p] = mixed
        result[d + q_columns, np.flatnonzero(~in_p)] = diagonal[q_columns]
        return result

    def _threads(self, work: float) -> int:
        most = min(work / _WORK_PER_THREAD, kernels.available_threads())
        return self._model.threads or max(1, int(most))
