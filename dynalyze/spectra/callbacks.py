"""Tracking from inside other training loops: Lightning and the Hugging Face Trainer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynalyze.errors import MissingDependencyError
from dynalyze.spectra.tracker import Tracker, track

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from transformers import TrainerCallback


def lightning_callback(**options: Any) -> "Callback":
    """Return a Lightning callback that tracks the module being fitted.

    Parameters
    ----------
    **options
        Options of `track`, such as ``every=50``; steps are the optimizer's.

    Returns
    -------
    lightning.pytorch.Callback
        After `fit`, its ``tracker.history`` holds the records. Its state goes into Lightning's
        checkpoints, so that a resumed run carries on with the same start.

    Raises
    ------
    MissingDependencyError
        If Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise MissingDependencyError("lightning_callback needs: pip install lightning.") from error

    class SpectraCallback(Callback):  # type: ignore[misc]
        tracker: Tracker
        _resumed: dict[str, Any] | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            reference = {} if self._resumed is None else {"reference": self._resumed["reference"]}
            self.tracker = track(pl_module, **{**options, **reference})
            if self._resumed is not None:
                self.tracker.load_state_dict(self._resumed)
            self._last = trainer.global_step

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            # With accumulated gradients not every batch is a step.
            while self._last < trainer.global_step:
                self._last += 1
                self.tracker.step()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.tracker.close()

        def state_dict(self) -> dict[str, Any]:
            return self.tracker.state_dict() if hasattr(self, "tracker") else {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self._resumed = state_dict or None

    return SpectraCallback()


def trainer_callback(**options: Any) -> "TrainerCallback":
    """Return a Hugging Face Trainer callback that tracks the model being trained.

    Parameters
    ----------
    **options
        Options of `track`, such as ``every=50``; steps are the optimizer's.

    Returns
    -------
    transformers.TrainerCallback
        After training, its ``tracker.history`` holds the records. Beside each checkpoint of the
        Trainer its state is saved as ``spectra.pt``, so that a resumed run carries on with the
        same start; where there is none, records go on from the Trainer's step, and measure the
        change from ``reference=`` or else from the weights at that step.

    Raises
    ------
    MissingDependencyError
        If transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingDependencyError("trainer_callback needs: pip install transformers.") from error

    class SpectraCallback(TrainerCallback):  # type: ignore[misc]
        tracker: Tracker

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            saved = _beside_checkpoint(args, state)
            if saved.is_file() and "reference" not in options:
                kept = torch.load(saved, map_location="cpu", weights_only=True)
                self.tracker = track(model, **{**options, "reference": kept["reference"]})
                self.tracker.load_state_dict(kept)
            else:
                self.tracker = track(model, **{"first_step": state.global_step, **options})

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tracker.step()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved = _beside_checkpoint(args, state)
            if state.is_world_process_zero and saved.parent.is_dir():
                torch.save(self.tracker.state_dict(), saved)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tracker.close()

    return SpectraCallback()


def _beside_checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "spectra.pt"
