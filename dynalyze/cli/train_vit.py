"""``dynalyze train vit``: a vision transformer, with its attention spectra tracked."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dynalyze._core.interrupts import held, interruptible
from dynalyze.cli import output, shared_arguments

if TYPE_CHECKING:
    from dynalyze.training.vit import VisionData, ViTOptions, ViTShape

# What replaces the paper's settings on the bundled digits
_DIGITS = {"lr": 3e-3, "batch_size": 128, "n_epochs": 60, "warmup_epochs": 2.0}
_SIZES = ("patch_size", "n_layers", "n_heads", "width", "mlp_width", "head_width")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "vit",
        help="a vision transformer on images",
        description="Train a vision transformer with the paper's settings, or small ones on the "
        "bundled digits, and follow the ranks of the change of W_K W_Q^T and W_V W_O^T. Under "
        "torchrun (torchrun --nproc-per-node N -m dynalyze train vit ...) batches are divided.",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="digits",
        metavar="digits|PATH",
        help="handwritten digits (default), a CIFAR archive or its folder, or a folder with "
        "train/CLASS/ and val/CLASS/ such as ImageNet's",
    )
    data.add_argument("--no-augment", action="store_true", help="train on the images as they are")
    data.add_argument(
        "--image-size",
        type=shared_arguments.positive_integer,
        metavar="N",
        help="crops from image folders (default: 224)",
    )
    data.add_argument(
        "--workers",
        type=shared_arguments.positive_integer,
        default=8,
        metavar="N",
        help="threads that decode images",
    )
    shape = parser.add_argument_group("model (default: a small one for digits, else the paper's)")
    for name in _SIZES:
        shape.add_argument(
            f"--{name.replace('_', '-').removeprefix('n-')}", dest=name, type=int, metavar="N"
        )
    shape.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="S",
        help="factor on initial values of all layers but the token embedding (default: 1)",
    )
    shape.add_argument(
        "--seed",
        type=shared_arguments.seed,
        default=0,
        metavar="N",
        help="seed of everything random (default: 0)",
    )
    optimization = parser.add_argument_group(
        "optimization (default: the paper's; milder on digits)"
    )
    optimization.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    optimization.add_argument("--lr", type=float, metavar="R")
    optimization.add_argument("--momentum", type=float, default=0.0, metavar="M", help="of SGD")
    optimization.add_argument("--batch-size", type=int, metavar="N", help="over all processes")
    optimization.add_argument("--epochs", dest="n_epochs", type=int, metavar="N")
    optimization.add_argument("--warmup-epochs", type=float, metavar="N")
    optimization.add_argument(
        "--cycles", dest="n_cycles", type=int, default=1, metavar="N", help="of cosine decay"
    )
    optimization.add_argument(
        "--precision", choices=("float32", "tf32", "bfloat16", "float16"), default="float32"
    )
    optimization.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--track-every",
        type=int,
        default=50,
        metavar="N",
        help="steps between records (default: 50)",
    )
    running.add_argument(
        "--checkpoint", metavar="FOLDER", help="write checkpoints there, and go on from them"
    )
    running.add_argument(
        "--checkpoint-every", type=int, default=1000, metavar="N", help="steps (default: 1000)"
    )
    running.add_argument(
        "--max-seconds", type=shared_arguments.seconds, metavar="S", help="stop after S seconds"
    )
    output.add_output(parser, "run", json=False)
    parser.set_defaults(run=run)


@held()
@interruptible()
def run(arguments: argparse.Namespace) -> int:
    """Train, print the summary, and write what was asked for."""
    from dynalyze.training import process_group
    from dynalyze.training.vit import train_vit

    with process_group(device=arguments.device) as process:
        data = _data(arguments)
        result = train_vit(
            data,
            _shape(arguments, data),
            _options(arguments),
            scale=arguments.scale,
            seed=arguments.seed,
            track_every=arguments.track_every,
            device=process.device,
            checkpoint=arguments.checkpoint,
            checkpoint_every=arguments.checkpoint_every,
            max_seconds=arguments.max_seconds,
            progress=shared_arguments.show_progress(arguments),
        )
        if process.is_first:
            output.deliver(
                arguments, result.summary, save=result.save, plot=result.history.plot_stable_rank
            )
    return {"finished": 0, "interrupted": 130}.get(result.status, 3)


def _data(arguments: argparse.Namespace) -> VisionData:
    from pathlib import Path

    from dynalyze.training.vit import cifar, digits, image_folder

    if arguments.data == "digits":
        return digits()
    if (Path(arguments.data) / "train").is_dir():
        return image_folder(
            arguments.data,
            image_size=arguments.image_size or 224,
            n_workers=arguments.workers,
            augment=not arguments.no_augment,
        )
    return cifar(arguments.data, augment=not arguments.no_augment)


def _shape(arguments: argparse.Namespace, data: VisionData) -> ViTShape:
    from dataclasses import replace

    from dynalyze.training.vit import ViTShape

    given = {name: getattr(arguments, name) for name in _SIZES}
    return replace(
        ViTShape.for_images(data.train.shape, data.n_classes),
        **{name: value for name, value in given.items() if value is not None},
    )


def _options(arguments: argparse.Namespace) -> ViTOptions:
    from dynalyze.training.vit import ViTOptions

    settings: dict[str, Any] = dict(_DIGITS) if arguments.data == "digits" else {}
    for name in ("lr", "batch_size", "n_epochs", "warmup_epochs"):
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    if arguments.n_epochs is not None and arguments.warmup_epochs is None:
        # A run much shorter than the default warms up for no more than a tenth of it.
        default = ViTOptions(**{**settings, "n_epochs": 10**9}).warmup_epochs
        settings["warmup_epochs"] = min(default, arguments.n_epochs / 10)
    return ViTOptions(
        optimizer=arguments.optimizer,
        momentum=arguments.momentum,
        n_cycles=arguments.n_cycles,
        precision=arguments.precision,
        **settings,
    )
