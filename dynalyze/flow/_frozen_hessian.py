"""The Hessian columns that an integrator keeps: of which coordinates, and for how long."""

from typing import NamedTuple

import numpy as np

from dynalyze._typing import BoolArray, FloatArray, IntArray
from dynalyze.errors import FlowError
from dynalyze.flow._remainder import Sample
from dynalyze.models.protocol import Objective

_DROWSY = 1e-5  # contribution, in units of tol, from which a coordinate has a column
_ASLEEP = 1e-3  # fraction of that below which it loses the column
_CONTRACTION = 0.15  # of fresh columns, until measured
_BAD_CONTRACTION = 0.3
_SLOW = 1e-6  # smallest growth rate that counts, in units of the largest
_STALE = np.log(10.0)  # factor by which a natural length may be off, as a logarithm
_FEW = 16  # columns that cost little more than one
_PROBED = 4  # columns from which the first lengths are estimated
_AGE = 10  # evaluations that columns serve at least ...
_AGE_PER_COLUMN = 3.0  # ... or for each column: more columns are dearer
_AT_REST = 1e-2  # arc length that those at rest have still to go


class Selection(NamedTuple):
    """What a new choice of the active coordinates has changed."""

    lengths: bool  # the natural lengths of some that were active before
    direction: bool  # of the path: the others rest while newcomers grow


