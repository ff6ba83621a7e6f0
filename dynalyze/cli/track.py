"""``dynalyze track``: ranks of the change of attention products between saved checkpoints."""

from __future__ import annotations

import argparse
from typing import Any

from dynalyze.cli import output


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "track",
        help="ranks of the change of W_K W_Q^T and W_V W_O^T between checkpoints",
        description="Follow, per attention head, the change of W_K W_Q^T and W_V W_O^T since the "
        "first checkpoint: its singular values and its stable, numerical and effective rank. "
        "Checkpoints are read one at a time; the attention layers are recognised by the names of "
        "their weights.",
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="safetensors or PyTorch files, or folders that hold one, in the order of training",
    )
    parser.add_argument(
        "--heads",
        type=int,
        metavar="H",
        help="heads per layer (default: from the config.json beside the first checkpoint)",
    )
    parser.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        help="measure the change from these weights (default: the first checkpoint)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        metavar="N",
        help="training step of each checkpoint (default: the last number in each name)",
    )
    parser.add_argument(
        "--layers", nargs="+", metavar="PATTERN", help="only these layers, such as 'blocks.0.*'"
    )
    parser.add_argument(
        "--rank-rtol",
        type=float,
        default=0.01,
        metavar="T",
        help="share of the largest singular value that counts in the numerical rank "
        "(default: %(default)s)",
    )
    output.add_output(parser, "spectra")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the checkpoints, print the ranks, and write what was asked for."""
    from dynalyze.spectra import track_checkpoints
    from dynalyze.spectra.recognition import natural_order

    checkpoints = arguments.checkpoints
    if arguments.steps is None and checkpoints == sorted(checkpoints):
        # A shell puts checkpoint-1000 before checkpoint-200.
        checkpoints = sorted(checkpoints, key=natural_order)
    history = track_checkpoints(
        checkpoints,
        n_heads=arguments.heads,
        steps=arguments.steps,
        reference=arguments.reference,
        layers=arguments.layers,
        rank_rtol=arguments.rank_rtol,
    )
    output.deliver(
        arguments,
        lambda: output.as_json(_parts(history)) if arguments.json else history.summary(),
        save=history.save,
        plot=history.plot_stable_rank,
    )
    return 0


def _parts(history: Any) -> dict[str, Any]:
    from dynalyze._core.products import PRODUCTS

    return {
        "steps": history.steps.tolist(),
        "heads": [
            {
                "layer": history.layer_names[layer],
                "head": int(head),
                "product": product,
                "stable_rank": history.stable_rank[:, p, n].tolist(),
                "effective_rank": history.effective_rank[:, p, n].tolist(),
                "numerical_rank": history.numerical_rank[:, p, n].tolist(),
                "frobenius_norm": history.frobenius_norm[:, p, n].tolist(),
                "singular_values": history.singular_values[-1, p, n].tolist(),
            }
            for n, (layer, head) in enumerate(zip(history.layer, history.head, strict=True))
            for p, product in enumerate(PRODUCTS)
        ],
    }
