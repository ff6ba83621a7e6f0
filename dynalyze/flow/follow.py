"""One run of the flow: an integrator's steps, the checks between them, and what is kept."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynalyze._core.arrays import FloatArray
from dynalyze._core.interrupts import deliver, delivering, interruptible, take
from dynalyze._core.status import Status
from dynalyze._version import __version__
from dynalyze.errors import FlowError
from dynalyze.flow.dense import DenseOutputBuilder
from dynalyze.flow.initialization import Initialization
from dynalyze.flow.stationary import StationaryTest
from dynalyze.flow.steppers.guarded import describe_bad_field
from dynalyze.flow.steppers.methods import method_name, stepper_factory
from dynalyze.flow.steppers.protocol import Stepper, StepperFactory
from dynalyze.flow.trajectory import Trajectory
from dynalyze.models.binding import check_origin
from dynalyze.models.counted import CountedObjective
from dynalyze.models.protocol import Objective

_CONTINUE = "continue from here by simulate(..., start=trajectory)"
_LARGEST_THETA = 1e15  # in natural units; beyond, the flow has no limit that anybody asked for
_LOSS_EVERY = 64  # evaluations between checks that the loss does not rise
_DENSE_TOL = 1e-2  # tolerance of the dense output's form, in units of the integrator's


@dataclass(frozen=True)
class FlowState:
    """Where a running simulation is, as its callback sees it."""

    t: float  # flow time
    t_rescaled: float  # t / log(1/α)
    z: FloatArray  # (p,), log coordinates
    theta: FloatArray  # (p,), products
    n_steps: int  # steps of this run that are completed
    nfev: int  # evaluations of the loss or the field in this run


class _WatchedObjective(CountedObjective):
    """Counted objective that remembers a field that is not finite.

    A method that meets one tries shorter steps, and at last gives up for a reason of its own.
    """

    complaint = ""

    def field(self, theta: FloatArray) -> FloatArray:
        """Field g(θ), looked at in passing."""
        field = super().field(theta)
        if not np.all(np.isfinite(field)):
            self.complaint = describe_bad_field(self, theta, field)
        return field


class Simulation:
    """One call of `simulate`: steps, checks between them, and what is kept."""

    def __init__(
        self,
        objective: Objective,
        init: Initialization,
        start: Trajectory | None,
        *,
        t_bound: float | None,
        method: str | StepperFactory,
        tol: float,
        stationary_rtol: float,
        max_steps: int,
        max_seconds: float | None,
        callback: Callable[[FlowState], Any] | None,
    ) -> None:
        self.begun = time.monotonic()
        self.init = init
        self.start = start
        self.t_bound = t_bound
        self.method, self.make_stepper = method_name(method), stepper_factory(method)
        self.tol = tol
        self.max_steps = max_steps
        self.max_seconds = max_seconds
        self.callback = callback
        self.objective = objective
        self.counted = _WatchedObjective(objective)
        self.stationary = StationaryTest(self.counted, init.coordinates, stationary_rtol)
        self.t = [float(start.t[-1]) if start else 0.0]
        self.z = [start.z[-1] if start else init.z0]
        self.builder = DenseOutputBuilder(
            self.t[0], self.z[0], tol=_DENSE_TOL * tol, start=start.dense if start else None
        )
        # Loss and field at θ = 0: not known if the run is interrupted there.
        self.origin = np.nan, np.full(init.n_products, np.nan)
        if start is not None:
            self.origin = start.origin_loss, start.origin_field
        self.n_steps = 0
        self.farthest = _LARGEST_THETA
        self.z_farthest = np.full(init.n_products, np.inf)  # |z| where |θ| is the farthest
        self.loss: float | None = None
        self.loss_scale = 1.0
        self.loss_checked = 0  # evaluations made before the loss was last checked

    def follow(self, bar: Any) -> tuple[Status, str]:
        """Step until something ends the run; returns status and message."""
        try:
            if self.start is None:
                self.origin = self.counted.value_and_field(np.zeros(self.init.n_products))
            value, field = self.origin
            if not np.isnan(value) and np.isfinite(field).all():
                check_origin(type(self.objective).__name__, value, field)
                # the distance at which a loss that falls as at first would be 0
                slope = float(np.abs(field).max(initial=0.0))
                self.farthest = _LARGEST_THETA * max(1.0, abs(value) / slope if slope else 1.0)
            self.z_farthest = self.init.coordinates.z_of_theta(
                np.full(self.init.n_products, self.farthest)
            )
            stepper = self.make_stepper(
                self.counted,
                self.init.coordinates,
                self.z[0],
                t=self.t[0],
                t_bound=np.inf if self.t_bound is None else self.t_bound,
                tol=self.tol,
            )
            with delivering():
                return self._steps(stepper, bar)
        except FlowError as error:
            return Status.FAILED, self.counted.complaint or str(error)
        except KeyboardInterrupt:
            return (
                Status.INTERRUPTED,
                f"interrupted at flow time {self.t[-1]:.6g}; {_CONTINUE}",
            )

    def _steps(self, stepper: Stepper, bar: Any) -> tuple[Status, str]:
        self._check_loss()
        while stepper.n_steps < self.max_steps:
            # At rest a step may go on for ever: rest is looked for before each.
            to_rest = self.t_bound is None
            if to_rest and (ended := self.stationary(self.z[-1], stepper.field)):
                self._check_loss()
                return ended
            segment = stepper.step()
            self.n_steps = stepper.n_steps
            self.counted.complaint = ""
            t = segment.t_end if self.t_bound is None else min(segment.t_end, self.t_bound)
            z = self.builder.add(segment, t)
            self.t.append(t)
            self.z.append(z)
            bar.update(t / self.init.log_inverse_alpha - bar.n)
            if ended := self._diverged():
                return ended
            if self.counted.nfev >= self.loss_checked + _LOSS_EVERY:
                self._check_loss()
            deliver()
            if self._stopped():
                return (
                    Status.CALLBACK,
                    f"stopped by the callback at flow time {t:.6g}; {_CONTINUE}",
                )
            if t == self.t_bound:
                self._check_loss()
                return Status.FINISHED, f"reached flow time {t:.6g}"
            if self.max_seconds is not None and time.monotonic() - self.begun > self.max_seconds:
                return Status.MAX_SECONDS, (
                    f"max_seconds={self.max_seconds} passed at flow time {t:.6g}; {_CONTINUE}"
                )
        return Status.MAX_STEPS, (
            f"max_steps={self.max_steps} were made up to flow time {self.t[-1]:.6g}: try a larger "
            f"max_steps or tol. {self.stationary.hint()}{_CONTINUE}"
        )

    def _stopped(self) -> bool:
        if self.callback is None:
            return False
        with interruptible():
            return bool(self.callback(self._state()))

    def _diverged(self) -> tuple[Status, str] | None:
        if (np.abs(self.z[-1]) < self.z_farthest).all():
            return None
        i = int(np.argmax(np.abs(self.init.coordinates.theta(self.z[-1]))))
        return Status.DIVERGED, (
            f"{self.objective.product_names[i]} has passed {self.farthest:.0e} at flow time "
            f"{self.t[-1]:.6g}: the loss has no minimum in its direction. Check the loss, or end "
            "before by until="
        )

    def _check_loss(self) -> None:
        before, self.loss = self.loss, self.counted.value(self.init.coordinates.theta(self.z[-1]))
        self.loss_checked = self.counted.nfev
        if not np.isfinite(self.loss):
            raise FlowError(
                f"the loss is {self.loss} at flow time {self.t[-1]:.6g}: check the model and data"
            )
        # What errors of the size of tol in log|θ| can do to a loss, generously.
        if before is None:
            self.loss_scale = abs(self.loss) or 1.0
        elif self.loss > before + 1e3 * self.tol * self.loss_scale:
            raise FlowError(
                f"the loss rose from {before:.6g} to {self.loss:.6g} by flow time "
                f"{self.t[-1]:.6g}, which gradient flow never does: decrease tol, or check that "
                "the model's field is minus the derivative of its loss"
            )

    def _state(self) -> FlowState:
        t = self.t[-1]
        return FlowState(
            t=t,
            t_rescaled=t / self.init.log_inverse_alpha,
            z=self.z[-1],
            theta=self.init.coordinates.theta(self.z[-1]),
            n_steps=self.n_steps,
            nfev=self.counted.nfev,
        )

    def trajectory(self, status: Status, message: str, *, loss: str) -> Trajectory:
        """Collect the result, the part before `start` included."""
        before = self.start
        t, z = np.array(self.t), np.array(self.z)
        if before is not None:
            t, z = np.concatenate([before.t, t[1:]]), np.concatenate([before.z, z[1:]])
        dense = self.builder.build()
        stats = self.counted.stats(time.monotonic() - self.begun)
        if take() and status is not Status.INTERRUPTED:
            status, message = Status.INTERRUPTED, f"interrupted at its end: {message}"
        return Trajectory(
            t=t,
            z=z,
            dense=dense,
            init=self.init,
            product_names=tuple(self.objective.product_names),
            n_steps=self.n_steps + (before.n_steps if before else 0),
            stats=stats if before is None else before.stats + stats,
            status=status,
            message=message,
            configuration={
                "method": self.method,
                "tol": self.tol,
                "loss": loss,
                "objective": type(self.objective).__name__,
                "dynalyze_version": __version__,
            },
            origin_loss=float(self.origin[0]),
            origin_field=self.origin[1],
            objective=self.objective,
        )
