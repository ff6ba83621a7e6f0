"""Following a model's attention spectra while it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynalyze._core.warn import warn
from dynalyze.errors import InvalidInputError, UncountedStepsWarning
from dynalyze.spectra.attention import check_trained, find_sources, model_lookup
from dynalyze.spectra.history import SpectraHistory
from dynalyze.spectra.options import RecordOptions, is_whole
from dynalyze.spectra.recognition import Layouts
from dynalyze.spectra.recorder import Recorder
from dynalyze.spectra.sources import stored_weights
from dynalyze.spectra.stored_weights import Checkpoint, open_checkpoint, stored_in_use


class Tracker:
    """Records how far W_K W_Qᵀ and W_V W_Oᵀ have moved; made by `track`."""

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        *,
        every: int,
        optimizer: Any,
        reference: Mapping[str, Tensor],
        first_step: int = 0,
    ) -> None:
        self.model = model
        self._lookup = model_lookup(model)
        self._recorder = recorder
        self._every = every
        self._reference = dict(reference)
        self._step = first_step
        self._hook = None
        if optimizer is not None:
            self._hook = _hooked(optimizer).register_step_post_hook(lambda *_: self.step())
        self.record()

    @property
    def history(self) -> SpectraHistory:
        """All records so far, the first of them at step 0."""
        return self._recorder.history

    @property
    def n_steps(self) -> int:
        """Steps counted so far."""
        return self._step

    def step(self) -> None:
        """Count one optimizer step, and record if it is due. Call it after the optimizer's."""
        self._step += 1
        if self._step % self._every == 0:
            self.record()

    def record(self) -> None:
        """Record now, once per step at most.

        Raises
        ------
        InvalidInputError
            If weights are not finite.
        """
        if self._recorder.last_step != self._step:
            self._recorder.record(self._lookup, self._step)

    def close(self) -> None:
        """Make a last record and take the hook off the optimizer.

        Warns
        -----
        UncountedStepsWarning
            If the weights moved after the last step that was counted.
        """
        self.detach()
        if self._recorder.last_step != self._step:
            self.record()
        elif self._recorder.record_if_moved(self._lookup, self._step + 1):
            warn(
                f"the weights moved after step {self._step}, the last that was counted; the last "
                f"record has the label {self._step + 1}. Call step() after every step of the "
                "optimizer, or pass it as optimizer=.",
                UncountedStepsWarning,
            )

    def detach(self) -> None:
        """Take the hook off the optimizer, without a record."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.detach()

    def reference_weights(self) -> dict[str, Tensor]:
        """Stored weights at the start, by name."""
        return dict(self._reference)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to carry on in another process: numbers, strings and tensors only."""
        return {
            "step": self._step,
            "history": {
                name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
                for name, value in vars(self.history).items()
            },
            "directions": self._recorder.directions(),
            "reference": self.reference_weights(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Carry on from `state_dict` of an earlier tracker of the same model.

        The reference is not taken from it: give it to `track` as ``reference=state["reference"]``.

        Raises
        ------
        InvalidInputError
            If the state belongs to another model or other options, or to another start.
        """
        parts = {"step", "history", "directions", "reference"}
        whole = parts <= set(state) and {f.name for f in fields(SpectraHistory)} <= set(
            state["history"]
        )
        if not whole or not is_whole(state["step"], 0):
            raise InvalidInputError(
                f"the state holds {', '.join(map(str, state))}, not all that state_dict() of a "
                "tracker returns: restore a copy."
            )
        own = self.reference_weights()
        for name, weight in state["reference"].items():
            if name not in own or not torch.equal(own[name].cpu(), weight.cpu()):
                raise InvalidInputError(
                    f"the state measures changes from another start (weight {name!r} differs): "
                    'make the tracker with track(model, reference=state["reference"]).'
                )
        values: dict[str, Any] = {
            name: value.cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in state["history"].items()
        }
        self._recorder.restore(SpectraHistory(**values), state["directions"])
        self._step = int(state["step"])


def track(
    model: nn.Module,
    *,
    every: int = 1,
    n_values: int | None = 10,
    spectrum: str = "leading",
    n_directions: int = 4,
    rank_rtol: float = 0.01,
    dtype: torch.dtype | None = None,
    optimizer: Any = None,
    reference: Checkpoint | None = None,
    first_step: int = 0,
    layouts: Layouts | None = None,
    layers: str | Sequence[str] | None = None,
    inputs: Any = None,
    allow_tied: bool = False,
    allow_frozen: bool = False,
) -> Tracker:
    """Follow Δ(W_K W_Qᵀ) and Δ(W_V W_Oᵀ) of every attention head of a model while it trains.

    The change from the start is what the theory says is of low rank, growing in steps
    (Figures 1 and 3–5 of arXiv 2306.07042). Only the factors are touched, never the d × d matrix.

    Parameters
    ----------
    model : torch.nn.Module
        Model to follow, as it is at the start; see `attention_products` for what is recognised.
    every : int
        Record each so many optimizer steps.
    n_values : int or None
        Leading singular values to keep per head and product; None keeps all.
    spectrum : {"leading", "full"}
        ``"leading"`` computes no more than `n_values` values, to 1e-6 of the largest; norms and
        stable ranks are exact, the effective rank has two bounds, and the numerical rank counts
        no further than `n_values`. ``"full"`` computes every value, at about twice the time.
    n_directions : int
        Leading singular directions whose principal angles with the previous record are wanted.
    rank_rtol : float
        Share of σ₁ above which a singular value counts in the numerical rank, and as a direction.
    dtype : torch.float32 or torch.float64, optional
        Type to compute in; by default the weights' own, float32 for half precision.
    optimizer : torch.optim.Optimizer, optional
        Count its steps by a hook, instead of by calls of ``tracker.step()``. Wrappers that keep the
        optimizer as their ``optimizer``, such as accelerate's, are looked through.
    reference : mapping of str to Tensor, or path of a checkpoint, optional
        Weights to measure the change from; those of `model` now by default.
    first_step : int
        Number of the step that the model is at now, where a run is resumed.
    layouts, layers, inputs
        See `attention_products`.
    allow_tied, allow_frozen : bool
        Follow layers that share a weight, or a model none of whose attention weights is trained.

    Returns
    -------
    Tracker
        A context manager; its `history` holds the records. On leaving it a last record is made.

    Raises
    ------
    InvalidInputError
        If no attention is found, weights are tied, frozen, quantized, NaN or differ in shape from
        the reference, or an option is out of range.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.MultiheadAttention(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x = torch.linspace(-1, 1, 12).reshape(3, 4)
    >>> with track(model, every=2) as tracker:
    ...     for _ in range(4):
    ...         loss = (model(x, x, x)[0] - x).square().sum()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...         tracker.step()
    >>> tracker.history.steps.tolist()
    [0, 2, 4]
    """
    if not is_whole(every, 1):
        raise InvalidInputError(f"every={every!r} must be at least 1 step")
    if not is_whole(first_step, 0):
        raise InvalidInputError(f"first_step={first_step!r} must be a number of steps")
    options = RecordOptions(n_values, spectrum, n_directions, rank_rtol, dtype)
    sources = find_sources(model, layouts=layouts, layers=layers, inputs=inputs)
    check_trained(model, sources, allow_tied=allow_tied, allow_frozen=allow_frozen)
    lookup, weights = model_lookup(model), stored_weights(sources)
    if reference is None:
        kept = {name: _detached(weight.in_use(lookup)) for name, weight in weights.items()}
    else:
        then = stored_in_use(open_checkpoint(reference), weights)
        # A reference is read from disk, the model may be on a GPU.
        kept = {name: _detached(then(name).to(lookup(name).device)) for name in weights}
    recorder = Recorder(sources, kept.__getitem__, options)
    return Tracker(
        model, recorder, every=every, optimizer=optimizer, reference=kept, first_step=first_step
    )


def _hooked(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself inside wrappers of trainers, which need not have hooks of their own."""
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not hasattr(inner, "_optimizer_step_post_hooks"):
        raise InvalidInputError(
            f"optimizer is a {type(optimizer).__name__}, which has no hook for its steps: leave "
            "optimizer= out and call tracker.step() after every step."
        )
    return inner


def _detached(weight: Any) -> Any:
    # Whatever is not a tensor is refused with its name where the weights are read.
    return weight.detach().clone() if isinstance(weight, Tensor) else weight
