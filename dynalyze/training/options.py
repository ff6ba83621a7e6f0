"""The options of a training run, checked once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from dynalyze._core.arrays import Data
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.flow.initialization import Initialization
from dynalyze.models.data import as_positive_int
from dynalyze.models.torch.device import type_named
from dynalyze.models.torch.loss import SampleLoss
from dynalyze.training.loop import Extent
from dynalyze.training.recording import Recording
from dynalyze.training.trainable import Weights, flow_steps, flow_time_per_step

Source: TypeAlias = np.random.Generator | int | None
"""Of a run's random order."""

OPTIMIZERS = ("gd", "sgd", "adam")
_DIVERGED = 100.0
_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("lr", Real | np.ndarray | torch.Tensor, "a positive number"),
    ("optimizer_options", Mapping, "a mapping, such as {'momentum': 0.9}"),
    ("recording", Recording, "a Recording, such as Recording(every=10)"),
)


@dataclass(frozen=True, kw_only=True)
class Options(Extent):
    """Keyword arguments of `train` and `train_many`, checked; `train` explains them."""

    lr: float
    steps: int | None = None
    until: float | None = None
    optimizer: str = "gd"
    optimizer_options: Mapping[str, Any] | None = None
    batch_size: int | None = None
    loss: str | SampleLoss = "squared"
    recording: Recording | None = None
    precision: str = "float64"
    device: str | torch.device | None = None
    callback: Callable[[int, torch.Tensor], bool | None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds, wanted in _KINDS:
            self._check(name, kinds, wanted)
        # NumPy's scalars are welcome; torch and JSON get Python's.
        plain: dict[str, Any] = {"optimizer_options": _plain(self.optimizer_options or {})}
        if self.batch_size is not None:
            plain["batch_size"] = as_positive_int(self.batch_size, "batch_size")
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        flow_steps(self.steps, self.until, self._step)
        object.__setattr__(self, "lr", float(self.lr))
        type_named(self.precision)
        if self.optimizer not in OPTIMIZERS:
            raise InvalidInputError(
                f"optimizer={self.optimizer!r} is not known: choose one of "
                f"{', '.join(map(repr, OPTIMIZERS))}"
            )
        if self.optimizer == "gd" and self.batch_size is not None:
            raise InvalidInputError(
                f"batch_size={self.batch_size} with optimizer='gd', which uses all samples: "
                "leave it out, or choose optimizer='sgd'"
            )
        if self.optimizer == "sgd" and self.batch_size is None:
            raise InvalidInputError(
                "optimizer='sgd' needs batch_size: give it, or choose optimizer='gd' for all "
                "samples"
            )

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps."""
        return flow_steps(self.steps, self.until, self._step)

    @property
    def _step(self) -> float:
        """Flow time of a step; with Adam the formula of gradient descent."""
        options = None if self.optimizer == "adam" else self.optimizer_options
        return flow_time_per_step(self.lr, options)

    def divergence_bound(self, initial: torch.Tensor) -> torch.Tensor:
        """Loss on all samples beyond which a run that began at `initial` diverges, by run.

        Gradient descent leaves the plateau of small weights only downwards: a loss a hundred times
        the initial one is no fluctuation. Losses that the caller gives may be shifted, negative
        ones too. Adam's steps have the size of the learning rate whatever the gradient, so that a
        loss near zero rises by any factor at first: there only infinity counts.
        """
        if self.optimizer == "adam":
            return torch.full_like(initial, torch.inf)
        if callable(self.loss):
            return initial + _DIVERGED * initial.abs().clamp(min=1.0)
        return _DIVERGED * initial

    def make_optimizer(self, weights: Weights) -> torch.optim.Optimizer:
        """The torch optimizer of `weights`, which are updated in place."""
        kind: Any = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        given = dict(self.optimizer_options or {})
        probe = torch.zeros_like(next(iter(weights.values()))).requires_grad_()
        probe.grad = torch.zeros_like(probe)
        try:
            kind([probe], lr=self.lr, **given).step()  # some options show only here
            # Both act elementwise, so that stacked runs do not meet in them either.
            made: torch.optim.Optimizer = kind(list(weights.values()), lr=self.lr, **given)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise InvalidInputError(
                f"optimizer_options={given!r}: torch.optim.{kind.__name__} does not take them "
                f"({error})"
            ) from error
        return made


@dataclass(frozen=True)
class OneTraining(Options):
    """The arguments of `train`."""

    model: object
    data: Data
    init: Initialization | None = field(default=None, kw_only=True)
    rng: Source = field(default=None, kw_only=True)

    stacked = False  # whether weights have a leading axis of runs

    @property
    def starts(self) -> list[Initialization]:
        """Initialization of each run; none for the model's own weights."""
        return [] if self.init is None else [self.init]

    @property
    def sources(self) -> list[Source]:
        """Source of the random order of each run."""
        return [self.rng]


@dataclass(frozen=True)
class ManyTrainings(Options):
    """The arguments of `train_many`."""

    model: object
    data: Data
    inits: Sequence[Initialization]
    rngs: Sequence[Source] | None = field(default=None, kw_only=True)

    stacked = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "inits", list(self.inits))
        if not self.inits:
            raise InvalidInputError("inits is empty: give one Initialization for each run")
        if len(self.sources) != len(self.inits):
            raise InvalidInputError(
                f"rngs has {len(self.sources)} entries and inits {len(self.inits)}: give one for "
                "each run"
            )

    @property
    def starts(self) -> list[Initialization]:
        """Initialization of each run."""
        return list(self.inits)

    @property
    def sources(self) -> list[Source]:
        """Source of the random order of each run."""
        return [None] * len(self.inits) if self.rngs is None else list(self.rngs)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value
