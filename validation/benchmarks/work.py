"""Work of small fixed problems, kept from commit to commit.

Counted are evaluations (gradients, calls for Hessian columns, columns) and, where PyTorch computes,
the operations that it dispatches: what a machine's speed does not change. The history is
docs/benchmarks/work.json, its latest entries stand in docs/benchmarks/work.md, and
tests/property/test_work_on_record.py holds every problem to the last entry.

    python -m validation.benchmarks.work                 # compare with the last entry
    python -m validation.benchmarks.work --record "why"  # append an entry
"""

import argparse
import importlib.util
import json
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import sympy as sp

from dynalyze import Initialization, datasets, predict_stages, simulate
from dynalyze.models import AttentionHead, DiagonalLinear, Model, SymbolicModel
from dynalyze.models.counted import Stats
from validation import report

COMMAND = "validation.benchmarks.work"
HISTORY = report.DOCS / "benchmarks" / "work.json"
ALPHAS = (-4, -20, -1000)  # log10 α
TOL = 1e-4
METHODS = ("surrogate", "CVODE", "LSODA", "BDF", "Radau")
SHOWN = 5  # entries on the page
# A count may be larger by this fraction, and this number. Rounding alone (data moved by 1e-15, six
# times) changed gradients by up to 12%, columns at small α by up to 30%, and machines round apart.
MARGINS = {"Hessians": 0.5, "columns": 0.5}
MARGIN, SLACK = 0.25, 3

Counts: TypeAlias = dict[str, int]
Data: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """What is counted, and the package that it needs beside the library's own."""

    count: Callable[[], Counts]
    package: str = "numpy"

    @property
    def installed(self) -> bool:
        """Whether the package is at hand."""
        return importlib.util.find_spec(self.package) is not None


def linear() -> tuple[Model, Data]:
    """Fewer samples than features, so that products leave the support again."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 30))
    return DiagonalLinear(30), (X, X @ rng.standard_normal(30) + rng.standard_normal(20))


def head(d: int) -> tuple[Model, Data]:
    """A head with a dense teacher; d = 8 is problem (A) of the integrators' benchmark."""
    return AttentionHead(d, threads=1), head_data(d)


def head_data(d: int) -> Data:
    samples, tokens = {4: (60, 4), 8: (200, 5)}[d]
    data = datasets.toy_head(n_samples=samples, n_tokens=tokens, teacher="dense", d_model=d, rng=0)
    return data.X, data.y


def formula() -> tuple[Model, Data]:
    """h(x; θ) = Σ_j tanh(θ_j x_j), with a teacher of that form."""
    x, theta = sp.symbols("x1:5"), sp.symbols("theta1:5")
    h = sum(sp.tanh(t * feature) for t, feature in zip(theta, x, strict=True))
    X = np.random.default_rng(0).standard_normal((50, 4))
    return SymbolicModel(h, x, theta), (X, np.tanh(X * [1.2, -0.8, 0.5, -0.3]).sum(axis=1))


def torch_head(d: int) -> tuple[Model, Data]:
    """The same head through automatic differentiation."""
    from dynalyze.training import DiagonalHead

    return DiagonalHead(d), head_data(d)


def evaluations(stats: Stats) -> Counts:
    return {"gradients": stats.nfev, "Hessians": stats.nhev, "columns": stats.nhcol}


def predicted(make: Callable[[], tuple[Model, Data]], log10_alpha: int | None) -> Counts:
    """Work of all stages: of the limit α → 0, or with the jump times at an α."""
    model, data = make()
    init = None if log10_alpha is None else start(model.n_products, log10_alpha)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stages may overlap
        return evaluations(predict_stages(model, data, init=init).stats)


def simulated(
    make: Callable[[], tuple[Model, Data]], log10_alpha: int, method: str, until: float
) -> Counts:
    """Work of a run to a rescaled time."""
    model, data = make()
    init = start(model.n_products, log10_alpha)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = simulate(
            model, data, init, until_rescaled=until, method=method, tol=TOL, max_steps=10**5
        )
    if not run.success:
        raise RuntimeError(f"{method} at 1e{log10_alpha} did not come to its end: {run.message}")
    return evaluations(run.stats)


def start(n_products: int, log10_alpha: int) -> Initialization:
    return Initialization.gaussian(n_products, log10_alpha=log10_alpha, rng=5)


