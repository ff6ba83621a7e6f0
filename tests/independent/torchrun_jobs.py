"""What the processes of a torchrun job do, and one process alone to compare with.

Started as ``torchrun ... torchrun_jobs.py JOB OUT``: every rank writes OUT.RANK.npz.
"""

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch

from dynalyze import Initialization
from dynalyze.errors import InvalidInputError
from dynalyze.models import DiagonalTransformer, TorchModel
from dynalyze.training import DiagonalHead, FullHead, process_group, train, train_many

D = 3
STEPS = 12
MODELS = {
    "diagonal": lambda: DiagonalHead(D, rng=0),
    "full": lambda: FullHead(D, 2, rng=0),
    "transformer": lambda: DiagonalTransformer(D, n_heads=2, bases="random", rng=0),
    "torch model": lambda: TorchModel(DiagonalHead(D, rng=0), DiagonalHead(D).products),
}
OPTIMIZERS = {
    "gd": {},
    "gd, float32": {"precision": "float32"},
    "sgd": {"optimizer": "sgd", "batch_size": 4},
    "momentum": {
        "optimizer": "sgd",
        "batch_size": 4,
        "optimizer_options": {"momentum": 0.9, "nesterov": True},
    },
    "adam": {"optimizer": "adam", "optimizer_options": {"betas": (0.8, 0.95)}},
    "adam, batches": {"optimizer": "adam", "batch_size": 6},
}
RNGS = {"none": None, "seed": 5, "generator": "generator"}
# The last batch of 13 in fours is one sample: most ranks have none.
N_SAMPLES = 13


def data(n=N_SAMPLES):
    X = np.random.default_rng(0).standard_normal((n, 4, D))
    return X, X * [0.5, -1.0, 0.2]


def start(model, seed=1):
    sizes = {"n_weights": 0, "n_products": 0}
    n = next(getattr(model, name) for name in sizes if hasattr(model, name))
    return Initialization.gaussian(n, log10_alpha=-1, rng=seed)


def trained(name, optimizer, rng, seeds=None, many=False):
    """Products at every record and the weights at the end, and the seeds of the random order."""
    model, options = MODELS[name](), {"lr": 0.02, "steps": STEPS, **OPTIMIZERS[optimizer]}
    n_runs = 3 if many else 1
    given = [np.random.default_rng(i) if rng == "generator" else rng for i in range(n_runs)]
    given = given if seeds is None else seeds
    if many:
        inits = [start(model, seed) for seed in range(n_runs)]
        runs = train_many(model, data(), inits, rngs=given, **options)
    else:
        runs = [train(model, data(), init=start(model), rng=given[0], **options)]
    values = [run.values.ravel() for run in runs]
    values += [weight.ravel() for run in runs for weight in run.weights.values()]
    values += [run.losses for run in runs]
    return np.concatenate(values), runs[0].configuration["seeds"]


def matrix(cases, seeds=None):
    """Results of some combinations of model, optimizer, rng and many, by name."""
    results = {}
    for name, optimizer, rng, many in cases:
        case = f"{name}; {optimizer}; rng {rng}; {'many' if many else 'one'}"
        drawn = None if seeds is None or rng != "none" else seeds[case].tolist()
        values, kept = trained(name, optimizer, RNGS[rng], drawn or None, many)
        results[case] = values
        if rng == "none" and kept:
            # Seeds have more bits than NumPy's integers.
            results[f"seeds of {case}"] = np.array([str(seed) for seed in kept])
    return results


def quick_cases():
    """Every model, every optimizer and every rng, but not every combination."""
    yield from (("diagonal", optimizer, "none", False) for optimizer in OPTIMIZERS)
    yield from (("full", "sgd", rng, True) for rng in RNGS)
    yield "transformer", "adam, batches", "generator", False
    yield "torch model", "momentum", "seed", False


def all_cases():
    """Every combination."""
    return product(MODELS, OPTIMIZERS, RNGS, (False, True))


def differing(rank, folder):
    """Calls that differ between the ranks: the message of the error that each rank gets."""
    odd = rank == 1
    head, (X, y) = DiagonalHead(D, rng=0), data()
    options = {"init": start(head), "lr": 0.1, "steps": 5}
    sgd = {"optimizer": "sgd", "batch_size": 4}

    def call(model=head, samples=(X, y), **change):
        return lambda: train(model, samples, **options | change)

    def squares(output, target):
        return (output - target).square().flatten(1).sum(1)

    def cubes(output, target):
        return (output - target).abs().pow(3).flatten(1).sum(1)

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*map(torch.from_numpy, (X, y))),
        batch_size=4,
        shuffle=True,
        generator=torch.Generator().manual_seed(rank),
    )
    unseeded = Initialization.gaussian(2 * D, log10_alpha=-1, rng=None)
    missing = X.copy()
    missing[3, 0, 0] = np.nan if odd else 0.0
    calls = {
        "lr": call(lr=0.1 if odd else 0.2),
        "steps": call(steps=6 if odd else 5),
        "optimizer": call(optimizer="adam" if odd else "gd"),
        "rng": call(**sgd, rng=rank),
        "generator": call(**sgd, rng=np.random.default_rng(rank)),
        "init": call(init=unseeded),
        "own weights": call(DiagonalHead(D, rng=rank), init=None),
        "values": call(samples=(X, y + 1e-9 * odd)),
        "samples": call(samples=(X[: 13 - rank], y[: 13 - rank])),
        "loader": call(samples=loader),
        "loss": call(loss=squares if odd else cubes),
        "one fails": call(samples=(missing, y)),
        "one has a wrong option": call(lr=-1.0 if odd else 0.1),
        "precision": call(precision="float32" if odd else "float64"),
        "checkpoint": call(checkpoint=None if odd else folder),
        "bound data": lambda: head.bind((X, y + odd)),
        "bound loader": lambda: head.bind(loader),
        "bound weights": lambda: head.bind((X, y), sample_weight=np.arange(13) + odd),
        "bound module": lambda: DiagonalTransformer(D, rng=rank).bind((X, y)),
        "one is bound to NaN": lambda: head.bind((missing, y)),
        "many": lambda: train_many(head, (X, y), [options["init"]] * (1 + odd), lr=0.1, steps=3),
    }
    messages = {}
    for name, function in calls.items():
        try:
            function()
        except InvalidInputError as error:
            messages[name] = str(error)
        else:
            messages[name] = "no error"
    return messages


def one_sided(rank):
    """Steps made where only rank 0 has a callback or a clock that ends the run."""
    head = DiagonalHead(D, rng=0)
    options = {"init": start(head), "lr": 0.01, "steps": 10**6}
    told = (lambda step, losses: step == 7) if rank == 0 else None
    called = train(head, data(), callback=told, **options)
    late = train(head, data(), max_seconds=0.2 if rank == 0 else None, **options)
    return {"called": called.steps[-1], "late": late.theta[-1], "status": late.status}


def main(job, out):
    """Do a job on every rank."""
    with process_group(device="cpu") as process:
        if job == "differing":
            messages = differing(process.rank, Path(out).parent / "folder")
            results = {"messages": np.array(json.dumps(messages)), **one_sided(process.rank)}
        else:
            results = matrix(quick_cases() if job == "quick" else all_cases())
        np.savez(f"{out}.{process.rank}.npz", size=process.size, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
