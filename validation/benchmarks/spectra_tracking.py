"""Cost of tracking at the paper's shape: against dense SVDs, and against the training itself."""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from dynalyze._core.arrays import FloatArray
from dynalyze.spectra import SpectraHistory, Tracker, attention_products, track
from dynalyze.training.vit import VisionTransformer, ViTShape
from validation.report import table, write

N_THREADS = 1
BATCH = 128
EVERY = 50
HEADER = (
    "change",
    "method",
    "ms per record",
    "times faster",
    "error of values",
    "of stable rank",
)


def main() -> None:
    """Measure, and write docs/benchmarks/spectra_tracking.md."""
    before = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    try:
        _write()
    finally:
        torch.set_num_threads(before)


def _write() -> None:
    model = VisionTransformer(ViTShape(), seed=0)
    trackers = {
        "tracker, 10 leading values (default)": track(model),
        "tracker, 10 leading values, no directions": track(model, n_directions=0),
        "tracker, full spectrum": track(model, spectrum="full"),
    }
    start = _factors(model)
    _train(model, n_steps=20, batch=16)
    # The trackers' model takes on the weights of each case in turn.
    trained = copy.deepcopy(model)
    cases = {"after 20 steps of Adam": trained}
    rows = []
    for decay in (1.0, 0.5, 0.2):
        cases[f"synthetic, σ_k ∝ k^−{decay:g}"] = _moved(start, decay)
    for name, moved in cases.items():
        exact = _dense(start, _factors(moved), torch.float64)
        reference, seconds = _timed(partial(_dense_float32, start, moved), 3)
        rows.append(_row(name, "batched svdvals", seconds, seconds, _errors(reference, exact)))
        for method, tracker in trackers.items():
            history, own = _timed(partial(_record, tracker, moved), 5)
            found = history.singular_values[-1], history.frobenius_norm[-1]
            rows.append(_row(name, method, own, seconds, _errors(found, exact)))
    default = trackers["tracker, 10 leading values (default)"]
    record_seconds = _timed(lambda: _record(default, trained), 5)[1]
    step_seconds = _train(trained, n_steps=3, batch=BATCH)
    share = record_seconds / (EVERY * step_seconds + record_seconds)
    write(
        "benchmarks/spectra_tracking.md",
        "Cost of tracking attention spectra",
        f"""
The paper's vision transformer (6 layers, 8 heads, width 512, head dimension 128, float32), on the
CPU with {N_THREADS} thread. A record measures Δ(W_K W_Qᵀ) and Δ(W_V W_Oᵀ) of all 48 heads, 96
matrices of 512 × 512 and rank up to 256. Times are CPU time, medians of 5 records (of 3 for
svdvals, which includes forming the products); errors are the largest over all heads, relative to a
dense SVD in double precision: of the 10 leading values, over the largest, and of the stable rank.

{table(HEADER, rows)}

Where the spectrum falls so slowly that the Krylov space does not resolve 10 values to 5e-7, the
default falls back to all values of the heads concerned. Batched svdvals gives no directions; the
tracker's time includes four on each side and their angles to the previous record.

A training step of batch {BATCH} took {step_seconds:.2f} s, a record
{record_seconds * 1e3:.0f} ms. Recording every {EVERY} steps is {share:.3%} of the time;
at the paper's batch of 512 a step costs four times as much and the record the same.

No GPU was at hand: none of this was measured on one.
""",
        module="validation.benchmarks.spectra_tracking",
        packages=("torch", "numpy"),
    )


def _row(
    change: str, method: str, seconds: float, baseline: float, errors: tuple[float, float]
) -> list[str]:
    faster = "–" if method == "batched svdvals" else f"{baseline / seconds:.1f}"
    return [change, method, f"{seconds * 1e3:.0f}", faster, *(f"{error:.1e}" for error in errors)]


Result = TypeVar("Result")
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def _factors(model: VisionTransformer) -> Pairs:
    """W_K, W_Q and W_V, W_O of all heads, each (48, 512, 128)."""
    products = attention_products(model)
    return [
        (torch.cat([getattr(p, a) for p in products]), torch.cat([getattr(p, b) for p in products]))
        for a, b in (("W_K", "W_Q"), ("W_V", "W_O"))
    ]


def _dense(start: Pairs, now: Pairs, dtype: torch.dtype) -> tuple[FloatArray, FloatArray]:
    """All singular values of the changes, (2, 48, 512), and their norms, by dense SVDs."""
    values = []
    for (a0, b0), (a1, b1) in zip(start, now, strict=True):
        change = a1.to(dtype) @ b1.to(dtype).mT - a0.to(dtype) @ b0.to(dtype).mT
        values.append(torch.linalg.svdvals(change).double().numpy())
    return np.stack(values), np.linalg.norm(np.stack(values), axis=-1)


def _dense_float32(start: Pairs, model: VisionTransformer) -> tuple[FloatArray, FloatArray]:
    """What is timed for the dense SVDs: taking the factors counts."""
    return _dense(start, _factors(model), torch.float32)


def _errors(
    found: tuple[FloatArray, FloatArray], exact: tuple[FloatArray, FloatArray]
) -> tuple[float, float]:
    leading = np.abs(found[0][..., :10] - exact[0][..., :10]) / exact[0][..., :1]
    ranks, true = ((norms / values[..., 0]) ** 2 for values, norms in (found, exact))
    return float(leading.max()), float(np.abs(ranks / true - 1).max())


def _record(tracker: Tracker, model: VisionTransformer) -> SpectraHistory:
    # The tracker follows one model; other weights are put into it.
    tracker.model.load_state_dict(model.state_dict())
    tracker._step += 1
    tracker.record()
    return tracker.history


def _train(model: VisionTransformer, n_steps: int, batch: int) -> float:
    """Make steps on random images; returns the median time of the last ones."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    seconds = []
    for _ in range(n_steps):
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        labels = torch.randint(0, 10, (batch,), generator=generator)
        started = time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:])


def _moved(start: Pairs, decay: float) -> VisionTransformer:
    """A model whose factors changed by matrices of known decay."""
    model = VisionTransformer(ViTShape(), seed=0)
    generator = torch.Generator().manual_seed(1)
    sizes = torch.arange(1, 129).double() ** -decay
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".W_" in name and name.endswith("weight"):
                heads = weight.view(8, 128, 512) if "W_O" not in name else None
                left = torch.linalg.qr(torch.randn(8, 512, 128, generator=generator))[0]
                right = torch.linalg.qr(torch.randn(8, 128, 128, generator=generator))[0]
                change = 0.5 * ((left * sizes.float()) @ right.mT).mT  # (8, 128, 512)
                if heads is None:
                    weight.add_(change.permute(2, 0, 1).reshape(512, 1024))
                else:
                    heads.add_(change)
    return model


def _timed(function: Callable[[], Result], repeats: int) -> tuple[Result, float]:
    seconds, result = [], function()
    for _ in range(repeats):
        started = time.process_time()
        result = function()
        seconds.append(time.process_time() - started)
    return result, statistics.median(seconds)


if __name__ == "__main__":
    main()
