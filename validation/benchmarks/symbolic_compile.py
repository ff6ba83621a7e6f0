"""How long a formula takes to become kernels, and how soon a second process has them.

Each measurement is a process of its own, from the start of Python to the first field and Hessian.
Compared with SymPy's own way, `lambdify` of the derivatives of the whole loss, uncompiled.
CPU time, which does not depend on what else the machine does.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from validation import report

COMMAND = "validation.benchmarks.symbolic_compile"
SIZES = ((3, 2), (3, 4))  # tokens, d; the head has p = 2 d products
REPEATS = 3

_COMMON = """
import sys
from time import process_time as clock
import numpy as np, sympy as sp
from dynalyze.symbolic.worked import attention_head_formula
n_tokens, d = map(int, sys.argv[1:3])
h, inputs, products = attention_head_formula(n_tokens, d)
rng = np.random.default_rng(0)
X, y = rng.normal(size=(2, 200, n_tokens * d))
theta, every = rng.normal(size=2 * d) / 2, np.arange(2 * d)
"""

_LIBRARY = """
from dynalyze.models import SymbolicModel
ready = clock()
objective = SymbolicModel(h, inputs, products).bind((X, y))
compute = lambda: (objective.field(theta), objective.hessian_columns(theta, every))
"""

_LAMBDIFY = """
ready = clock()
targets = sp.symbols(f"y:{len(h)}")
loss = sum((t - f) ** 2 for t, f in zip(targets, h)) / 2
gradient = [sp.diff(loss, q) for q in products]
hessian = [sp.diff(g, q) for g in gradient for q in products]
function = sp.lambdify([*inputs, *targets, *products], [*gradient, *hessian], "numpy", cse=True)
compute = lambda: [np.mean(e) for e in function(*X.T, *y.T, *theta)]
"""

_REPORT = """
compute()
first = clock()
repeats = 20
for _ in range(repeats):
    compute()
print(first, first - ready, (clock() - first) / repeats)
"""


def measure(code: str, size: tuple[int, int], cache: str) -> list[float]:
    """Seconds to the first result from the start of Python, from the formula; of one more."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    script = _COMMON + code + _REPORT
    output = subprocess.run(
        [sys.executable, "-c", script, *map(str, size)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [float(text) for text in output.split()]


def median(runs: list[list[float]]) -> list[float]:
    """Entry by entry."""
    return [statistics.median(column) for column in zip(*runs, strict=True)]


def main() -> None:
    rows = []
    for size in SIZES:
        fresh, cached = [], []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory() as cache:
                fresh.append(measure(_LIBRARY, size, cache))
                cached.append(measure(_LIBRARY, size, cache))
        lambdified = [measure(_LAMBDIFY, size, "/nowhere") for _ in range(REPEATS)]
        for name, runs in (
            ("SymbolicModel, first process", fresh),
            ("SymbolicModel, second process", cached),
            ("`sympy.lambdify`, any process", lambdified),
        ):
            start, derive, evaluate = median(runs)
            rows.append(
                [
                    f"{size[0]} tokens, d = {size[1]}, p = {2 * size[1]}",
                    name,
                    f"{derive:.2f}",
                    f"{start:.2f}",
                    f"{1e3 * evaluate:.3f}",
                ]
            )
    table = report.table(
        [
            "attention head",
            "",
            "from the formula, s",
            "from the start of Python, s",
            "one more, ms",
        ],
        rows,
    )
    report.write(
        "benchmarks/symbolic_compile.md",
        "From a formula to kernels",
        "The field and all Hessian columns of the attention head, written as a SymPy formula, on "
        "200 samples: time to the first result. The first process derives, writes and compiles; "
        "the second finds the compiled code in the cache folder. CPU time, medians of "
        f"{REPEATS}, each in a process of its own.\n\n{table}",
        module=COMMAND,
        packages=("numpy", "numba", "sympy"),
    )


if __name__ == "__main__":
    main()
