"""How a prediction, a simulation or a training run ended: one vocabulary for all of them."""

from enum import StrEnum


class Status(StrEnum):
    """How a result came to its end; what was found before that is valid in every case.

    The members are strings: ``result.status == "tie"`` works, and so they stand in files and in
    JSON. The `message` beside a status says what it means there, and what to do about it.
    """

    FINISHED = "finished"  # the end that was asked for is reached
    STATIONARY = "stationary"  # nothing moves or grows any more
    CONVERGED = "converged"  # no product that is not yet active will become so
    TIE = "tie"  # two products would become active at once
    DEGENERATE = "degenerate"  # a product left with field 0, so that when it returns is open
    NO_LIMIT = "no_limit"  # the flow goes to no finite stationary point
    UNDECIDED = "undecided"  # whether the flow goes to one is not known yet
    UNSOLVED = "unsolved"  # it does, and there is no formula for where
    FULL_RANK = "full_rank"  # a gradient is left, and no column of the weights for it
    RANK_LOST = "rank_lost"  # a product lost a rank, and the theory ends there
    MAX_STAGES = "max_stages"  # budgets
    MAX_STEPS = "max_steps"
    MAX_SECONDS = "max_seconds"
    CALLBACK = "callback"  # the callback asked to stop
    INTERRUPTED = "interrupted"  # Ctrl-C
    DIVERGED = "diverged"  # a product or the loss grew beyond all bounds
    FAILED = "failed"  # the integrator or the model gave no numbers

    @property
    def success(self) -> bool:
        """Whether the result is complete."""
        return self in (Status.FINISHED, Status.STATIONARY, Status.CONVERGED)
