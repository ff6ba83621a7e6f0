"""The Hessian columns that an integrator keeps: of which coordinates, and for how long."""

import numpy as np

from dynalyze._typing import BoolArray, FloatArray, IntArray
from dynalyze.errors import FlowError
from dynalyze.flow._remainder import Sample
from dynalyze.models.protocol import Objective

_DROWSY = 1e-5  # contribution, in units of tol, from which a coordinate has a column
_ASLEEP = 1e-3  # fraction of that below which it loses the column
_CONTRACTION = 0.15  # of fresh columns, until measured
_BAD_CONTRACTION = 0.3
_FEW = 16  # columns that cost little more than one
_AGE = 10  # evaluations that columns serve at least ...
_AGE_PER_COLUMN = 1.0  # ... or for each column: more columns are dearer


class FrozenHessian:
    """Columns of the Hessian at some point of the path, of the coordinates that matter.

    Parameters
    ----------
    objective : Objective
        The loss.
    up, down : ndarray, shape (p,)
        θ = e^{up + 2z} − e^{down − 2z}.
    tol : float
        Error of z that a step may make.

    Attributes
    ----------
    active : ndarray of int, shape (k,)
        Coordinates that have columns.
    columns : ndarray, shape (p, k)
        The columns.
    exact : Sample or None
        Point at which they were evaluated.
    contraction : float
        Factor by which one more evaluation at the end of a step shrinks the correction.
    evaluations : int
        Gradients evaluated since.
    nhev, nhcol : int
        Calls for columns, and columns evaluated.
    """

    def __init__(self, objective: Objective, up: FloatArray, down: FloatArray, tol: float) -> None:
        self._objective = objective
        self._up, self._down, self._tol = up, down, tol
        self.active: IntArray = np.zeros(0, dtype=np.int64)
        self.columns = np.zeros((up.size, 0))
        self.exact: Sample | None = None
        self.contraction = _CONTRACTION
        self.evaluations = self.nhev = self.nhcol = 0

    @property
    def outdated(self) -> bool:
        """Whether new columns pay for themselves."""
        served = max(_AGE, _AGE_PER_COLUMN * self.active.size)
        return self.contraction > _BAD_CONTRACTION or self.evaluations > served

    @property
    def cheap(self) -> bool:
        """Whether all columns cost little more than one."""
        return self.active.size <= _FEW

    def measure(self, contraction: float) -> None:
        """Take note of a measured contraction; a single small one may be luck."""
        self.contraction = min(1.0, max(contraction, 0.5 * self.contraction, 0.03))

    def thresholds(self, field: FloatArray) -> FloatArray:
        """log|θ| at which coordinates without a column need one, ∞ for the active ones; (p,)."""
        levels = self._levels(field)
        levels[self.active] = np.inf
        return levels

    def _levels(self, field: FloatArray) -> FloatArray:
        # What grows at the rate 2|g| up to |θ| has moved the others by |H||θ|/(2|g|).
        levels: FloatArray = np.log(_DROWSY * self._tol * np.clip(np.abs(field), 1e-6, 1.0))
        return levels

    def select(self, z: FloatArray, sample: Sample) -> None:
        """Choose the active coordinates anew at log coordinates z, and see to their columns."""
        field = sample.field
        sizes: FloatArray = np.maximum(self._up + 2 * z, self._down - 2 * z)  # log|θ|
        levels = self._levels(field)
        awake = sizes > levels - 0.1
        held = np.zeros(z.size, dtype=bool)
        held[self.active] = True
        growth = 2 * np.sign(z) * field
        awake |= _soon(awake & ~held, sizes, growth, levels)
        awake |= held & (sizes > levels + np.log(_ASLEEP))
        before, self.active = self.active, np.flatnonzero(awake)
        self._extend(before, sample)

    def _extend(self, before: IntArray, sample: Sample) -> None:
        """Evaluate the columns of newcomers, or all if that is cheap or due."""
        new = np.isin(self.active, before, invert=True)
        if before.size <= _FEW or self.outdated:
            self.renew(sample)
            return
        columns = np.zeros((sample.theta.size, self.active.size))
        columns[:, ~new] = self.columns[:, np.isin(before, self.active)]
        columns[:, new] = self._evaluate(sample, self.active[new])
        self.columns, self.exact = columns, None

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


def _soon(new: BoolArray, sizes: FloatArray, growth: FloatArray, levels: FloatArray) -> BoolArray:
    """Mask of the coordinates that wake while the new ones grow to order one; (p,)."""
    new = new & (growth > 0)
    if not new.any():
        return new
    wait = float(np.max(-sizes[new] / growth[new], initial=0.0))
    soon: BoolArray = (growth > 0) & (sizes + growth * wait > levels)
    return soon
