"""The loop that `train_vit` runs: steps, records, checkpoints, over one process or many."""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dynalyze._core.collectives import all_reduce, world
from dynalyze._core.interrupts import interruptible, take
from dynalyze._core.pytorch import torch
from dynalyze._version import __version__
from dynalyze.spectra.history import SpectraHistory
from dynalyze.spectra.stored_weights import open_checkpoint
from dynalyze.spectra.tracker import Tracker, track
from dynalyze.training.checkpoints import Checkpoint
from dynalyze.training.identity import describe
from dynalyze.training.progress import progress_bar
from dynalyze.training.vit.images import Images, VisionData, batches, epoch_order
from dynalyze.training.vit.model import VisionTransformer, ViTShape
from dynalyze.training.vit.options import ViTOptions
from dynalyze.training.vit.run import ViTRun
from dynalyze.training.vit.saving import (
    INITIAL,
    checked_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    write_checkpoint,
    write_weights,
)

Callback = Callable[[int, float], bool | None]
"""Called as ``callback(step, loss)`` after every step; the run stops where it returns True."""

# Processes agree on stopping by a collective, which is not for every step.
_AGREE_EVERY = 10
# No weight gets there but on its way to infinity; products of larger ones overflow.
_HUGE = 1e15
_MESSAGES = {
    "finished": "all {total} steps made",
    "diverged": "the weights grow beyond bounds or are NaN after step {step}: lower lr, or "
    "lengthen the warm-up",
    "max_seconds": "{step} of {total} steps made: raise max_seconds, or go on from the checkpoint",
    "callback": "the callback ended the run after {step} of {total} steps",
    "interrupted": "interrupted after {step} of {total} steps: call again with the same checkpoint "
    "folder to go on",
}


