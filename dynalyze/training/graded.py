"""Full weights whose columns are graded by size, so that rounding seeds no direction.

A head sees W_K and W_Q only through W_K W_Qᵀ, which an orthogonal Q on the right of both leaves
alone: with S = [W_K; W_Q] the flow is dS/dt = Γ(S Sᵀ) S, and the same operator acts on every
column of S. In the columns of a Gaussian start a direction of size α lies in the same entries as
those that are learned, whose rounding of 1e-16 is the larger one. Rotated by a Q that collects
the large directions in the first columns, the small ones have columns of their own, of which
floating point keeps every digit whatever their size; the flow and gradient descent do not mix
columns. As they turn towards the direction that grows fastest, Q must be chosen anew now and then.

The rotation is a QR factorization of Sᵀ with rows sorted by size and columns pivoted, whose
errors are small relative to each row (Cox and Higham, Stability of Householder QR factorization
for weighted least squares problems, 1998), that is, to each column of S.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import qr

from dynalyze._core.arrays import FloatArray
from dynalyze._core.pytorch import torch
from dynalyze.training.trainable import Weights


def grade(stacked: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rotate the columns of a pair of factors so that they are graded.

    Parameters
    ----------
    stacked : ndarray, shape (2 d_model, d_head)
        Both factors of a product A Bᵀ, one above the other.

    Returns
    -------
    graded : ndarray, shape (2 d_model, d_head)
        ``stacked @ rotation``, with errors small relative to each column.
    rotation : ndarray, shape (d_head, d_head)
        Orthogonal.
    """
    order = np.argsort(-np.linalg.norm(stacked, axis=0), kind="stable")
    q, r, pivot = qr(stacked[:, order].T, pivoting=True)
    graded = np.empty_like(stacked)
    graded[pivot] = r.T
    rotation = np.empty(q.shape)
    rotation[order] = q
    return graded, rotation


class Grading:
    """Rotations of the columns of matrix products, made anew as the columns grow.

    Parameters
    ----------
    weights : dict of Tensor
        Factors by name, each (d_model, d_head), or (n_runs, d_model, d_head).
    pairs : sequence of pairs of str
        Names of the factors (A, B) of each product.
    """

    def __init__(self, weights: Weights, pairs: Sequence[tuple[str, str]]) -> None:
        self._pairs = tuple(pairs)
        self.rotations: Weights = {}  # from the columns of A and B to the graded ones, by A's name
        for a, _ in self._pairs:
            *runs, _, columns = weights[a].shape
            identity = torch.eye(columns, dtype=torch.float64, device=weights[a].device)
            self.rotations[a] = identity.expand(*runs, columns, columns).clone()

    def grade(self, weights: Weights) -> None:
        """Rotate `weights` in place, so that their columns are graded."""
        with torch.no_grad():
            for a, b in self._pairs:
                rows, columns = weights[a].shape[-2:]
                stacked = torch.cat([weights[a], weights[b]], -2).reshape(-1, 2 * rows, columns)
                results = [_graded_if_finite(one) for one in stacked.cpu().numpy()]
                graded = torch.from_numpy(np.stack([one for one, _ in results]))
                turns = torch.from_numpy(np.stack([turn for _, turn in results]))
                graded = graded.reshape(*weights[a].shape[:-2], 2 * rows, columns)
                weights[a].copy_(graded[..., :rows, :])
                weights[b].copy_(graded[..., rows:, :])
                total = self.rotations[a]
                self.rotations[a] = total @ turns.to(total.device).reshape(total.shape)

    def undo(self, weights: Weights) -> Weights:
        """`weights` in their own columns, rotated back."""
        own: Weights = {}
        with torch.no_grad():
            for a, b in self._pairs:
                own |= {name: weights[name] @ self.rotations[a].mT for name in (a, b)}
        return own


def _graded_if_finite(stacked: FloatArray) -> tuple[FloatArray, FloatArray]:
    # A run that has diverged must not end the others.
    return grade(stacked) if np.isfinite(stacked).all() else (stacked, np.eye(stacked.shape[1]))
