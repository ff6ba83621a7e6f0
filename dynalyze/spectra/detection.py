"""Where a new component of a change leaves the noise: the stages seen in tracked spectra.

The rule, per head and product. Let σ_1 ≥ σ_2 ≥ … be the singular values of the change at a record,
n the number of all of them and K of those that were kept, μ_k the mean of σ_{k+1} … σ_K, and
ν_k = √((‖Δ‖_F² − σ_1² − … − σ_k²) / (n − k)) the root mean square of all those below the k-th. The
rank of the change is the largest k ≤ n/2 (k < K, unless all are kept) with

    σ_k ≥ noise_factor · ν_k,   σ_k ≥ bulk_factor · μ_k   and   σ_k ≥ threshold · S,

S being the largest singular value that the head's change ever has. Component k appears at the first
of `persistence` records in a row at which the rank is k or more, if it is so at half at least of
the records from there to the end (with persistence=1 every record is believed).

Two models of noise stand behind it. A matrix of independent noise has σ_1 ≤ 2 ν_0 in the limit (the
edge of its bulk), so the default noise_factor of 3 leaves room; the norm ‖Δ‖_F is exact also where
few values are kept. The noise of minibatches is a sum of N outer products instead, correlated, and
as long as N < n most of its values are 0: ν_k is far below the others. But those that are not 0 are
alike, σ_1 < bulk_factor · μ_1, whatever N is; and while N is below K, at the first records, they
are soon joined by more. What no rule on singular values tells from a change of low rank that is
learned is noise that keeps to a few directions all the time, or falls off like a power of k.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynalyze._core.arrays import ArrayLike, FloatArray, IntArray
from dynalyze._core.dataframe import dataframe
from dynalyze._core.plain import plain
from dynalyze._core.products import PRODUCTS
from dynalyze.errors import InvalidInputError
from dynalyze.spectra.history import SpectraHistory

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class DetectedStages:
    """Components that left the noise, E of them, in the order in which they appeared."""

    steps: FloatArray  # (E,), optimizer step of the crossing, interpolated between records
    records: IntArray  # (E,), step of the first record with the component
    product: IntArray  # (E,), 0 for W_K W_Qᵀ, 1 for W_V W_Oᵀ
    layer: IntArray  # (E,)
    head: IntArray  # (E,)
    component: IntArray  # (E,), k ≥ 1: the rank of the change from then on
    size: FloatArray  # (E,), σ_k at the end of the run
    ranks: IntArray  # (R, 2, N), rank of each change at each record, after persistence
    record_steps: IntArray  # (R,)
    layer_names: tuple[str, ...]
    limit: str = ""  # what the rule takes noise to be, and how many components it can find

    def __len__(self) -> int:
        """Number of components."""
        return len(self.steps)

    def __repr__(self) -> str:
        return f"<DetectedStages: {len(self)} components in {len(self.record_steps)} records>"

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Return a table of the components in the order in which they appeared, as text."""
        if not len(self):
            return f"no component left the noise\n{self.limit}".strip()
        lines = [f"{'step':>10}  {'layer':<30}{'head':>5}  {'product':<10}{'rank':>5}{'size':>12}"]
        lines += [
            f"{self.steps[e]:>10.0f}  {self.layer_names[self.layer[e]]:<30}{self.head[e]:>5}  "
            f"{PRODUCTS[self.product[e]]:<10}{self.component[e]:>5}{self.size[e]:>12.4g}"
            for e in range(len(self))
        ]
        return "\n".join([*lines, self.limit]).strip()

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python, ready for JSON; None for what is not finite."""
        return dict(plain(self))

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per component.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        columns: dict[str, Any] = {
            "step": self.steps,
            "record": self.records,
            "layer": self.layer,
            "layer_name": np.asarray(self.layer_names)[self.layer],
            "head": self.head,
            "product": np.asarray(PRODUCTS)[self.product],
            "component": self.component,
            "size": self.size,
        }
        return dataframe(columns)

    def plot(self, *, predicted_steps: ArrayLike = (), ax: "Axes | None" = None) -> "Axes":
        """Draw the total rank of all changes against training, over predicted stages.

        Parameters
        ----------
        predicted_steps : array_like, optional
            Optimizer steps of predicted stages, drawn as vertical lines, such as
            ``prediction.jump_times(threshold, unit="steps", lr=lr)``; NaN is left out.
        ax : Axes, optional
            Where to draw; new axes by default.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        for p, label in enumerate((r"$W_K W_Q^T$", r"$W_V W_O^T$")):
            steps = np.sort(self.steps[self.product == p])
            last = max(self.record_steps[-1], steps[-1] if len(steps) else 0)
            times = np.concatenate([[0.0], steps, [last]])
            counts = np.concatenate([np.arange(len(steps) + 1), [len(steps)]])
            ax.step(times, counts, where="post", label=f"components of $\\Delta$({label})")
        predicted = np.ravel(np.asarray(predicted_steps, dtype=np.float64))
        for i, step in enumerate(predicted[np.isfinite(predicted)]):
            name = "predicted stage" if i == 0 else None
            ax.axvline(step, color="0.6", lw=0.8, ls="--", zorder=0, label=name)
        ax.set_xlabel("optimizer step")
        ax.set_ylabel("components, all heads")
        ax.legend(frameon=False, fontsize="small")
        ax.set_ylim(bottom=0)
        ax.margins(x=0)
        return ax


