"""The loop that every training runs: steps, checkpoints, and what may end it."""

import math
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from dynalyze._core.collectives import all_reduce, every_rank, world
from dynalyze._core.interrupts import evaluate, take
from dynalyze._core.pytorch import torch
from dynalyze._core.status import Status
from dynalyze._version import __version__
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_positive_int
from dynalyze.training.checkpoints import Checkpoint, save_checkpoint
from dynalyze.training.claim import claimed
from dynalyze.training.identity import check_same_run

_MESSAGES = {
    Status.FINISHED: "all {total} steps made",
    Status.DIVERGED: "the weights grow beyond bounds or are NaN after step {step}: lower lr, or "
    "lengthen the warm-up",
    Status.MAX_SECONDS: "{step} of {total} steps made: raise max_seconds, or go on from the "
    "checkpoint",
    Status.CALLBACK: "the callback ended the run after {step} steps",
    Status.INTERRUPTED: "interrupted after {step} steps: call again with the same checkpoint "
    "folder to go on",
}


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far a loop goes in one call, and what it leaves and tells on its way, checked."""

    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    max_seconds: float | None = None
    callback: Callable[[int, Any], bool | None] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        self._check("checkpoint", str | os.PathLike, "the path of a folder")
        self._check("callback", Callable, "a function of the step and the losses")
        for name in ("checkpoint_every", "keep_checkpoints"):
            object.__setattr__(self, name, as_positive_int(getattr(self, name), name))

    def _check(self, name: str, kinds: Any, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and (not isinstance(value, kinds) or value == ""):
            raise InvalidInputError(f"{name}={value!r} must be {wanted}")

    @property
    def folder(self) -> Path | None:
        """Folder of checkpoints."""
        return None if self.checkpoint is None else Path(self.checkpoint)


class Loop(ABC):
    """State of a training; everything in it that changes goes into a checkpoint."""

    device: torch.device
    optimizer: torch.optim.Optimizer
    identity: Mapping[str, Any]  # what a run that goes on must have in common with its checkpoint
    n_steps: int
    check_every: int  # steps between two looks at the clock, at Ctrl-C and at the callback
    at_once: int = 1  # most steps that are made without such looks
    step: int = 0
    status: Status = Status.FINISHED
    _saved: int | None = None  # step of the latest checkpoint

    @abstractmethod
    def make_steps(self, most: int) -> torch.Tensor:
        """Make up to `most` steps, and return the losses before the last of them."""

    def shown(self, losses: torch.Tensor) -> Any:
        """The losses as the callback is told them."""
        return losses

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors, and what JSON can; called on every rank."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, its tensors on the CPU and its tuples as lists."""

    @abstractmethod
    def surroundings(self) -> AbstractContextManager[Any]:
        """Settings of PyTorch in which steps are made, and whether Ctrl-C may end them at once."""

    @abstractmethod
    def finish(self) -> None:
        """Make the closing record, which a run that goes on does not make here."""

    def begin(self, folder: Path | None) -> None:  # noqa: B027  (not every loop has to)
        """Do what needs every rank, once each of them has built and restored its loop."""

    @property
    def ended(self) -> bool:
        """Whether no further step is to be made."""
        return self.step >= self.n_steps or self.status is not Status.FINISHED

    @property
    def message(self) -> str:
        """Why the loop ended, and what to do about it."""
        return _MESSAGES[self.status].format(step=self.step, total=self.n_steps)

    @property
    def configuration(self) -> dict[str, Any]:
        """What was trained, with what, and where."""
        return {
            **self.identity,
            "device": str(self.device),
            "ranks": world()[1],
            "dynalyze": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def run(self, extent: Extent) -> None:
        """Train to the end, or until something stops it."""
        limit = math.inf if extent.max_seconds is None else extent.max_seconds
        started = time.monotonic()
        hidden = not extent.progress or world()[0] != 0
        with (
            self.surroundings(),
            tqdm(total=self.n_steps, initial=self.step, unit="step", disable=hidden) as bar,
        ):
            while not self.ended:
                before = self.step
                losses = self.make_steps(self._steps_to_a_look(extent))
                bar.update(self.step - before)
                if self.step % extent.checkpoint_every == 0:
                    self._save(extent)
                looked = self.step // self.check_every > before // self.check_every
                if looked and self.status is Status.FINISHED:
                    interrupted, late = take(), time.monotonic() - started > limit
                    told = extent.callback and evaluate(
                        extent.callback, self.step, self.shown(losses)
                    )
                    self._stop_if(interrupted, late, bool(told))
            self._save(extent)
            self.finish()

    def go_on(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run."""
        check_same_run(checkpoint, self.identity)
        if checkpoint.step > self.n_steps:
            raise InvalidInputError(
                f"the checkpoint {checkpoint.path} has made {checkpoint.step} steps, and only "
                f"{self.n_steps} are asked for: give at least as many, or another folder"
            )
        state = _with_tensors(checkpoint.state["changing"], checkpoint.tensors)
        slots = {int(index): slot for index, slot in state["optimizer"].items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.step = self._saved = checkpoint.step
        self.restore(state)

    def _steps_to_a_look(self, extent: Extent) -> int:
        """Steps until something has to be done after one of them: a checkpoint, the callback."""
        periods = [extent.checkpoint_every] if extent.folder else []
        periods += [self.check_every] if extent.callback else []
        ahead = (period - self.step % period for period in periods)
        return min(self.at_once, self.n_steps - self.step, *ahead)

    def _stop_if(self, *reasons: bool) -> None:
        flags: list[float] = list(reasons)
        if world()[1] > 1:
            # Ranks must stop at the same step, or the others wait for them for ever.
            flags = all_reduce(
                torch.tensor(flags, dtype=torch.float32, device=self.device)
            ).tolist()
        names = (Status.INTERRUPTED, Status.MAX_SECONDS, Status.CALLBACK)
        given = (name for name, flag in zip(names, flags, strict=True) if flag)
        self.status = next(given, Status.FINISHED)

    def _save(self, extent: Extent) -> None:
        if extent.folder is None or self.status is Status.DIVERGED or self._saved == self.step:
            return
        self._saved = self.step
        state = {**self.state(), "optimizer": self.optimizer.state_dict()["state"]}
        if world()[0] == 0:
            tensors: dict[str, torch.Tensor] = {}
            text = {"identity": self.identity, "changing": _without_tensors(state, tensors)}
            save_checkpoint(extent.folder, self.step, tensors, text, keep=extent.keep_checkpoints)


_AnyLoop = TypeVar("_AnyLoop", bound=Loop)


def run_loop(build: Callable[[Checkpoint | None], _AnyLoop], extent: Extent) -> _AnyLoop:
    """Build a loop, let it go on from the latest checkpoint if there is one, and run it.

    `build` is given that checkpoint. The folder of checkpoints is held for this run alone, and
    what makes the run the same run is compared between the ranks.
    """
    with claimed(extent.folder) as found:
        with every_rank() as stated:
            loop = build(found)
            stated.update(loop.identity, n_steps=loop.n_steps)
            stated["checkpoint_every"] = extent.checkpoint_every
            if found is not None:
                loop.go_on(found)
        loop.begin(extent.folder)
        loop.run(extent)
    return loop


def told_of_late_interrupts(results: Iterable[Any]) -> tuple[Any, ...]:
    """The results, marked if Ctrl-C came after the last step; to be called last of all."""
    every = tuple(results)
    if not take():
        return every
    return tuple(
        replace(r, status=Status.INTERRUPTED, message=f"interrupted at its end: {r.message}")
        if r.status == Status.FINISHED
        else r
        for r in every
    )


def _without_tensors(tree: Any, tensors: dict[str, torch.Tensor], name: str = "") -> Any:
    """`tree` with the name of each tensor in its place; the tensors go into `tensors`."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, list | tuple):
        return [_without_tensors(part, tensors, f"{name}.{i}") for i, part in enumerate(tree)]
    if isinstance(tree, Mapping):
        before = f"{name}." if name else ""
        return {str(k): _without_tensors(t, tensors, f"{before}{k}") for k, t in tree.items()}
    return tree


def _with_tensors(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Inverse of `_without_tensors`."""
    if isinstance(tree, list):
        return [_with_tensors(part, tensors) for part in tree]
    if isinstance(tree, dict):
        if list(tree) == ["tensor"]:
            return tensors[tree["tensor"]]
        return {key: _with_tensors(part, tensors) for key, part in tree.items()}
    return tree
