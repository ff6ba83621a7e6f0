"""Transformers with diagonal attention weights, Example 3.2 of arXiv 2306.07042, in PyTorch."""

from typing import Literal

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data, FloatArray, IntArray
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_finite_array, as_generator, as_positive_int, as_products
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.model import TorchModel
from dynalyze.models.torch.objective import TorchObjective


class DiagonalTransformer(torch.nn.Module):
    """L layers of H attention heads with diagonal weights, residual, and a fixed feedforward.

    With Z_0 = X, layer l computes (Example 3.2)::

        Z̃_l = Z_{l−1} + Σ_h smax(Z_{l−1} diag(w_K ⊙ w_Q) Z_{l−1}ᵀ) Z_{l−1} diag(w_V ⊙ w_O)
        Z_l = Z̃_l + GELU(Z̃_l W_A) W_Bᵀ

    Only the attention weights train. It is a `torch.nn.Module`, with the parameters ``w_k``,
    ``w_q``, ``w_v``, ``w_o`` of shape (n_layers, n_heads, d_model), and a `dynalyze.models.Model`
    as well: θ = [w_k ⊙ w_q, w_v ⊙ w_o], flattened.

    Heads of one layer are interchangeable in Example 3.2, so at equal initialization scales they
    become active at the same leading-order time: the minimum in eq. (9) is not unique and
    Assumption 4.2 fails for n_heads > 1. `bases` removes the symmetry: head h then has
    W_K W_Qᵀ = Q_h diag(w_K ⊙ w_Q) Q_hᵀ, and likewise W_V W_Oᵀ, with fixed orthogonal Q_h.

    Parameters
    ----------
    d_model : int
        Dimension of a token.
    n_layers, n_heads : int
        Numbers L and H.
    feedforward : "random", None, or pair of array_like (W_A, W_B)
        The fixed weights, each of shape (n_layers, d_model, d_mlp). ``"random"`` draws entries
        of variance 1/d_model and 1/d_mlp; None leaves the feedforward out.
    d_mlp : int, optional
        Width of a random feedforward; by default 2 d_model.
    pre_norm : bool
        Layer norm, of unit gain, before attention and before the feedforward.
    output : {"tokens", "pooled"}
        All tokens, or their mean.
    readout : array_like, shape (d_model, n_outputs), optional
        Fixed linear map of the output.
    bases : None, "random", or array_like, shape (n_layers, n_heads, d_model, d_model)
        Orthogonal matrices Q_h; None is the identity, as in Example 3.2.
    rng : numpy.random.Generator or int, optional
        Source of the random matrices and of the module's own initial weights, which are
        standard normal: training at a small scale gives its own.

    Raises
    ------
    InvalidInputError
        If a number is not positive, a shape does not fit, or a basis is not orthogonal.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int = 1,
        n_heads: int = 1,
        feedforward: Literal["random"] | tuple[ArrayLike, ArrayLike] | None = "random",
        d_mlp: int | None = None,
        pre_norm: bool = False,
        output: Literal["tokens", "pooled"] = "tokens",
        readout: ArrayLike | None = None,
        bases: Literal["random"] | ArrayLike | None = None,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        super().__init__()
        self.d_model = as_positive_int(d_model, "d_model")
        self.n_layers = as_positive_int(n_layers, "n_layers")
        self.n_heads = as_positive_int(n_heads, "n_heads")
        if output not in ("tokens", "pooled"):
            raise InvalidInputError(f'output={output!r} is not known: choose "tokens" or "pooled"')
        self.pre_norm = pre_norm
        self.output = output
        generator = as_generator(rng)
        d_mlp = as_positive_int(2 * self.d_model if d_mlp is None else d_mlp, "d_mlp")
        W_A, W_B = (self._feedforward(feedforward, side, d_mlp, generator) for side in (0, 1))
        if W_A is not None and W_B is not None and W_A.shape != W_B.shape:
            raise InvalidInputError(
                f"feedforward: W_A has shape {W_A.shape} and W_B {W_B.shape}; both must be "
                "(n_layers, d_model, d_mlp)"
            )
        self._fix("W_A", W_A)
        self._fix("W_B", W_B)
        self._fix("bases", self._orthogonal(bases, generator))
        if readout is not None:
            readout = as_finite_array(readout, "readout", ("d_model", "n_outputs"))
            if len(readout) != self.d_model:
                raise InvalidInputError(
                    f"readout has shape {readout.shape}: its first axis must be "
                    f"d_model={self.d_model}"
                )
        self._fix("readout", readout)
        shape = (self.n_layers, self.n_heads, self.d_model)
        for name in ("w_k", "w_q", "w_v", "w_o"):
            value = torch.from_numpy(generator.standard_normal(shape))
            self.register_parameter(name, torch.nn.Parameter(value))

    W_A: torch.Tensor | None  # (n_layers, d_model, d_mlp)
    W_B: torch.Tensor | None  # (n_layers, d_model, d_mlp)
    bases: torch.Tensor | None  # (n_layers, n_heads, d_model, d_model)
    readout: torch.Tensor | None  # (d_model, n_outputs)
    w_k: torch.Tensor  # (n_layers, n_heads, d_model), as the three below
    w_q: torch.Tensor
    w_v: torch.Tensor
    w_o: torch.Tensor

    def extra_repr(self) -> str:
        """Sizes, for the module's printed form."""
        return f"d_model={self.d_model}, n_layers={self.n_layers}, n_heads={self.n_heads}"

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        """Names of the parameters that enter as elementwise products."""
        return ("w_k", "w_q"), ("w_v", "w_o")

    @property
    def n_products(self) -> int:
        """Number of products, 2 d_model n_heads n_layers."""
        return 2 * self.d_model * self.n_heads * self.n_layers

    @property
    def product_names(self) -> tuple[str, ...]:
        """``layer 0 head 1 W_K W_Q[2]`` and so on, every count from 0; length p."""
        return tuple(
            f"layer {layer} head {head} {product}[{i}]"
            for product in ("W_K W_Q", "W_V W_O")
            for layer in range(self.n_layers)
            for head in range(self.n_heads)
            for i in range(self.d_model)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output for inputs of shape (n, n_tokens, d_model)."""
        logit_weights, value_weights = self.w_k * self.w_q, self.w_v * self.w_o
        z = x
        for layer in range(self.n_layers):
            tokens = self._normalized(z)[:, None]
            if self.bases is not None:
                tokens = tokens @ self.bases[layer]
            logits = (tokens * logit_weights[layer][:, None]) @ tokens.mT
            heads = torch.softmax(logits, -1) @ tokens * value_weights[layer][:, None]
            if self.bases is not None:
                heads = heads @ self.bases[layer].mT
            z = z + heads.sum(1)
            if self.W_A is not None and self.W_B is not None:
                hidden = torch.nn.functional.gelu(self._normalized(z) @ self.W_A[layer])
                z = z + hidden @ self.W_B[layer].mT
        if self.output == "pooled":
            z = z.mean(1)
        return z if self.readout is None else z @ self.readout

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

    def product_ranks(self, theta: ArrayLike, *, threshold: float = 0.0) -> IntArray:
        """Rank of each W_K W_Qᵀ and W_V W_Oᵀ: entries of its diagonal above `threshold`.

        Parameters
        ----------
        theta : array_like, shape (p,)
            Products.
        threshold : float
            Entries |θ_i| ≤ threshold count as 0.

        Returns
        -------
        ndarray of int, shape (n_layers, n_heads, 2)
            The last axis holds W_K W_Qᵀ, then W_V W_Oᵀ.
        """
        products = as_products(theta, self.n_products)
        by_head = products.reshape(2, self.n_layers, self.n_heads, self.d_model)
        ranks: IntArray = np.count_nonzero(np.abs(by_head) > threshold, axis=-1).astype(np.int64)
        return np.moveaxis(ranks, 0, -1)

    def _normalized(self, z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(z, (self.d_model,)) if self.pre_norm else z

    def _fix(self, name: str, values: FloatArray | None) -> None:
        self.register_buffer(name, None if values is None else torch.from_numpy(values.copy()))

    def _feedforward(
        self,
        given: Literal["random"] | tuple[ArrayLike, ArrayLike] | None,
        which: int,
        d_mlp: int,
        generator: np.random.Generator,
    ) -> FloatArray | None:
        if given is None:
            return None
        if isinstance(given, str):
            if given != "random":
                raise InvalidInputError(
                    f'feedforward={given!r} is not known: give "random", None or (W_A, W_B)'
                )
            variance = 1 / (self.d_model, d_mlp)[which]
            shape = (self.n_layers, self.d_model, d_mlp)
            return np.sqrt(variance) * generator.standard_normal(shape)
        name = f"feedforward[{which}]"
        weights = as_finite_array(given[which], name, ("n_layers", "d_model", "d_mlp"))
        if weights.shape[:2] != (self.n_layers, self.d_model):
            raise InvalidInputError(
                f"{name} has shape {weights.shape}: n_layers={self.n_layers} and "
                f"d_model={self.d_model} must be its first two axes"
            )
        return weights

    def _orthogonal(
        self, given: Literal["random"] | ArrayLike | None, generator: np.random.Generator
    ) -> FloatArray | None:
        if given is None:
            return None
        shape = (self.n_layers, self.n_heads, self.d_model, self.d_model)
        if isinstance(given, str) and given == "random":
            q, r = np.linalg.qr(generator.standard_normal(shape))
            signs = np.sign(np.diagonal(r, axis1=-2, axis2=-1))
            return q * signs[..., None, :]  # uniform over the orthogonal group
        bases = as_finite_array(given, "bases", ("n_layers", "n_heads", "d_model", "d_model"))
        if bases.shape != shape:
            raise InvalidInputError(f"bases has shape {bases.shape}: {shape} is needed")
        error = np.abs(np.swapaxes(bases, -1, -2) @ bases - np.eye(self.d_model)).max()
        if error > 1e-10:
            raise InvalidInputError(
                f"bases are not orthogonal: QᵀQ differs from the identity by {error:.1e}; "
                "take the first factor of numpy.linalg.qr"
            )
        return bases
