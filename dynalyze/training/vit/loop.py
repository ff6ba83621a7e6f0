"""The loop of `train_vit`: batches of images, epochs, a tracker of spectra."""

import operator
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dynalyze._core.collectives import all_reduce, world
from dynalyze._core.interrupts import interruptible
from dynalyze._core.pytorch import torch
from dynalyze._core.status import Status
from dynalyze.spectra.history import SpectraHistory
from dynalyze.spectra.stored_weights import open_checkpoint
from dynalyze.spectra.tracker import Tracker, track
from dynalyze.training.batches import Batch
from dynalyze.training.checkpoints import write_weights
from dynalyze.training.distributed import default_device
from dynalyze.training.identity import describe
from dynalyze.training.loop import Loop
from dynalyze.training.vit.images import Images, VisionData, batches, epoch_order
from dynalyze.training.vit.model import VisionTransformer, ViTShape
from dynalyze.training.vit.options import VisionTraining, ViTOptions
from dynalyze.training.vit.result import ViTRun

# Processes agree on stopping by a collective, which is not for every step.
_AGREE_EVERY = 10
# No weight gets there but on its way to infinity; products of larger ones overflow.
_HUGE = 1e15
_INITIAL = "initial.safetensors"  # weights that changes are measured from


class VisionLoop(Loop):
    """Training of a vision transformer, its spectra tracked on rank 0."""

    def __init__(
        self, data: VisionData, shape: ViTShape, options: ViTOptions, given: VisionTraining
    ) -> None:
        self.data, self.shape, self.options = data, shape, options
        self.seed, scale = operator.index(given.seed), float(given.scale)
        self.device = device = (
            default_device() if given.device is None else torch.device(given.device)
        )
        self.rank, self.n_ranks = world()
        self.model = VisionTransformer(shape, scale=scale, seed=self.seed).to(device)
        self.forward: torch.nn.Module = self.model
        self.optimizer = options.make_optimizer(self.model)
        self.scaler = options.make_scaler(device)
        self.track_options: dict[str, Any] = {
            "every": given.track_every, "n_values": given.n_values, "spectrum": given.spectrum,
        }  # fmt: skip
        self.tracker: Tracker | None = None
        self._tracked: dict[str, Any] | None = None  # state of the tracker to go on with
        n_images = len(data.train.labels)
        self.steps_per_epoch = -(-n_images // options.batch_size)
        self.n_steps = self.steps_per_epoch * options.n_epochs
        self.check_every = 1 if given.callback or self.n_ranks == 1 else _AGREE_EVERY
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
            "seed": self.seed,
            "track": describe(self.track_options),
        }

    def begin(self, folder: Path | None) -> None:
        """Join the ranks' gradients, and start tracking or go on with it."""
        if self.n_ranks > 1:
            places = [self.device.index] if self.device.type == "cuda" else None
            self.forward = torch.nn.parallel.DistributedDataParallel(self.model, device_ids=places)
        if self.rank == 0:
            reference = None if folder is None else folder / _INITIAL
            if reference is not None and self._tracked is None:
                write_weights(reference, self.model.state_dict())
            start = None if reference is None else open_checkpoint(reference)
            self.tracker = track(self.model, reference=start, **self.track_options)
            if self._tracked is not None:
                self.tracker.load_state_dict(self._tracked)
        self._batches = self._all_batches()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; of the tracker all but the weights that it measures from."""
        partial = all_reduce(self.loss_sum.clone())
        tracked = {} if self.tracker is None else self.tracker.state_dict()
        return {
            "model": self.model.state_dict(),
            "loss_sum": partial,
            "epochs": self.epochs,
            "scaler": self.scaler.state_dict(),
            "tracker": {**tracked, "reference": {}},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; the tracker does so in `begin`."""
        self.model.load_state_dict(state["model"])
        self.scaler.load_state_dict(state["scaler"])
        self.epochs = state["epochs"]
        if self.rank == 0:
            self.loss_sum = state["loss_sum"].to(self.device)
        history = state["tracker"]["history"].items()
        whole = {name: tuple(v) if isinstance(v, list) else v for name, v in history}
        self._tracked = {**state["tracker"], "history": whole}

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Products of float32 as the options say."""
        with self.options.float32_products(), interruptible():
            yield

    def make_steps(self, most: int) -> torch.Tensor:
        """Make one step, and return this rank's share of its loss."""
        batch = next(self._batches)
        lr = self.options.lr_at(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses, _ = self._losses_and_logits(self.forward, batch)
        share = losses / batch.size
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over the processes what is to be summed.
        self.scaler.scale(share * self.n_ranks).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.loss_sum += losses.detach().double()
        if self.step % self.track_options["every"] == 0 and not self._sound():
            self.status = Status.DIVERGED
        elif self.tracker is not None:
            self.tracker.step()
        if self.step % self.steps_per_epoch == 0 and self.status is not Status.DIVERGED:
            self._end_epoch()
        return share.detach()

    def shown(self, losses: torch.Tensor) -> float:
        """The loss over all ranks."""
        return float(all_reduce(losses))

    def finish(self) -> None:
        """Make the closing record."""
        self._batches.close()
        if self.tracker is not None and self.status is not Status.DIVERGED:
            self.tracker.record()

    def _all_batches(self) -> Generator[Batch, None, None]:
        """The batches of all steps to come, in a random order of each epoch."""
        for epoch in range(self.step // self.steps_per_epoch, self.options.n_epochs):
            self.forward.train()
            yield from batches(
                self.data.train,
                epoch_order(len(self.data.train.labels), self.seed, epoch),
                self.options.batch_size,
                first=self.step % self.steps_per_epoch,
                seed=(self.seed, epoch, 1) if self.data.augment else None,
                rank=self.rank,
                n_ranks=self.n_ranks,
            )

    def _end_epoch(self) -> None:
        if not self._sound():
            self.status = Status.DIVERGED
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
            losses, logits = self._losses_and_logits(self.model, batch)
            right = (logits.argmax(1) == batch.targets.to(self.device)).sum()
            totals += torch.stack([losses.double(), right.double()])
        loss, right = (all_reduce(totals) / len(images.labels)).tolist()
        return loss, right

    def _losses_and_logits(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of this rank's cross-entropies, and the logits, (B, n_classes)."""
        images = batch.inputs.pin_memory() if self.device.type == "cuda" else batch.inputs
        pixels = images.to(self.device, non_blocking=True).float() / 255
        labels = batch.targets.to(self.device, non_blocking=True)
        with self.options.autocast(self.device):
            logits = model((pixels - self._mean) / self._deviation)
        logits = logits.float()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), logits

    def _sound(self) -> bool:
        return all(bool((w.abs() < _HUGE).all()) for w in self.model.parameters())

    def result(self) -> ViTRun:
        """What was found so far."""
        history: list[SpectraHistory | None] = [self.tracker.history if self.tracker else None]
        if self.n_ranks > 1:
            torch.distributed.broadcast_object_list(history, device=self.device)
        assert history[0] is not None
        metrics = np.array(self.epochs, dtype=np.float64).reshape(-1, 3)
        return ViTRun(
            history=history[0],
            train_losses=metrics[:, 0],
            test_losses=metrics[:, 1],
            test_accuracies=metrics[:, 2],
            n_steps=self.step,
            status=self.status,
            message=self.message,
            shape=self.shape,
            weights={n: w.detach().cpu().numpy() for n, w in self.model.state_dict().items()},
            configuration=self.configuration,
        )