class Loop:
    """State of a training; everything in it goes into a checkpoint."""

    def __init__(
        self,
        data: VisionData,
        shape: ViTShape,
        options: ViTOptions,
        *,
        scale: float,
        seed: int,
        device: torch.device,
        track: Mapping[str, Any],
    ) -> None:
        self.data, self.shape, self.options, self.seed = data, shape, options, seed
        self.device = device
        self.rank, self.n_ranks = world()
        self.model = VisionTransformer(shape, scale=scale, seed=seed).to(device)
        self.forward: torch.nn.Module = self.model
        self.optimizer = options.make_optimizer(self.model)
        self.scaler = options.make_scaler(device)
        self.track_options = dict(track)
        self.tracker: Tracker | None = None
        n_images = len(data.train.labels)
        self.steps_per_epoch = -(-n_images // options.batch_size)
        self.total = self.steps_per_epoch * options.n_epochs
        self.step = 0
        self.status = "finished"
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.epochs: list[list[float]] = []  # training loss, test loss, accuracy
        channels = (1, -1, 1, 1)
        self._mean = torch.tensor(data.mean, dtype=torch.float32, device=device).view(channels)
        self._deviation = torch.tensor(data.deviation, dtype=torch.float32, device=device)
        self._deviation = self._deviation.view(channels)
        self.identity = {
            "kind": "train_vit",
            "data": f"{data.name}, {n_images} images",
            "training images": describe(data.train),
            "test images": describe(data.test),
            "mean and deviation": describe([data.mean, data.deviation]),
            "augment": data.augment,
            "shape": asdict(shape),
            "options": asdict(options),
            "scale": scale,
            "seed": seed,
            "track": describe(self.track_options),
        }

    def begin(self, folder: Path | None, state: dict[str, Any] | None) -> None:
        """Start tracking, from the `state` of a tracker if the run goes on."""
        if self.n_ranks > 1:
            places = [self.device.index] if self.device.type == "cuda" else None
            self.forward = torch.nn.parallel.DistributedDataParallel(self.model, device_ids=places)
        reference = None
        if folder is not None:
            reference = folder / INITIAL
            if state is None and self.rank == 0:
                write_weights(reference, self.model)
        if self.rank == 0:
            start = None if reference is None else open_checkpoint(reference)
            self.tracker = track(self.model, reference=start, **self.track_options)
            if state is not None:
                self.tracker.load_state_dict(state)

    def restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Take over a checkpoint of the same run; returns the state of its tracker."""
        saved = checked_checkpoint(checkpoint, self.identity)
        self.model.load_state_dict(saved.tensors["model"])
        restore_optimizer(self.optimizer, saved.tensors.get("optimizer", {}))
        self.scaler.load_state_dict(saved.state["scaler"])
        self.step, self.epochs = saved.step, saved.state["epochs"]
        if self.rank == 0:
            self.loss_sum = saved.tensors["loss_sum"][""].to(self.device)
        return saved.tracker_state()

    def _save(self, folder: Path, keep: int) -> None:
        partial = all_reduce(self.loss_sum.clone())
        if self.tracker is None:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer) | {"loss_sum": partial}
        state = {
            "identity": self.identity,
            "epochs": self.epochs,
            "scaler": self.scaler.state_dict(),
        }
        write_checkpoint(folder, self.step, tensors, state, self.tracker, keep=keep)

    def run(
        self,
        folder: Path | None,
        every: int,
        keep: int,
        max_seconds: float | None,
        callback: Callback | None,
        *,
        progress: bool,
    ) -> None:
        """Train to the end, or until something stops it."""
        started, interrupted = time.monotonic(), False
        with (
            interruptible(),
            self.options.float32_products(),
            progress_bar(self.total, show=progress, initial=self.step) as bar,
        ):
            while self.step < self.total and self.status == "finished":
                epoch, first = divmod(self.step, self.steps_per_epoch)
                for loss in self._epoch(epoch, first):
                    bar(1)
                    late = max_seconds is not None and time.monotonic() - started > max_seconds
                    interrupted = interrupted or take()
                    self._watch(interrupted, late, callback, loss)
                    if self.step % self.steps_per_epoch == 0 and self.status != "diverged":
                        self._end_epoch()
                    if self.status != "finished":
                        break
                    if folder is not None and self.step % every == 0:
                        self._save(folder, keep)
        if folder is not None and self.status != "diverged":
            self._save(folder, keep)
        if self.tracker is not None and self.status != "diverged":
            self.tracker.record()

    def _epoch(self, epoch: int, first: int) -> Any:
        """Make the steps of an epoch from batch `first` on; yields each one's loss."""
        order = epoch_order(len(self.data.train.labels), self.seed, epoch)
        augmentation = (self.seed, epoch, 1) if self.data.augment else None
        self.forward.train()
        for batch in batches(
            self.data.train, order, self.options.batch_size, first=first, seed=augmentation,
            rank=self.rank, n_ranks=self.n_ranks,
        ):  # fmt: skip
            lr = self.options.lr_at(self.step, self.steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            images = self._normalized(batch.images)
            labels = batch.labels.to(self.device, non_blocking=True)
            with self.options.autocast(self.device):
                logits = self.forward(images)
            losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            share = losses * (batch.weight / batch.size)
            self.optimizer.zero_grad(set_to_none=True)
            # DDP averages over the processes what is to be summed.
            self.scaler.scale(share * self.n_ranks).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.step += 1
            self.loss_sum += losses.detach().double() * batch.weight
            if self.step % self.track_options["every"] == 0 and not self._sound():
                self.status = "diverged"
            elif self.tracker is not None:
                self.tracker.step()
            yield share.detach()

    def _watch(
        self, interrupted: bool, late: bool, callback: Callback | None, loss: torch.Tensor
    ) -> None:
        if self.status != "finished":
            return
        stopped = callback is not None and bool(callback(self.step, float(all_reduce(loss))))
        if self.n_ranks > 1:
            if self.step % _AGREE_EVERY and not stopped:
                return
            flags = torch.tensor([interrupted, late], dtype=torch.float32, device=self.device)
            interrupted, late = (all_reduce(flags) > 0).tolist()
        if interrupted:
            self.status = "interrupted"
        elif late:
            self.status = "max_seconds"
        elif stopped:
            self.status = "callback"

    def _end_epoch(self) -> None:
        if not self._sound():
            self.status = "diverged"
            return
        mean = float(all_reduce(self.loss_sum)) / len(self.data.train.labels)
        self.epochs.append([mean, *self._evaluate(self.data.test)])
        self.loss_sum = torch.zeros_like(self.loss_sum)

    @torch.no_grad()
    def _evaluate(self, images: Images) -> tuple[float, float]:
        """Mean loss and accuracy."""
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches(
            images, np.arange(len(images.labels)), self.options.batch_size, rank=self.rank,
            n_ranks=self.n_ranks,
        ):  # fmt: skip
            with self.options.autocast(self.device):
                logits = self.model(self._normalized(batch.images)).float()
            labels = batch.labels.to(self.device)
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            right = (logits.argmax(1) == labels).sum()
            totals += batch.weight * torch.stack([losses.double(), right.double()])
        loss, right = (all_reduce(totals) / len(images.labels)).tolist()
        return loss, right

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            images = images.pin_memory()
        pixels = images.to(self.device, non_blocking=True).float() / 255
        return (pixels - self._mean) / self._deviation

    def _sound(self) -> bool:
        return all(bool((w.abs() < _HUGE).all()) for w in self.model.parameters())

    def result(self) -> ViTRun:
        """What was found so far."""
        history: list[SpectraHistory | None] = [self.tracker.history if self.tracker else None]
        if self.n_ranks > 1:
            torch.distributed.broadcast_object_list(history, device=self.device)
        assert history[0] is not None
        metrics = np.array(self.epochs, dtype=np.float64).reshape(-1, 3)
        message = _MESSAGES[self.status].format(step=self.step, total=self.total)
        return ViTRun(
            history=history[0],
            train_losses=metrics[:, 0],
            test_losses=metrics[:, 1],
            test_accuracies=metrics[:, 2],
            n_steps=self.step,
            status=self.status,
            message=message,
            shape=self.shape,
            weights={n: w.detach().cpu().numpy() for n, w in self.model.state_dict().items()},
            configuration={
                **self.identity,
                "device": str(self.device),
                "ranks": self.n_ranks,
                "dynalyze": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )
