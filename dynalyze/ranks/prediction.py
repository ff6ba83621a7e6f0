"""The stages of a head with full weights, predicted from the data: an extension of the paper.

With full W_K, W_Q, W_V, W_O singular directions take the place of coordinates. Let M = A Bᵀ be a
product and G = −∂L/∂M at the stationary point reached so far. The small part of A and B obeys
dA = G B dt, dB = Gᵀ A dt, so that it grows along the singular pair i of G like e^{σ_i t}. Singular
vectors turn from stage to stage; a generic small part then pairs in sorted order, the largest
amplitude (smallest b) with the largest σ. Of m columns r are active in a product:

    Δ = min over products of b_(1) / σ_1(G),     b_(i) ← b_(i) − σ_i(G) Δ,  i ≤ m − r,

the winner loses its first entry, and the new stationary point is the end of the flow of its
factors with one column more, ε times the top singular pair of G. It is not in the paper; it is
held against the flow of the full weights in the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynalyze._core.arrays import Data, FloatArray, IntArray
from dynalyze._core.plain import plain
from dynalyze._core.products import PRODUCTS
from dynalyze._core.pytorch import torch
from dynalyze._core.status import Status
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.models.torch.model import TorchModel
from dynalyze.models.torch.network import Function
from dynalyze.ranks.limits import end_of_flow
from dynalyze.training.heads import FullHead, check_full_head

_ONSET = 1e-5  # of the scale of a product, with which a new column starts
_VANISHED = 1e-4  # singular value, relative to the largest, that counts as a lost rank


@dataclass(frozen=True, eq=False)
class RankPrediction:
    """Predicted rank-one steps of a `FullHead`; K steps. Times are rescaled: t / log(1/α)."""

    times: FloatArray  # (K,), rescaled time of each step, to leading order
    products: tuple[str, ...]  # (K,), "W_K W_Q" or "W_V W_O"
    ranks: IntArray  # (K,), rank of that product after the step
    gaps: FloatArray  # (K,), rescaled time by which the next direction would have been later
    losses: FloatArray  # (K+1,), loss on each plateau
    matrices: FloatArray = field(repr=False)  # (K+1, 2, d, d), M_KQ and M_VO on each plateau
    status: Status
    message: str

    @property
    def success(self) -> bool:
        """Whether all steps are there: no product has a gradient left."""
        return self.status.success

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python, ready for JSON; None for what is not finite."""
        return dict(plain(self))

    def summary(self) -> str:
        """Table of the steps, one line each, with the status below it."""
        lines = ["stage         T  step                  loss", f"    0  {'':9}{'':16}"]
        lines[1] += f"{self.losses[0]:12.6g}"
        for k, (time, product, rank) in enumerate(
            zip(self.times, self.products, self.ranks, strict=True)
        ):
            step = f"{product} to rank {rank}"
            lines.append(f"{k + 1:5}  {time:8.5g}  {step:18}{self.losses[k + 1]:9.6g}")
        return "\n".join([*lines, f"status: {self.status} ({self.message})"])

    def __str__(self) -> str:
        return self.summary()


def predict_rank_steps(
    head: FullHead,
    data: Data,
    *,
    loss: str | SampleLoss = "squared",
    max_steps: int | None = None,
    field_rtol: float = 1e-6,
) -> RankPrediction:
    """Predict the rank-one steps of a head with full weights from a generic small initialization.

    Parameters
    ----------
    head : FullHead
        Sizes of the head; its own weights are not used.
    data : pair (X, y), torch Dataset or DataLoader
        Inputs and targets.
    loss : {"squared", "mse"} or callable
        As for `TorchModel.bind`.
    max_steps : int, optional
        Stop after that many steps.
    field_rtol : float
        The recursion has converged when both σ_1(G) are at most this fraction of the first one.

    Returns
    -------
    RankPrediction

    Raises
    ------
    InvalidInputError
        If `head` is not a `FullHead`.

    Notes
    -----
    To leading order in 1/log(1/α), for initial weights without structure: diagonal weights, say,
    pair by coordinate (eqs. (8)–(10) of arXiv 2306.07042) and not in sorted order. A rank that is
    lost in a transition ends the recursion, because what becomes of it is not derived.
    """
    check_full_head(head, "dynalyze.predict_stages")
    return _Recursion(head, data, loss).run(max_steps, field_rtol)


