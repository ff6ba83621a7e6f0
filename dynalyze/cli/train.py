"""``dynalyze train KIND``: training runs, one module per kind of model, listed in `KINDS`."""

from __future__ import annotations

import argparse

from dynalyze.cli import train_vit

KINDS = (train_vit,)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its kinds."""
    parser = subparsers.add_parser(
        "train",
        help="train a model and record what the theory speaks of",
        description="Train a model and record what the theory speaks of.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind in KINDS:
        kind.add_parser(kinds)