def operations(call: Callable[[], object]) -> int:
    """Operations that PyTorch dispatches in the second of two calls."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.number += 1
            return func(*args, **(kwargs or {}))

    call()
    with Counter() as counter:
        call()
    return counter.number


def torch_evaluation(d: int) -> Counts:
    """Operations of one evaluation of the torch head."""
    model, data = torch_head(d)
    objective = model.bind(data)
    theta = np.random.default_rng(1).standard_normal(objective.n_products)
    return {
        "operations of value": operations(partial(objective.value, theta)),
        "of value and field": operations(partial(objective.value_and_field, theta)),
        "of 4 columns": operations(partial(objective.hessian_columns, theta, np.arange(4))),
    }


def spectra_record() -> Counts:
    """Operations of one record of the spectra of a small vision transformer that has moved."""
    import torch

    from dynalyze.spectra import track
    from dynalyze.training.vit import VisionTransformer, ViTShape

    shape = ViTShape(
        image_size=8, patch_size=4, n_layers=2, n_heads=3, width=96, mlp_width=16, head_width=32
    )
    model = VisionTransformer(shape, seed=0)
    tracker = track(model, every=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return {"operations": operations(tracker.step)}


def problems() -> dict[str, Problem]:
    """Every problem by its name."""
    found: dict[str, Problem] = {}
    models: dict[str, tuple[Callable[[], tuple[Model, Data]], str, float]] = {
        "linear p = 30": (linear, "numpy", 30.0),
        "head d = 4": (partial(head, 4), "numpy", 20.0),
        "head d = 8": (partial(head, 8), "numpy", 20.0),
        "formula": (formula, "numpy", 20.0),
        "torch head d = 4": (partial(torch_head, 4), "torch", 20.0),
    }
    for name, (make, package, until) in models.items():
        for at, log10_alpha in (("", None), (", jump times at 1e-8", -8)):
            count = partial(predicted, make, log10_alpha)
            found[f"predict_stages, {name}{at}"] = Problem(count, package)
        for log10_alpha in (-20,) if package == "torch" else ALPHAS:
            for method in METHODS if name == "head d = 4" else METHODS[:1]:
                label = f"simulate, {name}, {method}, 1e{log10_alpha}"
                count = partial(simulated, make, log10_alpha, method, until)
                found[label] = Problem(count, "sksundae" if method == "CVODE" else package)
    for d in (4, 8):
        found[f"torch head d = {d}, one evaluation"] = Problem(
            partial(torch_evaluation, d), "torch"
        )
    found["spectra, one record"] = Problem(spectra_record, "torch")
    return found


def on_record() -> list[dict[str, Any]]:
    """All entries, the oldest first: date, commit, why, and counts by problem."""
    return json.loads(HISTORY.read_text(encoding="utf-8")) if HISTORY.exists() else []


def excess(name: str, found: Counts, last: Mapping[str, Counts]) -> str:
    """Return which counts of a problem exceed those on record, "" where none does."""
    how = f"if that is meant, record it: python -m {COMMAND} --record WHY"
    if name not in last:
        return f"{name} is not on record: python -m {COMMAND} --record WHY"
    more = [
        f"{name}: {number} {kind}, {last[name].get(kind, 0)} on record"
        for kind, number in found.items()
        if number > (1 + MARGINS.get(kind, MARGIN)) * last[name].get(kind, 0) + SLACK
    ]
    return "; ".join([*more, how]) if more else ""


def record(counts: dict[str, Counts], why: str) -> None:
    """Append an entry, and write the page anew."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=report.DOCS,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    date = datetime.now(UTC).date().isoformat()
    entries = [*on_record(), {"date": date, "commit": commit, "why": why, "counts": counts}]
    HISTORY.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(entries)


def write_page(entries: list[dict[str, Any]]) -> None:
    """Latest entries side by side."""
    shown = entries[-SHOWN:]
    rows = [
        [name, " / ".join(latest), *(cell(entry["counts"].get(name, {})) for entry in shown)]
        for name, latest in shown[-1]["counts"].items()
    ]
    reasons = "\n".join(f"- {e['date']}, {e['commit']}: {e['why']}" for e in shown)
    body = f"""
Counts of work of small fixed problems, the last {len(shown)} of {len(entries)} entries of
[work.json](work.json); no seconds. Simulations run at tol {TOL:g} with one initialization each;
operations are those that PyTorch dispatches in one evaluation or record.
`python -m {COMMAND}` compares a tree with the last entry, as a test does, which fails
where a count is larger by more than {MARGIN:.0%} ({MARGINS["columns"]:.0%} for Hessians and
columns) and {SLACK}; `--record WHY` appends an entry.
The commit is the one that an entry was recorded on,
before the change itself was committed where it says `dirty`.

{reasons}

{report.table(["problem", "counts", *(f"{e['date']}, {e['commit']}" for e in shown)], rows)}
"""
    report.write(
        "benchmarks/work.md",
        "Work on record",
        body,
        module=COMMAND,
        packages=("numpy", "scipy", "numba", "scikit-sundae", "torch"),
    )


def cell(counts: Counts) -> str:
    return " / ".join(map(str, counts.values())) or "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--record", metavar="WHY", help="append an entry, and say why it is one")
    why = parser.parse_args().record
    entries = on_record()
    last = entries[-1]["counts"] if entries else {}
    counts: dict[str, Counts] = {}
    faults = []
    for name, problem in problems().items():
        if not problem.installed:
            if why:
                raise SystemExit(f"{name} needs {problem.package}: install it to record")
            print(f"{name}: {problem.package} is not installed")
            continue
        counts[name] = problem.count()
        print(f"{name}: {cell(counts[name])}, on record {cell(last.get(name, {}))}", flush=True)
        faults.append(excess(name, counts[name], last))
    if why:
        record(counts, why)
    elif any(faults):
        raise SystemExit("\n".join(filter(None, faults)))


if __name__ == "__main__":
    main()