def detect_stages(
    history: SpectraHistory,
    *,
    threshold: float = 0.1,
    noise_factor: float = 3.0,
    bulk_factor: float = 2.0,
    persistence: int = 3,
) -> DetectedStages:
    """Find where a new component of Δ(W_K W_Qᵀ) or Δ(W_V W_Oᵀ) leaves the noise.

    The rule stands at the top of this module; what it misses and invents on synthetic spectra is
    measured by ``validation.stage_detection``.

    Parameters
    ----------
    history : SpectraHistory
        Records of a tracker; a component appears between two of them, so record often.
    threshold : float
        Smallest size of a component, over the largest that the same head's change ever has.
    noise_factor : float
        Smallest size of a component, over the root mean square of the singular values below it.
    bulk_factor : float
        Smallest size of a component, over the mean of the values below it that were kept: what
        the noise of minibatches does not reach, whose values are alike.
    persistence : int
        Number of records in a row at which a component must be seen.

    Raises
    ------
    InvalidInputError
        If an option is out of range or there are fewer than `persistence` records.
    """
    if not 0 < threshold < 1:
        raise InvalidInputError(f"threshold={threshold!r} must lie between 0 and 1")
    if noise_factor <= 1:
        raise InvalidInputError(
            f"noise_factor={noise_factor!r} must exceed 1: no value is below the root mean square "
            "of smaller ones"
        )
    if bulk_factor < 1:
        raise InvalidInputError(
            f"bulk_factor={bulk_factor!r} must be at least 1: no value is below the mean of "
            "smaller ones"
        )
    if persistence < 1:
        raise InvalidInputError(f"persistence={persistence!r} must be at least 1 record")
    if len(history.steps) < max(2, persistence):
        raise InvalidInputError(
            f"the history has {len(history.steps)} records, fewer than persistence={persistence}: "
            "record more often."
        )
    margins = _margins(history, threshold, noise_factor, bulk_factor)
    present = _persistent(margins >= 1.0, persistence)
    found = np.argwhere(present.any(0))
    first = np.argmax(present[:, *found.T], axis=0) if len(found) else np.zeros(0, dtype=int)
    steps = _crossing(history.steps, margins[:, *found.T], first)
    order = np.argsort(steps, kind="stable")
    product, unit, k = found[order].T.reshape(3, -1)
    return DetectedStages(
        steps=steps[order],
        records=history.steps[first[order]],
        product=product,
        layer=history.layer[unit],
        head=history.head[unit],
        component=k + 1,
        size=history.singular_values[-1, product, unit, k],
        ranks=present.sum(-1),
        record_steps=history.steps,
        layer_names=history.layer_names,
        limit=_limit(history),
    )


def _limit(history: SpectraHistory) -> str:
    kept, largest = history.singular_values.shape[-1], int(history.largest_rank.max())
    most = min(largest // 2, kept if kept >= largest else kept - 1)
    return (
        f"(at most {most} components per head can be found; noise that keeps to a few directions "
        "throughout, or falls off like a power, cannot be told from components)"
    )


def _margins(
    history: SpectraHistory, threshold: float, noise_factor: float, bulk_factor: float
) -> FloatArray:
    """By how much each value passes all conditions, the rank rule applied; (R, 2, N, K)."""
    values = history.singular_values
    largest_rank = history.largest_rank[None, :, :, None]
    n_kept = values.shape[-1]
    k = np.arange(1, n_kept + 1)
    below = history.frobenius_norm[..., None] ** 2 - np.cumsum(values**2, axis=-1)
    # Rounding may leave a small negative rest.
    noise = np.sqrt(np.clip(below, 0.0, None) / np.maximum(largest_rank - k, 1))
    floor = threshold * values[..., :1].max(0, keepdims=True)
    n_below = np.minimum(n_kept, largest_rank) - k
    sums = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1] - values
    bulk = np.divide(sums, n_below, out=np.zeros_like(values), where=n_below > 0)
    bar = np.maximum(floor, np.maximum(noise_factor * noise, bulk_factor * bulk))
    with np.errstate(over="ignore"):
        margins = np.divide(values, bar, out=np.zeros_like(values), where=bar > 0)
    # Nothing is known of what lies below the last value that was kept.
    judged = (2 * k <= np.maximum(largest_rank, 2)) & ((k < n_kept) | (largest_rank <= n_kept))
    margins = np.where(judged, margins, 0.0)
    # The rank is the largest k that passes: a value passes if any later one does.
    return np.maximum.accumulate(margins[..., ::-1], axis=-1)[..., ::-1]


def _persistent(present: Any, persistence: int) -> Any:
    """Keep what stays for so many records and is there at half of all records from then on."""
    lasting = present.copy()
    for shift in range(1, persistence):
        lasting[:-shift] &= present[shift:]
        lasting[-shift:] = False
    if persistence > 1:
        n_left = np.arange(len(present), 0, -1).reshape(-1, *[1] * (present.ndim - 1))
        lasting &= 2 * np.cumsum(present[::-1], axis=0)[::-1] >= n_left
    return np.maximum.accumulate(lasting, axis=0)


def _crossing(record_steps: IntArray, margins: FloatArray, first: IntArray) -> FloatArray:
    """Step at which log(margin) crosses 0, on the line between the records around it."""
    before = np.maximum(first - 1, 0)
    columns = np.arange(margins.shape[1])
    low, high = margins[before, columns], margins[first, columns]
    share = np.ones(len(first))
    crossing = (low > 0) & (low < 1) & (high > low)
    share[crossing] = -np.log(low[crossing]) / np.log(high[crossing] / low[crossing])
    start = record_steps[before].astype(np.float64)
    return start + share * (record_steps[first] - start)
