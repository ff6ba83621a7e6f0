"""``dynalyze warmup``: compile the kernels of the library before they are needed."""

from __future__ import annotations

import argparse
import contextlib
import time

from dynalyze.cli import console
from dynalyze.errors import MissingDependencyError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "warmup",
        help="compile the kernels now, so that the first use does not wait for them",
        description="Compile the kernels of attention heads, of the integrator and of training "
        "(where torch is installed) for this machine, and keep them; those of formulas are "
        "compiled where the formula is first bound. Set NUMBA_CACHE_DIR, here and later, to keep "
        "them in a folder of your choice, such as one in a container's image.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Use every kernel once, and print where its code is kept."""
    import numpy as np

    from dynalyze.flow.initialization import Initialization
    from dynalyze.flow.simulate import simulate
    from dynalyze.models import AttentionHead, kernels
    from dynalyze.stages.predict import predict_stages

    started = time.monotonic()
    rng = np.random.default_rng(0)
    X, head = rng.standard_normal((40, 3, 2)), AttentionHead(2)
    data = X, head.predict(rng.standard_normal(4), X)
    init = Initialization.gaussian(head.n_products, log10_alpha=-20, rng=rng)
    predict_stages(head, data, max_stages=1)
    simulate(head, data, init, until_rescaled=1.0)
    with contextlib.suppress(MissingDependencyError):
        from dynalyze.training import train

        train(head, data, init=init, lr=0.01, steps=1)
    cache = getattr(kernels.loss_and_gradient, "_cache", None)
    place = getattr(cache, "cache_path", None)
    kept = f"kept in {place} and beside it" if place else "not kept: no folder can be written"
    console.show(f"kernels ready after {time.monotonic() - started:.1f} s, {kept}")
    return 0
