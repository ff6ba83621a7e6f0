"""The library's own integrator of the flow: few gradients, rare Hessians, plateaus in one step."""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dynalyze._typing import FloatArray
from dynalyze.errors import FlowError, InvalidInputError
from dynalyze.flow._frozen_hessian import FrozenHessian
from dynalyze.flow._head import Head
from dynalyze.flow._history import History
from dynalyze.flow._path import NEWCOMER, Limits, Path, Piece, no_limits, pieces
from dynalyze.flow._remainder import Polynomial, Sample, is_alone, newton_form
from dynalyze.flow.coordinates import Chart
from dynalyze.flow.stepper import Segment
from dynalyze.models.protocol import Objective

_ORDER = 6  # highest number of nodes of the predictor
_SHARE = 0.2  # of tol, for one step: steps add up, and a slow coordinate crosses later by 1/|g|
_TARGET = 0.05  # error aimed at, in units of a step's share
_CONVERGED = 0.1  # largest change that a further evaluation would make, in the same units
_FARTHEST = 0.1  # largest correction of z in any step
_INNER = 0.02  # error of an inner step, in units of a step's share
_LOOSER = 5.0  # the same for the predictor, in units of the corrector's
_MOST_CORRECTIONS = 3
_MOST_ATTEMPTS = 40
_PATIENCE = 5  # attempts after which the Hessian is renewed and the step shortened
_LATEST = 1e300  # flow time beyond which nothing can be represented


class ExponentialChart(Chart, Protocol):
    """A chart of the form θ = e^{up + 2z} − e^{down − 2z}, as all of this library are."""

    def log_amplitudes(self) -> tuple[FloatArray, FloatArray]:
        """Return `up` and `down`, each of shape (p,); −∞ where the term is absent."""


@dataclass(frozen=True, eq=False)
class _Trial:
    """A corrected step that may be accepted."""

    samples: list[Sample]  # newest first
    exact: Sample | None  # where the Hessian columns are exact
    path: Path
    size: float  # highest divided difference of the remainder
    error: float  # of z


