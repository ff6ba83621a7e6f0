"""Tracking from inside other training loops: Lightning and the Hugging Face Trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynalyze._core.atomic_file import replacing
from dynalyze.errors import InvalidInputError, MissingDependencyError, SavedFileError
from dynalyze.spectra.tracker import Tracker, track

_STATE = "spectra.pt"  # beside the weights of a checkpoint of the Trainer

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
        checkpoints, so that a resumed run carries on with the same start; from checkpoints without
        it, records go on from Lightning's step, and measure the change from ``reference=`` or
        else from the weights at that step. A second `fit` that begins at step 0 begins a new
        history. Several callbacks of one trainer need different ``layers=``.

    Raises
    ------
    InvalidInputError
        If ``optimizer=`` is given.
    MissingDependencyError
        If Lightning is not installed.
    """
    _check_options(options)
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise MissingDependencyError("lightning_callback needs: pip install lightning.") from error

    class SpectraCallback(Callback):  # type: ignore[misc]
        tracker: Tracker
        _resumed: dict[str, Any] | None = None

        @property
        def state_key(self) -> str:
            return f"SpectraCallback(layers={options.get('layers')!r})"

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._last = trainer.global_step
            resumed, self._resumed = self._resumed, None
            now = getattr(self, "tracker", None)
            goes_on = now is not None and now.model is pl_module and now.n_steps == self._last > 0
            if resumed is not None or not goes_on:
                self.tracker = _tracker(pl_module, options, self._last, resumed)

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
        change from ``reference=`` or else from the weights at that step. It is looked for in
        ``args.resume_from_checkpoint``, then in ``args.output_dir``.

    Raises
    ------
    InvalidInputError
        If ``optimizer=`` is given.
    MissingDependencyError
        If transformers is not installed.
    """
    _check_options(options)
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingDependencyError("trainer_callback needs: pip install transformers.") from error

    class SpectraCallback(TrainerCallback):  # type: ignore[misc]
        tracker: Tracker

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            saved = _saved_state(args, state)
            self.tracker = _tracker(model, options, state.global_step, saved)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tracker.step()
            self._record_if_last(control)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._record_if_last(control)
            folder = _checkpoint(args, state)
            if state.is_world_process_zero and folder.is_dir():
                with replacing(folder / _STATE) as file:
                    torch.save(self.tracker.state_dict(), file)

        def _record_if_last(self, control: Any) -> None:
            if control.should_training_stop:
                self.tracker.record()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The best weights, which the Trainer has put back by now, are not those of this step.
            if args.load_best_model_at_end:
                self.tracker.detach()
            else:
                self.tracker.close()

    return SpectraCallback()


def _check_options(options: Mapping[str, Any]) -> None:
    if options.get("optimizer") is not None:
        raise InvalidInputError(
            "optimizer= must be left out of a callback, which counts the steps of the trainer "
            "itself: each would count twice."
        )


def _tracker(
    model: Any, options: Mapping[str, Any], step: int, saved: Mapping[str, Any] | None
) -> Tracker:
    """A tracker that goes on from a saved state, or begins at `step`."""
    if saved is None:
        return track(model, **{"first_step": step, **options})
    tracker = track(model, **{"reference": saved["reference"], **options})
    tracker.load_state_dict(saved)
    return tracker


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _saved_state(args: Any, state: Any) -> dict[str, Any] | None:
    given = args.resume_from_checkpoint
    folders = [Path(given)] if isinstance(given, str) else []
    for folder in [*folders, _checkpoint(args, state)]:
        if (folder / _STATE).is_file():
            try:
                saved = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
            except Exception as error:  # an unpickler raises anything on a file that is none
                raise SavedFileError(
                    f"{folder / _STATE} cannot be read ({type(error).__name__}): it is damaged. "
                    "Restore a copy, or delete it to go on with records from here."
                ) from error
            return dict(saved)
    return None
