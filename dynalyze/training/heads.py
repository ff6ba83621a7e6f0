"""The attention head of eq. (1) of arXiv 2306.07042 as a PyTorch module: diagonal and full."""

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.attention_head import AttentionHead
from dynalyze.models.data import as_generator, as_positive_int
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.model import TorchModel
from dynalyze.models.torch.objective import TorchObjective


class DiagonalHead(torch.nn.Module):
    """smax(X W_K W_Qᵀ Xᵀ) X W_V W_Oᵀ with diagonal weights, eq. (1); the logits are not scaled.

    The twin of `dynalyze.models.AttentionHead` for training: the same products, in the same
    order. Parameters ``w_k``, ``w_q``, ``w_v``, ``w_o`` of shape (d_model,).

    Parameters
    ----------
    d_model : int
        Dimension of a token.
    rng : numpy.random.Generator or int, optional
        Source of the module's own weights, which are standard normal.
    """

    w_k: torch.Tensor  # (d_model,), as the three below
    w_q: torch.Tensor
    w_v: torch.Tensor
    w_o: torch.Tensor

    def __init__(self, d_model: int, *, rng: np.random.Generator | int | None = None) -> None:
        super().__init__()
        self.d_model = as_positive_int(d_model, "d_model")
        _draw(self, (self.d_model,), rng)

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        """Names of the parameters that enter as elementwise products."""
        return ("w_k", "w_q"), ("w_v", "w_o")

    @property
    def n_products(self) -> int:
        """Number of products, 2 d_model."""
        return 2 * self.d_model

    @property
    def product_names(self) -> tuple[str, ...]:
        """``W_K W_Q[i]`` for every i, then ``W_V W_O[i]``."""
        return AttentionHead(self.d_model).product_names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output for inputs of shape (n, n_tokens, d_model); same shape."""
        logits = (x * (self.w_k * self.w_q)) @ x.mT
        return torch.softmax(logits, -1) @ x * (self.w_v * self.w_o)

    def bind(
        self,
        data: Data,
        *,
        loss: str | SampleLoss = "squared",
        sample_weight: ArrayLike | None = None,
    ) -> TorchObjective:
        """Return the loss on `data` as a function of the products: see `TorchModel.bind`."""
        model = TorchModel(self, self.products, product_names=self.product_names)
        return model.bind(data, loss=loss, sample_weight=sample_weight)


class FullHead(torch.nn.Module):
    """smax(X W_K W_Qᵀ Xᵀ) X W_V W_Oᵀ with full weights, eq. (1); the logits are not scaled.

    The theory of diagonal weights does not cover it: the paper observes that its stages are
    steps of rank one in W_K W_Qᵀ or W_V W_Oᵀ, and a training run records their singular values.
    Parameters ``w_k``, ``w_q``, ``w_v``, ``w_o`` of shape (d_model, d_head).

    Parameters
    ----------
    d_model : int
        Dimension of a token.
    d_head : int, optional
        Number of columns, the most that the rank of a product can be; by default d_model.
    rng : numpy.random.Generator or int, optional
        Source of the module's own weights, which are standard normal.
    """

    w_k: torch.Tensor  # (d_model, d_head), as the three below
    w_q: torch.Tensor
    w_v: torch.Tensor
    w_o: torch.Tensor

    def __init__(
        self,
        d_model: int,
        d_head: int | None = None,
        *,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        super().__init__()
        self.d_model = as_positive_int(d_model, "d_model")
        self.d_head = as_positive_int(self.d_model if d_head is None else d_head, "d_head")
        _draw(self, (self.d_model, self.d_head), rng)

    @property
    def matrix_products(self) -> tuple[tuple[str, str], ...]:
        """Names of the parameters (A, B) that enter as matrix products A Bᵀ."""
        return ("w_k", "w_q"), ("w_v", "w_o")

    @property
    def n_weights(self) -> int:
        """Entries of (W_K, W_V), or of (W_Q, W_O): the length of u0 and v0 of an initialization."""
        return 2 * self.d_model * self.d_head

    @property
    def product_names(self) -> tuple[str, ...]:
        """``W_K W_Q σ[i]`` for every singular value in descending order, then ``W_V W_O σ[i]``."""
        rank = min(self.d_model, self.d_head)
        return tuple(f"{name} σ[{i}]" for name in ("W_K W_Q", "W_V W_O") for i in range(rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output for inputs of shape (n, n_tokens, d_model); same shape."""
        if 2 * self.d_head > self.d_model:
            # Products of weights are cheap beside those with all tokens: one of these, not two.
            logits = x @ (self.w_k @ self.w_q.mT) @ x.mT
            return torch.softmax(logits, -1) @ x @ (self.w_v @ self.w_o.mT)
        logits = (x @ self.w_k) @ (x @ self.w_q).mT
        return torch.softmax(logits, -1) @ (x @ self.w_v) @ self.w_o.mT


def check_full_head(head: object, otherwise: str) -> None:
    """Raise InvalidInputError unless `head` is a `FullHead`; the message says what to use."""
    if not isinstance(head, FullHead):
        raise InvalidInputError(
            f"head is of type {type(head).__name__}: for products of diagonal weights use "
            f"{otherwise}"
        )


def _draw(
    module: torch.nn.Module, shape: tuple[int, ...], rng: np.random.Generator | int | None
) -> None:
    generator = as_generator(rng)
    for name in ("w_k", "w_q", "w_v", "w_o"):
        value = torch.from_numpy(generator.standard_normal(shape))
        module.register_parameter(name, torch.nn.Parameter(value))