class SurrogateStepper:
    """Multistep method on the arc length, with the exponentials of the flow solved exactly.

    In dz/dt = g(θ(z)) the field g varies slowly with θ, and θ exponentially with z. So the
    Hessian columns H of the active coordinates are frozen, and g(θ) ≈ P(s) − Hθ with P the
    polynomial of the *remainder* g + Hθ through its last values, in the arc length s of θ. This
    surrogate is solved to high accuracy without evaluating anything (predictor), the field is
    evaluated once at its end, and the surrogate solved again with the new value (corrector). For
    linear models the remainder is constant and the step exact. On plateaus nothing moves in θ,
    and a step takes the flow to where the next coordinate wakes, however far that is: the
    work does not grow with log(1/α).

    A predictor with m nodes makes a method of order m + 1, as for an Adams–Moulton method in PEC
    mode. Order and step are chosen before each step, by following the surrogate until the
    predicted error reaches its target. Each `step` returns one piece of the corrected path, which
    is a cubic; a restart needs no more than (t, z).

    Parameters
    ----------
    objective : Objective
        The loss.
    chart : ExponentialChart
        The products θ(z).
    z : ndarray, shape (p,)
        Log coordinates at the start.
    t : float, optional
        Flow time of the start.
    t_bound : float, optional
        Flow time not to step beyond.
    tol : float
        Error of z that is aimed at. The error of a crossing time is that of z over |g|.
    order : int, optional
        Highest number m of nodes, 2 to 6.
    fixed_step : float, optional
        Flow time of every step once `order` values of the field are known, instead of error
        control: for convergence studies.

    Raises
    ------
    FlowError
        If the field is not finite at the start.
    """

    def __init__(
        self,
        objective: Objective,
        chart: ExponentialChart,
        z: FloatArray,
        *,
        t: float = 0.0,
        t_bound: float = np.inf,
        tol: float = 1e-6,
        order: int = _ORDER,
        fixed_step: float | None = None,
    ) -> None:
        if not 2 <= order <= _ORDER:
            raise InvalidInputError(f"order={order} must be from 2 to {_ORDER}")
        self.nfev = 0
        self._objective, self._chart = objective, chart
        self._t_bound, self._tol = t_bound, _SHARE * tol
        self._order, self._fixed_step = order, fixed_step
        self._ready: deque[Piece] = deque()
        self._t, self._z = float(t), np.array(z, dtype=float)
        # The end of the last corrected path, of which pieces may still be to hand out.
        self._head = Head(*chart.log_amplitudes(), self._t, self._z)
        self._broken = "the field changes too fast"
        sample = self._sample(self._head.y)
        if sample is None:
            raise self._failure(self._broken)
        self._field = sample.field
        self._hessian = FrozenHessian(objective, sample, self._head.log_theta, self._tol)
        self._history = History(sample, self._hessian.rate, order)
        self._select(sample)
        self._head.inner_step = 1e-3 / self._hessian.rate
        self._longest = np.inf

    @property
    def t(self) -> float:
        """Flow time reached."""
        return self._t

    @property
    def z(self) -> FloatArray:
        """Log coordinates reached, shape (p,)."""
        return self._z

    @property
    def field(self) -> FloatArray:
        """g at the point reached to the accuracy of the integration, shape (p,); free."""
        return self._field

    @property
    def nhev(self) -> int:
        """Calls for Hessian columns so far."""
        return self._hessian.nhev

    @property
    def nhcol(self) -> int:
        """Hessian columns evaluated so far."""
        return self._hessian.nhcol

    def step(self) -> Segment:
        """Make one accepted step and return it.

        Raises
        ------
        FlowError
            If the field is not finite wherever tried, or no step is small enough.
        """
        if not self._ready:
            if self._fixed_step is None or len(self._history.samples) < self._order:
                self._advance()
            else:
                self._advance_by(self._fixed_step)
        piece = self._ready.popleft()
        self._t, self._z, self._field = piece.t_end, piece.last, piece.rates
        return piece

    def _failure(self, why: str) -> FlowError:
        return FlowError(
            f"the flow cannot be continued from t = {self._head.t}: {why}. Try a larger tol, or "
            "another method"
        )

    def _sample(self, state: FloatArray) -> Sample | None:
        """Evaluate the field at (z, s); None where it is not finite."""
        theta = self._chart.theta(self._head.origin + state[:-1])
        field = np.array(self._objective.field(theta), dtype=float)
        self.nfev += 1
        finite = np.isfinite(field)
        if finite.all():
            return Sample(float(state[-1]), theta, field)
        i = int(np.argmin(finite))
        self._broken = (
            f"the field g is {field[i]} at product {self._objective.product_names[i]}, where the "
            f"largest |θ| is {np.max(np.abs(theta)):.3g}: check the model's loss there"
        )
        return None

    def _advance(self) -> None:
        """Make one step of the multistep method; its pieces go to `_ready`."""
        hessian = self._hessian
        distrust = np.ones(self._order + 2)
        for attempt in range(_MOST_ATTEMPTS):
            path, nodes = self._predict(distrust)
            if path.status < 0:
                self._simplify()
                continue
            if self._correct(path, nodes, distrust):
                return
            renews = attempt >= (1 if hessian.cheap else _PATIENCE)
            if renews and self._history.newest is not hessian.exact:
                hessian.renew(self._history.newest)
            if attempt >= _PATIENCE:
                hessian.exact = None  # in case it is not, after all
                self._longest = 0.3 * float(path.t[-1] - self._head.t)
        raise self._failure(f"{_MOST_ATTEMPTS} attempts at a step failed")

    def _simplify(self) -> None:
        """Make the surrogate a better or a simpler one, after it could not be solved."""
        if self._history.newest is not self._hessian.exact:
            self._hessian.renew(self._history.newest)
        elif len(self._history.samples) > 1:
            self._history.forget()
        else:
            self._head.inner_step *= 1e-3
            self._longest = 1e-2 * min(self._longest, 1.0 / self._hessian.rate)

    def _predict(self, distrust: FloatArray) -> tuple[Path, FloatArray]:
        """Follow the surrogate until its predicted error reaches the target."""
        hessian, head = self._hessian, self._head
        polynomial, sizes = self._history.extrapolation(hessian, head.s, distrust)
        limits = Limits(
            free=True,
            nodes=polynomial.nodes,
            sizes=sizes,
            target=_TARGET * self._tol,
            predictor_target=min(_CONVERGED * self._tol / hessian.contraction, _FARTHEST),
            thresholds=hessian.thresholds(self._history.newest.field),
        )
        t_end = min(self._t_bound, head.t + self._longest, _LATEST)
        if not t_end > head.t:
            raise self._failure(self._why_no_time())
        tol = _LOOSER * _INNER * self._tol
        return head.follow(hessian, polynomial, t_end, tol, limits), polynomial.nodes

    def _why_no_time(self) -> str:
        if self._head.t >= self._t_bound:
            return f"t_bound={self._t_bound} is reached"
        if np.isfinite(self._longest):
            return f"no step is short enough: beyond, {self._broken}"
        return "nothing moves any more, however long the flow time"

    def _correct(self, path: Path, nodes: FloatArray, distrust: FloatArray) -> bool:
        """Evaluate the field at the end of the predicted path; whether the step is accepted."""
        t_end, state, best = float(path.t[-1]), path.y[-1], path.best
        tol, hessian, change, error = self._tol, self._hessian, np.inf, 0.0
        for iteration in range(_MOST_CORRECTIONS):
            sample = self._sample(state)
            hessian.evaluations += 1
            if sample is None:
                self._longest = 0.1 * (t_end - self._head.t)
                return False
            trial = self._trial(sample, t_end, best, nodes)
            if trial is None:
                break
            end, error = trial.path.y[-1], trial.error
            before, change = change, float(np.max(np.abs(end[:-1] - state[:-1])))
            if iteration and before > 0:
                hessian.measure(change / before)
            noise = self._arc_noise(sample)
            arc, moved = abs(sample.s - self._head.s), abs(end[-1] - sample.s)
            converged = (
                hessian.contraction * change <= _CONVERGED * tol
                and change < _FARTHEST
                and moved <= 0.4 * arc + noise
            )
            if converged and error <= tol:
                self._accept(trial)
                if path.status == NEWCOMER:
                    self._head.center(self._head.s)
                    self._select(sample)
                elif hessian.outdated:
                    hessian.renew(sample)
                return True
            if converged or error > 3 * tol or moved > arc + noise or hessian.contraction > 0.7:
                break
            state = end
        lack = hessian.contraction * change / _CONVERGED if np.isfinite(change) else 0.0
        excess = min(max(error / _TARGET / tol, lack / tol, 2.0), 100.0)
        if is_alone(nodes):
            self._history.distrust(len(nodes), excess)
        else:
            distrust[best:] *= excess
        return False

    def _arc_noise(self, sample: Sample) -> float:
        """Arc length that is not resolved at a sample."""
        return max(1e-9, 0.2 * self._tol) * max(self._hessian.size(sample), 1e-4)

    def _trial(self, sample: Sample, t_end: float, best: int, nodes: FloatArray) -> _Trial | None:
        """Solve the surrogate with a sample at the step's end; None if that fails."""
        head, hessian, known = self._head, self._hessian, self._history.samples
        exact = hessian.exact
        # A sample too close to the newest one takes its place, and adds nothing to the degree.
        close = abs(sample.s - nodes[0]) < self._arc_noise(sample)
        if close and known[0] is exact:
            exact = sample
        samples = [sample, *known[1 if close else 0 :]]
        new_nodes, newton = newton_form(samples[: best + 1], exact, hessian.active, hessian.columns)
        terms = min(best if close else best + 1, len(new_nodes))
        polynomial = Polynomial(new_nodes, newton[:terms], max(sample.s, head.s))
        limits = no_limits(nodes, best)
        path = head.follow(hessian, polynomial, t_end, _INNER * self._tol, limits)
        if path.status < 0:
            return None
        size = float(np.max(np.abs(newton[best]))) if terms > best else 0.0
        error = size * abs(path.moment[best] - sample.s * path.plain[best])
        return _Trial(samples, exact, path, size, error)

    def _accept(self, trial: _Trial) -> None:
        """Hand out the path and go on from its end."""
        path = trial.path
        self._ready.extend(pieces(path, self._head.origin))
        arc = abs(float(path.y[-1, -1]) - self._head.s)
        self._history.append(trial.samples, self._hessian, arc, trial.size)
        self._head.move(path)
        self._hessian.exact = trial.exact
        self._longest = np.inf

    def _select(self, sample: Sample) -> None:
        """Choose the active coordinates anew at the head, where the newest sample is."""
        head, hessian = self._head, self._hessian
        selection = hessian.select(sample, head.log_theta, head.growth(sample.field))
        if selection.lengths:
            weights = np.exp(-hessian.log_length)
            self._history.remeasure(weights, self._arc_noise(sample))
            head.center(sample.s)
        if selection.direction:
            self._history.forget()

    def _advance_by(self, step: float) -> None:
        """Step of given length and highest order, without error control."""
        t_end = min(self._head.t + step, self._t_bound)
        hessian, samples = self._hessian, self._history.samples[: self._order]
        nodes, newton = newton_form(samples, hessian.exact, hessian.active, hessian.columns)
        terms = min(self._order, len(nodes))
        polynomial, limits = Polynomial(nodes, newton[:terms], np.inf), no_limits(nodes, 0)
        path = self._head.follow(hessian, polynomial, t_end, _INNER * self._tol, limits)
        sample = self._sample(path.y[-1]) if path.status > 0 else None
        trial = self._trial(sample, t_end, terms, nodes) if sample is not None else None
        if trial is None:
            raise self._failure(f"the fixed step {step} is too long")
        self._accept(trial)