class FrozenHessian:
    """Columns of the Hessian at some point of the path, of the coordinates that matter.

    Lengths in θ_i are measured by |θ_i|, or by |g_i| / max_j |H_ji| for what is still small: there
    it changes others as much as it grows itself. So the units of the data do not matter.

    Parameters
    ----------
    objective : Objective
        The loss.
    start : Sample
        The field at the start.
    log_theta : ndarray, shape (p,)
        log|θ| there; −∞ for coordinates that never move.
    tol : float
        Error of z that a step may make.

    Attributes
    ----------
    active : ndarray of int, shape (k,)
        Coordinates that have columns.
    columns : ndarray, shape (p, k)
        The columns.
    log_length : ndarray, shape (p,)
        log of the natural lengths, as of the last selection.
    rate : float
        Largest |g| at the start, one over flow time.
    exact : Sample or None
        Point at which the columns were evaluated.
    contraction : float
        Factor by which one more evaluation at the end of a step shrinks the correction.
    evaluations : int
        Gradients evaluated since.
    nhev, nhcol : int
        Calls for columns, and columns evaluated.
    """

    def __init__(
        self, objective: Objective, start: Sample, log_theta: FloatArray, tol: float
    ) -> None:
        p = log_theta.size
        self._objective, self._tol = objective, tol
        self.rate = float(np.max(np.abs(start.field), initial=0.0)) or 1.0
        self.log_length = np.full(p, np.inf)
        self._coupling = np.zeros(p)  # largest |H_ji| over j, as far as known
        self._known = np.zeros(p, dtype=bool)
        self.contraction = _CONTRACTION
        self.evaluations = self.nhev = self.nhcol = 0
        mobile = np.flatnonzero(log_theta > -np.inf)
        fastest = np.argsort(-np.abs(start.field[mobile]), kind="stable")[:_PROBED]
        self.active: IntArray = np.sort(mobile[fastest])
        self.columns = self._evaluate(start, self.active)
        self.exact: Sample | None = start
        self._measure_lengths(start, self.active)

    @property
    def outdated(self) -> bool:
        """Whether new columns pay for themselves."""
        served = max(_AGE, _AGE_PER_COLUMN * self.active.size)
        return self.contraction > _BAD_CONTRACTION or self.evaluations > served

    @property
    def cheap(self) -> bool:
        """Whether all columns cost little more than one."""
        return self.active.size <= _FEW

    def size(self, sample: Sample) -> float:
        """Largest |θ| in natural lengths."""
        return float(np.max(np.abs(sample.theta) * np.exp(-self.log_length), initial=0.0))

    def measure(self, contraction: float) -> None:
        """Take note of a measured contraction; a single small one may be luck."""
        self.contraction = min(1.0, max(contraction, 0.5 * self.contraction, 0.03))

    def thresholds(self, field: FloatArray) -> FloatArray:
        """log|θ| in natural lengths at which a coordinate needs a column, ∞ if it has one; (p,)."""
        levels = self._levels(field) - self.log_length
        levels[self.active] = np.inf
        return levels

    def _levels(self, field: FloatArray) -> FloatArray:
        # What grows at the rate 2|g| up to |θ| has moved the others by |H||θ|/(2|g|).
        rates = self._growth(field)
        levels: FloatArray = np.log(_DROWSY * self._tol) + np.log(rates / self._couplings())
        return levels

    def select(self, sample: Sample, log_theta: FloatArray, growth: FloatArray) -> Selection:
        """Choose the active coordinates anew, and see to their columns.

        Parameters
        ----------
        sample : Sample
            The field at the present point.
        log_theta : ndarray, shape (p,)
            log|θ|.
        growth : ndarray, shape (p,)
            Its rate, for what has left 0 behind.
        """
        field, started, lengths = sample.field, self.active, self.log_length
        held = np.zeros(field.size, dtype=bool)
        held[started] = True
        keeps = held & (log_theta > self._levels(field) + np.log(_ASLEEP))
        while True:
            # Columns of newcomers may show that others are coupled more strongly than was known.
            levels = self._levels(field)
            woken = ~held & (log_theta > levels - 0.1)
            soon = _soon(woken, log_theta, growth, levels, self.log_length)
            woken |= soon & ~held
            keeps |= soon & held
            before, self.active = self.active, np.flatnonzero(keeps | woken)
            self._extend(before, sample)
            new = np.flatnonzero(woken)
            self._measure_lengths(sample, new)
            if not new.size:
                break
            held |= woken
            keeps |= woken
        return Selection(
            bool(np.any(lengths[started] != self.log_length[started])),
            self._turns(sample, log_theta, growth, started),
        )

    def _turns(
        self, sample: Sample, log_theta: FloatArray, growth: FloatArray, before: IntArray
    ) -> bool:
        """Whether those active before rest while the fastest newcomer grows to its length."""
        new = np.setdiff1d(self.active, before)
        new = new[growth[new] > 0]
        if not new.size:
            return False
        wait = float(np.min((self.log_length - log_theta)[new] / growth[new]))
        rates = np.exp(log_theta - self.log_length) * growth
        speed = float(np.linalg.norm(rates[np.intersect1d(before, self.active)]))
        return speed * wait < _AT_REST

    def _measure_lengths(self, sample: Sample, new: IntArray) -> None:
        """Natural lengths at a sample, after the columns of some coordinates were evaluated.

        A row in the columns of others is less than a coordinate's own column, which may have grown
        since it was seen. What has never had one is taken to be coupled as strongly as any.
        """
        sizes = np.abs(self.columns)
        self._known[new] = True
        self._coupling[new] = np.max(sizes[:, np.isin(self.active, new)], axis=0, initial=0.0)
        asleep = np.isin(np.arange(sizes.shape[0]), self.active, invert=True)
        rows = np.max(sizes[asleep], axis=1, initial=0.0)
        self._coupling[asleep] = np.maximum(self._coupling[asleep], rows)
        lengths = self._growth(sample.field) / self._couplings()
        log_length = np.log(np.maximum(lengths, np.abs(sample.theta)))
        stale = np.abs(log_length - self.log_length) > _STALE
        self.log_length = np.where(stale, log_length, self.log_length)

    def _couplings(self) -> FloatArray:
        """Largest |H_ji| over j, or what stands for it; (p,), positive."""
        strongest = float(np.max(self._coupling, initial=0.0)) or self.rate
        known = self._known & (self._coupling > 0)
        return np.where(known, self._coupling, strongest)

    def _growth(self, field: FloatArray) -> FloatArray:
        return np.maximum(np.abs(field), _SLOW * self.rate)

    def _extend(self, before: IntArray, sample: Sample) -> None:
        """Evaluate the columns of newcomers, or all if that is cheap or due."""
        new = np.isin(self.active, before, invert=True)
        fresh = sample is self.exact
        if not fresh and (before.size <= _FEW or self.outdated):
            self.renew(sample)
            return
        columns = np.zeros((sample.theta.size, self.active.size))
        columns[:, ~new] = self.columns[:, np.isin(before, self.active)]
        columns[:, new] = self._evaluate(sample, self.active[new])
        self.columns, self.exact = columns, sample if fresh else None

    def _evaluate(self, sample: Sample, indices: IntArray) -> FloatArray:
        if not indices.size:
            return np.zeros((sample.theta.size, 0))
        self.nhev += 1
        self.nhcol += indices.size
        columns = self._objective.hessian_columns(sample.theta, indices)
        if not np.all(np.isfinite(columns)):
            raise FlowError(
                "the Hessian is not finite: check that the loss is twice differentiable there, or "
                "choose a method that does without it"
            )
        return columns

    def renew(self, sample: Sample) -> None:
        """Evaluate the columns at a sample of the path."""
        self.columns = np.array(self._evaluate(sample, self.active), order="C")
        self.exact = sample
        self.contraction = min(self.contraction, _CONTRACTION)
        self.evaluations = 0


def _soon(
    new: BoolArray,
    log_theta: FloatArray,
    growth: FloatArray,
    levels: FloatArray,
    log_length: FloatArray,
) -> BoolArray:
    """Mask of the coordinates that wake while the new ones grow to their lengths; (p,)."""
    new = new & (growth > 0)
    if not new.any():
        return new
    wait = float(np.max((log_length - log_theta)[new] / growth[new], initial=0.0))
    soon: BoolArray = (growth > 0) & (log_theta + growth * wait > levels)
    return soon
