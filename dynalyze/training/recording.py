"""When a training run records: densely at jumps, sparsely on plateaus."""

from dataclasses import dataclass, field

from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError


@dataclass(frozen=True)
class Recording:
    """Schedule of a run's records.

    A record is made at the start, at the end, and as soon as some recorded quantity has moved by
    `change` since the record before; at the latest after `every` steps. Between records, runs
    are interpolated in log coordinates, in which plateaus are straight lines.

    Parameters
    ----------
    change : float
        Absolute change of a product, or of a singular value, that calls for a record.
    every : int, optional
        Most steps between two records; by default a 200th of the run.
    check_every : int, optional
        Steps between two looks at the quantities. By default 1, on a GPU 20, and 10 where
        singular values must be computed.
    """

    change: float = 0.02
    every: int | None = None
    check_every: int | None = None

    def __post_init__(self) -> None:
        if not self.change > 0:
            raise InvalidInputError(f"change={self.change} must be positive")
        for name in ("every", "check_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name}={value} must be at least 1")

    def resolved(self, n_steps: int, *, matrices: bool, cuda: bool) -> tuple[int, int]:
        """`every` and `check_every` for a run of `n_steps` steps."""
        default = 10 if matrices else 20 if cuda else 1
        check_every = self.check_every or default
        return self.every or max(1, n_steps // 200), check_every


@dataclass
class Records:
    """What was recorded of one run so far."""

    steps: list[int] = field(default_factory=list)
    observed: list[torch.Tensor] = field(default_factory=list)  # each (n_recorded,), on the CPU
    losses: list[float] = field(default_factory=list)

    def add(self, step: int, observed: torch.Tensor, loss: float) -> None:
        """Append a record, unless the step has one; `observed` is on the CPU."""
        if self.steps and self.steps[-1] == step:
            return
        self.steps.append(step)
        self.observed.append(observed.clone())
        self.losses.append(loss)

    def state(self) -> dict[str, torch.Tensor]:
        """The records as tensors, for a checkpoint."""
        return {
            "steps": torch.tensor(self.steps, dtype=torch.int64),
            "observed": torch.stack(self.observed),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor]) -> "Records":
        """Inverse of `state`."""
        losses = state["losses"].tolist()
        return cls(state["steps"].tolist(), list(state["observed"]), losses)
