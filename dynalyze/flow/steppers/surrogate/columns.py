"""The Hessian columns that the surrogate keeps: of which coordinates, and for how long."""

from dataclasses import dataclass, replace

import numpy as np

from dynalyze._core.arrays import BoolArray, FloatArray, IntArray
from dynalyze.errors import FlowError
from dynalyze.flow.steppers.surrogate.remainder import Sample
from dynalyze.models.protocol import Objective

_NEGLIGIBLE = 1e-3  # |H||θ|/|g|, in units of a step's tolerance, from which a column is needed
_DROPPED = 1e-3  # fraction of that below which the column is no longer kept
_CONTRACTION = 0.15  # of fresh columns, until measured
_BAD_CONTRACTION = 0.3
_SLOW = 1e-6  # smallest growth rate that counts, in units of those at the start
_FEW = 16  # columns that cost little more than one
_PROBED = 4  # columns evaluated at the start
_LIGHTEST = 1e-150  # weight of a coordinate without curvature, until others say what it should be
_INDEFINITE = 4.0  # |H_ij| / (W_i W_j) from which a Hessian counts as not definite
_AGE = 15  # gradients that columns serve at least ...
_AGE_PER_COLUMN = 3.0  # ... or for each column: more columns are dearer


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of the Hessian at some point of the path, of the coordinates that matter.

    A coordinate is *active* when it has a column, and *passive* while |θ_i| is too small to be
    felt in the field of any.
    """

    active: IntArray  # (k,), coordinates that have columns
    matrix: FloatArray  # (p, k)
    exact: Sample | None  # where all of them were evaluated
    age: int  # gradients evaluated since
    contraction: float  # factor by which one more evaluation shrinks the correction of a step
    weight: FloatArray  # (p,), arc length per unit of θ_i; 0 before the first column
    coupling: FloatArray  # (p,), largest |H_ji| over j, as far as known

    @property
    def outdated(self) -> bool:
        """Whether new columns pay for themselves."""
        served = max(_AGE, _AGE_PER_COLUMN * self.active.size)
        return self.contraction > _BAD_CONTRACTION or self.age > served

    @property
    def cheap(self) -> bool:
        """Whether all columns cost little more than one."""
        return self.active.size <= _FEW

    def size(self, sample: Sample) -> float:
        """Largest |θ| in units of arc length."""
        return float(np.max(self.weight * np.abs(sample.theta), initial=0.0))

    def resolution(self, sample: Sample, tol: float, length: float) -> float:
        """Arc length that errors of z leave unresolved: closer samples would ruin differences."""
        return max(1e-9, 0.2 * tol) * max(self.size(sample), 1e-4 * length)

    def after_gradient(self) -> "Columns":
        """These columns, one gradient older."""
        return replace(self, age=self.age + 1)

    def measured(self, contraction: float) -> "Columns":
        """These columns with a measured contraction; a single small one may be luck."""
        contraction = min(1.0, max(contraction, 0.5 * self.contraction, 0.03))
        return replace(self, contraction=contraction)


def first_columns(
    objective: Objective, sample: Sample, mobile: IntArray, units: FloatArray
) -> Columns:
    """Columns of the fastest coordinates at the start, by which the others are judged."""
    p = sample.theta.size
    order = np.argsort(-np.abs(sample.field[mobile]) / units[mobile], kind="stable")
    none = np.zeros(0, dtype=np.int64)
    zero = np.zeros(p)
    empty = Columns(none, np.zeros((p, 0)), sample, 0, _CONTRACTION, zero, zero)
    return with_active(objective, empty, sample, np.sort(mobile[order[:_PROBED]]))


def with_active(
    objective: Objective, columns: Columns, sample: Sample, active: IntArray
) -> Columns:
    """Columns of other coordinates: of those that join, or of all where that is cheap or due."""
    before = columns.active
    new = np.isin(active, before, invert=True)
    fresh = sample is columns.exact
    if not fresh and (columns.cheap or columns.outdated):
        return renewed(objective, columns, sample, active)
    matrix = np.empty((sample.theta.size, active.size))
    matrix[:, ~new] = columns.matrix[:, np.isin(before, active)]
    if new.any():
        matrix[:, new] = _evaluate(objective, sample, active[new])
    return replace(
        columns,
        active=active,
        matrix=matrix,
        exact=sample if fresh else None,
        weight=_weights(columns.weight, active, matrix),
        coupling=_couplings(columns.coupling, active, new, matrix),
    )


def renewed(
    objective: Objective, columns: Columns, sample: Sample, active: IntArray | None = None
) -> Columns:
    """All columns, evaluated at a sample of the path."""
    before = columns.active
    active = before if active is None else active
    matrix = np.array(_evaluate(objective, sample, active), order="C")
    return Columns(
        active=active,
        matrix=matrix,
        exact=sample,
        age=0,
        contraction=min(columns.contraction, _CONTRACTION),
        weight=_weights(columns.weight, active, matrix),
        coupling=_couplings(columns.coupling, active, np.isin(active, before, invert=True), matrix),
    )


def _evaluate(objective: Objective, sample: Sample, indices: IntArray) -> FloatArray:
    if not indices.size:
        return np.zeros((sample.theta.size, 0))
    columns = objective.hessian_columns(sample.theta, indices)
    if not np.all(np.isfinite(columns)):
        raise FlowError(
            "the Hessian is not finite: check that the loss is twice differentiable there, or "
            "choose a method that does without it"
        )
    return columns


def _weights(weight: FloatArray, active: IntArray, matrix: FloatArray) -> FloatArray:
    """Arc length per unit of θ_i, set once: √H_ii, so that the units of the data drop out.

    In these units no entry of a positive definite Hessian exceeds 1. Where it is not definite, as
    for factors of one another near 0, H_ii may say nothing: of two coordinates with a larger H_ij
    the weight of the lighter is raised, or that of both where it would become the heavier.
    """
    unknown = weight[active] == 0
    if not unknown.any():
        return weight
    weight = weight.copy()
    diagonal = np.sqrt(np.abs(matrix[active, np.arange(active.size)]))
    weight[active[unknown]] = np.maximum(diagonal[unknown], _LIGHTEST)
    known = np.flatnonzero(weight)
    sizes = np.abs(matrix[known])
    for _ in range(2 * active.size):
        ratio = sizes / (weight[known, None] * weight[active])
        a, b = np.unravel_index(np.argmax(ratio), ratio.shape)
        if ratio[a, b] <= _INDEFINITE:
            break
        light, heavy = sorted((known[a], active[b]), key=lambda i: weight[i])
        together = float(sizes[a, b])
        weight[light] = min(together / weight[heavy], np.sqrt(together))
        weight[heavy] = max(weight[heavy], np.sqrt(together))
    flat = weight == _LIGHTEST
    weight[flat] = np.max(weight[~flat], initial=0.0) or 1.0
    return weight


def _couplings(
    coupling: FloatArray, active: IntArray, new: BoolArray, matrix: FloatArray
) -> FloatArray:
    """Largest |H_ji| over j as it was first seen, in a column of its own or the rows of others."""
    sizes = np.abs(matrix)
    coupling = np.maximum(coupling, np.max(sizes, axis=1, initial=0.0))
    coupling[active[new]] = np.max(sizes[:, new], axis=0, initial=0.0)
    return coupling


def levels(
    columns: Columns, field: FloatArray, units: FloatArray, rates: FloatArray, tol: float
) -> FloatArray:
    """log|θ| from which a coordinate needs a column; (p,).

    What grows at the rate 2|g| up to |θ| has moved the log coordinates of others by
    |H||θ|/(2|g|); twice that is held against `_NEGLIGIBLE`. What has never had a column is taken
    to be coupled as strongly as any.
    """
    known = columns.weight > 0
    strongest = float(np.max((columns.coupling / units)[known], initial=0.0)) or 1.0
    unknown = ~known | (columns.coupling == 0)
    coupling = np.maximum(columns.coupling, np.where(unknown, strongest * units, 0.0))
    growth = np.maximum(np.abs(field), _SLOW * rates)
    log_levels: FloatArray = np.log(_NEGLIGIBLE * tol) + np.log(growth / coupling)
    return log_levels


def selected(
    objective: Objective,
    columns: Columns,
    sample: Sample,
    log_theta: FloatArray,
    growth: FloatArray,
    units: FloatArray,
    rates: FloatArray,
    tol: float,
) -> Columns:
    """Columns after the active coordinates were chosen anew.

    Parameters
    ----------
    objective : Objective
        The loss.
    columns : Columns
        Those at hand.
    sample : Sample
        The field at the present point.
    log_theta : ndarray, shape (p,)
        log|θ|.
    growth : ndarray, shape (p,)
        Its rate, for what has left 0 behind.
    units : ndarray, shape (p,)
        Units of the fields.
    rates : ndarray, shape (p,)
        Size of the fields at the start.
    tol : float
        Error of z that a step may make.
    """
    held = np.zeros(log_theta.size, dtype=bool)
    held[columns.active] = True
    keeps = held.copy()
    first = True
    while True:
        # Columns of those that join may show that others are coupled more strongly than was known.
        level = levels(columns, sample.field, units, rates, tol)
        log_length = level - np.log(_NEGLIGIBLE * tol)  # of |θ_i|, naturally: |g_i| / max_j |H_ji|
        if first:
            keeps = held & (log_theta > level + np.log(_DROPPED))
            first = False
        joining = ~held & (log_theta > level - 0.1)
        soon = _soon(joining, log_theta, growth, level, log_length)
        joining |= soon & ~held
        keeps |= soon & held
        new = bool(joining.any())
        columns = with_active(objective, columns, sample, np.flatnonzero(keeps | joining))
        if not new:
            return columns
        held |= joining
        keeps |= joining


def _soon(
    joining: BoolArray,
    log_theta: FloatArray,
    growth: FloatArray,
    level: FloatArray,
    log_length: FloatArray,
) -> BoolArray:
    """Mask of the coordinates that reach their level while those that join grow to their length."""
    joining = joining & (growth > 0)
    if not joining.any():
        return joining
    wait = float(np.max((log_length - log_theta)[joining] / growth[joining], initial=0.0))
    soon: BoolArray = (growth > 0) & (log_theta + growth * wait > level)
    return soon
