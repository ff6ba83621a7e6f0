"""The surrogate flow of very many active coordinates, followed by LSODA.

RODAS factorizes a k × k matrix in every inner step. Beyond some size that is dearer than all else;
LSODA integrates without any matrix, and keeps one for many steps where coordinates come to rest.
"""

import numpy as np
from scipy.integrate import LSODA

from dynalyze._core.arrays import FloatArray
from dynalyze.flow.steppers.surrogate.path import (
    ERROR_LIMIT,
    FAILED,
    GAUSS_POINTS,
    MOST_STEPS,
    PAUSE,
    PAUSED,
    REACHED_END,
    THRESHOLD,
    Path,
    StoppingCriteria,
    accumulate,
    approach,
    predicted_error,
)
from dynalyze.flow.steppers.surrogate.rosenbrock import (
    Surrogate,
    iteration_matrix,
    surrogate_rates,
    work_space,
)

_LARGEST = 150.0  # log|θ| that no flow reaches
MANY = 128  # active coordinates from which LSODA is the faster


def follow_many(  # noqa: PLR0915 — what a step of LSODA shares with the next is local
    flow: Surrogate,
    s: float,
    duration: float,
    first_step: float,
    tol: float,
    stopping: StoppingCriteria,
) -> Path:
    """Do what `path.follow` does, but for turns; LSODA finds its first step itself."""
    p, active = flow.up.size, flow.active
    work = work_space(p, active.size)
    lowest, highest = (
        np.append(flow.down - _LARGEST, -np.inf),
        np.append(_LARGEST - flow.up, np.inf),
    )

    def rate(_: float, y: FloatArray) -> FloatArray:
        y = np.clip(y, lowest / 2, highest / 2)  # trial steps overshoot, and must stay finite
        surrogate_rates(flow, y, work.start)
        return work.start.rates.copy()

    def jacobian(_: float, y: FloatArray) -> FloatArray:
        surrogate_rates(flow, np.clip(y, lowest / 2, highest / 2), work.start)
        iteration_matrix(flow, work, 0.0)
        matrix = np.zeros((p + 1, p + 1))
        matrix[:p, active] = -flow.columns * work.start.slope
        matrix[:p, p] = work.start.remainder_slope
        matrix[p, active], matrix[p, p] = -work.matrix[:-1, -1], -work.matrix[-1, -1]
        return matrix

    y = np.append(np.zeros(p), s)
    t, values, rates, dense = [0.0], [y], [rate(0.0, y)[:p]], []
    # Where P is constant the arc length moves nothing; else its error counts as one of log|θ|.
    allowed = max(tol, 1e-14) * np.ones(p + 1)
    allowed[p] = allowed[p] * np.max(work.start.slope) if len(flow.newton) > 1 else 1e300
    solver = LSODA(rate, 0.0, y, duration, rtol=2.3e-14, atol=allowed, jac=jacobian, max_step=1e200)
    integrals, sums = np.zeros((3, stopping.sizes.size)), np.zeros((3, stopping.sizes.size))
    status, order = 0, 1
    while status == 0:
        solver.step()
        if solver.status == "failed" or not solver.t > t[-1] or len(t) > MOST_STEPS:
            status = FAILED
            break
        inner, end = solver.dense_output(), float(solver.t)
        right = end
        while status == 0 and t[-1] < end:
            left, before, new = t[-1], values[-1], inner(right)
            arc = inner(left + (right - left) * GAUSS_POINTS)[p]
            accumulate(integrals, sums, right - left, arc, flow.nodes, stopping.resolution)
            predicted, reached = 0.0, False
            if stopping.free:
                fraction, reached = approach(flow, before, new, stopping.thresholds)
                predicted, order = predicted_error(sums, float(new[p]), stopping)
                if fraction < 1.0 or predicted > 1.3:
                    right = left + (right - left) * (fraction if fraction < 1.0 else 0.5)
                    continue
            integrals, sums = sums, integrals
            t.append(right)
            values.append(new)
            rates.append(rate(right, new)[:p])
            dense.append(inner)
            right = end
            if reached:
                status = THRESHOLD
            elif predicted > 0.6:
                status = ERROR_LIMIT
        if status == 0 and solver.status == "finished":
            status = REACHED_END
        elif status == 0 and stopping.free and len(t) > PAUSE:
            status = PAUSED
    return Path(
        status, np.array(t), np.array(values), np.array(rates), dense, integrals, order, first_step
    )
