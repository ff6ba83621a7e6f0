"""Error rates of `detect_stages` on synthetic spectra with known jumps."""

from dataclasses import dataclass

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze.spectra import SpectraHistory, detect_stages
from validation.report import table, write

N_RECORDS = 60
N_VALUES = 10
RANK = 32  # rank that a change cannot exceed: head dimension 16
SIZES = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 30.0)
NOISES = ("white", "random walk", "product", "minibatch")
BATCH_RANK = 4


@dataclass(frozen=True)
class Synthetic:
    """Spectra of random changes with components that jump at known records."""

    history: SpectraHistory
    jumps: FloatArray  # (N, J), record (not rounded) of each jump


def synthetic_spectra(
    size: float,
    *,
    noise: str = "white",
    n_heads: int = 100,
    n_jumps: int = 3,
    rng: np.random.Generator,
) -> Synthetic:
    """Draw heads whose change is `n_jumps` rank-one components in noise.

    Parameters
    ----------
    size : float
        Final size of each component, over the root mean square of the noise's singular values at
        the end; 0: noise alone.
    noise : {"white", "random walk", "product", "minibatch"}
        Independent Gaussian matrices at each record; their running sum, which grows as √t; a
        product of a running sum with a fixed Gaussian matrix, as in Δ(W_K) W_Q(0)ᵀ; or a running
        sum of matrices of rank 4, as the gradients of four samples are.
    n_heads, n_jumps : int
        How many.
    rng : numpy.random.Generator
        Source of all random numbers.
    """
    shape = (n_heads, RANK, RANK)
    records = np.arange(N_RECORDS)
    slots = np.linspace(8, N_RECORDS - 8, n_jumps + 1)
    jumps = slots[:-1] + rng.uniform(0.1, 0.9, (n_heads, n_jumps)) * np.diff(slots)
    # Exponential growth that saturates, e-folding once per record
    growth = 1.0 / (1.0 + np.exp(-(records[:, None, None] - jumps)))  # (R, N, J)
    left, right = (np.linalg.qr(rng.standard_normal(shape))[0][..., :n_jumps] for _ in range(2))
    fixed = rng.standard_normal(shape) / np.sqrt(RANK)
    walk, batches = np.zeros(shape), np.zeros(shape)
    values, norms = [], []
    for r in records:
        fresh = rng.standard_normal(shape)
        walk = walk + fresh / np.sqrt(N_RECORDS)
        if noise == "minibatch" and r:
            a, b = rng.standard_normal((2, n_heads, RANK, BATCH_RANK))
            batches = batches + a @ b.transpose(0, 2, 1) / np.sqrt(BATCH_RANK * N_RECORDS)
        disorder = {
            "white": fresh,
            "random walk": walk,
            "product": walk @ fixed,
            "minibatch": batches,
        }[noise]
        change = size * (left * growth[r][:, None]) @ right.transpose(0, 2, 1)
        change = change + disorder / np.sqrt(RANK)
        spectrum = np.linalg.svd(change, compute_uv=False)
        values.append(spectrum[:, :N_VALUES])
        norms.append(np.linalg.norm(spectrum, axis=-1))
    return Synthetic(as_history(np.array(values), np.array(norms)), jumps)


def as_history(
    values: FloatArray, norms: FloatArray, *, largest_rank: int = RANK
) -> SpectraHistory:
    """One layer; the second product does not change."""
    n_records, n_heads, _ = values.shape
    both = np.stack([values, np.zeros_like(values)], 1)
    frobenius = np.stack([norms, np.zeros_like(norms)], 1)
    none = np.zeros((n_records, 2, n_heads, 0))
    return SpectraHistory(
        steps=100 * np.arange(n_records, dtype=np.int64),
        layer_names=("synthetic",),
        notes=("",),
        layer=np.zeros(n_heads, dtype=np.int64),
        head=np.arange(n_heads),
        singular_values=both,
        frobenius_norm=frobenius,
        effective_rank=np.zeros_like(frobenius),
        effective_rank_bound=np.zeros_like(frobenius),
        numerical_rank=np.zeros_like(frobenius, dtype=np.int64),
        left_angles=none,
        right_angles=none,
        largest_rank=np.full((2, n_heads), largest_rank, dtype=np.int64),
        initial_singular_values=np.ones((2, n_heads, RANK)),
        rank_rtol=0.01,
    )


@dataclass(frozen=True)
class ErrorRates:
    """How a detection compares with the truth."""

    missed: float  # share of the jumps
    invented: float  # components beyond the true number, per head
    delay: float  # median of detected minus true time, in records
    spread: float  # median absolute deviation of that, in records


def error_rates(synthetic: Synthetic) -> ErrorRates:
    """Match the k-th component detected in a head with the k-th jump of that head."""
    found = detect_stages(synthetic.history)
    n_heads, n_jumps = synthetic.jumps.shape
    has_signal = bool(synthetic.history.singular_values[-1, 0, :, 0].any())
    truth = np.sort(synthetic.jumps, axis=1)
    counts = np.bincount(found.head, minlength=n_heads)
    real = found.component <= n_jumps
    delays = found.steps[real] / 100 - truth[found.head[real], found.component[real] - 1]
    delay = float(np.median(delays)) if has_signal and len(delays) else np.nan
    spread = float(np.median(np.abs(delays - delay))) if len(delays) else np.nan
    return ErrorRates(
        missed=float(np.clip(n_jumps - counts, 0, None).sum() / (n_heads * n_jumps)),
        invented=float(np.clip(counts - n_jumps, 0, None).mean()),
        delay=delay,
        spread=spread,
    )


def main() -> None:
    """Write the error rates for components of several sizes in three kinds of noise."""
    rows = []
    for noise in NOISES:
        for size in SIZES:
            n_jumps = 3 if size else 0
            synthetic = synthetic_spectra(
                size, noise=noise, n_jumps=n_jumps, rng=np.random.default_rng(0)
            )
            if n_jumps:
                rates = error_rates(synthetic)
                row = [f"{rates.missed:.1%}", f"{rates.invented:.3f}"]
                row += [f"{rates.delay:+.1f} ± {rates.spread:.1f}"]
            else:
                found = detect_stages(synthetic.history)
                row = ["–", f"{len(found) / len(synthetic.history.head):.3f}", "–"]
            rows.append([noise, f"{size:g}", *row])
    write(
        "validation/stage_detection.md",
        "Error rates of detect_stages",
        f"""
100 heads of {N_RECORDS} records each: changes of rank {RANK} with three components that grow
exponentially, by e per record, and saturate at known records, in Gaussian noise. Options are the
defaults (threshold 0.1, noise factor 3, bulk factor 2, persistence 3). A size is a component's
final singular value over the root mean square of those of the noise at the end of the run; the
largest singular value of white noise is 2 on that scale. A delay is the detected minus the true
time of half the final size, median ± median absolute deviation, in records.

{table(["noise", "size", "jumps missed", "components invented per head", "delay"], rows)}

White noise is drawn anew at every record, a random walk is its running sum, and a product is a
running sum times a fixed Gaussian matrix, whose spectrum has a wider bulk. Minibatch noise is a
running sum of matrices of rank {BATCH_RANK}, of low rank itself at first: without the bulk factor
it gave ten components in each head. A component below the noise factor is missed by construction.
""",
        module="validation.stage_detection",
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