class _Recursion:
    """State of the recursion: factors of both products, and the log-scales of what is small."""

    def __init__(self, head: FullHead, data: Data, loss: str | SampleLoss) -> None:
        self._head, self._data, self._loss = head, data, loss
        d, m = head.d_model, min(head.d_model, head.d_head)
        self._full = TorchModel.from_function(_of_matrices(d), 2 * d * d).bind(data, loss=loss)
        # Factors (A, B) of each product; columns are the active directions.
        self._factors = [(np.zeros((d, 0)), np.zeros((d, 0))) for _ in PRODUCTS]
        self._b = [np.ones(m) for _ in PRODUCTS]
        self._time = 0.0

    def run(self, max_steps: int | None, tolerance: float) -> RankPrediction:
        """All steps, and how they ended."""
        times: list[float] = []
        products: list[str] = []
        ranks: list[int] = []
        gaps: list[float] = []
        plateaus = [self._matrices()]
        losses = [self._full.value(plateaus[0].ravel())]
        scale = max(s[1][0] for s in self._spectra())
        ending = (Status.CONVERGED, "no product has a gradient left")
        while True:
            spectra = self._spectra()
            waits = [self._wait(which, spectra, tolerance * scale) for which in (0, 1)]
            winner = int(np.argmin(waits))
            if np.isinf(waits[winner]):
                if max(s[1][0] for s in spectra) > tolerance * scale:
                    ending = (
                        Status.FULL_RANK,
                        "a gradient is left, and no column for it: raise d_head",
                    )
                break
            if max_steps is not None and len(times) >= max_steps:
                ending = (Status.MAX_STEPS, f"stopped after max_steps={max_steps}")
                break
            b, s = self._b[winner], spectra[winner][1]
            second = b[1] / s[1] if b.size > 1 and s[1] > 0 else np.inf
            gaps.append(min(waits[1 - winner], second) - waits[winner])
            self._advance(winner, waits[winner], spectra)
            trouble = self._transition(winner, spectra[winner], scale)
            if trouble is not None:
                gaps.pop()
                ending = trouble
                break
            times.append(self._time)
            products.append(PRODUCTS[winner])
            ranks.append(self._factors[winner][0].shape[1])
            plateaus.append(self._matrices())
            losses.append(self._full.value(plateaus[-1].ravel()))
        return RankPrediction(
            times=np.array(times),
            products=tuple(products),
            ranks=np.array(ranks, dtype=np.int64),
            gaps=np.array(gaps),
            losses=np.array(losses),
            matrices=np.array(plateaus),
            status=ending[0],
            message=ending[1],
        )

    def _matrices(self) -> FloatArray:
        return np.array([A @ B.T for A, B in self._factors])

    def _spectra(self) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
        """Singular vectors and values of G for each product, off the active directions."""
        d = self._head.d_model
        gradients = self._full.field(self._matrices().ravel()).reshape(2, d, d)
        spectra = []
        for gradient, (A, B) in zip(gradients, self._factors, strict=True):
            # G annihilates them at a stationary point, up to the accuracy of the point.
            left, right = _complement(A), _complement(B)
            u, s, vt = np.linalg.svd(left @ gradient @ right)
            spectra.append((u, s, vt.T))
        return spectra

    def _wait(
        self, which: int, spectra: list[tuple[FloatArray, FloatArray, FloatArray]], least: float
    ) -> float:
        """Rescaled time until a product's next direction is active; inf if it has none."""
        b, s = self._b[which], spectra[which][1]
        return float(b[0] / s[0]) if b.size and s[0] > least else np.inf

    def _advance(
        self,
        winner: int,
        wait: float,
        spectra: list[tuple[FloatArray, FloatArray, FloatArray]],
    ) -> None:
        for which in (0, 1):
            b = self._b[which]
            self._b[which] = np.sort(np.maximum(b - spectra[which][1][: b.size] * wait, 0.0))
        self._b[winner] = self._b[winner][1:]
        self._time += wait

    def _transition(
        self, winner: int, spectrum: tuple[FloatArray, FloatArray, FloatArray], scale: float
    ) -> tuple[Status, str] | None:
        """Flow with one column more to its end; None, or what went wrong."""
        u, _, v = spectrum  # columns of u and v
        sizes = [np.abs(A).max(initial=0.0) for A, _ in self._factors]
        onset = _ONSET * max(1.0, *sizes)
        A, B = self._factors[winner]
        self._factors[winner] = (
            np.column_stack([A, onset * u[:, 0]]),
            np.column_stack([B, onset * v[:, 0]]),
        )
        shapes = [factor.shape for pair in self._factors for factor in pair]
        start = np.concatenate([factor.ravel() for pair in self._factors for factor in pair])
        objective = TorchModel.from_function(_of_factors(shapes), start.size).bind(
            self._data, loss=self._loss
        )
        # The new column is the last of both factors of the winner.
        new = np.concatenate(
            [
                np.broadcast_to(
                    (which == winner) & (np.arange(f.shape[1]) == f.shape[1] - 1), f.shape
                ).ravel()
                for which, pair in enumerate(self._factors)
                for f in pair
            ]
        )
        end = end_of_flow(objective, start, new, rate=float(spectrum[1][0]), scale=scale)
        if end is None:
            return Status.NO_LIMIT, "the flow after the step comes to no stationary point"
        parts = np.split(end, np.cumsum([rows * columns for rows, columns in shapes])[:-1])
        a, b, c, e = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        self._factors = [(a, b), (c, e)]
        for name, (left, right) in zip(PRODUCTS, self._factors, strict=True):
            rank = left.shape[1]
            values = np.linalg.svd(left @ right.T, compute_uv=False)
            if rank and values[rank - 1] < _VANISHED * values[0]:
                return (
                    Status.RANK_LOST,
                    f"{name} loses a rank in the step, and the theory ends there",
                )
        return None


def _complement(columns: FloatArray) -> FloatArray:
    """Projection onto the complement of the span of `columns`, shape (d, d)."""
    q = np.linalg.qr(columns)[0]
    return np.eye(len(columns)) - q @ q.T


def _attend(x: torch.Tensor, left: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.softmax(left @ x.mT, -1) @ values


def _of_matrices(d: int) -> Function:
    def head(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        key_query, value_output = theta.view(2, d, d)
        return _attend(x, x @ key_query, x @ value_output)

    return head


def _of_factors(shapes: Sequence[tuple[int, ...]]) -> Function:
    sizes = [rows * columns for rows, columns in shapes]

    def head(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        parts = torch.split(theta, sizes)
        a, b, c, e = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return _attend(x, (x @ a) @ b.mT, (x @ c) @ e.mT)

    return head
