"""How a vision transformer is trained: optimizer, schedule, precision."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any

from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_positive_int
from dynalyze.training.loop import Extent
from dynalyze.training.vit.images import VisionData
from dynalyze.training.vit.model import ViTShape

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ViTOptions:
    """Settings of a training; the defaults are the paper's for CIFAR.

    Parameters
    ----------
    optimizer : {"adam", "sgd"}
        Without weight decay; the paper's SGD has ``lr=3e-1``.
    lr : float
        Learning rate after the warm-up.
    momentum : float
        Of SGD.
    batch_size : int
        Images per step, over all processes.
    n_epochs : int
        Passes over the training images.
    warmup_epochs : float
        Epochs in which the learning rate grows linearly to `lr`.
    n_cycles : int
        Cycles of cosine decay from `lr` to 0 in what remains.
    precision : {"float32", "tf32", "bfloat16", "float16"}
        Type of the matrix products: float32 throughout, float32 with TF32 products on a GPU, or
        mixed precision; float16 needs a GPU and scales the loss.
    """

    optimizer: str = "adam"
    lr: float = 1e-4
    momentum: float = 0.0
    batch_size: int = 512
    n_epochs: int = 500
    warmup_epochs: float = 15
    n_cycles: int = 1
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd"):
            raise InvalidInputError(f"optimizer must be 'adam' or 'sgd', got {self.optimizer!r}.")
        if self.precision not in ("float32", "tf32", *_AUTOCAST):
            raise InvalidInputError(
                "precision must be 'float32', 'tf32', 'bfloat16' or 'float16', got "
                f"{self.precision!r}."
            )
        if not 0 < self.lr < math.inf:
            raise InvalidInputError(f"lr must be positive and finite, got {self.lr}.")
        if not 0 <= self.momentum < 1:
            raise InvalidInputError(f"momentum must lie in [0, 1), got {self.momentum}.")
        for name in ("batch_size", "n_epochs", "n_cycles"):
            object.__setattr__(self, name, as_positive_int(getattr(self, name), name))
        if not 0 <= self.warmup_epochs <= self.n_epochs:
            raise InvalidInputError(
                f"warmup_epochs must lie between 0 and n_epochs={self.n_epochs}, got "
                f"{self.warmup_epochs}."
            )
        for name in ("lr", "momentum", "warmup_epochs"):  # NumPy's scalars become Python's
            object.__setattr__(self, name, float(getattr(self, name)))

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0."""
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.lr * (step + 1) / math.ceil(warmup)
        rest = self.n_epochs * steps_per_epoch - warmup
        phase = ((step - warmup) / rest * self.n_cycles) % 1.0
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * phase))

    def make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Optimizer of all parameters."""
        if self.optimizer == "adam":
            return torch.optim.Adam(model.parameters(), lr=self.lr)
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)

    @contextmanager
    def float32_products(self) -> Iterator[None]:
        """Have products of float32 on a GPU as `precision` says, whatever the caller has set."""
        tf32 = self.precision == "tf32"
        backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
        setting: tuple[str, Any] = "allow_tf32", tf32
        if hasattr(backends[0], "fp32_precision"):  # torch 2.9; must not be mixed with the older
            backends[1] = getattr(backends[1], "conv")  # noqa: B009  (not in its stub)
            setting = "fp32_precision", "tf32" if tf32 else "ieee"
        name, value = setting
        before = [getattr(backend, name) for backend in backends]
        try:
            for backend in backends:
                setattr(backend, name, value)
            yield
        finally:
            for backend, old in zip(backends, before, strict=True):
                setattr(backend, name, old)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context of the forward pass."""
        if self.precision not in _AUTOCAST:
            return nullcontext()
        return torch.autocast(device.type, dtype=_AUTOCAST[self.precision])

    def make_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Scaler of the loss; it does nothing but for float16.

        Raises
        ------
        InvalidInputError
            If float16 is asked for without a GPU.
        """
        if self.precision == "float16" and device.type != "cuda":
            raise InvalidInputError(
                "precision='float16' needs a GPU: choose 'bfloat16' or 'float32' on the CPU."
            )
        return torch.amp.GradScaler(device.type, enabled=self.precision == "float16")


@dataclass(frozen=True)
class VisionTraining(Extent):
    """The arguments of `train_vit`, which explains them."""

    data: VisionData | None = None
    shape: ViTShape | None = None
    options: ViTOptions | None = None
    _: KW_ONLY
    scale: float = 1.0
    seed: int = 0
    track_every: int = 50
    n_values: int | None = 10
    spectrum: str = "leading"
    device: str | torch.device | None = None
    callback: Callable[[int, float], bool | None] | None = None
